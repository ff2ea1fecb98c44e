"""The driver of agents over HTTP: where it connects to, and what it says there."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from retinue.domain.agent import (
    AgentDefinition,
    Capability,
    HttpConfig,
    Registration,
    definition_of_remote,
)
from retinue.domain.contract import GENESIS
from retinue.domain.egress import Policy
from retinue.domain.execution import Execution, State
from retinue.domain.ids import now_us, ulid
from retinue.domain.policy import Delivery
from retinue.drivers.http import HttpDriver, connection
from retinue.errors import CommunicationError, EgressDenied, SpawnFailed
from retinue.interfaces import DriverContext, Job
from retinue.testing.http_agents import HttpAgent

PUBLIC = "93.184.216.34"


async def submit(*_: Any) -> Any:
    raise AssertionError


LENT = DriverContext(submit, 1 << 20, cast(Any, None))


def definition(endpoint: str, **config: Any) -> AgentDefinition:
    given = Registration(
        agent_id="remote",
        name="Remote",
        endpoint=endpoint,
        capabilities=(Capability(name="good"),),
        concurrency=2,
    )
    config = {"secret": None} | config
    return definition_of_remote(given, HttpConfig(endpoint=endpoint, **config))


def job(capability: str = "good") -> Job:
    at = now_us()
    execution = Execution(
        id=ulid(), owner="ann", created_by="ann", session_id="s", from_agent="orchestrator",
        agent_id="remote", capability=capability, queue_key="agent:remote", state=State.RUNNING,
        priority=0, attempt=1, worker="w", delivery=Delivery.AT_MOST_ONCE, max_attempts=1,
        last_seq=0, digest=GENESIS, deadline_at=None, run_at=at, cancel_requested_at=None,
        created_at=at, started_at=at, finished_at=None, outcome=None, error_code=None, cursor=None,
        request_id=ulid(), request_n=0, response_id=None, response_n=None, parent_id=None, depth=0,
    )  # fmt: skip
    return Job(execution, {"n": 1}, None, None)


class Names:
    """Resolves every name to what comes next; the last answer stays."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def run(driver: HttpDriver, agent: AgentDefinition, capability: str = "good") -> Any:
    instance = await driver.start(agent, LENT)
    try:
        async with instance.execute(job(capability)) as events:
            (event,) = [event async for event in events]
        return event.data["result"]
    finally:
        await instance.stop(1.0)


@pytest.fixture
async def agent() -> AsyncIterator[HttpAgent]:
    with HttpAgent() as agent:
        yield agent


async def test_a_name_that_leads_elsewhere_by_now_is_not_followed(agent: HttpAgent) -> None:
    names = Names([PUBLIC], ["127.0.0.1"])
    driver = HttpDriver(Policy(), names)
    rebinding = definition(f"http://agents.example:{agent.port}")
    await driver.check(rebinding)
    with pytest.raises(EgressDenied, match=r"127\.0\.0\.1") as refused:
        await run(driver, rebinding)
    assert refused.value.outcome == "not_started"
    assert len(names.asked) == 2
    assert agent.connections == 0


async def test_it_connects_to_the_very_address_that_was_judged(agent: HttpAgent) -> None:
    # Asked again, the name would lead to where nobody is.
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    driver = HttpDriver(Policy.of(["agents.example"]), names)
    data = await run(driver, definition(f"http://agents.example:{agent.port}/base/"))
    assert data["parameters"] == {"n": 1}
    assert names.asked == [("agents.example", agent.port)]
    (received,) = agent.received
    assert received.headers["host"] == f"agents.example:{agent.port}"
    assert received.path == "/base/execute"


async def test_each_new_connection_is_judged_and_the_next_address_tried(agent: HttpAgent) -> None:
    names = Names(["127.0.0.9", "127.0.0.1"])
    driver = HttpDriver(Policy.of(["127.0.0.0/8"]), names)
    assert await run(driver, definition(f"http://agents.example:{agent.port}"))
    with pytest.raises(EgressDenied):
        await HttpDriver(Policy.of(["127.0.0.9"]), names).check(
            definition(f"http://agents.example:{agent.port}")
        )


async def test_the_operators_own_agents_may_be_anywhere(agent: HttpAgent) -> None:
    trusted = definition(agent.endpoint, trusted=True)
    assert await run(HttpDriver(Policy()), trusted)
    with pytest.raises(EgressDenied):
        await run(HttpDriver(Policy()), definition(agent.endpoint))


async def test_without_a_secret_nothing_is_signed(agent: HttpAgent) -> None:
    await run(HttpDriver(Policy()), definition(agent.endpoint, trusted=True))
    assert not any(name.startswith("retinue-sig") for name in agent.received[0].headers)


async def test_an_agent_that_cannot_be_called_from_here_is_not_started() -> None:
    with pytest.raises(SpawnFailed, match="wrong key"):
        await HttpDriver(Policy()).start(definition("http://x", fault="wrong key"), LENT)


async def test_a_name_that_is_not_found_is_refused_at_once_and_not_started_later() -> None:
    async def nothing(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    driver = HttpDriver(Policy(), nothing)
    with pytest.raises(EgressDenied, match="cannot be resolved"):
        await driver.check(definition("http://agents.example"))
    with pytest.raises(CommunicationError, match="cannot be resolved") as failed:
        await run(driver, definition("http://agents.example"))
    assert failed.value.outcome == "not_started"


async def test_a_resolver_that_hangs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinue.drivers.http.RESOLVE_SECONDS", 0.05)
    monkeypatch.setattr("retinue.drivers.http.connection.CONNECT_SECONDS", 0.05)

    async def never(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    driver = HttpDriver(Policy(), never)
    with pytest.raises(EgressDenied):
        await driver.check(definition("http://agents.example"))
    with pytest.raises(CommunicationError, match="not resolved") as failed:
        await run(driver, definition("http://agents.example"))
    assert failed.value.outcome == "not_started"


async def test_leaving_a_call_closes_its_connection(agent: HttpAgent) -> None:
    instance = await HttpDriver(Policy()).start(definition(agent.endpoint, trusted=True), LENT)

    async def call() -> None:
        async with instance.execute(job("wait")) as events:
            async for _ in events:
                raise AssertionError

    calls = [asyncio.create_task(call()) for _ in range(3)]
    await asyncio.to_thread(agent.wait_for, lambda: len(agent.received) == 3, "three calls")
    for task in calls:
        task.cancel()
    await asyncio.wait(calls)
    await asyncio.to_thread(agent.wait_for, lambda: agent.open_connections == 0, "closed")
    # The room in the pool is free again.
    async with instance.execute(job()) as events:
        assert [event async for event in events]
    await instance.stop(1.0)
    await asyncio.to_thread(agent.wait_for, lambda: agent.open_connections == 0, "closed")


async def test_calls_are_bounded_by_the_agents_concurrency(agent: HttpAgent) -> None:
    instance = await HttpDriver(Policy()).start(definition(agent.endpoint, trusted=True), LENT)

    async def call() -> int:
        async with instance.execute(job("wait")) as events:
            return len([event async for event in events])

    calls = [asyncio.create_task(call()) for _ in range(10)]
    await asyncio.to_thread(agent.wait_for, lambda: len(agent.received) == 3, "three calls")
    assert agent.connections == 3
    agent.let_go()
    assert await asyncio.gather(*calls) == [1] * 10
    assert agent.connections == 3
    await instance.stop(1.0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of agents.example in one file."""
    path = tmp_path_factory.mktemp("tls") / "agents.pem"
    try:
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=agents.example", "-addext", "subjectAltName=DNS:agents.example"),
                *("-keyout", str(path), "-out", str(path.with_suffix(".crt"))),
            ],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no openssl here to make a certificate with")
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@pytest.fixture
def trusting(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has the driver trust that certificate."""

    def trust() -> None:
        context = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(connection, "_tls", lambda: context)

    return trust


async def test_tls_asks_for_the_name_and_verifies_it(
    certificate: Path, trusting: Callable[[], None]
) -> None:
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate)
    asked: list[str | None] = []
    served.sni_callback = lambda _, name, __: asked.append(name)
    driver = HttpDriver(Policy.of(["127.0.0.1"]), Names(["127.0.0.1"]))
    with HttpAgent(tls=served) as agent:
        url = f"https://agents.example:{agent.port}"
        with pytest.raises(CommunicationError, match="CERTIFICATE_VERIFY_FAILED") as unknown:
            await run(driver, definition(url))
        assert unknown.value.outcome == "not_started"
        trusting()
        assert await run(driver, definition(url))
        assert asked[-1] == "agents.example"
        with pytest.raises(CommunicationError, match="CERTIFICATE_VERIFY_FAILED"):
            await run(driver, definition(f"https://other.example:{agent.port}"))
        assert len(agent.received) == 1


def test_who_has_no_such_agent_does_not_pay_for_the_client() -> None:
    program = (
        "import sys, asyncio, retinue\n"
        "async def main():\n"
        "    async with retinue.Runtime():\n"
        "        pass\n"
        "asyncio.run(main())\n"
        "print([name for name in ('httpcore', 'httpx', 'anyio') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

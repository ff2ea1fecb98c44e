"""Starting and stopping: what refuses to start, and what a signal does to work in hand."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from retinue import Runtime, Settings
from retinue.domain.principal import Role
from retinue.errors import SettingsError
from retinue.orchestrator import LOCAL_ADMIN
from retinue.server.serve import bind, is_loopback, serve, url_of

if TYPE_CHECKING:
    from tests.server.conftest import Served

PROGRAM = Path(__file__).with_name("program.py")


def plain(**settings: Any) -> Settings:
    return Settings(**{"examples": False, "entry_points": False, "port": 0, **settings})


# -- binding -----------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"127\.0\.0\.1:{port}.*in use"):
            bind(plain(port=port))


def test_two_of_ours_cannot_share_a_port() -> None:
    with contextlib.closing(bind(plain())) as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingsError, match="in use"):
            bind(plain(port=port))


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(SettingsError, match=f"cannot listen on {host}:0"):
        bind(plain(host=host))


@pytest.mark.parametrize(
    ("host", "url", "loopback"),
    [
        ("127.0.0.1", "http://127.0.0.1:", True),
        ("localhost", "http://127.0.0.1:", True),
        ("0.0.0.0", "http://127.0.0.1:", False),
    ],
)
def test_where_a_socket_is_reached(host: str, url: str, loopback: bool) -> None:
    with contextlib.closing(bind(plain(host=host))) as listener:
        assert url_of(listener) == f"{url}{listener.getsockname()[1]}"
        assert is_loopback(listener) is loopback


async def test_no_key_no_listening_beyond_this_machine(tmp_path: Path) -> None:
    settings = plain(host="0.0.0.0", data_dir=tmp_path)
    runtime = Runtime(settings)
    with pytest.raises(SettingsError, match="no API key"):
        await serve(runtime, settings, bind(settings), stop=asyncio.Event())
    # The store is closed again: the next one opens it.
    async with Runtime(settings) as orchestrator:
        await orchestrator.keys.create("root", Role.ADMIN, "local", by=LOCAL_ADMIN)


def test_with_a_key_it_listens_beyond_this_machine(
    start: Callable[..., Served], tmp_path: Path
) -> None:
    async def make() -> str:
        async with Runtime(plain(data_dir=tmp_path)) as orchestrator:
            key = await orchestrator.keys.create("root", Role.ADMIN, "local", by=LOCAL_ADMIN)
            return key[1]

    secret = asyncio.run(make())
    server = start(host="0.0.0.0")
    with server.client() as nobody, server.client(secret) as admin:
        assert nobody.get("/v1/agents").status_code == 401
        assert admin.get("/v1/agents").status_code == 200
        # Reached by its own address it answers; under a name it was not told of it does not.
        assert admin.get("/v1/agents", headers={"Host": "retinue.example"}).status_code == 421


# -- signals -----------------------------------------------------------------------------------


class Program:
    """The server as a process."""

    def __init__(self, url: str, grace: float) -> None:
        command = [sys.executable, str(PROGRAM), url, str(grace)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.process.stderr and self.process.stderr.read()
        self.client = httpx.Client(base_url=self.url, timeout=20, trust_env=False)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it logged."""
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    with contextlib.ExitStack() as stack:

        def begin(*, grace: float = 10) -> Program:
            program = Program(f"sqlite:///{tmp_path / 'retinue.db'}", grace)
            stack.callback(program.close)
            return program

        yield begin


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream's lines."""
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line[6:])


def begin_work(program: Program, flag: Path) -> str:
    """Submit a task that works until ``flag`` exists; return once it has begun."""
    task = {"session_id": "s", "capability": "until", "parameters": {"path": str(flag)}}
    execution: str = program.client.post("/v1/executions", json=task).json()["execution_id"]
    with program.client.stream("GET", f"/v1/executions/{execution}/events") as stream:
        next(events(stream.iter_lines()))
    return execution


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_work_end_and_streams_with_it(
    launch: Callable[..., Program], tmp_path: Path, number: signal.Signals
) -> None:
    program = launch()
    flag = tmp_path / "flag"
    execution = begin_work(program, flag)
    waiting = {"session_id": "s", "capability": "until", "parameters": {"path": str(flag)}}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        caller = pool.submit(program.client.post, "/v1/orchestrate", json=waiting)
        _until(lambda: program.client.get("/v1/executions").json()["total"] == 2)
        with program.client.stream("GET", f"/v1/executions/{execution}/events") as stream:
            seen = events(stream.iter_lines())
            assert next(seen)["message"] == "begun"
            program.signal(number)
            _until(lambda: program.client.get("/v1/health").status_code == 503)
            assert program.client.get("/v1/health").json()["status"] == "draining"
            refused = program.client.post("/v1/orchestrate", json=waiting)
            assert refused.status_code == 503
            assert refused.json()["code"] == "E_SHUTTING_DOWN"
            assert refused.headers["retry-after"]
            # Reading goes on.
            assert program.client.get(f"/v1/executions/{execution}").json()["state"] == "running"
            flag.touch()
            # The stream is not torn: httpx would raise for a body that ends early.
            assert [event["eventType"] for event in seen] == ["progress", "completed"]
        reply = caller.result(20)
    assert reply.json()["success"] is True
    code, log = program.ended()
    assert code == 0, log
    assert "Traceback" not in log
    assert "ERROR" not in log


def test_what_does_not_end_in_the_grace_period_is_stopped_and_said(
    launch: Callable[..., Program], tmp_path: Path
) -> None:
    program = launch(grace=0.3)
    execution = begin_work(program, tmp_path / "never")
    with program.client.stream("GET", f"/v1/executions/{execution}/events") as stream:
        seen = events(stream.iter_lines())
        next(seen)
        program.signal(signal.SIGTERM)
        last = list(seen)[-1]
    assert last["eventType"] == "failed"
    assert last["code"] == "E_SHUTTING_DOWN"
    code, log = program.ended()
    assert code == 0
    assert "grace period is over" in log


def test_a_second_signal_ends_at_once_and_loses_nothing(
    launch: Callable[..., Program], tmp_path: Path
) -> None:
    program = launch(grace=600)
    execution = begin_work(program, tmp_path / "never")
    program.signal(signal.SIGTERM)
    _until(lambda: program.client.get("/v1/health").status_code == 503)
    before = time.monotonic()
    program.signal(signal.SIGTERM)
    code, _ = program.ended()
    assert time.monotonic() - before < 5
    assert code == 128 + signal.SIGTERM
    again = launch()
    path = f"/v1/executions/{execution}"
    found = again.client.get(path).json()
    assert found["state"] == "failed"
    assert found["outcome"] == "unknown"
    assert again.client.get("/v1/ledger/verify").json()["ok"] is True


def test_an_idle_server_stops_at_once(launch: Callable[..., Program]) -> None:
    program = launch(grace=600)
    program.client.get("/v1/health")  # leaves a connection open
    before = time.monotonic()
    program.signal(signal.SIGTERM)
    code, log = program.ended()
    assert code == 0, log
    assert time.monotonic() - before < 3


def _until(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)

"""Health checks of agents in this process: who is asked, and what follows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from retinue import Agent, AgentCapability, Orchestrator, Runtime, Settings, capability
from retinue.errors import AgentUnavailable
from retinue.interfaces import Page
from retinue.orchestrator import AgentView

SECONDS = 20.0


@pytest.fixture
async def orchestrator(tmp_path: Path) -> AsyncIterator[Orchestrator]:
    """A system that asks very often."""
    settings = Settings(
        data_dir=tmp_path,
        examples=False,
        entry_points=False,
        health_interval_seconds=0.02,
        health_timeout_seconds=0.05,
    )
    async with Runtime(settings) as orchestrator:
        yield orchestrator


class Patient(Agent):
    """Answers health checks as a test has it do."""

    def __init__(self, agent_id: str, health: Callable[[], Any]) -> None:
        super().__init__(agent_id, agent_id)
        self.answer = health
        self.asked = 0

    async def execute(self, task: dict[str, Any]) -> Any:
        return self.agent_id

    async def health(self) -> bool:
        self.asked += 1
        answer = self.answer()
        result: bool = await answer if asyncio.iscoroutine(answer) else answer
        return result

    def get_capabilities(self) -> list[AgentCapability]:
        return [AgentCapability("work")]


async def until(orchestrator: Orchestrator, agent_id: str, status: str) -> AgentView:
    async with asyncio.timeout(SECONDS):
        while (view := await orchestrator.agent(agent_id)).status != status:
            await asyncio.sleep(0.01)
    return view


def broken() -> bool:
    raise ConnectionError("the database is away\0")


async def stubborn() -> bool:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if stubborn_may_end.is_set():
                raise


stubborn_may_end = threading.Event()


@pytest.mark.requirement("003.agent-health")
@pytest.mark.parametrize(
    ("ill", "reason"),
    [
        (lambda: False, "it says that it is not healthy"),
        (broken, "ConnectionError: the database is away\N{REPLACEMENT CHARACTER}"),
        (lambda: asyncio.sleep(3600), "no answer to a health check within 0.05 s"),
    ],
)
async def test_an_agent_that_is_ill_gets_no_task_until_it_is_well(
    orchestrator: Orchestrator, ill: Callable[[], Any], reason: str
) -> None:
    agent = Patient("patient", lambda: True)
    orchestrator.register_agent(agent)
    task = {"capability": "work"}
    assert (await orchestrator.orchestrate("s", task))["success"]
    async with asyncio.timeout(SECONDS):
        while (await orchestrator.agent("patient")).last_heartbeat is None:
            await asyncio.sleep(0.01)
    agent.answer = ill
    view = await until(orchestrator, "patient", "offline")
    assert view.reason == reason
    with pytest.raises(AgentUnavailable):
        await orchestrator.orchestrate("s", task)
    agent.answer = lambda: True
    view = await until(orchestrator, "patient", "available")
    assert view.reason is None
    assert (await orchestrator.orchestrate("s", task))["success"]
    rows = [row for row in (await orchestrator.audit(Page())).items if row.target == "patient"]
    assert [row.action for row in rows] == ["agent.offline", "agent.online"]


@pytest.mark.requirement("003.agent-health")
async def test_two_bad_checks_are_not_enough(orchestrator: Orchestrator) -> None:
    answers = [True, False, False, True] * 5

    def next_one() -> bool:
        return answers.pop() if answers else True

    orchestrator.register_agent(Patient("flapping", next_one))
    seen = set()
    async with asyncio.timeout(SECONDS):
        while answers:
            seen.add((await orchestrator.agent("flapping")).status)
            await asyncio.sleep(0)
    assert seen == {"available"}
    assert (await orchestrator.audit(Page())).items == []


@pytest.mark.requirement("003.agent-health")
async def test_a_check_that_swallows_its_cancellation_is_asked_once(
    orchestrator: Orchestrator,
) -> None:
    stubborn_may_end.clear()
    agent = Patient("stubborn", stubborn)
    orchestrator.register_agent(agent)
    orchestrator.register_agent(Patient("well", lambda: True))
    view = await until(orchestrator, "stubborn", "offline")
    assert view.reason == "its last health check has not ended"
    assert agent.asked == 1
    assert (await orchestrator.orchestrate("s", {"capability": "work"}))["agent_id"] == "well"
    stubborn_may_end.set()


@pytest.mark.requirement("003.agent-health")
async def test_a_blocking_check_blocks_a_thread_of_its_own_only(
    orchestrator: Orchestrator,
) -> None:
    let, threads = threading.Event(), set[int]()

    class Blocking(Patient):
        def health(self) -> bool:  # type: ignore[override]
            threads.add(threading.get_ident())
            return let.wait(SECONDS)

    orchestrator.register_agent(Blocking("blocking", lambda: True))
    view = await until(orchestrator, "blocking", "offline")
    assert view.reason in {
        "no answer to a health check within 0.05 s",
        "its last health check has not returned",
    }
    assert threading.get_ident() not in threads
    assert len(threads) == 1
    let.set()
    await until(orchestrator, "blocking", "available")


@pytest.mark.requirement("003.agent-health")
async def test_an_agent_without_a_check_of_its_own_is_well(orchestrator: Orchestrator) -> None:
    @capability()
    async def plain() -> int:
        return 1

    orchestrator.register_agent(plain)
    async with asyncio.timeout(SECONDS):
        while (await orchestrator.agent("plain")).last_heartbeat is None:
            await asyncio.sleep(0.01)
    assert (await orchestrator.agent("plain")).status == "available"

"""What does not fit waits: by count and by memory, with the reason for everybody to see."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.process.rig import until

from retinue import Runtime, Settings
from retinue.domain.agent import AgentDefinition, Capability
from retinue.domain.execution import State, Task
from retinue.domain.policy import RatePolicy
from retinue.engine.entry import Entry
from retinue.engine.registry import Registry
from retinue.errors import SettingsError
from retinue.interfaces import Instance
from retinue.settings import CommandReference

WAITS = "while ! [ -e $0 ]; do sleep 0.01; done"


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    systems: list[Runtime] = []

    async def start(*commands: CommandReference, **more: Any) -> Runtime:
        settings = Settings(
            data_dir=tmp_path, examples=False, entry_points=False, agents=commands, **more
        )
        system = Runtime(settings)
        systems.append(system)
        await system.start()
        return system

    yield start
    for system in systems:
        await system.stop(grace=0)


def waiter(name: str, file: Path, **more: Any) -> CommandReference:
    command = ("sh", "-c", WAITS, str(file))
    return CommandReference(driver="command", agent_id=name, command=command, **more)


async def submit(system: Runtime, agent_id: str) -> str:
    task = Task(session_id="s", agent_id=agent_id, parameters={"prompt": ""})
    return (await system.orchestrator.submit(task)).execution_id


async def states(system: Runtime, *ids: str) -> list[State]:
    return [(await system.orchestrator.execution(i)).state for i in ids]


@pytest.mark.requirement("001.max-concurrent")
async def test_what_there_is_no_memory_for_waits_and_says_so(started: Any, tmp_path: Path) -> None:
    large = waiter("large", tmp_path / "go", max_memory_mb=60)
    small = waiter("small", tmp_path / "small", max_memory_mb=30)
    system = await started(large, small, max_agents_memory_mb=100)
    first, second, third = [await submit(system, "large") for _ in range(3)]
    little = await submit(system, "small")
    await until(lambda: len(system.keeper.children) == 2)
    assert await states(system, first, second, third, little) == [
        State.RUNNING, State.QUEUED, State.QUEUED, State.RUNNING,
    ]  # fmt: skip
    line = system.orchestrator.line
    place, why = await line(await system.orchestrator.execution(third))
    assert place == 1
    assert why == "it needs 60 MB and 10 MB of 100 MB are left (max_agents_memory_mb)"
    await asyncio.to_thread((tmp_path / "go").touch)
    for one in (first, second, third):
        await until_done(system, one)
    assert (await states(system, little)) == [State.RUNNING]
    await asyncio.to_thread((tmp_path / "small").touch)
    await until_done(system, little)
    assert system.engine.registry.why("agent:large") is None


async def until_done(system: Runtime, execution_id: str) -> None:
    async for _ in system.orchestrator.follow(execution_id):
        pass
    assert await states(system, execution_id) == [State.COMPLETED]


@pytest.mark.requirement("001.max-concurrent")
async def test_what_there_is_no_slot_for_waits_and_says_so(started: Any, tmp_path: Path) -> None:
    more = waiter("more", tmp_path / "go", concurrency=2)
    system = await started(more, waiter("other", tmp_path / "go"), max_concurrent_executions=3)
    ids = [await submit(system, "more") for _ in range(50)]
    await until(lambda: len(system.keeper.children) == 2)
    registry = system.engine.registry
    waiting = await system.orchestrator.execution(ids[-1])
    assert await system.orchestrator.line(waiting) == (
        47,
        "2 executions of its agents run, which is all that may (concurrency)",
    )
    assert registry.why("agent:other") is None
    await submit(system, "other")
    await until(lambda: len(system.keeper.children) == 3)
    why = "3 executions run, which is all that may (max_concurrent_executions)"
    assert registry.why("agent:other") == why
    assert registry.why("agent:nobody") == "no agent here can do it"
    assert (await states(system, *ids)).count(State.RUNNING) == 2


async def test_an_agent_that_can_never_run_is_refused_at_the_start(
    started: Any, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="large may use 60 MB, all agents together only 50 MB"):
        await started(waiter("large", tmp_path, max_memory_mb=60), max_agents_memory_mb=50)


async def never() -> Instance:
    raise AssertionError


def test_one_that_fits_is_taken_before_one_that_does_not() -> None:
    registry = Registry(memory=100)

    def add(name: str, memory: int) -> Entry:
        work = (Capability(name="work"),)
        definition = AgentDefinition(agent_id=name, name=name, capabilities=work, memory=memory)
        return registry.add(definition, never)

    large, small = add("large", 70), add("small", 20)
    registry.slots.take(large)
    registry.slots.take(small)  # as loaded as the other one, and after it
    route = registry.route("work", None)
    assert route.entry is None
    registry.slots.give(small)
    registry.slots.take(small)
    assert registry.slots.room_for(small) == 0
    registry.slots.give(large)
    assert registry.slots.room_for(large) == 1
    registry.slots.take(large)
    registry.slots.give(small)
    assert registry.route("work", None).entry is small
    registry.slots.take(small)
    registry.set_health(small, "gone")
    registry.set_health(large, "gone, too")
    assert registry.why("cap:work") == "no agent for it is healthy: large: gone, too"


def test_a_rate_and_a_circuit_are_reasons_too() -> None:
    registry = Registry()
    definition = AgentDefinition(
        agent_id="it",
        name="it",
        capabilities=(Capability(name="work"),),
        concurrency=1,
        rate=RatePolicy(per_minute=1),
    )
    entry = registry.add(definition, never)
    assert registry.why("cap:work") is None
    entry.admit(time.monotonic())
    why = registry.why("cap:work") or ""
    assert why.startswith("its agents may be called again in ")
    assert why == registry.why("agent:it")
    registry.slots.take(entry)
    assert (registry.why("agent:it") or "").startswith("1 executions of its agents run")

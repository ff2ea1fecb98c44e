"""Deadlines and cancellations that come while something else is under way."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from retinue import Options, Orchestrator, Runtime, Settings, capability
from retinue.domain.execution import State, Task
from retinue.domain.ids import now_us
from retinue.domain.intent import Intent, Requeue
from retinue.domain.result import Result
from retinue.engine import scheduler
from retinue.storage.sqlite import SqliteStore


class Slow(SqliteStore):
    """A store that holds the scheduler's look, or a repeat, while a test wants it."""

    def __init__(self) -> None:
        super().__init__(None)
        self.looking, self.look = asyncio.Event(), asyncio.Event()
        self.requeuing, self.requeue = asyncio.Event(), asyncio.Event()
        self.look.set()

    async def backlog(self) -> list[str]:
        self.looking.set()
        await self.look.wait()
        return await super().backlog()

    async def write(self, intent: Intent, /) -> Result:
        if isinstance(intent, Requeue):
            self.requeuing.set()
            await self.requeue.wait()
        return await super().write(intent)

    async def hold(self) -> None:
        """Return once the scheduler stands in the middle of its look."""
        self.look.clear()
        self.looking.clear()
        await self.looking.wait()


class Single:
    """An agent with one slot that runs while the gate is open."""

    def __init__(self) -> None:
        self.open, self.started = asyncio.Event(), asyncio.Event()
        self.order: list[str] = []

        @capability("single", options=Options(concurrency=1))
        async def single(name: str) -> str:
            self.order.append(name)
            self.started.set()
            await self.open.wait()
            return name

        self.agent = single


def task(name: str, **more: Any) -> Task:
    return Task(session_id="s", capability="single", parameters={"name": name}, **more)


@pytest.fixture
async def store() -> Slow:
    return Slow()


@pytest.fixture
async def orchestrator(store: Slow) -> AsyncIterator[Orchestrator]:
    settings = Settings(database_url="sqlite://", examples=False, entry_points=False)
    runtime = Runtime(settings, store=store)
    yield await runtime.start()
    store.look.set()
    store.requeue.set()
    await runtime.stop(grace=1)


@pytest.fixture
async def single(orchestrator: Orchestrator) -> AsyncIterator[Single]:
    made = Single()
    orchestrator.register_agent(made.agent)
    first = asyncio.create_task(orchestrator.perform(task("first")))
    await made.started.wait()
    yield made
    made.open.set()
    assert (await first).success


async def past(orchestrator: Orchestrator, execution_id: str) -> None:
    """Return once an execution's deadline has passed."""
    execution = await orchestrator.execution(execution_id)
    assert execution.deadline_at is not None
    while now_us() <= execution.deadline_at + 20_000:
        await asyncio.sleep(0.005)


async def test_a_deadline_that_falls_during_a_look_is_seen(
    orchestrator: Orchestrator, store: Slow, single: Single, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.hold()
    # From here on nothing but the deadline's own bell makes the scheduler look again.
    monkeypatch.setattr(scheduler, "TICK_SECONDS", 3600.0)
    late = await orchestrator.submit(task("late", deadline_us=30_000))
    await past(orchestrator, late.execution_id)
    store.look.set()
    async with asyncio.timeout(10):
        while (ended := await orchestrator.execution(late.execution_id)).state is State.QUEUED:
            await asyncio.sleep(0.01)
    assert (ended.state, ended.outcome) == (State.TIMED_OUT, "not_started")
    assert single.order == ["first"]


async def test_what_is_leased_after_its_deadline_is_not_begun(
    orchestrator: Orchestrator, store: Slow, single: Single
) -> None:
    await store.hold()
    late = await orchestrator.submit(task("late", deadline_us=30_000))
    await past(orchestrator, late.execution_id)
    single.open.set()
    async with asyncio.timeout(10):
        while not (ended := await orchestrator.execution(late.execution_id)).terminal:
            await asyncio.sleep(0.01)
    assert (ended.state, ended.outcome, ended.attempt) == (State.TIMED_OUT, "not_started", 1)
    assert single.order == ["first"]
    assert (await orchestrator.verify()).ok


async def test_what_is_cancelled_while_its_attempt_fails_is_not_repeated(
    orchestrator: Orchestrator, store: Slow
) -> None:
    attempts: list[int] = []

    @capability(options=Options(delivery="at_least_once", retry_waits_ms=(0,)))
    async def failing() -> None:
        attempts.append(len(attempts) + 1)
        raise ValueError("not this time")

    orchestrator.register_agent(failing)
    accepted = await orchestrator.submit(Task(session_id="s", capability="failing", parameters={}))
    await store.requeuing.wait()
    cancelling = asyncio.create_task(orchestrator.cancel(accepted.execution_id))
    while (await orchestrator.execution(accepted.execution_id)).cancel_requested_at is None:
        await asyncio.sleep(0.001)
    store.requeue.set()
    async with asyncio.timeout(10):
        assert (await cancelling).state is State.CANCELLED
    assert attempts == [1]
    assert (await orchestrator.verify()).ok

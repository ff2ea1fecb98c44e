"""Waiting, cancelling, deadlines, retries, the breaker, idempotency."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from retinue import Context, Options, Orchestrator, Runtime, Settings, capability
from retinue.domain.event import Event, EventType
from retinue.domain.execution import State, Task
from retinue.domain.policy import BreakerPolicy, RetryPolicy
from retinue.engine.guard import Breaker, Circuit
from retinue.errors import CircuitOpen, Conflict, InvalidInput, NotFound, QueueFull
from retinue.interfaces import ExecutionFilter, Page


class Gate:
    """An agent with one slot that runs while the gate is open, and remembers the order."""

    def __init__(self, **options: Any) -> None:
        self.open = asyncio.Event()
        self.started = asyncio.Event()
        self.order: list[str] = []

        @capability("gated", options=Options(concurrency=1, **options))
        async def gated(name: str) -> str:
            self.order.append(name)
            self.started.set()
            await self.open.wait()
            return name

        self.agent = gated


def task(name: str, **more: Any) -> Task:
    return Task(session_id="s", capability="gated", parameters={"name": name}, **more)


async def events_of(orchestrator: Orchestrator, execution_id: str) -> list[Event]:
    found: list[Event] = []
    async for events in orchestrator.follow(execution_id):
        found.extend(events)
    return found


@pytest.fixture
def gate(orchestrator: Orchestrator) -> Gate:
    made = Gate()
    orchestrator.register_agent(made.agent)
    return made


async def test_tasks_wait_by_priority_then_age(orchestrator: Orchestrator, gate: Gate) -> None:
    first = asyncio.create_task(orchestrator.perform(task("first")))
    await gate.started.wait()
    waiting = [
        await orchestrator.submit(task(name, priority=priority))
        for name, priority in [("low", -1), ("a", 0), ("b", 0), ("high", 5)]
    ]
    states = [(await orchestrator.execution(w.execution_id)).state for w in waiting]
    assert states == [State.QUEUED] * 4
    assert {(await orchestrator.execution(w.execution_id)).agent_id for w in waiting} == {None}
    gate.open.set()
    await first
    for one in waiting:
        await events_of(orchestrator, one.execution_id)
    assert gate.order == ["first", "high", "a", "b", "low"]
    assert (await orchestrator.execution(waiting[0].execution_id)).agent_id == "gated"


async def test_a_queued_task_is_cancelled_in_one_commit(
    orchestrator: Orchestrator, gate: Gate
) -> None:
    running = asyncio.create_task(orchestrator.perform(task("first")))
    await gate.started.wait()
    queued = asyncio.create_task(orchestrator.perform(task("second")))
    async with asyncio.timeout(10):
        while not (found := await _queued(orchestrator)):
            await asyncio.sleep(0.001)
    cancelled = await orchestrator.cancel(found[0])
    assert cancelled.state is State.CANCELLED
    assert cancelled.outcome == "not_started"
    reply = await queued
    assert reply.state is State.CANCELLED
    assert reply.error is not None
    assert reply.error["code"] == "E_CANCELLED"
    gate.open.set()
    assert (await running).success
    assert gate.order == ["first"]
    again = await orchestrator.cancel(found[0])
    assert again.finished_at == cancelled.finished_at
    with pytest.raises(NotFound):
        await orchestrator.cancel("01ARZ3NDEKTSV4RRFFQ69G5FAV")


async def _queued(orchestrator: Orchestrator) -> list[str]:
    listing = await orchestrator.executions(ExecutionFilter(state=State.QUEUED), Page())
    return [e.id for e in listing.items]


async def test_a_running_task_is_cancelled_and_its_agent_stopped(
    orchestrator: Orchestrator, gate: Gate
) -> None:
    running = asyncio.create_task(orchestrator.perform(task("first")))
    await gate.started.wait()
    accepted = (await _running(orchestrator))[0]
    assert (await orchestrator.cancel(accepted)).state is State.CANCELLED
    reply = await running
    assert reply.state is State.CANCELLED
    kinds = [e.type for e in await events_of(orchestrator, accepted)]
    assert kinds == [EventType.CANCELLED]
    gate.open.set()
    assert (await orchestrator.perform(task("next"))).success


async def _running(orchestrator: Orchestrator) -> list[str]:
    listing = await orchestrator.executions(ExecutionFilter(state=State.RUNNING), Page())
    return [e.id for e in listing.items]


async def test_a_queued_task_ends_at_its_deadline(orchestrator: Orchestrator, gate: Gate) -> None:
    running = asyncio.create_task(orchestrator.perform(task("first")))
    await gate.started.wait()
    async with asyncio.timeout(10):
        reply = await orchestrator.perform(task("late", deadline_us=100_000))
    assert reply.state is State.TIMED_OUT
    assert reply.error is not None
    assert reply.error["code"] == "E_TIMEOUT"
    assert "still queued" in reply.error["message"]
    gate.open.set()
    await running
    assert gate.order == ["first"]


async def test_a_full_queue_refuses(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, examples=False, entry_points=False, queue_bound=2)
    async with Runtime(settings) as orchestrator:
        gate = Gate()
        orchestrator.register_agent(gate.agent)
        accepted = [await orchestrator.submit(task("x")) for _ in range(3)]
        with pytest.raises(QueueFull) as caught:
            await orchestrator.submit(task("one too many"))
        assert caught.value.retryable
        gate.open.set()
        for one in accepted:
            await events_of(orchestrator, one.execution_id)


async def test_an_idempotency_key_runs_once(orchestrator: Orchestrator, gate: Gate) -> None:
    gate.open.set()
    keyed = task("once", idempotency_key="k")
    replies = await asyncio.gather(*(orchestrator.perform(keyed) for _ in range(20)))
    assert len({r.execution_id for r in replies}) == 1
    assert {r.data for r in replies} == {b'"once"'}
    assert (await orchestrator.perform(keyed)).execution_id == replies[0].execution_id
    assert gate.order == ["once"]
    with pytest.raises(Conflict):
        await orchestrator.perform(task("other", idempotency_key="k"))


async def test_a_key_finds_its_reply_whatever_became_of_the_agent(
    orchestrator: Orchestrator,
) -> None:
    @capability(options=Options(failure_threshold=1))
    async def fragile(fail: bool) -> str:
        if fail:
            raise ValueError("broken")
        return "ok"

    def asked(fail: bool, key: str) -> Task:
        return Task(
            session_id="s", capability="fragile", parameters={"fail": fail}, idempotency_key=key
        )

    orchestrator.register_agent(fragile)
    good = await orchestrator.perform(asked(False, "good"))
    bad = await orchestrator.perform(asked(True, "bad"))
    with pytest.raises(CircuitOpen):
        await orchestrator.perform(asked(False, "other"))
    assert await orchestrator.perform(asked(False, "good")) == good
    assert await orchestrator.perform(asked(True, "bad")) == bad
    await orchestrator.remove_agent("fragile")
    assert await orchestrator.perform(asked(False, "good")) == good
    with pytest.raises(Conflict):
        await orchestrator.perform(asked(True, "good"))


# -- retries -----------------------------------------------------------------------------------


@pytest.mark.requirement("000.retry")
def test_the_default_waits() -> None:
    policy = RetryPolicy()
    assert policy.max_attempts == 3
    assert [policy.wait_us(n) for n in (1, 2, 3, 4)] == [1_000_000, 2_000_000, 5_000_000, 5_000_000]
    assert policy.kinds == {"timeout", "stream", "internal"}


@pytest.mark.requirement("000.retry")
async def test_a_failed_attempt_is_repeated_when_the_agent_allows(
    orchestrator: Orchestrator,
) -> None:
    @capability(options=Options(delivery="idempotent", retry_waits_ms=(20, 20)))
    async def flaky(succeed_on: int, context: Context) -> int:
        context.text(f"try {context.attempt}")
        if context.attempt < succeed_on:
            raise ValueError("not yet")
        return context.attempt

    orchestrator.register_agent(flaky)
    accepted = await orchestrator.submit(
        Task(session_id="s", capability="flaky", parameters={"succeed_on": 3})
    )
    events = await events_of(orchestrator, accepted.execution_id)
    assert [e.type.value for e in events] == [
        "content_chunk",
        "log",
        "attempt_started",
        "content_chunk",
        "log",
        "attempt_started",
        "content_chunk",
        "completed",
    ]
    assert [e.seq for e in events] == list(range(1, 9))
    assert b'"is_reset":true' in events[2].data
    execution = await orchestrator.execution(accepted.execution_id)
    assert execution.attempt == 3
    reply = await orchestrator.orchestrate(
        "s", {"capability": "flaky", "parameters": {"succeed_on": 9}}
    )
    assert reply["success"] is False
    assert (await orchestrator.execution(reply["execution_id"])).attempt == 3
    assert (await orchestrator.verify()).ok


@pytest.mark.requirement("000.retry")
@pytest.mark.parametrize("kind", ["default", "validation"])
async def test_nothing_is_repeated_unasked(orchestrator: Orchestrator, kind: str) -> None:
    runs: list[int] = []
    options = Options(retry_waits_ms=(1,))
    if kind == "validation":
        options = Options(retry_waits_ms=(1,), delivery="idempotent")

    @capability(options=options)
    async def fails() -> None:
        runs.append(1)
        raise InvalidInput("no") if kind == "validation" else ValueError("no")

    orchestrator.register_agent(fails)
    reply = await orchestrator.orchestrate("s", {"capability": "fails"})
    assert reply["success"] is False
    assert runs == [1]


# -- the breaker -------------------------------------------------------------------------------


def state(breaker: Breaker) -> tuple[Circuit, int]:
    return breaker.circuit, breaker.failures


@pytest.mark.requirement("000.breaker")
def test_the_breaker_lets_exactly_one_probe_pass() -> None:
    breaker = Breaker(BreakerPolicy())
    assert breaker.policy == BreakerPolicy(failure_threshold=5, reset_timeout_ms=60_000)
    for n in range(4):
        breaker.failed(breaker.admit(), float(n))
    breaker.succeeded(breaker.admit())
    for n in range(4):
        breaker.failed(breaker.admit(), float(n))
    assert state(breaker) == (Circuit.CLOSED, 4)
    assert breaker.wait(4.0) == 0
    breaker.failed(breaker.admit(), 4.0)
    assert state(breaker) == (Circuit.OPEN, 5)
    assert breaker.wait(34.0) == 30.0
    assert breaker.wait(64.0) == 0
    probe = breaker.admit()
    assert state(breaker) == (Circuit.HALF_OPEN, 5)
    assert breaker.wait(64.0) > 0  # a second one does not pass
    breaker.failed(probe, 65.0)
    assert breaker.wait(65.0) == 60.0
    breaker.abandoned(breaker.admit())
    assert state(breaker) == (Circuit.OPEN, 6)
    assert breaker.wait(125.0) == 0
    breaker.succeeded(breaker.admit())
    assert state(breaker) == (Circuit.CLOSED, 0)


@pytest.mark.requirement("000.breaker")
def test_only_the_probe_decides_about_a_half_open_circuit() -> None:
    breaker = Breaker(BreakerPolicy(failure_threshold=1))
    before = [breaker.admit() for _ in range(4)]
    breaker.failed(before[0], 0.0)
    probe = breaker.admit()
    breaker.abandoned(before[1])
    breaker.succeeded(before[2])
    breaker.failed(before[3], 50.0)
    assert state(breaker) == (Circuit.HALF_OPEN, 1)
    assert breaker.last_failure == 0.0
    breaker.abandoned(probe)
    breaker.succeeded(before[1])
    assert state(breaker) == (Circuit.OPEN, 1)


@pytest.mark.requirement("003.agent-failure")
async def test_an_agent_that_says_no_is_not_broken(orchestrator: Orchestrator) -> None:
    runs: list[int] = []

    @capability(options=Options(failure_threshold=2, delivery="idempotent", retry_waits_ms=(1,)))
    async def picky() -> dict[str, Any]:
        runs.append(1)
        return {"success": False, "error": "not this one"}

    orchestrator.register_agent(picky)
    for _ in range(4):
        reply = await orchestrator.orchestrate("s", {"capability": "picky"})
        assert reply["error"] == "not this one"
    assert len(runs) == 4
    assert (await orchestrator.agent("picky")).status == "available"


@pytest.mark.requirement("000.breaker")
async def test_an_agent_that_fails_in_a_row_is_refused_then_probed_once(
    orchestrator: Orchestrator,
) -> None:
    broken = True
    calls: list[int] = []
    gate = asyncio.Event()

    @capability(options=Options(failure_threshold=3, reset_timeout_ms=150))
    async def fragile() -> str:
        calls.append(1)
        if broken:
            raise ValueError("broken")
        await gate.wait()
        return "ok"

    orchestrator.register_agent(fragile)
    for _ in range(3):
        assert not (await orchestrator.orchestrate("s", {"capability": "fragile"}))["success"]
    with pytest.raises(CircuitOpen) as caught:
        await orchestrator.orchestrate("s", {"capability": "fragile"})
    assert 0 < caught.value.details["retry_after_ms"] <= 150
    shown = (await orchestrator.agent("fragile")).breaker
    assert (shown["state"], shown["failures"]) == ("open", 3)
    assert (await orchestrator.agent("fragile")).status == "error"
    broken = False
    async with asyncio.timeout(10):
        while (await orchestrator.agent("fragile")).breaker["retry_after_ms"] > 0:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.002)
    attempts = [
        asyncio.create_task(orchestrator.orchestrate("s", {"capability": "fragile"}))
        for _ in range(10)
    ]
    await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
    gate.set()
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(isinstance(r, dict) and r["success"] for r in results) == 1
    assert sum(isinstance(r, CircuitOpen) for r in results) == 9
    assert len(calls) == 4
    shown = (await orchestrator.agent("fragile")).breaker
    assert (shown["state"], shown["failures"]) == ("closed", 0)

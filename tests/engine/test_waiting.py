"""Delays, ageing, busy sessions, dead letters, limits: what waits, and how it goes on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retinue import Context, Options, Orchestrator, Runtime, Settings, capability
from retinue.domain.execution import DEAD_LETTER, Execution, Hold, State, Task
from retinue.domain.ids import now_us
from retinue.domain.policy import BusyPolicy
from retinue.domain.principal import Principal, Role
from retinue.errors import Conflict, Forbidden, InvalidInput, NotFound, SessionBusy
from retinue.interfaces import ExecutionFilter, Page

MS = 1_000
SECOND = 1_000_000
SECONDS = 20


class Gates:
    """An agent whose tasks run until the test lets each go; it remembers what began, in order."""

    def __init__(self, name: str = "gated", **options: Any) -> None:
        self.name = name
        self.order: list[str] = []
        self.running: set[str] = set()
        self.most = 0
        self._gates: dict[str, asyncio.Event] = {}

        @capability(name, options=Options(**options))
        async def gated(name: str) -> str:
            self.order.append(name)
            self.running.add(name)
            self.most = max(self.most, len(self.running))
            try:
                await self.gate(name).wait()
            finally:
                self.running.discard(name)
            return name

        self.agent = gated

    def gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    def let(self, *names: str) -> None:
        for name in names:
            self.gate(name).set()

    def task(self, name: str, session: str = "s", **more: Any) -> Task:
        return Task(session_id=session, capability=self.name, parameters={"name": name}, **more)


def bare(name: str, **more: Any) -> Task:
    return Task(session_id="s", capability=name, parameters={}, **more)


async def until(look: Callable[[], Any]) -> None:
    """Wait until ``look`` is true."""
    async with asyncio.timeout(SECONDS):
        while True:
            seen = look()
            if isinstance(seen, Awaitable):
                seen = await seen
            if seen:
                return
            await asyncio.sleep(0.002)


async def ended(orchestrator: Orchestrator, execution_id: str) -> Execution:
    """Wait for an execution's end and return it."""
    async with asyncio.timeout(SECONDS):
        async for _ in orchestrator.follow(execution_id):
            pass
    return await orchestrator.execution(execution_id)


async def submitted(orchestrator: Orchestrator, *tasks: Task) -> list[str]:
    return [(await orchestrator.submit(task)).execution_id for task in tasks]


@pytest.fixture(params=["sqlite", "postgres"])
async def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """The settings of a system on each store, with a low worth of priority."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    return Settings(
        data_dir=tmp_path,
        database_url=url,
        examples=False,
        entry_points=False,
        priority_step_seconds=0.5,
    )


@pytest.fixture
async def runtime(settings: Settings) -> AsyncIterator[Runtime]:
    system = Runtime(settings)
    await system.start()
    yield system
    await system.stop(grace=1)


@pytest.fixture
def gates(orchestrator: Orchestrator) -> Gates:
    made = Gates(concurrency=1)
    orchestrator.register_agent(made.agent)
    return made


@pytest.fixture
def wide(orchestrator: Orchestrator) -> Gates:
    made = Gates("wide")
    orchestrator.register_agent(made.agent)
    return made


# -- delay -------------------------------------------------------------------------------------


async def test_a_delayed_task_runs_when_it_is_due(orchestrator: Orchestrator, wide: Gates) -> None:
    wide.let("a", "b", "past")
    at = now_us() + 400 * MS
    accepted = await orchestrator.submit(wide.task("a", run_at=at, deadline_us=SECOND))
    assert accepted.state is State.SCHEDULED
    waiting = await orchestrator.execution(accepted.execution_id)
    assert (waiting.state, waiting.hold, waiting.run_at) == (State.SCHEDULED, Hold.TIME, at)
    assert waiting.deadline_at == at + SECOND
    earlier = await orchestrator.submit(wide.task("b", run_at=now_us() + 100 * MS))
    past = await orchestrator.submit(wide.task("past", run_at=5))
    assert past.state is State.RUNNING
    found = await ended(orchestrator, accepted.execution_id)
    assert found.state is State.COMPLETED
    assert found.started_at is not None
    assert at <= found.started_at < at + 10 * SECOND
    await ended(orchestrator, earlier.execution_id)
    assert [name for name in wide.order if name != "past"] == ["b", "a"]
    assert (await orchestrator.verify()).ok


async def test_a_delayed_task_survives_its_process(settings: Settings) -> None:
    async with Runtime(settings) as orchestrator:
        gates = Gates()
        orchestrator.register_agent(gates.agent)
        at = now_us() + 3 * SECOND
        (later,) = await submitted(orchestrator, gates.task("a", run_at=at))
    assert gates.order == []
    await until(lambda: now_us() > at)
    async with Runtime(settings) as orchestrator:
        orchestrator.register_agent(gates.agent)
        gates.let("a")
        assert (await ended(orchestrator, later)).state is State.COMPLETED


async def test_a_delayed_task_is_waited_for_and_cancelled(
    orchestrator: Orchestrator, wide: Gates
) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=0.2)
    wide.let("a")
    task = {"capability": "wide", "parameters": {"name": "a"}, "run_at": moment, "priority": 3}
    reply = await orchestrator.orchestrate("s", task)
    assert reply["success"]
    assert datetime.now(UTC) >= moment
    (later,) = await submitted(orchestrator, wide.task("b", run_at=now_us() + 3600 * SECOND))
    assert (await orchestrator.cancel(later)).state is State.CANCELLED
    with pytest.raises(InvalidInput, match="time zone"):
        await orchestrator.orchestrate("s", {**task, "run_at": datetime(2030, 1, 1)})  # noqa: DTZ001
    with pytest.raises(InvalidInput, match="ten years"):
        await orchestrator.submit(wide.task("c", run_at=now_us() * 2))
    with pytest.raises(InvalidInput, match="on_busy"):
        await orchestrator.orchestrate("s", {**task, "on_busy": "dance"})
    with pytest.raises(InvalidInput, match="priority"):
        await orchestrator.submit(wide.task("c", priority=1001))


# -- priority ----------------------------------------------------------------------------------


@pytest.mark.requirement("003.queue")
async def test_waiting_makes_up_for_a_low_priority(
    orchestrator: Orchestrator, gates: Gates
) -> None:
    await submitted(orchestrator, gates.task("first"))
    (low,) = await submitted(orchestrator, gates.task("low", priority=-4))
    (early,) = await submitted(orchestrator, gates.task("early"))
    rank = (await orchestrator.execution(low)).rank
    await until(lambda: now_us() > rank)  # four steps of priority are two seconds
    (late,) = await submitted(orchestrator, gates.task("late"))
    gates.let("first", "low", "early", "late")
    for one in (low, early, late):
        await ended(orchestrator, one)
    assert gates.order == ["first", "early", "low", "late"]


@pytest.mark.requirement("003.queue")
async def test_a_waiting_task_is_listed_and_given_another_place(
    orchestrator: Orchestrator, gates: Gates
) -> None:
    first, a, b, c = await submitted(orchestrator, *(gates.task(n) for n in ("first", *"abc")))
    (later,) = await submitted(orchestrator, gates.task("z", run_at=now_us() + 3600 * SECOND))
    where = ExecutionFilter(states=(State.QUEUED, State.SCHEDULED))
    listing = await orchestrator.executions(where, Page())
    assert {e.id for e in listing.items} == {a, b, c, later}
    (depth,) = await orchestrator.queue()
    assert (depth.key, depth.ready, depth.scheduled) == ("cap:gated", 3, 1)
    moved = await orchestrator.prioritize(c, 500)
    assert (moved.priority, moved.state) == (500, State.QUEUED)
    await orchestrator.prioritize(a, -500)
    with pytest.raises(Conflict, match="is running"):
        await orchestrator.prioritize(first, 1)
    with pytest.raises(NotFound):
        await orchestrator.prioritize(b, 1, Principal("x", "somebody else", Role.ADMIN))
    with pytest.raises(Forbidden):
        await orchestrator.prioritize(b, 1, Principal("v", "local", Role.VIEWER))
    actions = [row.action for row in (await orchestrator.audit(Page())).items]
    assert actions.count("execution.prioritize") == 3
    gates.let("first", "a", "b", "c")
    for one in (a, b, c):
        await ended(orchestrator, one)
    assert gates.order == ["first", "c", "b", "a"]
    assert (await orchestrator.verify()).ok


# -- keys and limits ---------------------------------------------------------------------------


async def test_a_long_queue_does_not_starve_another_one(settings: Settings) -> None:
    limited = settings.model_copy(update={"max_concurrent_executions": 2})
    async with Runtime(limited) as orchestrator:
        many, few = Gates("many"), Gates("few")
        for made in (many, few):
            orchestrator.register_agent(made.agent)
        names = [f"m{i}" for i in range(40)]
        await submitted(orchestrator, *(many.task(name) for name in names))
        (one,) = await submitted(orchestrator, few.task("one"))
        assert (await orchestrator.execution(one)).state is State.QUEUED
        few.let("one")
        let = iter(names)
        begun = 0

        async def served() -> bool:
            nonlocal begun
            if len(many.order) > begun:
                begun = len(many.order)
                many.let(next(let))
            return (await orchestrator.execution(one)).terminal

        await until(served)
        assert len(many.order) < 10
        many.let(*names)


async def test_the_process_limit_holds_and_parents_that_wait_do_not_count(
    settings: Settings,
) -> None:
    limited = settings.model_copy(update={"max_concurrent_executions": 2})
    async with Runtime(limited) as orchestrator:
        gates = Gates()
        counted = {"now": 0, "most": 0}

        @capability(options=Options(concurrency=10))
        async def parent(name: str, context: Context) -> Any:
            value = await context.call("gated", {"name": name})
            counted["now"] += 1
            counted["most"] = max(counted["most"], counted["now"] + len(gates.running))
            await asyncio.sleep(0)
            counted["now"] -= 1
            return value

        for agent in (gates.agent, parent):
            orchestrator.register_agent(agent)
        names = [f"p{i}" for i in range(8)]
        asked = [
            asyncio.create_task(
                orchestrator.perform(
                    Task(session_id="s", capability="parent", parameters={"name": name})
                )
            )
            for name in names
        ]
        # All eight wait for their children, of which two run: more is not let in.
        await until(lambda: len(gates.order) == 2)
        waiting = ExecutionFilter(states=(State.QUEUED,))
        await until(_counts(orchestrator, waiting, 6))
        for name in names:
            gates.let(name)
        async with asyncio.timeout(SECONDS):
            replies = await asyncio.gather(*asked)
        assert [r.success for r in replies] == [True] * 8
        assert gates.most == 2
        assert counted["most"] <= 2


def _counts(
    orchestrator: Orchestrator, where: ExecutionFilter, wanted: int
) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return (await orchestrator.executions(where, Page())).total == wanted

    return look


# -- busy sessions -----------------------------------------------------------------------------


async def test_a_task_that_will_not_wait_is_refused(
    orchestrator: Orchestrator, wide: Gates
) -> None:
    first, other = await submitted(orchestrator, wide.task("a"), wide.task("b", session="t"))
    task = wide.task("c", on_busy=BusyPolicy.REJECT, idempotency_key="k")
    with pytest.raises(SessionBusy) as caught:
        await orchestrator.submit(task)
    assert caught.value.retryable
    wide.let("a", "b", "c")
    await ended(orchestrator, first)
    assert (await orchestrator.perform(task)).success
    await ended(orchestrator, other)


async def test_tasks_of_a_session_take_turns(orchestrator: Orchestrator, wide: Gates) -> None:
    names = [f"n{i}" for i in range(6)]
    accepted = await asyncio.gather(
        *(orchestrator.submit(wide.task(name, on_busy=BusyPolicy.ENQUEUE)) for name in names)
    )
    beside = await orchestrator.submit(wide.task("beside", session="t", on_busy=BusyPolicy.ENQUEUE))
    assert beside.state is State.RUNNING
    wide.let("beside")
    for name in names:
        await until(partial(wide.running.__contains__, name))
        assert wide.running - {"beside"} == {name}
        wide.let(name)
    for one in accepted:
        assert (await ended(orchestrator, one.execution_id)).state is State.COMPLETED
    assert [n for n in wide.order if n != "beside"] == names
    assert await orchestrator.queue() == []


async def test_a_turn_that_fails_or_is_cancelled_passes_on(
    orchestrator: Orchestrator, wide: Gates
) -> None:
    @capability(options=Options(failure_threshold=100))
    async def fails() -> None:
        raise ValueError("no")

    orchestrator.register_agent(fails)
    turn = BusyPolicy.ENQUEUE
    (first,) = await submitted(orchestrator, wide.task("a", on_busy=turn))
    bad = bare("fails", on_busy=turn)
    ids = await submitted(orchestrator, bad, wide.task("b", on_busy=turn), bad)
    (late,) = await submitted(orchestrator, wide.task("x", on_busy=turn, deadline_us=50 * MS))
    (last,) = await submitted(orchestrator, wide.task("c", on_busy=turn))
    assert (await ended(orchestrator, late)).state is State.TIMED_OUT
    await orchestrator.cancel(ids[1])
    wide.let("c")
    await orchestrator.cancel(first)
    states = [(await ended(orchestrator, i)).state for i in (*ids, last)]
    assert states == [State.FAILED, State.CANCELLED, State.FAILED, State.COMPLETED]


async def test_an_interrupt_cancels_what_is_before_it(
    orchestrator: Orchestrator, wide: Gates
) -> None:
    running, waiting = await submitted(
        orchestrator, wide.task("a"), wide.task("b", on_busy=BusyPolicy.ENQUEUE)
    )
    (elsewhere,) = await submitted(orchestrator, wide.task("e", session="t"))
    wide.let("c", "e")
    reply = await orchestrator.perform(wide.task("c", on_busy=BusyPolicy.INTERRUPT))
    assert reply.success
    for one in (running, waiting):
        assert (await orchestrator.execution(one)).state is State.CANCELLED
    assert (await ended(orchestrator, elsewhere)).state is State.COMPLETED
    assert wide.order[-1] == "c"
    assert "b" not in wide.order


async def test_an_agent_says_what_its_tasks_do(orchestrator: Orchestrator) -> None:
    polite = Gates("polite", on_busy="enqueue")
    orchestrator.register_agent(polite.agent)
    accepted = [await orchestrator.submit(polite.task(n)) for n in ("a", "b")]
    assert [a.state for a in accepted] == [State.RUNNING, State.QUEUED]
    beside = await orchestrator.submit(polite.task("c", on_busy=BusyPolicy.PARALLEL))
    assert beside.state is State.RUNNING
    polite.let("a", "b", "c")
    for one in (*accepted, beside):
        await ended(orchestrator, one.execution_id)
    with pytest.raises(InvalidInput, match="on_busy"):
        orchestrator.register_agent(Gates("odd", on_busy="dance").agent)


async def test_what_an_agent_has_others_do_is_not_in_its_own_way(
    orchestrator: Orchestrator, wide: Gates
) -> None:
    @capability(options=Options(on_busy="enqueue"))
    async def outer(context: Context) -> Any:
        return await context.call("inner", {})

    @capability(options=Options(on_busy="reject"))
    async def inner() -> str:
        return "done"

    for agent in (outer, inner):
        orchestrator.register_agent(agent)
    async with asyncio.timeout(SECONDS):
        replies = await asyncio.gather(*(orchestrator.perform(bare("outer")) for _ in range(3)))
    assert {r.data for r in replies} == {b'"done"'}


async def test_turns_survive_their_process(settings: Settings) -> None:
    async with Runtime(settings) as orchestrator:
        gates = Gates()
        orchestrator.register_agent(gates.agent)
        first, *rest = await submitted(
            orchestrator,
            *(gates.task(n, on_busy=BusyPolicy.ENQUEUE) for n in "abc"),
            gates.task("d", session="t"),
            gates.task("e", session="t", on_busy=BusyPolicy.INTERRUPT),
        )
        await orchestrator.drain(0)
    gates.let(*"bce")
    async with Runtime(settings) as orchestrator:
        orchestrator.register_agent(gates.agent)
        assert (await ended(orchestrator, first)).state is State.FAILED
        states = [(await ended(orchestrator, i)).state for i in rest]
    assert states[:2] == [State.COMPLETED] * 2
    assert states[2] in {State.FAILED, State.CANCELLED}  # whichever came first: both are its end
    assert states[3] is State.COMPLETED
    assert [n for n in gates.order if n in "abc"] == ["a", "b", "c"]


# -- dead letters ------------------------------------------------------------------------------


async def test_used_up_attempts_make_a_dead_letter_that_can_be_done_again(
    orchestrator: Orchestrator,
) -> None:
    broken = True

    @capability(options=Options(delivery="idempotent", retry_waits_ms=(1,), max_attempts=2))
    async def flaky(value: int) -> int:
        if broken:
            raise ValueError("broken")
        return value

    @capability()
    async def once() -> None:
        raise ValueError("no")

    for agent in (flaky, once):
        orchestrator.register_agent(agent)
    task = Task(
        session_id="s",
        agent_id="flaky",
        parameters={"value": 7},
        context={"a": 1},
        intent="why",
        priority=3,
        deadline_us=77 * SECOND,
        run_at=now_us() + 20 * MS,
        on_busy=BusyPolicy.ENQUEUE,
    )
    accepted = await orchestrator.submit(task)
    old = await ended(orchestrator, accepted.execution_id)
    assert (old.state, old.attempt, old.reason) == (State.FAILED, 2, DEAD_LETTER)
    _, reply = await orchestrator.task_of(old)
    assert reply is not None
    assert reply.error is not None
    assert reply.error["details"]["reason"] == DEAD_LETTER
    unasked = await orchestrator.perform(bare("once"))
    assert (await orchestrator.execution(unasked.execution_id)).reason is None
    listing = await orchestrator.executions(ExecutionFilter(reason=DEAD_LETTER), Page())
    assert [e.id for e in listing.items] == [old.id]
    broken = False
    with pytest.raises(Forbidden):
        await orchestrator.retry(old.id, Principal("v", "local", Role.VIEWER))
    with pytest.raises(NotFound):
        await orchestrator.retry(old.id, Principal("x", "somebody else", Role.ADMIN))
    again, same = [await orchestrator.retry(old.id, idempotency_key="k") for _ in range(2)]
    assert (again.execution_id, same.joined) == (same.execution_id, True)
    new = await ended(orchestrator, again.execution_id)
    assert (new.state, new.retry_of, new.attempt) == (State.COMPLETED, old.id, 1)
    assert (new.priority, new.on_busy, new.queue_key) == (3, BusyPolicy.ENQUEUE, old.queue_key)
    assert new.allowed_us == 77 * SECOND
    (asked, _), (before, _) = [await orchestrator.task_of(e) for e in (new, old)]
    assert asked == before
    with pytest.raises(Conflict, match="is completed"):
        await orchestrator.retry(new.id)
    assert (await orchestrator.verify()).ok


async def test_only_what_has_ended_is_done_again(orchestrator: Orchestrator, gates: Gates) -> None:
    running, waiting = await submitted(orchestrator, gates.task("a"), gates.task("b"))
    for one in (running, waiting):
        with pytest.raises(Conflict, match="only what ended"):
            await orchestrator.retry(one)
    await orchestrator.cancel(waiting)
    again = await orchestrator.retry(waiting)
    gates.let("a", "b")
    assert (await ended(orchestrator, again.execution_id)).state is State.COMPLETED


async def test_one_that_is_to_be_tried_again_waits_for_its_agent_until_its_deadline(
    runtime: Runtime,
) -> None:
    registry, orchestrator = runtime.engine.registry, runtime.orchestrator

    @capability(options=Options(delivery="idempotent", retry_waits_ms=(1,)))
    async def falls_ill() -> None:
        registry.set_health(registry.find("falls_ill"), "away")
        raise RuntimeError("no more")

    orchestrator.register_agent(falls_ill)
    (execution_id,) = await submitted(orchestrator, bare("falls_ill", deadline_us=500 * MS))
    execution = await ended(orchestrator, execution_id)
    assert (execution.state, execution.attempt) == (State.TIMED_OUT, 1)
    assert execution.outcome == "unknown"  # it was begun once
    _, reply = await orchestrator.task_of(execution)
    assert reply is not None
    assert reply.error is not None
    assert "queued again after attempt 1" in reply.error["message"]

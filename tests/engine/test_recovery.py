"""What a start makes of what an earlier process left, how a stop drains, what verify names."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from retinue import Context, Options, Orchestrator, Runtime, Settings, capability
from retinue.agent import FunctionAgent
from retinue.domain.event import EventType
from retinue.domain.execution import Execution, State, Task
from retinue.domain.intent import Cancel
from retinue.domain.policy import BusyPolicy, Delivery
from retinue.domain.question import Question
from retinue.engine.outcome import failed, response
from retinue.errors import Cancelled, ShuttingDown
from retinue.interfaces import ContractFilter, ExecutionFilter, Page


def settings(path: Path) -> Settings:
    return Settings(data_dir=path, examples=False, entry_points=False)


def worker(name: str, delivery: Delivery, gate: asyncio.Event | None = None) -> FunctionAgent:
    @capability(name, options=Options(delivery=delivery.value))
    async def work() -> str:
        if gate is not None:
            await gate.wait()
        return "done"

    return work


def kill_loop(runtime: Runtime) -> None:
    """End the periodic work without its last words."""
    runtime.engine.scheduler.stop()


async def crash(path: Path, *names: str) -> list[str]:
    """Leave one running execution per capability, as a process that was killed would."""
    runtime = Runtime(settings(path))
    await runtime.start()
    never = asyncio.Event()
    for name in names:
        delivery = Delivery.IDEMPOTENT if name == "again" else Delivery.AT_MOST_ONCE
        runtime.orchestrator.register_agent(worker(name, delivery, never))
    accepted = [
        await runtime.orchestrator.submit(Task(session_id="s", capability=name, parameters={}))
        for name in names
    ]
    await asyncio.sleep(0)
    if "cancelled" in names:
        execution = await runtime.orchestrator.execution(
            accepted[names.index("cancelled")].execution_id
        )
        end = failed(Cancelled())
        await runtime.store.write(
            Cancel(execution.id, None, "test", response(execution, end), execution.created_at)
        )
    await gone(runtime)
    return [a.execution_id for a in accepted]


async def gone(runtime: Runtime) -> None:
    """Go without a word: nothing is drained, no end is written."""
    kill_loop(runtime)
    for attempt in list(runtime.engine.attempts.running.values()):
        assert attempt.task is not None
        attempt.task.cancel()
    await asyncio.sleep(0)
    await runtime.store.close()


async def ended(orchestrator: Orchestrator, execution_id: str) -> Execution:
    async for _ in orchestrator.follow(execution_id):
        pass
    return await orchestrator.execution(execution_id)


async def test_a_start_takes_over_by_delivery_policy(tmp_path: Path) -> None:
    once, again, cancelled = await crash(tmp_path, "once", "again", "cancelled")
    runtime = Runtime(settings(tmp_path))
    for name, delivery in [
        ("once", Delivery.AT_MOST_ONCE),
        ("again", Delivery.IDEMPOTENT),
        ("cancelled", Delivery.AT_MOST_ONCE),
    ]:
        runtime.orchestrator.register_agent(worker(name, delivery))
    orchestrator = await runtime.start()
    try:
        found = runtime.engine.recovered
        assert (found.failed, found.requeued, found.cancelled) == (1, 1, 1)
        lost = await ended(orchestrator, once)
        assert (lost.state, lost.outcome) == (State.FAILED, "unknown")
        assert lost.error_code == "E_STREAM_BROKEN"
        repeated = await ended(orchestrator, again)
        assert (repeated.state, repeated.attempt) == (State.COMPLETED, 2)
        events = [e async for page in orchestrator.follow(again) for e in page]
        assert [e.type for e in events] == [EventType.ATTEMPT_STARTED, EventType.COMPLETED]
        assert (await ended(orchestrator, cancelled)).state is State.CANCELLED
        listing = await orchestrator.contracts(ContractFilter(session_id="s"), Page())
        assert listing.total == 6
        assert (await orchestrator.verify()).ok
    finally:
        await runtime.stop(grace=1)


@pytest.mark.parametrize("delivery", [Delivery.AT_MOST_ONCE, Delivery.IDEMPOTENT])
async def test_what_was_to_be_interrupted_when_the_server_died_is_cancelled(
    tmp_path: Path, delivery: Delivery
) -> None:
    before = Runtime(settings(tmp_path))
    await before.start()
    before.orchestrator.register_agent(worker("work", delivery, asyncio.Event()))
    before.engine.turns.closed = True  # it dies before it does anything about the interrupt
    task = Task(session_id="s", capability="work", parameters={})
    first = await before.orchestrator.submit(task)
    second = await before.orchestrator.submit(replace(task, on_busy=BusyPolicy.INTERRUPT))
    await gone(before)

    after = Runtime(settings(tmp_path))
    after.orchestrator.register_agent(worker("work", delivery))
    orchestrator = await after.start()
    try:
        interrupted = await ended(orchestrator, first.execution_id)
        assert (interrupted.state, interrupted.error_code) == (State.CANCELLED, "E_CANCELLED")
        assert (interrupted.attempt, interrupted.outcome) == (1, "unknown")
        _, reply = await orchestrator.task_of(interrupted)
        assert reply is not None
        assert reply.error is not None
        assert second.execution_id in reply.error["details"]["by"]
        assert (await ended(orchestrator, second.execution_id)).state is State.COMPLETED
        assert (await orchestrator.verify()).ok
    finally:
        await after.stop(grace=1)


async def test_a_poison_task_stops_at_its_last_attempt(tmp_path: Path) -> None:
    (poison,) = await crash(tmp_path, "again")
    for _ in range(2):
        runtime = Runtime(settings(tmp_path))
        runtime.orchestrator.register_agent(worker("again", Delivery.IDEMPOTENT, asyncio.Event()))
        await runtime.start()
        async with asyncio.timeout(10):
            while poison not in runtime.engine.attempts.running:
                await asyncio.sleep(0.002)
        kill_loop(runtime)
        task = runtime.engine.attempts.running[poison].task
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        await runtime.store.close()
    async with Runtime(settings(tmp_path)) as orchestrator:
        execution = await ended(orchestrator, poison)
        assert (execution.state, execution.attempt) == (State.FAILED, 3)


async def test_queued_work_survives_and_goes_on(tmp_path: Path) -> None:
    gate = asyncio.Event()

    def agent() -> FunctionAgent:
        @capability("gated", options=Options(concurrency=1, delivery="idempotent"))
        async def gated() -> str:
            await gate.wait()
            return "done"

        return gated

    runtime = Runtime(settings(tmp_path))
    orchestrator = await runtime.start()
    orchestrator.register_agent(agent())
    wanted = Task(session_id="s", capability="gated", parameters={})
    accepted = [await orchestrator.submit(wanted) for _ in range(5)]
    assert not await runtime.stop(grace=0.05)
    gate.set()
    runtime = Runtime(settings(tmp_path))
    runtime.orchestrator.register_agent(agent())
    orchestrator = await runtime.start()
    try:
        for one in accepted[1:]:
            assert (await ended(orchestrator, one.execution_id)).state is State.COMPLETED
        assert (await ended(orchestrator, accepted[0].execution_id)).terminal
    finally:
        await runtime.stop(grace=1)


async def test_a_stop_lets_running_work_end(tmp_path: Path) -> None:
    runtime = Runtime(settings(tmp_path))
    orchestrator = await runtime.start()
    gate = asyncio.Event()
    orchestrator.register_agent(worker("once", Delivery.AT_MOST_ONCE, gate))
    caller = asyncio.create_task(orchestrator.orchestrate("s", {"capability": "once"}))
    async with asyncio.timeout(10):
        while not runtime.engine.attempts.running:
            await asyncio.sleep(0.001)
    stopping = asyncio.create_task(runtime.stop(grace=10))
    async with asyncio.timeout(10):
        while not runtime.engine.intake.closed:
            await asyncio.sleep(0.001)
    with pytest.raises(ShuttingDown):
        await orchestrator.orchestrate("s", {"capability": "once"})
    gate.set()
    assert await stopping is True
    assert (await caller)["data"] == "done"


async def test_a_stop_lets_running_work_call_its_children(tmp_path: Path) -> None:
    runtime = Runtime(settings(tmp_path))
    orchestrator = await runtime.start()
    gate = asyncio.Event()

    @capability()
    async def parent(context: Context) -> str:
        await gate.wait()
        return f"child {await context.call('once')}"

    orchestrator.register_agent(parent)
    orchestrator.register_agent(worker("once", Delivery.AT_MOST_ONCE))
    caller = asyncio.create_task(orchestrator.orchestrate("s", {"capability": "parent"}))
    async with asyncio.timeout(10):
        while not runtime.engine.attempts.running:
            await asyncio.sleep(0.001)
    stopping = asyncio.create_task(runtime.stop(grace=10))
    async with asyncio.timeout(10):
        while not runtime.engine.intake.closed:
            await asyncio.sleep(0.001)
    gate.set()
    assert await stopping is True
    assert (await caller)["data"] == "child done"


async def test_a_stop_does_not_wait_for_a_parent_whose_child_is_queued(tmp_path: Path) -> None:
    runtime = Runtime(settings(tmp_path))
    orchestrator = await runtime.start()
    gate = asyncio.Event()

    @capability(options=Options(concurrency=1))
    async def busy() -> None:
        await gate.wait()

    @capability()
    async def parent(context: Context) -> None:
        await context.call("busy")

    orchestrator.register_agent(busy)
    orchestrator.register_agent(parent)
    callers = [
        asyncio.create_task(orchestrator.orchestrate("s", {"capability": "busy"})),
        asyncio.create_task(orchestrator.orchestrate("s", {"capability": "parent"})),
    ]
    async with asyncio.timeout(10):
        while not any(a.parked for a in runtime.engine.attempts.running.values()):
            await asyncio.sleep(0.001)
    stopping = asyncio.create_task(runtime.stop(grace=60))
    async with asyncio.timeout(10):
        reply = await callers[1]
        gate.set()
        await stopping
    assert reply["error_info"]["code"] == "E_SHUTTING_DOWN"
    assert (await callers[0])["success"] is True


async def test_what_outlasts_the_grace_ends_with_its_outcome_unknown(tmp_path: Path) -> None:
    runtime = Runtime(settings(tmp_path))
    orchestrator = await runtime.start()
    orchestrator.register_agent(worker("once", Delivery.AT_MOST_ONCE, asyncio.Event()))
    caller = asyncio.create_task(orchestrator.orchestrate("s", {"capability": "once"}))
    async with asyncio.timeout(10):
        while not runtime.engine.attempts.running:
            await asyncio.sleep(0.001)
    assert await runtime.stop(grace=0.01) is False
    reply = await caller
    assert reply["error_info"]["code"] == "E_SHUTTING_DOWN"
    async with Runtime(settings(tmp_path)) as again:
        execution = await again.execution(reply["execution_id"])
        assert (execution.state, execution.outcome) == (State.FAILED, "unknown")


# -- verification ------------------------------------------------------------------------------

Tamper = Callable[[sqlite3.Connection], object]


def _update(sql: str) -> Tamper:
    def run(db: sqlite3.Connection) -> None:
        for trigger in ("contract_fixed", "audit_fixed", "audit_kept", "event_fixed"):
            db.execute(f"DROP TRIGGER {trigger}")
        assert db.execute(sql).rowcount >= 1

    return run


async def filled(path: Path) -> None:
    async with Runtime(settings(path)) as orchestrator:
        orchestrator.register_agent(worker("once", Delivery.AT_MOST_ONCE))
        for n in range(6):
            await orchestrator.orchestrate(f"s{n % 2}", {"capability": "once"})
        assert (await orchestrator.verify()).ok


@pytest.mark.parametrize(
    ("tamper", "chain", "n"),
    [
        ("UPDATE contract SET body = x'22' WHERE session_id = 's1' AND n = 4", "session s1", 4),
        ("UPDATE contract SET capability = 'x' WHERE session_id = 's0' AND n = 3", "session s0", 3),
        ("UPDATE contract SET owner = 'x' WHERE session_id = 's0' AND n = 2", "session s0", 2),
        ("DELETE FROM contract WHERE session_id = 's0' AND n = 2", "session s0", 2),
        ("DELETE FROM contract WHERE session_id = 's0' AND n = 6", "session s0", 6),
        ("UPDATE contract SET n = 9 WHERE session_id = 's0' AND n = 1", "session s0", 1),
        ("UPDATE event SET data = x'7b7d20' WHERE seq = 1", "events of", 1),
        ("DELETE FROM event WHERE seq = 1", "events of", 1),
        ("UPDATE execution SET state = 'failed' WHERE session_id = 's0'", "session s0", 2),
        ("DELETE FROM execution WHERE session_id = 's1'", "session s1", 1),
        ("UPDATE session SET head = zeroblob(32) WHERE session_id = 's1'", "session s1", 6),
        ("DELETE FROM session WHERE session_id = 's1'", "session s1", 1),
        ("UPDATE audit SET actor = 'x' WHERE n = 1", "audit", 1),
        ("DELETE FROM audit WHERE n = 1", "audit", 1),
    ],
)
async def test_verify_names_the_first_row_that_does_not_fit(
    tmp_path: Path, tamper: str, chain: str, n: int
) -> None:
    await filled(tmp_path)
    db = sqlite3.connect(tmp_path / "retinue.db", isolation_level=None)
    _update(tamper)(db)
    db.close()
    async with Runtime(settings(tmp_path)) as orchestrator:
        verdict = await orchestrator.verify()
    assert verdict.fault is not None
    assert verdict.fault.chain.startswith(chain)
    assert verdict.fault.n == n


async def test_rows_that_changed_places_show(tmp_path: Path) -> None:
    await filled(tmp_path)
    db = sqlite3.connect(tmp_path / "retinue.db", isolation_level=None)
    for trigger in ("contract_fixed",):
        db.execute(f"DROP TRIGGER {trigger}")
    for before, after in ((3, 100), (5, 3), (100, 5)):
        db.execute("UPDATE contract SET n = ? WHERE session_id = 's0' AND n = ?", [after, before])
    db.close()
    async with Runtime(settings(tmp_path)) as orchestrator:
        fault = (await orchestrator.verify()).fault
    assert fault is not None
    assert (fault.n, fault.reason) == (3, "the row was changed or moved")


async def test_a_tail_cut_off_with_its_head_shows_by_the_anchor(tmp_path: Path) -> None:
    await filled(tmp_path)
    db = sqlite3.connect(tmp_path / "retinue.db", isolation_level=None)
    ((digest,),) = db.execute("SELECT hash FROM contract WHERE session_id = 's0' AND n = 4")
    db.execute("DELETE FROM contract WHERE session_id = 's0' AND n > 4")
    db.execute("UPDATE session SET n = 4, head = ? WHERE session_id = 's0'", [digest])
    db.close()
    async with Runtime(settings(tmp_path)) as orchestrator:
        fault = (await orchestrator.verify()).fault
    assert fault is not None
    assert (fault.n, fault.reason) == (5, "rows at the end are missing")


async def test_a_body_that_nobody_erased_shows(tmp_path: Path) -> None:
    await filled(tmp_path)
    db = sqlite3.connect(tmp_path / "retinue.db", isolation_level=None)
    db.execute("UPDATE contract SET body = NULL WHERE session_id = 's0' AND n = 3")
    db.close()
    async with Runtime(settings(tmp_path)) as orchestrator:
        fault = (await orchestrator.verify()).fault
        assert fault is not None
        assert (fault.n, fault.reason) == (
            3,
            "the body is gone, and the audit does not say who erased it",
        )
        listing = await orchestrator.executions(ExecutionFilter(session_id="s0"), Page())
        for execution in listing.items:
            await orchestrator.task_of(execution)


async def test_a_caller_that_leaves_while_its_task_is_written_leaves_no_dead_lease(
    tmp_path: Path,
) -> None:
    async with Runtime(settings(tmp_path)) as orchestrator:
        orchestrator.register_agent(worker("once", Delivery.AT_MOST_ONCE))
        caller = asyncio.create_task(orchestrator.orchestrate("s", {"capability": "once"}))
        await asyncio.sleep(0)  # it waits for the commit now
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)

        async def found() -> list[Execution]:
            return (await orchestrator.executions(ExecutionFilter(), Page())).items

        async with asyncio.timeout(20):
            while not (listed := await found()):
                await asyncio.sleep(0.002)
        execution = await ended(orchestrator, listed[0].id)
        assert execution.state is State.COMPLETED
        assert (await orchestrator.agent("once")).running == 0
        assert (await orchestrator.verify()).ok


async def test_stops_of_the_server_do_not_use_up_attempts(tmp_path: Path) -> None:
    @capability(options=Options(delivery="at_least_once", max_attempts=2))
    async def careful(context: Context) -> str:
        return str(await context.ask("Go on?"))

    async def asked(runtime: Runtime, attempt: int) -> Question:
        async with asyncio.timeout(10):
            while True:
                listing = await runtime.store.questions(None, Page())
                if listing.items and listing.items[0].attempt == attempt:
                    return listing.items[0]
                await asyncio.sleep(0.001)

    runtime = Runtime(settings(tmp_path))
    await runtime.start()
    runtime.orchestrator.register_agent(careful)
    task = Task(session_id="s", capability="careful", parameters={})
    accepted = await runtime.orchestrator.submit(task)
    for attempt in (1, 2, 3):
        await asked(runtime, attempt)
        async with asyncio.timeout(10):  # nobody works: there is nothing to wait for
            await runtime.stop(grace=3600)
        runtime = Runtime(settings(tmp_path))
        await runtime.start()
        runtime.orchestrator.register_agent(careful)
    question = await asked(runtime, 4)
    await runtime.orchestrator.answer(question.id, "yes")
    reply = await runtime.orchestrator.reply(accepted)
    execution = await runtime.orchestrator.execution(accepted.execution_id)
    await runtime.orchestrator.verify()
    await runtime.stop(grace=1)
    assert reply.data == b'"yes"'
    assert (execution.attempt, execution.interrupted, execution.attempts_used) == (4, 3, 1)


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_restart_leaves_the_time_that_was_left_when_a_person_was_asked(
    tmp_path: Path, how: str
) -> None:
    @capability(options=Options(delivery="idempotent"))
    async def careful(context: Context) -> Any:
        return await context.ask("May I?")

    async def asked(orchestrator: Orchestrator) -> str:
        async with asyncio.timeout(10):
            while not (found := (await orchestrator.questions(Page())).items):
                await asyncio.sleep(0.002)
        return found[0].id

    before = Runtime(settings(tmp_path))
    await before.start()
    before.orchestrator.register_agent(careful)
    task = Task(session_id="s", capability="careful", parameters={}, deadline_us=3_000_000)
    accepted = await before.orchestrator.submit(task)
    await asked(before.orchestrator)
    await asyncio.sleep(3.5)  # longer than its deadline, which stands still meanwhile
    await (gone(before) if how == "killed" else before.stop(grace=10))

    after = Runtime(settings(tmp_path))
    after.orchestrator.register_agent(careful)
    orchestrator = await after.start()
    try:
        await orchestrator.answer(await asked(orchestrator), True)
        execution = await ended(orchestrator, accepted.execution_id)
        assert (execution.state, execution.attempt) == (State.COMPLETED, 2)
        assert (await orchestrator.verify()).ok
    finally:
        await after.stop(grace=1)


async def test_one_thought_dead_gets_its_own_work_back_and_loses_no_slot(
    tmp_path: Path, postgres_url: str
) -> None:
    stubborn, freed = asyncio.Event(), asyncio.Event()

    @capability(options=Options(delivery="idempotent", concurrency=2))
    async def work(context: Context) -> int:
        if context.attempt == 1:
            try:
                await stubborn.wait()
            except asyncio.CancelledError:
                await freed.wait()  # it takes its time
                raise
        else:
            await freed.wait()
        return context.attempt

    given = Settings(
        data_dir=tmp_path,
        examples=False,
        entry_points=False,
        database_url=postgres_url,
        lease_seconds=30,
    )
    async with Runtime(given) as orchestrator:
        orchestrator.register_agent(work)
        caller = asyncio.create_task(orchestrator.orchestrate("s", {"capability": "work"}))
        engine = orchestrator._engine
        async with asyncio.timeout(20):
            while not engine.attempts.running:
                await asyncio.sleep(0.001)
            (first,) = engine.attempts.running.values()
            db = await asyncpg.connect(postgres_url)
            await db.execute("UPDATE worker SET stopped_at = 1 WHERE stopped_at IS NULL")
            await db.close()
            while next(iter(engine.attempts.running.values())) is first:
                engine.scheduler.soon()
                await asyncio.sleep(0.01)
            freed.set()
            reply = await caller
            while (await orchestrator.agent("work")).running:
                await asyncio.sleep(0.001)
        assert (reply["success"], reply["data"]) == (True, 2)
        assert not engine.attempts.running
        assert not engine.attempts.superseded

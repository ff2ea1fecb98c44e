"""Retention and erasure in a whole system: what goes, what readers hear, what still verifies."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from retinue import Context, Orchestrator, Runtime, Settings, capability
from retinue.domain.event import Event, EventType
from retinue.domain.execution import State, Task
from retinue.domain.principal import LOCAL, Principal, Role
from retinue.domain.strictjson import loads
from retinue.engine.ledger import Anchor
from retinue.engine.retention import Policy
from retinue.errors import Conflict, Forbidden, Gone, NotFound
from retinue.interfaces import ContractFilter, ExecutionFilter, Page

VIEWER = Principal("eye", LOCAL, Role.VIEWER)
LAPS = 10_000


@capability()
async def tell(context: Context, pieces: int = 3) -> str:
    """Say some things and end."""
    for n in range(pieces):
        context.log(f"secret {n}")
    return "the secret result"


@capability()
async def refuse() -> None:
    """Fail."""
    raise RuntimeError("the secret failure")


@pytest.fixture(params=["sqlite", "postgres"])
async def system(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Runtime]:
    where: dict[str, Any] = {"data_dir": tmp_path}
    if request.param == "postgres":
        where = {"database_url": request.getfixturevalue("postgres_url")}
    runtime = Runtime(Settings(examples=False, entry_points=False, **where))
    orchestrator = await runtime.start()
    orchestrator.register_agent(tell)
    orchestrator.register_agent(refuse)
    yield runtime
    await runtime.stop(grace=1)


async def done(orchestrator: Orchestrator, session_id: str = "s", name: str = "tell") -> str:
    reply = await orchestrator.orchestrate(session_id, {"capability": name})
    return str(reply["execution_id"])


async def follow(orchestrator: Orchestrator, execution_id: str, after: int = 0) -> list[Event]:
    return [e async for page in orchestrator.follow(execution_id, after=after) for e in page]


async def total(orchestrator: Orchestrator, session_id: str = "s") -> int:
    return (await orchestrator.contracts(ContractFilter(session_id=session_id), Page())).total


@pytest.mark.requirement("004.cleanup")
async def test_old_ones_go_and_the_rest_still_verifies(system: Runtime) -> None:
    orchestrator = system.orchestrator
    old = [await done(orchestrator) for _ in range(30)]
    other = await done(orchestrator, "t")
    kept = [await done(orchestrator) for _ in range(5)]
    system.engine.retention.policy = Policy(executions=6)
    _, tried = await orchestrator.prune(dry_run=True)
    assert (tried.executions, tried.sessions) == (30, 1)
    assert await total(orchestrator) == 70
    _, pruned = await orchestrator.prune()
    assert (pruned.executions, pruned.events) == (30, 120)
    assert (pruned.contracts, pruned.sessions) == (60, 1)
    assert (await orchestrator.prune())[1].contracts == 0
    assert await total(orchestrator) == 10
    verdict = await orchestrator.verify()
    assert verdict.ok, verdict
    assert verdict.contracts == 12
    for execution_id in (*kept, other):
        assert [e.seq for e in await follow(orchestrator, execution_id)] == [1, 2, 3, 4]
    for execution_id in (old[0], old[-1]):
        (event,) = await follow(orchestrator, execution_id)
        assert (event.type, event.seq, event.terminal) == (EventType.TRUNCATED, 4, True)
        assert loads(event.data) == {"removed": {"from": 1, "to": 4}, "state": "completed"}
    rows = (await orchestrator.audit(Page())).items
    assert [row.action for row in rows if row.action == "retention.contracts"]
    await done(orchestrator)
    assert (await orchestrator.verify()).ok


async def test_events_may_go_before_their_contracts(system: Runtime) -> None:
    orchestrator = system.orchestrator
    good, bad = await done(orchestrator), await done(orchestrator, name="refuse")
    system.engine.retention.policy = Policy(event_days=1e-12)
    _, pruned = await orchestrator.prune()
    assert (pruned.executions, pruned.events, pruned.contracts) == (2, 5, 0)
    (event,) = await follow(orchestrator, good)
    said = {"removed": {"from": 1, "to": 4}, "state": "completed", "result": "the secret result"}
    assert loads(event.data) == said
    (event,) = await follow(orchestrator, good, after=2)
    assert loads(event.data)["removed"] == {"from": 3, "to": 4}
    assert await follow(orchestrator, good, after=4) == []
    (event,) = await orchestrator.events(good, 0, 100)
    assert (event.type, event.seq) == (EventType.TRUNCATED, 4)
    assert await orchestrator.events(good, 4, 100) == []
    (event,) = await follow(orchestrator, bad)
    assert loads(event.data)["state"] == "failed"
    assert "the secret failure" in loads(event.data)["failure"]["message"]
    assert await total(orchestrator) == 4
    assert (await orchestrator.verify()).ok


async def test_what_has_not_ended_keeps_its_chain(system: Runtime) -> None:
    orchestrator = system.orchestrator
    gate = asyncio.Event()

    @capability()
    async def wait() -> str:
        await gate.wait()
        return "done"

    orchestrator.register_agent(wait)
    first = await done(orchestrator)
    accepted = await orchestrator.submit(Task(session_id="s", capability="wait", parameters={}))
    later = await done(orchestrator)
    system.engine.retention.policy = Policy(days=1e-12)
    _, pruned = await orchestrator.prune()
    assert (pruned.executions, pruned.contracts) == (2, 2)
    assert (await orchestrator.execution(accepted.execution_id)).state is State.RUNNING
    assert (await orchestrator.verify()).ok
    gate.set()
    assert len(await follow(orchestrator, accepted.execution_id)) == 1
    _, pruned = await orchestrator.prune()
    assert (pruned.executions, pruned.contracts) == (1, 4)
    assert await total(orchestrator) == 0
    assert (await orchestrator.verify()).ok
    assert {(await orchestrator.execution(i)).state for i in (first, later)} == {State.COMPLETED}


async def test_it_happens_by_itself(tmp_path: Path) -> None:
    where = Settings(data_dir=tmp_path, examples=False, retention_days=1e-12, cleanup_interval=0.02)
    async with Runtime(where) as orchestrator:
        orchestrator.register_agent(tell)
        for _ in range(3):
            await done(orchestrator)
        async with asyncio.timeout(20):
            while await total(orchestrator):
                await asyncio.sleep(0.01)
        assert (await orchestrator.verify()).ok


async def test_a_reader_in_the_middle_is_told(system: Runtime) -> None:
    orchestrator = system.orchestrator
    reply = await orchestrator.orchestrate(
        "s", {"capability": "tell", "parameters": {"pieces": 2500}}
    )
    reader = orchestrator.follow(reply["execution_id"])
    first = await anext(reader)
    assert first[0].seq == 1
    system.engine.retention.policy = Policy(event_days=1e-12)
    await orchestrator.prune()
    rest = [event async for page in reader for event in page]
    assert (rest[-1].type, rest[-1].seq) == (EventType.TRUNCATED, 2501)
    assert loads(rest[-1].data)["removed"] == {"from": first[-1].seq + 1, "to": 2501}


@pytest.mark.requirement("004.cleanup")
async def test_an_ended_stream_that_nobody_reads_costs_no_memory(tmp_path: Path) -> None:
    where = Settings(data_dir=tmp_path, examples=False, cleanup_interval=0.05)
    runtime = Runtime(where)
    orchestrator = await runtime.start()
    orchestrator.register_agent(tell)

    def ours() -> Counter[str]:
        gc.collect()
        kinds = (type(thing) for thing in gc.get_objects())
        return Counter(k.__qualname__ for k in kinds if str(k.__module__).startswith("retinue."))

    async def lap(count: int) -> list[str]:
        task = Task(session_id="s", capability="tell", parameters={"pieces": 1})
        accepted = await asyncio.gather(*(orchestrator.submit(task) for _ in range(count)))
        return [one.execution_id for one in accepted]

    async def quiet() -> None:
        async with asyncio.timeout(60):
            while runtime.engine.attempts.running or await runtime.store.backlog(1 << 60):
                await asyncio.sleep(0.02)

    await lap(20)
    await quiet()
    await asyncio.sleep(0)
    before = ours()
    ids: list[str] = []
    for _ in range(LAPS // 500):
        ids += await lap(500)
        await quiet()
    async with asyncio.timeout(5):  # more than cleanup_interval, and a tick
        while more := ours() - before:
            await asyncio.sleep(0.05)
    assert not more
    assert runtime.engine.journal.watched == []
    for execution_id in ids[::1000]:
        assert [e.seq for e in await follow(orchestrator, execution_id)] == [1, 2]
    runtime.engine.retention.policy = Policy(executions=100)
    _, pruned = await orchestrator.prune()
    assert pruned.executions == LAPS + 20 - 100
    assert (await orchestrator.verify()).ok
    await runtime.stop(grace=1)


async def test_verification_holds_while_everything_goes_on(system: Runtime) -> None:
    orchestrator = system.orchestrator
    system.engine.retention.policy = Policy(days=1e-12)
    stop = asyncio.Event()

    async def work(number: int) -> None:
        while not stop.is_set():
            await done(orchestrator, f"s{number % 3}")

    async def prune() -> None:
        while not stop.is_set():
            await orchestrator.prune()

    async def erase() -> None:
        while not stop.is_set():
            execution_id = await done(orchestrator, "erased")
            await orchestrator.erase(execution_id)

    busy = [asyncio.create_task(t) for t in (*(work(n) for n in range(6)), prune(), erase())]
    verdicts = [await orchestrator.verify() for _ in range(40)]
    stop.set()
    await asyncio.gather(*busy)
    assert [v.fault for v in verdicts if not v.ok] == []
    assert (await orchestrator.verify()).ok


async def test_two_processes_remove_everything_once(postgres_url: str) -> None:
    where = Settings(
        database_url=postgres_url, examples=False, entry_points=False, cleanup_interval=3600
    )
    one, two = Runtime(where), Runtime(where)
    await one.start()
    await two.start()
    one.orchestrator.register_agent(tell)
    for number in range(60):
        await done(one.orchestrator, f"s{number % 4}")
    for runtime in (one, two):
        runtime.engine.retention.policy = Policy(days=1e-12)
    results = await asyncio.gather(one.orchestrator.prune(), two.orchestrator.prune())
    parts = [pruned for _, pruned in results]
    for name, count in (("executions", 60), ("events", 240), ("contracts", 120)):
        assert sum(getattr(part, name) for part in parts) == count
    assert (await two.orchestrator.verify()).ok
    await one.stop(grace=1)
    await two.stop(grace=1)


# -- erasure -----------------------------------------------------------------------------------


async def secrets_in(system: Runtime) -> list[str]:
    """Return where something secret still stands, in any column of any row."""
    store = system.store
    rows = await store.contracts_after(("", "", 0), None, 10_000)
    found = [f"contract {row.n}" for row in rows if row.body is not None and b"secret" in row.body]
    executions = await store.executions(ExecutionFilter(), Page(limit=1000))
    for e in executions.items:
        found += [f"event {v.seq}" for v in await store.events(e.id) if b"secret" in v.data]
    return found


async def test_an_execution_is_erased(system: Runtime) -> None:
    orchestrator = system.orchestrator
    execution_id = await done(orchestrator)
    assert len(await secrets_in(system)) == 4
    before = (await orchestrator.execution(execution_id)).digest
    erased = await orchestrator.erase(execution_id)
    assert (erased.contracts, erased.open) == (2, 0)
    assert await secrets_in(system) == []
    assert (await orchestrator.erase(execution_id)).contracts == 0
    assert (await orchestrator.verify()).ok
    execution = await orchestrator.execution(execution_id)
    assert execution.digest == before
    assert await orchestrator.task_of(execution) == (None, None)
    assert await orchestrator.gone(execution) == {"erased"}
    events = await follow(orchestrator, execution_id)
    assert [loads(e.data) for e in events[:-1]] == [{"erased": True}] * 3
    last = {"erased": True, "result": None, "final_response": None}
    assert loads(events[-1].data) == last
    row = (await orchestrator.audit(Page())).items[-1]
    assert (row.actor, row.action, row.target) == ("local", "execution.erase", execution_id)


async def test_a_session_is_erased_but_for_what_runs(system: Runtime) -> None:
    orchestrator = system.orchestrator
    gate = asyncio.Event()

    @capability()
    async def wait() -> str:
        await gate.wait()
        return "done"

    orchestrator.register_agent(wait)
    for name in ("tell", "refuse", "tell"):
        await done(orchestrator, name=name)
    accepted = await orchestrator.submit(Task(session_id="s", capability="wait", parameters={}))
    elsewhere = await done(orchestrator, "other")
    erased = await orchestrator.erase_session("s")
    assert (erased.contracts, erased.open) == (6, 1)
    with pytest.raises(Conflict):
        await orchestrator.erase(accepted.execution_id)
    assert len(await secrets_in(system)) == 4, "the other session's"
    gate.set()
    await follow(orchestrator, accepted.execution_id)
    assert (await orchestrator.erase_session("s")).contracts == 2
    assert (await orchestrator.verify()).ok
    block = await orchestrator.compress_session("s")
    assert block["compressed"] is True
    exchanges = block["memory_block"]["exchanges"]
    assert [x["erased"] for x in exchanges] == [True] * 4
    assert "secret" not in str(block)
    assert len(await follow(orchestrator, elsewhere)) == 4


async def test_what_was_erased_goes_later_as_everything_does(system: Runtime) -> None:
    orchestrator = system.orchestrator
    execution_id = await done(orchestrator)
    await orchestrator.erase(execution_id)
    system.engine.retention.policy = Policy(days=1e-12)
    _, pruned = await orchestrator.prune()
    assert (pruned.executions, pruned.contracts) == (1, 2)
    assert (await orchestrator.verify()).ok
    (event,) = await follow(orchestrator, execution_id)
    said = {"removed": {"from": 1, "to": 4}, "state": "completed", "erased": True}
    assert loads(event.data) == said


async def test_a_repeated_call_hears_that_its_result_is_gone(system: Runtime) -> None:
    orchestrator = system.orchestrator
    task = Task(session_id="s", capability="tell", parameters={}, idempotency_key="once")
    reply = await orchestrator.perform(task)
    await orchestrator.erase(reply.execution_id)
    with pytest.raises(Gone) as caught:
        await orchestrator.perform(task)
    assert caught.value.details == {"execution_id": reply.execution_id}


async def test_only_admins_prune_erase_and_anchor(system: Runtime) -> None:
    orchestrator = system.orchestrator
    execution_id = await done(orchestrator)
    for attempt in (
        orchestrator.erase(execution_id, VIEWER),
        orchestrator.erase_session("s", VIEWER),
        orchestrator.prune(principal=VIEWER),
        orchestrator.anchor(VIEWER),
    ):
        with pytest.raises(Forbidden):
            await attempt
    stranger = Principal("root", "elsewhere", Role.ADMIN)
    for attempt in (
        orchestrator.erase(execution_id, stranger),
        orchestrator.erase_session("s", stranger),
    ):
        with pytest.raises(NotFound):
            await attempt


async def test_an_anchor_shows_that_all_was_rewritten(system: Runtime, tmp_path: Path) -> None:
    orchestrator = system.orchestrator
    await done(orchestrator)
    anchor = await orchestrator.anchor()
    assert anchor.n >= 1
    await done(orchestrator)
    await orchestrator.anchor()
    assert (await orchestrator.verify(anchor=anchor)).ok
    fault = (await orchestrator.verify(anchor=Anchor(anchor.n, bytes(32)))).fault
    assert fault is not None
    assert (fault.chain, fault.n) == ("audit", anchor.n)
    fault = (await orchestrator.verify(anchor=Anchor(anchor.n + 100, anchor.hash))).fault
    assert fault is not None
    assert fault.reason == f"row {anchor.n + 100}, which the anchor names, is missing"
    # Another ledger, whole in itself, in the place of this one.
    async with Runtime(Settings(data_dir=tmp_path / "new", examples=False)) as forged:
        forged.register_agent(tell)
        await done(forged)
        await forged.anchor()
        assert (await forged.verify()).ok
        assert not (await forged.verify(anchor=anchor)).ok

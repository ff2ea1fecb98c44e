"""What a store removes and erases, and what it leaves to say so."""

# ruff: noqa: D102, PLR2004, a test's name says what it shows, its expected values are literals

from __future__ import annotations

import asyncio

import pytest

from retinue.domain.contract import ContractStatus, ContractType
from retinue.domain.event import ERASED, hash_data
from retinue.domain.execution import Execution, State
from retinue.domain.ids import now_us
from retinue.domain.intent import Append, ClaimLanes, CutChain, Erase, Retire, SettleLane, Sweep
from retinue.domain.result import Claimed, Erased, Ok, Retired, Submitted, Swept
from retinue.domain.retention import CUT, ERASE, GONE_ERASED, REMOVED, RETIRE, Bounds
from retinue.domain.strictjson import loads
from retinue.interfaces import ContractFilter, Page, Store
from retinue.testing.store_records import Tamper, refusal, verify_audit
from retinue.testing.store_runs import answer, asked, question
from retinue.testing.store_samples import (
    execution,
    fence,
    finish,
    load,
    run,
    submit,
    text,
    verify_chain,
    verify_events,
)

ALL = Bounds(before=1 << 60)


def retire(*executions: Execution, bounds: Bounds = ALL) -> Retire:
    """Return the intent that has the events of executions removed."""
    return Retire(tuple(e.id for e in executions), bounds, now_us())


def cut(limit: int = 100, bounds: Bounds = ALL, session_id: str = "s1") -> CutChain:
    """Return the intent that removes the beginning of a chain."""
    return CutChain("ann", session_id, bounds, limit, now_us())


def erase(*places: int) -> Erase:
    """Return the intent that erases exchanges of ann's session s1."""
    return Erase("ann", "s1", places, "root", "ann", "session.erase", "s1", now_us())


async def swept(store: Store, limit: int = 1000) -> int:
    """Deal with all that is marked; return how many events that were."""
    total = 0
    while True:
        result = await store.write(Sweep(limit, now_us()))
        assert isinstance(result, Swept)
        total += result.count
        if not result.more:
            assert not await store.unswept(now_us())
            return total


async def ended(store: Store, e: Execution | None = None, events: int = 1) -> Execution:
    """Run an execution to its end with so many events, the last one included."""
    e = await run(store, e)
    for number in range(events - 1):
        await store.write(Append(fence(e), (text(f"secret {number}"),), now_us()))
    await store.write(finish(e))
    return e


async def places(store: Store, session_id: str = "s1") -> list[int]:
    """Return which places of ann's chain are still there."""
    return [row.n for row in await store.chain("ann", session_id, 0, 1000)]


async def actions(store: Store) -> list[str]:
    """Return what the audit says was done."""
    await verify_audit(store)
    return [row.action for row in (await store.audit(Page())).items]


class RetentionRules:
    """Old events and contracts go; what is needed stays."""

    async def test_keys_that_have_expired_are_forgotten(self, store: Store) -> None:
        for name in ("a", "b", "c"):
            assert isinstance(
                await store.write(submit(execution(), key=name, expires_in=-1)), Submitted
            )
        assert isinstance(
            await store.write(submit(execution(), key="d", expires_in=60_000_000)), Submitted
        )
        assert await store.unswept(now_us())
        assert await store.write(Sweep(2, now_us())) == Swept(0, True)
        assert await store.unswept(now_us())
        assert await store.write(Sweep(2, now_us())) == Swept(0, False)
        assert not await store.unswept(now_us())
        # Asked as of a time when none had expired: those that were forgotten are not there.
        assert await store.idempotent("ann", "a", 0) is None
        assert await store.idempotent("ann", "d", now_us()) is not None

    async def test_events_are_marked_first_and_swept_later(self, store: Store) -> None:
        old, kept = await ended(store, events=25), await ended(store, events=3)
        assert await store.write(retire(old)) == Retired(1)
        assert await store.write(retire(old)) == Retired(0)
        (mark,) = await store.marks_of([old.id, kept.id])
        assert (mark.id, mark.kind, mark.pending) == (old.id, REMOVED, 1)
        (row,) = await store.audit_rows([mark.audit_n])
        assert (row.action, loads(row.detail)) == (RETIRE, {"executions": [old.id]})
        assert await store.write(Sweep(10, now_us())) == Swept(10, True)
        assert [e.seq for e in await store.events(old.id)] == list(range(11, 26))
        assert await swept(store, 10) == 15
        assert await store.events(old.id) == []
        assert len(await verify_events(store, kept)) == 3
        assert (await load(store, old)).last_seq == 25
        assert await actions(store) == [RETIRE]

    async def test_what_has_not_ended_or_is_not_old_stays(self, store: Store) -> None:
        running, done = await run(store), await ended(store)
        waiting, _ = await asked(store)
        at = (await load(store, done)).finished_at
        assert at is not None
        assert await store.write(retire(running, waiting)) == Retired(0)
        assert await store.write(retire(done, bounds=Bounds(before=at))) == Retired(0)
        assert await store.write(retire(done, bounds=Bounds(below=done.id))) == Retired(0)
        assert await store.marks_of([running.id, waiting.id, done.id]) == []
        later = execution().id
        assert await store.write(retire(done, bounds=Bounds(below=later))) == Retired(1)

    async def test_a_chain_loses_its_beginning_and_still_holds(self, store: Store) -> None:
        first, second = await ended(store), await ended(store)
        await store.write(refusal())
        last = await ended(store)
        whole = await verify_chain(store, "ann", "s1")
        await store.write(retire(first, second))
        assert await store.write(cut()) == Retired(6, more=True)
        assert await store.write(cut()) == Retired(0)
        assert await places(store) == [7, 8]
        (point,) = await store.checkpoints(("ann", "s1"), ("ann", "s1"))
        assert (point.n, bytes(point.hash)) == (6, whole[5].hash)
        assert (point.completed, point.failed, point.cancelled) == (2, 1, 0)
        assert (point.began, point.latest) == (whole[0].at, max(row.at for row in whole[:6]))
        (row,) = await store.audit_rows([point.audit_n])
        assert (row.action, row.owner, row.target) == (CUT, "ann", "s1")
        assert loads(row.detail)["hash"] == whole[5].hash.hex()
        session = await store.session("ann", "s1")
        assert session is not None
        assert (session.n, session.completed, session.failed) == (8, 3, 1)
        listing = await store.contracts(ContractFilter(owner="ann", session_id="s1"), Page())
        assert (listing.total, len(listing.items)) == (2, 2)
        assert (await store.counts("ann")).contracts == 2
        assert (await store.counts("ann")).by_status == {"completed": 2}
        assert await store.bodies(await load(store, first)) == (None, None)
        await store.write(retire(last))
        assert await store.write(cut()) == Retired(2, more=True)
        (point,) = await store.checkpoints(("ann", "s1"), ("ann", "s1"))
        assert (point.n, point.completed, point.began) == (8, 3, whole[0].at)
        await ended(store)
        assert await places(store) == [9, 10]
        assert await verify_audit(store) == 4

    async def test_only_whole_exchanges_go(self, store: Store) -> None:
        first, second = await run(store), await run(store)
        await store.write(finish(first))
        await store.write(retire(first))
        # 1: first asked, 2: second asked, 3: first answered; the second one runs.
        assert await store.write(cut()) == Retired(0)
        await store.write(finish(second))
        assert await store.write(cut()) == Retired(0), "its events are not retired"
        await store.write(retire(second))
        assert await store.write(cut(limit=3)) == Retired(0, more=True), "it looks too near"
        assert await store.write(cut(limit=4)) == Retired(4, more=True)
        assert await places(store) == []

    async def test_what_a_sink_has_still_to_be_told_stays(self, store: Store) -> None:
        store.sinks = ("trace",)
        executions = [await ended(store) for _ in range(3)]
        await store.write(retire(*executions))
        assert await store.write(cut()) == Retired(0)
        claimed = await store.write(ClaimLanes("trace", store.worker, 10, now_us()))
        assert isinstance(claimed, Claimed)
        (lane,) = claimed.lanes
        assert (lane.first_n, lane.last_n) == (1, 6)
        told = SettleLane("trace", "ann", "s1", store.worker, 5, now_us(), now_us())
        assert await store.write(told) == Ok()
        assert await store.write(cut()) == Retired(4, more=True)
        assert await store.write(cut()) == Retired(0)
        assert await places(store) == [5, 6]

    async def test_a_session_that_is_not_there_is_not_made(self, store: Store) -> None:
        assert await store.write(cut(session_id="never")) == Retired(0)
        assert await store.session("ann", "never") is None

    async def test_many_at_once_cut_once(self, store: Store) -> None:
        executions = [await ended(store) for _ in range(10)]
        results = await asyncio.gather(*(store.write(retire(*executions)) for _ in range(5)))
        assert sorted(r.count for r in results if isinstance(r, Retired)) == [0, 0, 0, 0, 10]
        results = await asyncio.gather(*(store.write(cut(limit=4)) for _ in range(8)))
        assert sum(r.count for r in results if isinstance(r, Retired)) == 20
        assert await places(store) == []
        assert await actions(store) == [RETIRE] + [CUT] * 5

    async def test_walks_find_what_is_old(self, store: Store) -> None:
        executions = [await ended(store, execution(session_id=f"s{i % 3}")) for i in range(7)]
        running = await run(store, execution(session_id="t"))
        await store.write(Append(fence(running), (text(),), now_us()))
        await store.write(retire(executions[1]))
        rows = await store.with_events("", 100)
        assert [row.id for row in rows] == [e.id for e in (*executions, running)]
        assert [row.removed for row in rows] == [i == 1 for i in range(8)]
        assert [row.finished_at is None for row in rows] == [i == 7 for i in range(8)]
        assert len(await store.with_events("", 3)) == 3
        assert (await store.with_events(rows[5].id, 100))[0].id == rows[6].id
        assert await store.newest_but(1, None) == running.id
        assert await store.newest_but(3, None) == executions[5].id
        assert await store.newest_but(2, executions[5].id) == executions[3].id
        assert await store.newest_but(9, None) is None
        begin = await store.beginnings(("", ""), 100)
        assert [row.session_id for row in begin] == ["s0", "s1", "s2", "t"]
        assert [row.id for row in begin[:3]] == [e.request_id for e in executions[:3]]
        assert len(await store.beginnings(("ann", "s1"), 1)) == 1


class ErasureRules:
    """What was said goes; that it was said stays."""

    async def test_bodies_and_events_are_erased_and_hashes_stay(self, store: Store) -> None:
        e, other = await ended(store, events=9), await ended(store)
        before = await verify_chain(store, "ann", "s1")
        told = await verify_events(store, e)
        assert await store.write(erase(1)) == Erased(2, 0)
        assert await store.write(erase(1, 2)) == Erased(0, 0)
        await swept(store, 4)
        after = await verify_chain(store, "ann", "s1")
        assert [row.hash for row in after] == [row.hash for row in before]
        assert [row.body is None for row in after] == [True, True, False, False]
        rows = await store.events_after([e.id], ("", 0), 100)
        assert {event.data for event, _ in rows} == {ERASED}
        assert [hashed for _, hashed in rows] == [hash_data(event.data) for event in told]
        assert [event.at for event, _ in rows] == [event.at for event in told]
        assert len(await verify_events(store, other)) == 1
        marks = {(m.id, m.kind, m.pending) for m in await store.marks_of([e.id, other.id])}
        assert marks == {(e.id, GONE_ERASED, 0)}
        assert set(await actions(store)) <= ERASE

    async def test_a_refused_exchange_is_erased_too(self, store: Store) -> None:
        await store.write(refusal())
        assert await store.write(erase(1, 2)) == Erased(2, 0)
        rows = await verify_chain(store, "ann", "s1")
        assert [row.body for row in rows] == [None, None]
        assert {m.id for m in await store.marks_of([r.id for r in rows])} == {r.id for r in rows}

    async def test_what_has_not_ended_is_left_alone(self, store: Store) -> None:
        await run(store)
        assert await store.write(erase(1)) == Erased(0, 1)
        assert [row.body is None for row in await verify_chain(store, "ann", "s1")] == [False]
        assert await verify_audit(store) == 0

    async def test_questions_and_answers_are_erased(self, store: Store) -> None:
        e, question_id = await asked(store)
        assert await store.write(answer(question_id)) == Ok()
        await store.write(finish(await load(store, e)))
        before = await question(store, question_id)
        assert before.closed_seq == 1
        assert before.answer is not None
        assert await store.write(erase(1, 2)) == Erased(2, 0)
        after = await question(store, question_id)
        assert (after.prompt, after.schema, after.answer) == ("", None, None)
        assert after.answer_hash == hash_data(before.answer)

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE contract SET body = NULL, from_agent = 'mallory'",
            "UPDATE contract SET body = NULL, n = n + 100",
            "UPDATE contract SET body = NULL, at = at + 1",
            "UPDATE contract SET body = NULL, digest = NULL",
            "UPDATE event SET at = at + 1",
            "UPDATE event SET data = {erased}, at = at + 1",
            "UPDATE event SET data = {erased}, type = 'log'",
        ],
    )
    async def test_nothing_else_changes_with_what_is_erased(
        self, store: Store, tamper: Tamper, statement: str
    ) -> None:
        await ended(store)
        postgres = hasattr(store, "_dsn")
        erased = "'{\"erased\":true}'::bytea" if postgres else "x'7b22657261736564223a747275657d'"
        with pytest.raises(Exception, match="insert-only"):
            await tamper(statement.format(erased=erased))
        rows = await verify_chain(store, "ann", "s1")
        assert [row.type for row in rows] == [ContractType.REQUEST, ContractType.RESPONSE]
        assert rows[1].status is ContractStatus.COMPLETED
        assert (await store.executions_of([rows[0].execution_id or ""]))[0].state is State.COMPLETED

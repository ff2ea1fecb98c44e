"""The Store seam, beside the queue's first part: delays, priorities, busy sessions, depths."""

# ruff: noqa: D102, PLR2004, a test's name says what it shows, its expected values are literals

from __future__ import annotations

import asyncio

import pytest

from retinue.domain.audit import AuditDraft
from retinue.domain.execution import Execution, Hold, State
from retinue.domain.ids import now_us, ulid
from retinue.domain.intent import Prioritize, Release, Requeue
from retinue.domain.policy import BusyPolicy
from retinue.domain.result import Cancelling, Conflict, Ok, Promoted, Rejected, Released, Submitted
from retinue.interfaces import QueueDepth, Store
from retinue.testing.store_records import verify_audit
from retinue.testing.store_samples import (
    SECOND,
    STEP,
    cancel,
    execution,
    fence,
    finish,
    lease,
    load,
    promote,
    queue,
    run,
    submit,
    verify_chain,
    want,
)

HOUR = 3600 * SECOND
BUSY = Rejected("session_busy", {"session_id": "s1"})
REJECT, ENQUEUE, INTERRUPT = BusyPolicy.REJECT, BusyPolicy.ENQUEUE, BusyPolicy.INTERRUPT


def prioritize(e: Execution, priority: int, owner: str | None = None) -> Prioritize:
    """Return the intent that gives a waiting execution another priority."""
    audit = AuditDraft(owner=e.owner, actor="ann", action="execution.prioritize", target=e.id)
    return Prioritize(e.id, owner, priority, STEP, audit, now_us())


async def turn(store: Store, on_busy: BusyPolicy = ENQUEUE, **more: str) -> Execution:
    """Submit a task with a busy policy to a free slot; return it as the store decided."""
    e = execution(on_busy=on_busy, **more)  # type: ignore[arg-type]
    result = await store.write(submit(e, worker=store.worker))
    assert isinstance(result, Submitted)
    assert result.leased is (e.state is State.RUNNING)
    return e


async def release(store: Store, session_id: str = "s1", owner: str = "ann") -> str | None:
    """Let whoever waits for a session go on; return who that is."""
    result = await store.write(Release(owner, session_id, now_us()))
    assert isinstance(result, Released)
    return result.execution.id if result.execution is not None else None


class DelayRules:
    """What waits for its time."""

    async def test_what_is_due_is_promoted_once(self, store: Store) -> None:
        later, soon = [await queue(store, execution(delay=d * HOUR)) for d in (2, 1)]
        assert await store.next_due() == soon.run_at
        assert await store.due(now_us(), 10) == []
        assert [e.id for e in await store.due(later.run_at, 10)] == [soon.id, later.id]
        assert [e.id for e in await store.due(later.run_at, 1)] == [soon.id]
        early = await store.write(promote(soon, soon.run_at - 1))
        assert early == Conflict("not_due", {"state": "scheduled"})
        results = await asyncio.gather(*(store.write(promote(soon)) for _ in range(3)))
        assert results.count(Promoted(State.QUEUED, Hold.NONE)) == 1
        assert results.count(Conflict("not_due", {"state": "queued"})) == 2
        assert [e.id for e in await lease(store)] == [soon.id]
        assert await store.next_due() == later.run_at
        assert await store.write(promote(execution())) == Rejected("not_found")

    async def test_its_age_counts_from_when_it_was_due(self, store: Store) -> None:
        delayed = await queue(store, execution(delay=SECOND))
        earlier = await queue(store)
        ahead = await queue(store, execution(priority=1))
        await store.write(promote(delayed))
        assert [e.id for e in await lease(store)] == [ahead.id, earlier.id, delayed.id]

    async def test_scheduled_ones_count_against_the_bound(self, store: Store) -> None:
        await queue(store, execution(delay=HOUR), bound=2)
        await queue(store, bound=2)
        for delay in (0, HOUR):
            refused = await store.write(submit(execution(delay=delay), bound=2))
            assert refused == Rejected("queue_full", {"bound": 2})
        await queue(store, execution(key="other", delay=HOUR), bound=2)

    async def test_a_scheduled_one_can_be_cancelled(self, store: Store) -> None:
        e = await queue(store, execution(delay=HOUR))
        assert await store.write(cancel(e)) == Cancelling(State.CANCELLED, None)
        assert await store.next_due() is None
        assert await store.write(promote(e)) == Conflict("not_due", {"state": "cancelled"})
        assert len(await verify_chain(store, "ann", "s1")) == 2


class PriorityRules:
    """Who goes first."""

    async def test_waiting_makes_up_for_a_low_priority(self, store: Store) -> None:
        old = execution(priority=-1)
        old.rank -= STEP + SECOND  # it waits for a minute already
        await queue(store, old)
        new = await queue(store)
        urgent = await queue(store, execution(priority=2))
        assert [e.id for e in await lease(store)] == [urgent.id, old.id, new.id]

    async def test_what_waits_is_given_another_place(self, store: Store) -> None:
        queued = [await queue(store) for _ in range(3)]
        later = await queue(store, execution(delay=HOUR))
        before = await verify_audit(store)
        assert await store.write(prioritize(queued[2], 5)) == Ok()
        assert await store.write(prioritize(queued[0], -5, owner="ann")) == Ok()
        assert await store.write(prioritize(later, 7)) == Ok()
        assert await store.write(prioritize(queued[1], 9, owner="bob")) == Rejected("not_found")
        assert (await load(store, later)).priority == 7
        assert await verify_audit(store) == before + 3
        assert [e.id for e in await lease(store)] == [queued[i].id for i in (2, 1, 0)]
        refused = await store.write(prioritize(queued[2], 1))
        assert refused == Conflict("started", {"state": "running"})
        assert (await load(store, queued[2])).priority == 5
        assert await verify_audit(store) == before + 3

    async def test_a_retry_keeps_its_place(self, store: Store) -> None:
        first = await run(store)
        second = await queue(store)
        await store.write(Requeue(fence(first), now_us(), now_us()))
        assert [e.id for e in await lease(store)] == [first.id, second.id]


class TurnRules:
    """What a task does whose session is busy."""

    async def test_a_free_session_holds_nobody_up(self, store: Store) -> None:
        for number, policy in enumerate(BusyPolicy):
            e = await turn(store, policy, session_id=f"s{number}")
            assert (e.state, e.hold) == (State.RUNNING, Hold.NONE)
            assert await load(store, e) == e

    @pytest.mark.parametrize("how", ["runs", "waits", "between attempts", "asks in turn"])
    async def test_a_busy_session_refuses(self, store: Store, how: str) -> None:
        first = await (queue(store) if how == "waits" else run(store))
        if how == "between attempts":
            await store.write(Requeue(fence(first), now_us() + HOUR, now_us()))
        if how == "asks in turn":
            await turn(store)
            await store.write(finish(first))
        e = execution(on_busy=REJECT)
        assert await store.write(submit(e, worker=store.worker, key="k")) == BUSY
        assert await store.execution(e.id, None) is None
        await turn(store, REJECT, owner="bob")
        await turn(store, REJECT, session_id="s2")
        again = execution(on_busy=REJECT, session_id="s3")  # the key was not used up
        assert await store.write(submit(again, key="k")) == Submitted(again.id)

    async def test_they_go_one_at_a_time_in_order(self, store: Store) -> None:
        first = await run(store)
        waiting = [await turn(store) for _ in range(3)]
        assert {(e.state, e.hold) for e in waiting} == {(State.QUEUED, Hold.SESSION)}
        assert await lease(store) == []
        assert await store.backlog() == []
        assert await store.turns(("", ""), 10) == [("ann", "s1")]
        running = first
        for e in waiting:
            assert await release(store) is None
            await store.write(finish(running))
            assert await release(store) == e.id
            assert await release(store) is None
            (running,) = await lease(store)
            assert running.id == e.id
        await store.write(finish(running))
        assert await store.turns(("", ""), 10) == []
        assert (await turn(store)).state is State.RUNNING
        await verify_chain(store, "ann", "s1")

    async def test_a_queued_one_keeps_its_session_busy(self, store: Store) -> None:
        first = await queue(store, execution(on_busy=ENQUEUE))
        assert first.hold is Hold.NONE
        second = await queue(store, execution(on_busy=ENQUEUE))
        assert second.hold is Hold.SESSION
        assert await release(store) is None
        await store.write(cancel(first))
        assert await release(store) == second.id

    async def test_two_of_one_commit_are_two(self, store: Store) -> None:
        tried = [execution(on_busy=ENQUEUE) for _ in range(3)]
        refused = execution(on_busy=REJECT)
        results = await asyncio.gather(
            *(store.write(submit(e, worker=store.worker)) for e in [*tried, refused])
        )
        assert [isinstance(r, Submitted) and r.leased for r in results] == [True] + [False] * 3
        assert results[3] == BUSY
        assert [e.hold for e in tried] == [Hold.NONE, Hold.SESSION, Hold.SESSION]
        assert await store.ahead(tried[2]) == sorted([tried[0].id, tried[1].id])

    async def test_what_else_the_commit_does_is_known(self, store: Store) -> None:
        first = await run(store)
        second, third = execution(on_busy=REJECT), execution(on_busy=REJECT)
        parallel = execution(session_id="s2")
        results = await asyncio.gather(
            store.write(finish(first)),
            store.write(submit(second, worker=store.worker)),
            store.write(submit(parallel, worker=store.worker)),
            store.write(submit(third, worker=store.worker)),
            store.write(submit(execution(session_id="s2", on_busy=REJECT))),
        )
        assert list(results[1:4]) == [
            Submitted(second.id, leased=True), Submitted(parallel.id, leased=True), BUSY
        ]  # fmt: skip
        assert results[4] == Rejected("session_busy", {"session_id": "s2"})

    async def test_a_task_refused_in_such_a_commit_makes_no_session(self, store: Store) -> None:
        e = execution(on_busy=ENQUEUE)
        results = await asyncio.gather(
            store.write(submit(e)),
            store.write(submit(execution(session_id="new"), bound=0)),
        )
        assert list(results) == [Submitted(e.id), Rejected("queue_full", {"bound": 0})]
        assert await store.session("ann", "new") is None
        await queue(store, execution(session_id="new"))
        assert len(await verify_chain(store, "ann", "new")) == 1

    async def test_the_turns_of_many_sessions_are_walked(self, store: Store) -> None:
        keys = [(owner, f"s{i}") for owner in ("ann", "bob") for i in range(3)]
        for owner, session in keys:
            for _ in range(3):
                await queue(store, execution(owner=owner, session_id=session, on_busy=ENQUEUE))
        assert await store.turns(("", ""), 4) == keys[:4]
        assert await store.turns(keys[3], 4) == keys[4:]

    async def test_parallel_tasks_and_children_are_never_held_up(self, store: Store) -> None:
        parent = await run(store)
        await turn(store)
        child = execution(on_busy=REJECT, parent_id=parent.id)
        assert await store.write(submit(child, worker=store.worker)) == Submitted(
            child.id, leased=True
        )
        assert (await run(store)).hold is Hold.NONE

    async def test_children_do_not_keep_a_session_busy(self, store: Store) -> None:
        await run(store, execution(parent_id=ulid()))
        assert (await turn(store, REJECT)).state is State.RUNNING

    async def test_scheduled_ones_are_decided_about_when_they_are_due(self, store: Store) -> None:
        waiting = [execution(delay=HOUR, on_busy=p) for p in (REJECT, ENQUEUE, INTERRUPT)]
        for e in waiting:
            await queue(store, e)
        first = await turn(store, REJECT)  # they do not make it busy
        results = await asyncio.gather(*(store.write(promote(e)) for e in waiting))
        assert results == [
            Promoted(State.FAILED, Hold.NONE),
            Promoted(State.QUEUED, Hold.SESSION),
            Promoted(State.QUEUED, Hold.SESSION),
        ]
        refused = await load(store, waiting[0])
        assert (refused.error_code, refused.outcome) == ("E_SESSION_BUSY", "not_started")
        assert [e.id for e in await store.interrupting(10)] == [waiting[2].id]
        await store.write(finish(first))
        assert await release(store) == waiting[1].id
        await verify_chain(store, "ann", "s1")

    async def test_of_two_that_are_due_at_once_one_goes(self, store: Store) -> None:
        waiting = [await queue(store, execution(delay=HOUR, on_busy=ENQUEUE)) for _ in range(2)]
        results = await asyncio.gather(*(store.write(promote(e)) for e in waiting))
        assert results == [Promoted(State.QUEUED, h) for h in (Hold.NONE, Hold.SESSION)]

    async def test_an_interrupt_names_whom_it_is_for(self, store: Store) -> None:
        first = await run(store)
        second = await turn(store)
        newest = await turn(store, INTERRUPT)
        await turn(store)
        await run(store)  # later, beside it: not its business
        assert [e.id for e in await store.interrupting(10)] == [newest.id]
        assert await store.ahead(newest) == sorted([first.id, second.id])
        await store.write(cancel(second))
        await store.write(finish(first))
        assert await store.ahead(newest) == []

    async def test_one_that_is_cancelled_in_its_turn_lets_the_next_go(self, store: Store) -> None:
        first = await run(store)
        second, third = await turn(store), await turn(store)
        await store.write(finish(first))
        _, released = await asyncio.gather(
            store.write(cancel(second)), store.write(Release("ann", "s1", now_us()))
        )
        assert released in (Released(None), Released(await load(store, third)))
        if released == Released(None):
            assert await release(store) == third.id

    async def test_nobody_is_released_twice(self, store: Store) -> None:
        first = await run(store)
        waiting = [await turn(store) for _ in range(4)]
        await store.write(finish(first))
        found = await asyncio.gather(*(release(store) for _ in range(6)))
        assert [i for i in found if i is not None] == [waiting[0].id]


class DepthRules:
    """How much waits."""

    async def test_depths_are_counted_by_key(self, store: Store) -> None:
        assert await store.depths() == []
        ready = [await queue(store, execution(key="a", priority=p)) for p in (0, 5, 9)]
        await run(store, execution(key="b", session_id="s2"))
        held = execution(key="b", session_id="s2", on_busy=ENQUEUE)
        await queue(store, held)
        for key in ("a", "c", "c"):
            await queue(store, execution(key=key, delay=HOUR))
        ended = await queue(store, execution(key="d"))
        await store.write(cancel(ended))
        assert await store.depths() == [
            QueueDepth("a", 3, 0, 1, ready[0].id, None),
            QueueDepth("b", 0, 1, 0, None, held.id),
            QueueDepth("c", 0, 0, 2, None, None),
        ]
        await lease(store, want("a", 1))
        assert (await store.depths())[0].ready == 2

    async def test_a_place_is_counted_in_the_line_of_its_key(self, store: Store) -> None:
        first, second = [await queue(store, execution(key="a")) for _ in range(2)]
        urgent = await queue(store, execution(key="a", priority=9))
        await queue(store, execution(key="a", delay=HOUR, priority=9))
        await queue(store, execution(key="b", priority=9))
        assert [await store.place(one) for one in (urgent, first, second)] == [0, 1, 2]
        await lease(store, want("a", 1))
        assert await store.place(second) == 1

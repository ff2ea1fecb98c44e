"""The Store seam, first part: submitting, leasing, and idempotency keys."""

# ruff: noqa: D102, PLR2004, a test's name says what it shows, its expected values are literals

from __future__ import annotations

import asyncio

import msgspec
import pytest

from retinue.domain.contract import ContractType
from retinue.domain.event import EventType
from retinue.domain.execution import Hold, State
from retinue.domain.ids import now_us
from retinue.domain.intent import Lease, Requeue, Want
from retinue.domain.policy import Delivery
from retinue.domain.result import Cancelling, Conflict, Leased, Ok, Promoted, Rejected, Submitted
from retinue.interfaces import Store
from retinue.testing.store_samples import (
    SECOND,
    cancel,
    execution,
    expire,
    fence,
    finish,
    lease,
    load,
    promote,
    queue,
    run,
    submit,
    verify_chain,
    verify_events,
    want,
)


class SubmitRules:
    """How an execution comes in."""

    async def test_a_free_slot_leases_in_the_same_commit(self, store: Store) -> None:
        e = execution()
        result = await store.write(submit(e, worker=store.worker, body=b'{"a":1}'))
        assert result == Submitted(e.id, leased=True)
        stored = await load(store, e)
        assert stored == e
        assert (stored.state, stored.worker, stored.attempt) == (State.RUNNING, store.worker, 1)
        assert stored.started_at == stored.created_at
        assert await store.bodies(stored) == (b'{"a":1}', None)
        (row,) = await verify_chain(store, e.owner, e.session_id)
        assert (row.n, row.id, row.type) == (1, e.request_id, ContractType.REQUEST)
        assert stored.request_n == 1

    async def test_without_a_slot_it_is_queued(self, store: Store) -> None:
        e = execution()
        assert await store.write(submit(e)) == Submitted(e.id)
        stored = await load(store, e)
        assert (stored.state, stored.worker, stored.attempt) == (State.QUEUED, None, 0)
        assert stored.started_at is None

    async def test_what_is_due_comes_before_a_free_slot(self, store: Store) -> None:
        waiting = await queue(store)
        e = execution()
        assert await store.write(submit(e, worker=store.worker)) == Submitted(e.id)
        assert [x.id for x in await lease(store)] == [waiting.id, e.id]

    async def test_what_is_due_in_the_same_commit_comes_first_too(self, store: Store) -> None:
        waiting, e = execution(), execution()
        results = await asyncio.gather(
            store.write(submit(waiting)), store.write(submit(e, worker=store.worker))
        )
        assert list(results) == [Submitted(waiting.id), Submitted(e.id)]

    async def test_what_is_not_due_or_of_another_key_does_not_stand_before_it(
        self, store: Store
    ) -> None:
        await queue(store, execution(delay=3600 * SECOND))
        await queue(store, execution(key="other"))
        await run(store)

    async def test_a_delayed_execution_is_scheduled(self, store: Store) -> None:
        e = execution(delay=3600 * SECOND)
        assert await store.write(submit(e, worker=store.worker)) == Submitted(e.id)
        stored = await load(store, e)
        assert (stored.state, stored.hold, stored.worker) == (State.SCHEDULED, Hold.TIME, None)
        assert await lease(store) == []

    async def test_an_agent_that_was_only_free_is_bound_only_when_it_runs(
        self, store: Store
    ) -> None:
        running = await run(store, execution(agent_id="one"), bind=True)
        assert (await load(store, running)).agent_id == "one"
        queued = await queue(store, execution(agent_id="one"), bind=True)
        assert (await load(store, queued)).agent_id is None
        chosen = await queue(store, execution(agent_id="one"))
        assert (await load(store, chosen)).agent_id == "one"
        rows = await verify_chain(store, "ann", "s1")
        assert [row.to_agent for row in rows] == ["one", None, "one"]

    async def test_a_full_queue_refuses_and_stores_nothing(self, store: Store) -> None:
        running = await run(store)
        first, second = await queue(store, bound=2), await queue(store, bound=2)
        e = execution()
        refused = await store.write(submit(e, bound=2, key="k"))
        assert refused == Rejected("queue_full", {"bound": 2})
        assert await store.execution(e.id, None) is None
        assert len(await verify_chain(store, "ann", "s1")) == 3
        await queue(store, execution(key="other"), bound=2)
        await store.write(finish(running))
        assert [x.id for x in await lease(store)] == [first.id, second.id]
        # The key was not used up by the refusal.
        again = execution()
        assert await store.write(submit(again, bound=2, key="k")) == Submitted(again.id)

    async def test_one_that_brings_a_free_slot_makes_no_queue_longer(self, store: Store) -> None:
        first, second = await queue(store, bound=2), await queue(store, bound=2)
        e = execution()
        brought = submit(e, bound=2, worker=store.worker)
        assert await store.write(brought) == Submitted(e.id)  # behind the others: not leased
        assert [x.id for x in await lease(store)] == [first.id, second.id, e.id]

    async def test_the_bound_holds_within_one_commit(self, store: Store) -> None:
        tried = [execution() for _ in range(6)]
        results = await asyncio.gather(*(store.write(submit(e, bound=2)) for e in tried))
        assert results[:2] == [Submitted(e.id) for e in tried[:2]]
        assert results[2:] == [Rejected("queue_full", {"bound": 2})] * 4

    async def test_a_duplicate_id_fails_alone(self, store: Store) -> None:
        e = await run(store)
        neighbours = [execution() for _ in range(3)]
        intents = [submit(neighbours[0]), submit(e), *map(submit, neighbours[1:])]
        results = await asyncio.gather(
            *(store.write(intent) for intent in intents), return_exceptions=True
        )
        assert isinstance(results.pop(1), Exception)
        assert results == [Submitted(x.id) for x in neighbours]
        assert [x.id for x in await lease(store)] == [x.id for x in neighbours]
        assert len(await verify_chain(store, "ann", "s1")) == 4


class IdempotencyRules:
    """One key, one request, one execution."""

    async def test_the_same_request_joins(self, store: Store) -> None:
        first = await run(store, key="k")
        joined = await store.write(submit(execution(), worker=store.worker, key="k"))
        assert joined == Submitted(first.id, joined=True)
        await store.write(finish(first))
        assert await store.write(submit(execution(), key="k")) == joined
        assert len(await verify_chain(store, "ann", "s1")) == 2

    async def test_another_request_conflicts(self, store: Store) -> None:
        first = await queue(store, key="k")
        refused = await store.write(submit(execution(), key="k", fingerprint=b"other"))
        assert refused == Conflict("idempotency", {"execution_id": first.id})

    async def test_a_key_is_its_owners_own(self, store: Store) -> None:
        await queue(store, key="k")
        await queue(store, execution(owner="bob"), key="k", fingerprint=b"other")

    async def test_an_expired_key_is_free_again(self, store: Store) -> None:
        await queue(store, key="k", expires_in=-SECOND)
        second = await queue(store, key="k", fingerprint=b"other")
        joined = await store.write(submit(execution(), key="k", fingerprint=b"other"))
        assert joined == Submitted(second.id, joined=True)

    async def test_one_commit_knows_its_own_keys(self, store: Store) -> None:
        tried = [execution() for _ in range(10)]
        marks = [b"same"] * 9 + [b"other"]
        results = await asyncio.gather(
            *(
                store.write(submit(e, key="k", fingerprint=mark))
                for e, mark in zip(tried, marks, strict=True)
            )
        )
        first = tried[0].id
        assert results[0] == Submitted(first)
        assert results[1:9] == [Submitted(first, joined=True)] * 8
        assert results[9] == Conflict("idempotency", {"execution_id": first})
        assert [e.id for e in await lease(store)] == [first]

    async def test_nobody_joins_what_found_no_room(self, store: Store) -> None:
        full = Rejected("queue_full", {"bound": 0})
        results = await asyncio.gather(
            store.write(submit(execution(), key="k", bound=0)),
            store.write(submit(execution(), key="k", bound=0)),
            store.write(submit(execution(), key="k", bound=0, fingerprint=b"other")),
        )
        assert list(results) == [full] * 3
        await queue(store, key="k")


class LeaseRules:
    """How an execution goes out to a worker."""

    async def test_priority_comes_first_then_age(self, store: Store) -> None:
        queued = [await queue(store, execution(priority=p)) for p in (0, 5, 0, 9, 5)]
        expected = [queued[i].id for i in (3, 1, 4, 0, 2)]
        assert [e.id for e in await lease(store, want(count=2))] == expected[:2]
        assert [e.id for e in await lease(store)] == expected[2:]
        assert await lease(store) == []

    async def test_each_key_gives_what_is_wanted_of_it(self, store: Store) -> None:
        for key in ("a", "b", "c"):
            for _ in range(3):
                await queue(store, execution(key=key))
        got = await lease(store, want("b", 2, "bee"), want("a", 1, "ay"), want("none", 5))
        assert sorted((e.queue_key, e.agent_id) for e in got) == [
            ("a", "ay"),
            ("b", "bee"),
            ("b", "bee"),
        ]

    async def test_what_is_leased_runs_and_brings_its_input(self, store: Store) -> None:
        e = await queue(store, body=b'{"parameters":[1]}')
        at = now_us()
        result = await store.write(Lease(store.worker, (want(),), at))
        assert isinstance(result, Leased)
        (work,) = result.work
        assert work.body == b'{"parameters":[1]}'
        assert work.execution == await load(store, e)
        assert (work.execution.state, work.execution.attempt) == (State.RUNNING, 1)
        assert (work.execution.worker, work.execution.started_at) == (store.worker, at)
        assert await store.events(e.id) == []

    async def test_no_execution_is_leased_twice(self, store: Store) -> None:
        queued = [execution(session_id=f"s{i % 5}") for i in range(50)]
        await asyncio.gather(*(store.write(submit(e)) for e in queued))
        got = await asyncio.gather(*(lease(store, want(count=3)) for _ in range(20)))
        ids = [e.id for part in got for e in part]
        assert sorted(ids) == sorted(e.id for e in queued)

    async def test_a_lease_of_some_leaves_the_others_where_they_are(self, store: Store) -> None:
        running, other = await run(store), await queue(store, execution(key="other"))
        queued = [await queue(store, execution(priority=p)) for p in (0, 1, 2, 0, 3)]
        later = await queue(store, execution(delay=3600 * SECOND))
        mine = [queued[0], queued[1], queued[3], other, running, later]
        only = (*(e.id for e in mine), "unknown")

        async def some(*wants: Want, only: tuple[str, ...] = only) -> list[str]:
            result = await store.write(Lease(store.worker, wants, now_us(), only))
            assert isinstance(result, Leased)
            for work in result.work:
                assert work.execution == await load(store, work.execution)
                assert work.body == b'{"parameters":{}}'
            return [work.execution.id for work in result.work]

        assert await some(want(count=2)) == [queued[1].id, queued[0].id]
        assert await some(want(), only=()) == []
        assert {*await some(want(), want("other", 1, "o"))} == {queued[3].id, other.id}
        assert (await load(store, other)).agent_id == "o"
        assert await some(want(), want("other")) == []
        assert [e.id for e in await lease(store)] == [queued[4].id, queued[2].id]

    async def test_a_cancelled_one_is_passed_over_in_the_same_commit(self, store: Store) -> None:
        first, second = await queue(store), await queue(store)
        cancelled, got = await asyncio.gather(
            store.write(cancel(first)), lease(store, want(count=1))
        )
        assert cancelled == Cancelling(State.CANCELLED, None)
        assert [e.id for e in got] == [second.id]

    async def test_what_else_the_commit_holds_changes_no_count(self, store: Store) -> None:
        runs = [await run(store) for _ in range(3)]
        queued = [await queue(store) for _ in range(4)]
        leasing = asyncio.create_task(lease(store, want(count=2)))
        _, refused, *_ = await asyncio.gather(
            store.write(finish(runs[0])),
            store.write(cancel(queued[1], "bob")),
            *(store.write(finish(e)) for e in runs[1:]),
        )
        got = await leasing
        assert refused == Rejected("not_found")
        assert [e.id for e in got] == [queued[0].id, queued[1].id]

    async def test_another_attempt_begins_with_a_reset(self, store: Store) -> None:
        e = await run(store)
        at = now_us()
        await store.write(Requeue(fence(e), at + 3600 * SECOND, at))
        waiting = await load(store, e)
        assert (waiting.state, waiting.worker, waiting.attempt) == (State.QUEUED, None, 1)
        assert waiting.hold is Hold.TIME
        assert await lease(store) == []
        assert await store.write(promote(waiting)) == Promoted(State.QUEUED, Hold.NONE)
        (again,) = await lease(store)
        assert (again.id, again.attempt, again.started_at) == (e.id, 2, e.started_at)
        (event,) = await verify_events(store, e)
        assert event.type is EventType.ATTEMPT_STARTED
        assert event.data == b'{"attempt":2,"is_reset":true}'

    @pytest.mark.parametrize(
        ("delivery", "known"),
        [(Delivery.AT_MOST_ONCE, "not_started"), (Delivery.IDEMPOTENT, "unknown")],
    )
    async def test_what_was_begun_and_ends_in_the_queue_may_have_had_effects(
        self, store: Store, delivery: Delivery, known: str
    ) -> None:
        for end in (expire, cancel):
            e = await run(store, msgspec.structs.replace(execution(), delivery=delivery))
            assert await store.write(Requeue(fence(e), now_us(), now_us())) == Ok()
            assert isinstance(await store.write(end(e)), Ok)
            stored = await load(store, e)
            assert (stored.terminal, stored.attempt, stored.outcome) == (True, 1, known)

    async def test_another_attempt_has_the_time_that_a_question_took(self, store: Store) -> None:
        e = await run(store, msgspec.structs.replace(execution(), deadline_at=now_us() + SECOND))
        assert e.deadline_at is not None
        again = Requeue(fence(e), now_us(), now_us(), stood_us=3 * SECOND)
        assert await store.write(again) == Ok()
        assert (await load(store, e)).deadline_at == e.deadline_at + 3 * SECOND

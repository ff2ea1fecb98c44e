"""The conformance suite of the Store seam: what every store must do.

Derive a test class from ``StoreSuite`` and give it three fixtures; pytest-asyncio runs it in
``auto`` mode::

    class TestMine(StoreSuite):
        @pytest.fixture
        async def store(self): ...      # open, empty; closed at the end
        @pytest.fixture
        def tamper(self, store): ...    # async: runs one statement on the database itself
        @pytest.fixture
        def reopen(self, store): ...    # async: ends ``store`` as a crash would, and returns
                                        # another one, open, on what is left behind; by then
                                        # the lease of the first has run out
"""

# ruff: noqa: D102, PLR2004, a test's name says what it shows, its expected values are literals

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from retinue.domain.event import EventType
from retinue.domain.execution import State
from retinue.domain.ids import now_us
from retinue.domain.intent import Append, Audit, Requeue
from retinue.domain.policy import BusyPolicy
from retinue.domain.question import QuestionState
from retinue.domain.result import Appended, Conflict, Ok, Submitted
from retinue.errors import StoreUnavailable
from retinue.interfaces import Store
from retinue.testing.store_agents import AgentRules
from retinue.testing.store_instances import AdoptRules, InstanceRules
from retinue.testing.store_lists import BodyRules, ListRules, WatchRules
from retinue.testing.store_outbox import OutboxRules
from retinue.testing.store_queue import IdempotencyRules, LeaseRules, SubmitRules
from retinue.testing.store_records import AuditRules, ChainRules, audited, verify_audit
from retinue.testing.store_retention import ErasureRules, RetentionRules
from retinue.testing.store_runs import CancelRules, QuestionRules, RunRules, asked, question
from retinue.testing.store_samples import (
    SECOND,
    execution,
    fence,
    finish,
    lease,
    load,
    queue,
    run,
    submit,
    text,
    verify_chain,
    verify_events,
)
from retinue.testing.store_waiting import DelayRules, DepthRules, PriorityRules, TurnRules

Reopen: TypeAlias = Callable[[], Awaitable[Store]]


class ReopenRules:
    """What a crash leaves behind, and what becomes of it."""

    async def test_all_that_was_answered_is_there(self, store: Store, reopen: Reopen) -> None:
        ended, running, queued = await run(store), await run(store), execution(key="other")
        await queue(store, queued, key="once")
        await store.write(Append(fence(running), (text("kept"),), now_us()))
        await store.write(finish(ended))
        await store.write(Audit(audited(), now_us()))
        expected = [await load(store, e) for e in (ended, running, queued)]
        again = await reopen()
        assert again.worker != store.worker
        assert [await load(again, e) for e in (ended, running, queued)] == expected
        assert len(await verify_chain(again, "ann", "s1")) == 4
        for e in (ended, running):
            assert len(await verify_events(again, e)) == 1
        assert await verify_audit(again) == 1
        joined = await again.write(submit(execution(), key="once"))
        assert joined == Submitted(queued.id, joined=True)
        await again.write(finish(await run(again, execution(key="third"))))
        assert len(await verify_chain(again, "ann", "s1")) == 6

    async def test_what_waits_waits_on_in_its_order(self, store: Store, reopen: Reopen) -> None:
        ranked = [await queue(store, execution(priority=p)) for p in (0, 3, -1, 3)]
        later = await queue(store, execution(delay=3600 * SECOND))
        turns = [
            await queue(store, execution(key="turn", on_busy=BusyPolicy.ENQUEUE)) for _ in range(2)
        ]
        again = await reopen()
        assert [e.id for e in await lease(again)] == [ranked[i].id for i in (1, 3, 0, 2)]
        assert await again.next_due() == later.run_at
        assert (await load(again, later)).state is State.SCHEDULED
        assert await again.turns(("", ""), 10) == [("ann", "s1")]
        assert await again.ahead(await load(again, turns[1])) == sorted(
            [*(e.id for e in ranked), turns[0].id]
        )

    async def test_what_ran_is_taken_over_once(self, store: Store, reopen: Reopen) -> None:
        runs = [await run(store) for _ in range(3)]
        await store.write(Append(fence(runs[0]), (text("before"),), now_us()))
        await queue(store, execution(key="other"))
        again = await reopen()
        own = await run(again, execution(key="own"))
        orphans = await again.orphans(10)
        assert sorted(e.id for e in orphans) == sorted(e.id for e in runs)
        assert len(await again.orphans(2)) == 2
        taken = next(e for e in orphans if e.id == runs[0].id)
        late = Append(fence(runs[0]), (text("late"),), now_us())
        assert await again.write(Requeue(fence(taken), now_us(), now_us())) == Ok()
        assert await again.write(Requeue(fence(taken), now_us(), now_us())) == Conflict(
            "fenced", {"attempt": 1}
        )
        (second,) = await lease(again)
        assert (second.id, second.attempt, second.worker) == (taken.id, 2, again.worker)
        assert await again.write(late) == Conflict("fenced", {"attempt": 2})
        assert await again.write(finish(second)) == Appended(3)
        kinds = [event.type for event in await verify_events(again, second)]
        assert kinds == [
            EventType.CONTENT_CHUNK,
            EventType.ATTEMPT_STARTED,
            EventType.COMPLETED,
        ]
        for e in await again.orphans(10):
            assert isinstance(await again.write(finish(e, State.FAILED)), Appended)
        assert await again.orphans(10) == []
        assert (await load(again, own)).state is State.RUNNING

    async def test_a_question_of_a_dead_run_is_lost(self, store: Store, reopen: Reopen) -> None:
        e, question_id = await asked(store)
        again = await reopen()
        (orphan,) = await again.orphans(10)
        assert (orphan.id, orphan.state) == (e.id, State.INPUT_REQUIRED)
        await again.write(finish(orphan, State.FAILED))
        assert (await question(again, question_id)).state is QuestionState.LOST


class CloseRules:
    """The end of a store's use."""

    async def test_a_closed_store_says_so(self, store: Store) -> None:
        e = await run(store)
        await store.close()
        with pytest.raises(StoreUnavailable):
            await store.write(finish(e))
        with pytest.raises(StoreUnavailable):
            await store.execution(e.id, None)
        with pytest.raises(StoreUnavailable):
            await store.ping()
        await store.close()


class StoreSuite(
    SubmitRules,
    IdempotencyRules,
    LeaseRules,
    DelayRules,
    PriorityRules,
    TurnRules,
    DepthRules,
    RunRules,
    CancelRules,
    QuestionRules,
    ChainRules,
    AuditRules,
    OutboxRules,
    AgentRules,
    InstanceRules,
    AdoptRules,
    ListRules,
    BodyRules,
    WatchRules,
    RetentionRules,
    ErasureRules,
    ReopenRules,
    CloseRules,
):
    """Everything a store must do."""

"""The Store seam, second part: what is written about an execution that runs."""

# ruff: noqa: D102, PLR2004, a test's name says what it shows, its expected values are literals

from __future__ import annotations

import asyncio
import copy

import msgspec
import pytest

from retinue.domain.contract import ContractStatus
from retinue.domain.event import EventData, EventType
from retinue.domain.execution import Execution, State
from retinue.domain.ids import now_us, ulid
from retinue.domain.intent import Answer, Append, Ask, CloseQuestion, Fence, Requeue
from retinue.domain.principal import Role
from retinue.domain.question import Question, QuestionKind, QuestionState
from retinue.domain.result import Appended, Cancelling, Conflict, Ok, Rejected
from retinue.domain.seal import seal, seal_request
from retinue.errors import IllegalTransition
from retinue.interfaces import AgentTally, Page, Store
from retinue.testing.store_samples import (
    cancel,
    execution,
    expire,
    fence,
    finish,
    lease,
    load,
    queue,
    run,
    text,
    verify_chain,
    verify_events,
)


def append(e: Execution, *events: EventData) -> Append:
    """Return the intent that appends events."""
    return Append(fence(e), events or (text(),), now_us())


def stale_fences(e: Execution) -> list[tuple[Fence, str]]:
    """Return fences that do not hold, each with the reason it is refused for."""
    held = fence(e)
    return [
        (Fence(e.id, held.attempt + 1, held.worker), "fenced"),
        (Fence(e.id, held.attempt, ulid()), "fenced"),
        (Fence(ulid(), held.attempt, held.worker), "not_found"),
    ]


class RunRules:
    """Events, ends, and the fence before them."""

    async def test_events_are_numbered_without_gaps(self, store: Store) -> None:
        e = await run(store)
        assert await store.write(append(e, text("a"), text("b"))) == Appended(1)
        assert await store.write(append(e, text("c"))) == Appended(3)
        assert await store.write(finish(e, events=(text("d"),))) == Appended(4)
        events = await verify_events(store, e)
        assert [event.data for event in events[:4]] == [
            b'{"text":"%s"}' % c for c in (b"a", b"b", b"c", b"d")
        ]
        assert events[4].type is EventType.COMPLETED
        assert [event.seq for event in await store.events(e.id, after=2, limit=2)] == [3, 4]
        assert await store.events(e.id, after=5) == []
        assert await store.events(ulid()) == []

    async def test_a_flood_keeps_the_order_of_each_run(self, store: Store) -> None:
        runs = [await run(store, execution(session_id=f"s{i}")) for i in range(4)]
        results = await asyncio.gather(
            *(store.write(append(e, text(str(i)))) for i in range(25) for e in runs)
        )
        assert results == [Appended(i) for i in range(1, 26) for _ in runs]
        for e in runs:
            events = await verify_events(store, e)
            assert [event.data for event in events] == [b'{"text":"%d"}' % i for i in range(25)]

    async def test_a_cursor_commits_with_its_event(self, store: Store) -> None:
        e = await run(store)
        await store.write(append(e, text("a", "10"), text("b", "25"), text("c")))
        assert (await load(store, e)).cursor == "25"

    async def test_a_stale_fence_is_refused_and_its_neighbours_are_not(self, store: Store) -> None:
        e, neighbour = await run(store), await run(store)
        ended = await run(store)
        await store.write(finish(ended))
        stale = [*stale_fences(e), (fence(ended_as_it_was(ended, store)), "terminal")]
        results = await asyncio.gather(
            store.write(append(neighbour)),
            *(store.write(Append(held, (text(),), now_us())) for held, _ in stale),
            *(store.write(Requeue(held, now_us(), now_us())) for held, _ in stale),
            store.write(append(e)),
        )
        assert results[0] == results[-1] == Appended(1)
        for result, (_, reason) in zip(results[1:-1], [*stale, *stale], strict=True):
            assert isinstance(result, Conflict)
            assert result.reason == reason
        for each in (e, neighbour, ended):
            assert len(await verify_events(store, each)) == 1

    async def test_an_end_is_one_commit(self, store: Store) -> None:
        e = await run(store, execution(agent_id="a1"))
        intent = finish(e, body=b'{"result":[1,2]}')
        await store.write(intent)
        stored = await load(store, e)
        assert (stored.state, stored.worker) == (State.COMPLETED, None)
        assert (stored.finished_at, stored.response_id) == (intent.at, intent.response.id)
        assert (stored.outcome, stored.error_code) == (None, None)
        sent, answered = await verify_chain(store, e.owner, e.session_id)
        assert (stored.request_n, stored.response_n) == (sent.n, answered.n)
        assert answered.status is ContractStatus.COMPLETED
        assert await store.bodies(stored) == (sent.body, b'{"result":[1,2]}')
        await verify_events(store, e)
        assert answered.digest == seal(stored)
        assert sent.digest == seal_request(stored)

    @pytest.mark.parametrize(
        ("state", "status"),
        [
            (State.FAILED, ContractStatus.FAILED),
            (State.TIMED_OUT, ContractStatus.FAILED),
            (State.CANCELLED, ContractStatus.CANCELLED),
        ],
    )
    async def test_each_end_has_its_status(
        self, store: Store, state: State, status: ContractStatus
    ) -> None:
        e = await run(store)
        await store.write(finish(e, state))
        stored = await load(store, e)
        assert (stored.state, stored.outcome, stored.error_code) == (state, "failed", "E_INTERNAL")
        assert (await verify_chain(store, e.owner, e.session_id))[-1].status is status

    async def test_exactly_one_of_many_ends_wins(self, store: Store) -> None:
        e = await run(store)
        ends = [finish(e, body=b'{"result":%d}' % i) for i in range(50)]
        results = await asyncio.gather(*(store.write(end) for end in ends))
        (winner,) = (i for i, result in enumerate(results) if isinstance(result, Appended))
        for result in results[:winner] + results[winner + 1 :]:
            assert result == Conflict("terminal", {"state": "completed"})
        assert len(await verify_events(store, e)) == 1
        assert len(await verify_chain(store, e.owner, e.session_id)) == 2
        assert (await store.bodies(await load(store, e)))[1] == b'{"result":%d}' % winner

    async def test_an_illegal_end_fails_alone(self, store: Store) -> None:
        e, neighbour = await run(store), await run(store)
        wrong = finish(e)
        wrong = msgspec.structs.replace(wrong, state=State.SCHEDULED)
        results = await asyncio.gather(
            store.write(wrong), store.write(append(neighbour)), return_exceptions=True
        )
        assert isinstance(results[0], IllegalTransition)
        assert results[1] == Appended(1)
        assert await load(store, e) == e
        assert await store.events(e.id) == []
        assert await store.write(finish(e)) == Appended(1)

    async def test_the_callers_record_stays_its_own(self, store: Store) -> None:
        e = await run(store)
        before = copy.copy(e)
        await store.write(append(e))
        await store.write(finish(e))
        assert e == before
        queued = await queue(store)
        (leased,) = await lease(store)
        assert leased.id == queued.id
        before = copy.copy(leased)
        await store.write(append(leased))
        assert leased == before

    async def test_a_queued_one_expires_once(self, store: Store) -> None:
        e, running = await queue(store), await run(store, execution(key="other"))
        assert await store.write(expire(running)) == Conflict("fenced")
        assert await store.write(expire(e)) == Ok()
        assert await store.write(expire(e)) == Conflict("fenced")
        stored = await load(store, e)
        assert (stored.state, stored.error_code) == (State.TIMED_OUT, "E_TIMEOUT")
        assert stored.outcome == "not_started"
        assert len(await verify_events(store, e)) == 1
        assert await lease(store) == []

    async def test_tallies_count_what_agents_ended(self, store: Store) -> None:
        assert await store.tallies() == {}
        for agent, state in (("a", State.COMPLETED), ("a", State.COMPLETED), ("b", State.FAILED)):
            await store.write(finish(await run(store, execution(agent_id=agent)), state))
        await store.write(finish(await run(store, execution(agent_id="a")), State.TIMED_OUT))
        await store.write(cancel(await queue(store, execution(agent_id="a"))))
        assert await store.tallies() == {"a": AgentTally(2, 1), "b": AgentTally(0, 1)}


def ended_as_it_was(e: Execution, store: Store) -> Execution:
    """Return a finished execution as its runner still believes it to be."""
    e.worker = store.worker
    return e


class CancelRules:
    """Cancelling, at every stage."""

    async def test_a_queued_one_ends_at_once(self, store: Store) -> None:
        e = await queue(store)
        assert await store.write(cancel(e, "ann")) == Cancelling(State.CANCELLED, None)
        stored = await load(store, e)
        assert (stored.state, stored.error_code) == (State.CANCELLED, "E_CANCELLED")
        assert stored.outcome == "not_started"
        assert stored.cancel_requested_at is not None
        (event,) = await verify_events(store, e)
        assert event.data == b'{"by":"ann"}'
        rows = await verify_chain(store, e.owner, e.session_id)
        assert [row.status for row in rows] == [None, ContractStatus.CANCELLED]
        assert await lease(store) == []

    async def test_a_running_one_is_asked_to_end(self, store: Store) -> None:
        e = await run(store)
        intent = cancel(e)
        assert await store.write(intent) == Cancelling(State.RUNNING, store.worker)
        assert (await load(store, e)).cancel_requested_at == intent.at
        (watched,) = await store.watch([e.id])
        assert watched.cancel_requested
        later = cancel(e)
        assert await store.write(later) == Cancelling(State.RUNNING, store.worker)
        assert (await load(store, e)).cancel_requested_at == intent.at
        await store.write(finish(e, State.CANCELLED))
        assert await store.write(cancel(e)) == Cancelling(State.CANCELLED, None)
        assert len(await verify_chain(store, e.owner, e.session_id)) == 2

    async def test_what_was_asked_to_end_is_not_queued_again(self, store: Store) -> None:
        e = await run(store)
        await store.write(cancel(e))
        assert await store.write(Requeue(fence(e), now_us(), now_us())) == Conflict("cancelled")
        assert (await load(store, e)).state is State.RUNNING
        assert await store.write(finish(e, State.CANCELLED)) == Appended(1)

    async def test_only_its_owner_may(self, store: Store) -> None:
        e = await queue(store)
        assert await store.write(cancel(e, "bob")) == Rejected("not_found")
        assert await store.write(cancel(execution(), "bob")) == Rejected("not_found")
        assert (await load(store, e)).state is State.QUEUED

    async def test_a_finished_one_stays_as_it_is(self, store: Store) -> None:
        e = await run(store)
        await store.write(finish(e))
        assert await store.write(cancel(e)) == Cancelling(State.COMPLETED, None)
        assert (await load(store, e)).cancel_requested_at is None


def ask(e: Execution, prompt: str = "Go on?") -> Ask:
    """Return the intent that opens a question."""
    event = EventData(EventType.INPUT_REQUIRED, {"prompt": prompt})
    return Ask(fence(e), ulid(), event, prompt, b'{"type":"boolean"}', None, now_us())


async def asked(store: Store, e: Execution | None = None) -> tuple[Execution, str]:
    """Return a running execution that waits for an answer, and its question's id."""
    e = e or await run(store)
    intent = ask(e)
    assert isinstance(await store.write(intent), Appended)
    return e, intent.question_id


def answer(question_id: str, owner: str | None = None, value: bytes = b"true") -> Answer:
    """Return the intent that answers a question."""
    return Answer(question_id, owner, "ann", value, now_us())


async def question(store: Store, question_id: str) -> Question:
    """Return a question as the store has it."""
    found = await store.question(question_id, None)
    assert found is not None
    return found


class QuestionRules:
    """A run waits for a person."""

    async def test_asking_parks_the_run(self, store: Store) -> None:
        e = await run(store)
        intent = ask(e, "Größe?")
        assert await store.write(intent) == Appended(1)
        assert (await load(store, e)).state is State.INPUT_REQUIRED
        assert (await load(store, e)).worker == store.worker
        stored = await question(store, intent.question_id)
        assert (stored.execution_id, stored.attempt, stored.owner) == (e.id, 1, e.owner)
        assert (stored.prompt, stored.schema) == ("Größe?", b'{"type":"boolean"}')
        assert stored.state is QuestionState.OPEN
        assert await store.write(ask(e)) == Conflict("asked", {"state": "input_required"})
        (event,) = await verify_events(store, e)
        assert event.type is EventType.INPUT_REQUIRED

    async def test_kind_and_role_are_kept(self, store: Store) -> None:
        e = await run(store)
        intent = msgspec.structs.replace(ask(e), kind=QuestionKind.APPROVAL, role=Role.ADMIN)
        await store.write(intent)
        stored = await question(store, intent.question_id)
        assert (stored.kind, stored.role) == (QuestionKind.APPROVAL, Role.ADMIN)

    async def test_answered_ones_are_found_again_in_order(self, store: Store) -> None:
        e = await run(store)
        assert await store.answered(e.id) == []
        for number in range(3):
            intent = ask(e, f"{number}?")
            await store.write(intent)
            await store.write(answer(intent.question_id, value=b"%d" % number))
        await store.write(ask(e, "open?"))
        found = await store.answered(e.id)
        assert [(q.prompt, q.answer) for q in found] == [
            (f"{number}?", b"%d" % number) for number in range(3)
        ]

    async def test_an_answer_counts_once(self, store: Store) -> None:
        e, question_id = await asked(store)
        values = [b"%d" % i for i in range(10)]
        results = await asyncio.gather(
            *(store.write(answer(question_id, value=value)) for value in values)
        )
        (winner,) = (i for i, result in enumerate(results) if result == Ok())
        for result in results[:winner] + results[winner + 1 :]:
            assert result == Conflict("answered", {"state": "answered"})
        stored = await question(store, question_id)
        assert (stored.state, stored.answer) == (QuestionState.ANSWERED, values[winner])
        assert stored.answered_by == "ann"
        assert (await load(store, e)).state is State.RUNNING
        await asked(store, e)

    async def test_only_its_owner_answers(self, store: Store) -> None:
        _, question_id = await asked(store)
        assert await store.write(answer(question_id, "bob")) == Rejected("not_found")
        assert await store.write(answer(ulid())) == Rejected("not_found")
        assert await store.write(answer(question_id, "ann")) == Ok()

    @pytest.mark.parametrize("state", [QuestionState.EXPIRED, QuestionState.WITHDRAWN])
    async def test_it_may_close_unanswered(self, store: Store, state: QuestionState) -> None:
        e, question_id = await asked(store)
        close = CloseQuestion(question_id, state.value, now_us())
        assert await store.write(close) == Ok()
        assert (await question(store, question_id)).state is state
        assert (await load(store, e)).state is State.RUNNING
        late = Conflict("answered", {"state": state.value})
        assert await store.write(answer(question_id)) == late
        assert await store.write(close) == late
        unknown = CloseQuestion(ulid(), state.value, now_us())
        assert await store.write(unknown) == Rejected("not_found")
        assert (await store.questions(None, Page())).items == []
        assert isinstance(await store.write(finish(e, State.COMPLETED)), Appended)
        await verify_events(store, e)

    @pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.COMPLETED])
    async def test_it_is_lost_when_the_run_ends(self, store: Store, state: State) -> None:
        e, question_id = await asked(store)
        assert isinstance(await store.write(finish(e, state)), Appended)
        assert (await load(store, e)).state is state
        assert (await question(store, question_id)).state is QuestionState.LOST
        assert await store.write(answer(question_id)) == Conflict("answered", {"state": "lost"})
        assert (await store.questions(None, Page())).items == []
        await verify_events(store, e)

    async def test_it_is_lost_when_the_run_is_repeated(self, store: Store) -> None:
        e, question_id = await asked(store)
        assert await store.write(Requeue(fence(e), now_us(), now_us())) == Ok()
        assert (await question(store, question_id)).state is QuestionState.LOST
        (again,) = await lease(store)
        assert (again.id, again.attempt) == (e.id, 2)

    async def test_an_answer_in_the_commit_of_the_end_comes_too_late(self, store: Store) -> None:
        e, question_id = await asked(store)
        ended, late = await asyncio.gather(
            store.write(finish(e, State.FAILED)), store.write(answer(question_id))
        )
        assert isinstance(ended, Appended)
        assert late == Conflict("answered", {"state": "lost"})
        assert (await question(store, question_id)).state is QuestionState.LOST

    async def test_an_answer_in_the_commit_of_a_repeat_comes_too_late(self, store: Store) -> None:
        e, question_id = await asked(store)
        again, late = await asyncio.gather(
            store.write(Requeue(fence(e), now_us(), now_us())), store.write(answer(question_id))
        )
        assert (again, late) == (Ok(), Conflict("answered", {"state": "lost"}))
        assert (await load(store, e)).state is State.QUEUED
        assert (await question(store, question_id)).state is QuestionState.LOST

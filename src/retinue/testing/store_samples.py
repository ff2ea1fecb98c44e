"""Records for testing a store: executions, contracts and intents, with what a test leaves out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from retinue.domain.contract import (
    GENESIS,
    Contract,
    ContractStatus,
    ContractType,
    Draft,
    body_hash,
    chain_hash,
    status_of,
)
from retinue.domain.event import Event, EventData, EventType, chain_answer, chain_event, hash_data
from retinue.domain.execution import Execution, State
from retinue.domain.ids import now_us, ulid
from retinue.domain.intent import (
    Cancel,
    Expire,
    Fence,
    Finish,
    Idempotency,
    Lease,
    Promote,
    Submit,
    Want,
)
from retinue.domain.policy import BusyPolicy, Delivery, rank_of
from retinue.domain.question import Question
from retinue.domain.result import Leased, Submitted
from retinue.interfaces import Store

T = TypeVar("T")
SECOND = 1_000_000
STEP = 60 * SECOND
TOO_LATE = 30.0


def execution(
    *,
    owner: str = "ann",
    session_id: str = "s1",
    key: str = "echo",
    priority: int = 0,
    delay: int = 0,
    agent_id: str | None = None,
    capability: str | None = "echo",
    deadline_at: int | None = None,
    on_busy: BusyPolicy = BusyPolicy.PARALLEL,
    parent_id: str | None = None,
) -> Execution:
    """Return a new execution that is due ``delay`` microseconds from now."""
    at = now_us()
    return Execution(
        id=ulid(),
        owner=owner,
        created_by=owner,
        session_id=session_id,
        from_agent="orchestrator",
        agent_id=agent_id,
        capability=capability,
        queue_key=key,
        state=State.QUEUED,
        priority=priority,
        attempt=0,
        worker=None,
        delivery=Delivery.AT_MOST_ONCE,
        max_attempts=3,
        last_seq=0,
        digest=GENESIS,
        deadline_at=deadline_at,
        run_at=at + delay,
        cancel_requested_at=None,
        created_at=at,
        started_at=None,
        finished_at=None,
        outcome=None,
        error_code=None,
        cursor=None,
        request_id=ulid(),
        request_n=0,
        response_id=None,
        response_n=None,
        parent_id=parent_id,
        depth=0,
        due_at=at + delay,
        rank=rank_of(at + delay, priority, STEP),
        on_busy=on_busy,
    )


def request(e: Execution, body: bytes = b'{"parameters":{}}') -> Draft:
    """Return the REQUEST of an execution."""
    return Draft(
        id=e.request_id,
        type=ContractType.REQUEST,
        from_agent=e.from_agent,
        to_agent=e.agent_id,
        capability=e.capability,
        status=None,
        execution_id=e.id,
        body=body,
    )


def response(e: Execution, state: State = State.COMPLETED, body: bytes = b'{"result":1}') -> Draft:
    """Return a RESPONSE for an execution that ends as ``state``."""
    return Draft(
        id=ulid(),
        type=ContractType.RESPONSE,
        from_agent=e.agent_id or "orchestrator",
        to_agent=e.from_agent,
        capability=e.capability,
        status=status_of(state),
        execution_id=e.id,
        body=body,
    )


def submit(
    e: Execution,
    *,
    worker: str | None = None,
    bound: int = 10_000,
    bind: bool = False,
    key: str | None = None,
    fingerprint: bytes = b"same",
    expires_in: int = 3600 * SECOND,
    body: bytes = b'{"parameters":{}}',
) -> Submit:
    """Return the intent that stores ``e``; ``key`` is an idempotency key."""
    idempotency = None
    if key is not None:
        idempotency = Idempotency(key, fingerprint, now_us() + expires_in)
    return Submit(e, request(e, body), worker, bound, bind, idempotency)


def fence(e: Execution) -> Fence:
    """Return the fence of a running execution."""
    assert e.worker is not None
    return Fence(e.id, e.attempt, e.worker)


def text(said: str = "x", cursor: str | None = None) -> EventData:
    """Return an event that carries text."""
    return EventData(EventType.CONTENT_CHUNK, {"text": said}, cursor)


def last(state: State = State.COMPLETED, **data: Any) -> EventData:
    """Return the terminal event of an execution that ends as ``state``."""
    kinds = {State.COMPLETED: EventType.COMPLETED, State.CANCELLED: EventType.CANCELLED}
    return EventData(kinds.get(state, EventType.FAILED), data)


def finish(
    e: Execution,
    state: State = State.COMPLETED,
    *,
    events: tuple[EventData, ...] = (),
    body: bytes = b'{"result":1}',
    reason: str | None = None,
) -> Finish:
    """Return the intent that ends a running execution."""
    failed = state is not State.COMPLETED
    return Finish(
        fence(e),
        state,
        (*events, last(state)),
        response(e, state, body),
        now_us(),
        "failed" if failed else None,
        "E_INTERNAL" if failed else None,
        reason,
    )


def cancel(e: Execution, owner: str | None = None) -> Cancel:
    """Return the intent that cancels an execution."""
    return Cancel(e.id, owner, "ann", response(e, State.CANCELLED), now_us())


def expire(e: Execution, state: State = State.TIMED_OUT) -> Expire:
    """Return the intent that ends a queued execution."""
    return Expire(e.id, state, (last(state),), response(e, state), now_us(), "E_TIMEOUT")


def promote(e: Execution, at: int | None = None) -> Promote:
    """Return the intent that lets an execution into the queue whose time has come."""
    state = State.FAILED
    return Promote(e.id, at or e.run_at, (last(state),), response(e, state), "E_SESSION_BUSY")


def want(key: str = "echo", count: int = 10, agent_id: str = "agent") -> Want:
    """Return what a lease asks for."""
    return Want(key, agent_id, count)


async def run(store: Store, e: Execution | None = None, **how: Any) -> Execution:
    """Submit an execution into a free slot; return it running."""
    e = e or execution()
    result = await store.write(submit(e, worker=store.worker, **how))
    assert isinstance(result, Submitted)
    assert result.leased
    return e


async def queue(store: Store, e: Execution | None = None, **how: Any) -> Execution:
    """Submit an execution that no slot is free for; return it queued."""
    e = e or execution()
    result = await store.write(submit(e, **how))
    assert isinstance(result, Submitted)
    assert not result.leased
    return e


async def lease(store: Store, *wants: Want) -> list[Execution]:
    """Lease for the store's own worker; return what it got."""
    result = await store.write(Lease(store.worker, wants or (want(),), now_us()))
    assert isinstance(result, Leased)
    return [work.execution for work in result.work]


async def load(store: Store, e: Execution) -> Execution:
    """Return an execution as the store has it."""
    found = await store.execution(e.id, None)
    assert found is not None
    return found


async def until(look: Callable[[], Awaitable[T]]) -> T:
    """Look again until there is something to see; return it."""
    deadline = time.monotonic() + TOO_LATE
    while not (seen := await look()):
        assert time.monotonic() < deadline, "it never came about"
        await asyncio.sleep(0.01)
    return seen


async def verify_chain(store: Store, owner: str, session_id: str) -> list[Contract]:
    """Recompute the hashes of one session's chain, page by page; return its contracts."""
    rows: list[Contract] = []
    head = GENESIS
    while page := await store.chain(owner, session_id, len(rows), 37):
        for row in page:
            assert row.n == len(rows) + 1
            assert row.hash == chain_hash(head, row)
            if row.body is not None:
                assert row.body_hash == body_hash(row.body)
            head = row.hash
            rows.append(row)
    session = await store.session(owner, session_id)
    assert session is not None
    assert (session.n, session.head) == (len(rows), head)
    for status in (ContractStatus.COMPLETED, ContractStatus.FAILED, ContractStatus.CANCELLED):
        assert getattr(session, status.value) == sum(row.status is status for row in rows)
    return rows


async def verify_events(store: Store, e: Execution) -> list[Event]:
    """Check that an execution's events are gap-free and chain to its digest; return them."""
    events = list(await store.events(e.id))
    stored = await load(store, e)
    closed: dict[int, list[Question]] = {}
    for question in await store.questions_of([e.id]):
        if question.closed_seq is not None:
            closed.setdefault(question.closed_seq, []).append(question)
    digest = GENESIS
    for number, event in enumerate(events, 1):
        assert event.seq == number
        digest = chain_event(digest, event)
        for q in closed.get(number, ()):
            said = hash_data(q.answer) if q.answer is not None else q.answer_hash
            digest = chain_answer(digest, q.id, q.state.value, q.answered_by, said)
    assert stored.last_seq == len(events)
    assert stored.digest == digest
    assert [event.seq for event in events if event.terminal] == (
        [len(events)] if stored.terminal else []
    )
    return events

"""What a batch of intents does to the rows: the one place where the ledger's rules are applied.

``run`` is a generator without I/O: it yields statements, is sent their answers, and returns one
result per intent, in order. Both stores drive it inside one transaction, so SQLite and PostgreSQL
cannot differ in what they decide.

Order within a batch: questions, then executions, then session heads, then the audit head, each
locked in sorted order; so two writers cannot wait for each other. An execution may be touched by
at most one intent of a batch (``split`` puts the next one into the batch after).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import msgspec

from retinue.domain.audit import AuditDraft, AuditRow, audit_hash
from retinue.domain.contract import (
    GENESIS,
    Contract,
    ContractStatus,
    Draft,
    Head,
    append,
)
from retinue.domain.event import EventData, EventType, chain_event
from retinue.domain.execution import ACTIVE, TERMINAL, Execution, State, advance
from retinue.domain.intent import (
    Answer,
    Append,
    Appended,
    Ask,
    Audit,
    Cancel,
    Cancelling,
    CloseQuestion,
    Conflict,
    Expire,
    Fence,
    Finish,
    Intent,
    Lease,
    Leased,
    Ok,
    PutKey,
    Refuse,
    Rejected,
    Requeue,
    Result,
    RevokeKey,
    Submit,
    Submitted,
    Work,
)
from retinue.domain.ids import now_us
from retinue.domain.question import Question, QuestionState
from retinue.domain.session import Session
from retinue.domain.strictjson import dumps
from retinue.storage.tables import record_of, row_of


class Executions(msgspec.Struct, frozen=True):
    """Lock these executions; answered with the records found, by id."""

    ids: list[str]


class Heads(msgspec.Struct, frozen=True):
    """Lock these sessions' heads, making those that are missing; answered by (owner, id)."""

    keys: list[tuple[str, str]]
    at: int


class Query(msgspec.Struct, frozen=True):
    """Run a named statement once per row of parameters; answered with all rows returned."""

    name: str
    rows: list[tuple[Any, ...]]


class Insert(msgspec.Struct, frozen=True):
    """Insert rows into a table, columns in the table's order."""

    table: str
    rows: list[list[Any]]


class Change(msgspec.Struct, frozen=True):
    """Run a named statement once per row of parameters; nothing is answered."""

    name: str
    rows: list[tuple[Any, ...]]


class Saved(msgspec.Struct, frozen=True):
    """Tell the store which executions and heads it now holds (for its cache); no statement."""

    executions: list[Execution]
    heads: list[Session]


Statement = Executions | Heads | Query | Insert | Change | Saved
Program = Generator[Statement, Any, list[Result]]


def split(waiting: deque[Any], most: int, most_bytes: int) -> list[Any]:
    """Take the next batch off ``waiting``: items with an ``intent`` and a ``size`` attribute.

    Bounded by count and bytes; an execution already in the batch holds its later intents back,
    in order.
    """
    taken: list[Any] = []
    held: list[Any] = []
    seen: set[str] = set()
    size = 0
    while waiting and len(taken) < most and size < most_bytes:
        item = waiting.popleft()
        touched = _touched(item.intent)
        if touched is not None:
            if touched in seen:
                held.append(item)
                continue
            seen.add(touched)
        taken.append(item)
        size += item.size
    waiting.extendleft(reversed(held))
    return taken


def _touched(intent: Intent) -> str | None:
    kind = type(intent)
    if kind is Append or kind is Finish or kind is Requeue or kind is Ask:
        return intent.fence.execution_id  # type: ignore[union-attr]
    if kind is Cancel or kind is Expire:
        return intent.execution_id  # type: ignore[union-attr]
    if kind is Answer or kind is CloseQuestion:
        return intent.question_id  # type: ignore[union-attr]
    return None


class _Placed(msgspec.Struct):
    """A contract that waits for its place in the chain."""

    owner: str
    session_id: str
    draft: Draft
    at: int
    execution: Execution | None = None


class _Batch:
    """What a batch has decided so far."""

    def __init__(self) -> None:
        self.new: list[Execution] = []
        self.changed: dict[str, Execution] = {}
        self.events: list[list[Any]] = []
        self.placed: list[_Placed] = []
        self.questions_new: list[Question] = []
        self.questions_changed: list[Question] = []
        self.questions_lost: list[str] = []
        self.tally: dict[str, list[int]] = {}
        self.audits: list[tuple[AuditDraft, int]] = []
        self.keys: list[list[Any]] = []

    def add_events(self, execution: Execution, events: Sequence[EventData], at: int) -> int:
        """Number the events, chain them, and return the first one's number."""
        first = execution.last_seq + 1
        for event in events:
            execution.last_seq += 1
            data = dumps(event.data)
            kind = event.type.value
            execution.digest = chain_event(execution.digest, execution.last_seq, kind, data)
            self.events.append([execution.id, execution.last_seq, kind, at, data])
            if event.cursor is not None:
                execution.cursor = event.cursor
        return first

    def end(
        self,
        execution: Execution,
        state: State,
        events: Sequence[EventData],
        response: Draft,
        at: int,
        error_code: str | None,
        outcome: Any = None,
    ) -> int:
        """End an execution: events, state and RESPONSE; return the first event's number."""
        was_active = execution.state in ACTIVE
        if execution.state is State.INPUT_REQUIRED:
            self.questions_lost.append(execution.id)
        execution.state = advance(execution.state, state)
        first = self.add_events(execution, events, at)
        execution.worker = None
        execution.finished_at = at
        execution.outcome = outcome
        execution.error_code = error_code
        execution.response_id = response.id
        self.changed[execution.id] = execution
        self.placed.append(
            _Placed(execution.owner, execution.session_id, response, at, execution)
        )
        if execution.agent_id is not None and (was_active or state is State.FAILED):
            counts = self.tally.setdefault(execution.agent_id, [0, 0])
            counts[0 if state is State.COMPLETED else 1] += 1
        return first


def run(intents: Sequence[Intent]) -> Program:
    """Decide and write one batch. See the module's docstring for the protocol."""
    batch = _Batch()
    results: list[Result] = [Ok()] * len(intents)
    questions = yield from _lock_questions(intents)
    locked = yield from _lock_executions(intents, questions)

    submits: list[tuple[int, Submit]] = []
    leases: list[tuple[int, Lease]] = []
    for i, intent in enumerate(intents):
        kind = type(intent)
        if kind is Submit:
            submits.append((i, intent))  # type: ignore[arg-type]
        elif kind is Lease:
            leases.append((i, intent))  # type: ignore[arg-type]
        else:
            decide = _DECIDE[kind]
            results[i] = decide(batch, intent, locked, questions)
    if submits:
        yield from _submit(batch, submits, results)
    for i, lease in leases:
        results[i] = yield from _lease(batch, lease, locked)
    for i, intent in enumerate(intents):
        if type(intent) is RevokeKey:
            found = yield Query("revoke_key", [(intent.at, intent.key_id)])
            if found:
                batch.audits.append((intent.audit, intent.at))
            else:
                results[i] = Rejected("not_found")
    yield from _write(batch)
    return results


# -- locking -----------------------------------------------------------------------------------


def _lock_questions(intents: Sequence[Intent]) -> Generator[Statement, Any, dict[str, Question]]:
    ids = sorted(i.question_id for i in intents if isinstance(i, Answer | CloseQuestion))
    if not ids:
        return {}
    rows = yield Query("lock_question", [(i,) for i in ids])
    found = (record_of(Question, row) for row in rows)
    return {question.id: question for question in found}


def _lock_executions(
    intents: Sequence[Intent], questions: dict[str, Question]
) -> Generator[Statement, Any, dict[str, Execution]]:
    ids = {q.execution_id for q in questions.values()}
    for intent in intents:
        kind = type(intent)
        if kind is Append or kind is Finish or kind is Requeue or kind is Ask:
            ids.add(intent.fence.execution_id)  # type: ignore[union-attr]
        elif kind is Cancel or kind is Expire:
            ids.add(intent.execution_id)  # type: ignore[union-attr]
    if not ids:
        return {}
    locked: dict[str, Execution] = yield Executions(sorted(ids))
    return locked


def _fenced(locked: dict[str, Execution], fence: Fence) -> Execution | Conflict:
    """Return the execution when the fence still holds, else the refusal."""
    execution = locked.get(fence.execution_id)
    if execution is None:
        return Conflict("not_found")
    if execution.state in TERMINAL:
        return Conflict("terminal", {"state": execution.state.value})
    if (
        execution.state not in ACTIVE
        or execution.attempt != fence.attempt
        or execution.worker != fence.worker
    ):
        return Conflict("fenced", {"attempt": execution.attempt})
    return execution


# -- one decision per kind of intent -----------------------------------------------------------

Locked = dict[str, Execution]
Asked = dict[str, Question]


def _append(batch: _Batch, intent: Append, locked: Locked, _: Asked) -> Result:
    execution = _fenced(locked, intent.fence)
    if isinstance(execution, Conflict):
        return execution
    first = batch.add_events(execution, intent.events, intent.at)
    batch.changed[execution.id] = execution
    return Appended(first)


def _finish(batch: _Batch, intent: Finish, locked: Locked, _: Asked) -> Result:
    execution = _fenced(locked, intent.fence)
    if isinstance(execution, Conflict):
        return execution
    return Appended(
        batch.end(
            execution,
            intent.state,
            intent.events,
            intent.response,
            intent.at,
            intent.error_code,
            intent.outcome,
        )
    )


def _requeue(batch: _Batch, intent: Requeue, locked: Locked, _: Asked) -> Result:
    execution = _fenced(locked, intent.fence)
    if isinstance(execution, Conflict):
        return execution
    if execution.state is State.INPUT_REQUIRED:
        batch.questions_lost.append(execution.id)
    execution.state = advance(execution.state, State.QUEUED)
    execution.worker = None
    execution.run_at = intent.run_at
    batch.changed[execution.id] = execution
    return Ok()


def _cancel(batch: _Batch, intent: Cancel, locked: Locked, _: Asked) -> Result:
    execution = locked.get(intent.execution_id)
    if execution is None or (intent.owner is not None and execution.owner != intent.owner):
        return Rejected("not_found")
    worker = execution.worker
    if execution.state in ACTIVE:
        if execution.cancel_requested_at is None:
            execution.cancel_requested_at = intent.at
            batch.changed[execution.id] = execution
    elif execution.state not in TERMINAL:
        execution.cancel_requested_at = intent.at
        event = EventData(EventType.CANCELLED, {"by": intent.by})
        batch.end(
            execution,
            State.CANCELLED,
            [event],
            intent.response,
            intent.at,
            "E_CANCELLED",
            "not_started",
        )
    return Cancelling(execution.state, worker)


def _expire(batch: _Batch, intent: Expire, locked: Locked, _: Asked) -> Result:
    execution = locked.get(intent.execution_id)
    if execution is None or execution.state not in {State.QUEUED, State.SCHEDULED}:
        return Conflict("fenced")
    batch.end(
        execution,
        intent.state,
        intent.events,
        intent.response,
        intent.at,
        intent.error_code,
        "not_started",
    )
    return Ok()


def _refuse(batch: _Batch, intent: Refuse, _locked: Locked, _: Asked) -> Result:
    for draft in (intent.request, intent.response):
        batch.placed.append(_Placed(intent.owner, intent.session_id, draft, intent.at))
    return Ok()


def _ask(batch: _Batch, intent: Ask, locked: Locked, _: Asked) -> Result:
    execution = _fenced(locked, intent.fence)
    if isinstance(execution, Conflict):
        return execution
    if execution.state is not State.RUNNING:
        return Conflict("asked", {"state": execution.state.value})
    execution.state = advance(execution.state, State.INPUT_REQUIRED)
    first = batch.add_events(execution, [intent.event], intent.at)
    batch.changed[execution.id] = execution
    batch.questions_new.append(
        Question(
            id=intent.question_id,
            execution_id=execution.id,
            attempt=execution.attempt,
            owner=execution.owner,
            prompt=intent.prompt,
            schema=intent.schema,
            state=QuestionState.OPEN,
            answer=None,
            answered_by=None,
            created_at=intent.at,
            expires_at=intent.expires_at,
        )
    )
    return Appended(first)


def _answer(batch: _Batch, intent: Answer, locked: Locked, questions: Asked) -> Result:
    question = questions.get(intent.question_id)
    if question is None or (intent.owner is not None and question.owner != intent.owner):
        return Rejected("not_found")
    if question.state is not QuestionState.OPEN:
        return Conflict("answered", {"state": question.state.value})
    question.state = QuestionState.ANSWERED
    question.answer = intent.answer
    question.answered_by = intent.by
    batch.questions_changed.append(question)
    _resume(batch, locked, question)
    return Ok()


def _close_question(
    batch: _Batch, intent: CloseQuestion, locked: Locked, questions: Asked
) -> Result:
    question = questions.get(intent.question_id)
    if question is None:
        return Rejected("not_found")
    if question.state is not QuestionState.OPEN:
        return Conflict("answered", {"state": question.state.value})
    question.state = QuestionState(intent.state)
    batch.questions_changed.append(question)
    _resume(batch, locked, question)
    return Ok()


def _resume(batch: _Batch, locked: Locked, question: Question) -> None:
    execution = locked.get(question.execution_id)
    if execution is not None and execution.state is State.INPUT_REQUIRED:
        execution.state = advance(execution.state, State.RUNNING)
        batch.changed[execution.id] = execution


def _put_key(batch: _Batch, intent: PutKey, _locked: Locked, _: Asked) -> Result:
    batch.keys.append(row_of(intent.key))
    batch.audits.append((intent.audit, intent.key.created_at))
    return Ok()


def _revoke_key(_batch: _Batch, _intent: RevokeKey, _locked: Locked, _: Asked) -> Result:
    return Ok()  # decided by its own statement, see run()


def _audit(batch: _Batch, intent: Audit, _locked: Locked, _: Asked) -> Result:
    batch.audits.append((intent.draft, intent.at))
    return Ok()


_DECIDE: dict[type, Any] = {
    Append: _append,
    Finish: _finish,
    Requeue: _requeue,
    Cancel: _cancel,
    Expire: _expire,
    Refuse: _refuse,
    Ask: _ask,
    Answer: _answer,
    CloseQuestion: _close_question,
    PutKey: _put_key,
    RevokeKey: _revoke_key,
    Audit: _audit,
}


# -- submitting and leasing --------------------------------------------------------------------


def _submit(
    batch: _Batch, submits: list[tuple[int, Submit]], results: list[Result]
) -> Generator[Statement, Any, None]:
    """Accept new executions: idempotency, the queue's bound, the fast path."""
    fresh = yield from _claim(submits, results)
    if not fresh:
        return
    bounds: dict[str, int] = {}
    for _, submit in fresh:
        key = submit.execution.queue_key
        bounds[key] = max(bounds.get(key, 0), submit.bound)
    now = now_us()
    rows = yield Query("queue_depth", [(k, n + 1, now) for k, n in sorted(bounds.items())])
    depth = {key: (queued, due) for key, queued, due in rows}
    dropped: list[tuple[str, str]] = []
    for i, submit in fresh:
        execution = submit.execution
        queued, due = depth.get(execution.queue_key, (0, 0))
        leased = submit.worker is not None and not due
        if leased:
            execution.state = State.RUNNING
            execution.worker = submit.worker
            execution.attempt = 1
            execution.started_at = execution.created_at
        elif queued >= submit.bound:
            results[i] = Rejected("queue_full", {"bound": submit.bound})
            if submit.idempotency is not None:
                dropped.append((execution.owner, submit.idempotency.key))
            continue
        else:
            depth[execution.queue_key] = (queued + 1, due)
        batch.new.append(execution)
        batch.placed.append(
            _Placed(
                execution.owner,
                execution.session_id,
                submit.request,
                execution.created_at,
                execution,
            )
        )
        results[i] = Submitted(execution.id, leased=leased)
    if dropped:
        yield Change("drop_idempotency", dropped)


def _claim(
    submits: list[tuple[int, Submit]], results: list[Result]
) -> Generator[Statement, Any, list[tuple[int, Submit]]]:
    """Settle idempotency keys; return the submits that are new."""
    keyed = [(i, s) for i, s in submits if s.idempotency is not None]
    if not keyed:
        return submits
    first: dict[tuple[str, str], Submit] = {}
    for _, submit in keyed:
        assert submit.idempotency is not None
        first.setdefault((submit.execution.owner, submit.idempotency.key), submit)
    now = now_us()
    claims = []
    for (owner, key), submit in sorted(first.items()):
        assert submit.idempotency is not None
        idem = submit.idempotency
        claims.append((owner, key, idem.fingerprint, submit.execution.id, idem.expires_at, now))
    yield Change("claim_idempotency", claims)
    rows = yield Query("read_idempotency", [(owner, key) for owner, key, *_ in claims])
    holders = {(owner, key): (bytes(mark), held) for owner, key, mark, held in rows}
    fresh = [(i, s) for i, s in submits if s.idempotency is None]
    for i, submit in keyed:
        assert submit.idempotency is not None
        mark, holder = holders[submit.execution.owner, submit.idempotency.key]
        if holder == submit.execution.id:
            fresh.append((i, submit))
        elif mark == submit.idempotency.fingerprint:
            results[i] = Submitted(holder, joined=True)
        else:
            results[i] = Conflict("idempotency", {"execution_id": holder})
    fresh.sort(key=lambda pair: pair[0])
    return fresh


def _lease(batch: _Batch, lease: Lease, locked: Locked) -> Generator[Statement, Any, Result]:
    """Hand queued executions to a worker."""
    agents = {want.key: want.agent_id for want in lease.wants}
    rows = yield Query(
        "lease", [(want.key, want.count, lease.at) for want in sorted(lease.wants, key=_key_of)]
    )
    work: list[Work] = []
    for *row, body in rows:
        execution = record_of(Execution, row)
        if execution.id in locked or execution.id in batch.changed:
            continue  # decided otherwise in this very batch
        execution.state = advance(execution.state, State.RUNNING)
        execution.attempt += 1
        execution.worker = lease.worker
        execution.agent_id = agents[execution.queue_key]
        if execution.started_at is None:
            execution.started_at = lease.at
        if execution.attempt > 1:
            started = {"attempt": execution.attempt, "is_reset": True}
            batch.add_events(
                execution, [EventData(EventType.ATTEMPT_STARTED, started)], lease.at
            )
        batch.changed[execution.id] = execution
        work.append(Work(execution, body))
    return Leased(work)


def _key_of(want: Any) -> str:
    key: str = want.key
    return key


# -- writing -----------------------------------------------------------------------------------

_COUNTED = {
    ContractStatus.COMPLETED: "completed",
    ContractStatus.FAILED: "failed",
    ContractStatus.CANCELLED: "cancelled",
}


def _place(heads: dict[tuple[str, str], Session], placed: list[_Placed]) -> list[Contract]:
    """Give every waiting contract its place, and count it on its session."""
    contracts: list[Contract] = []
    ends: dict[tuple[str, str], Head] = {}
    for item in placed:
        key = (item.owner, item.session_id)
        session = heads[key]
        end = ends.get(key)
        if end is None:
            end = ends[key] = Head(session.n, bytes(session.head))
        digest = None
        draft = item.draft
        execution = item.execution
        if draft.status is not None:
            name = _COUNTED[draft.status]
            setattr(session, name, getattr(session, name) + 1)
            digest = execution.digest if execution is not None else None
        row = append(
            end, draft, owner=item.owner, session_id=item.session_id, at=item.at, digest=digest
        )
        if execution is not None:
            if draft.status is None:
                execution.request_n = row.n
            else:
                execution.response_n = row.n
        session.n = end.n
        session.head = end.hash
        session.updated_at = max(session.updated_at, item.at)
        contracts.append(row)
    return contracts


def _write(batch: _Batch) -> Generator[Statement, Any, None]:
    heads: dict[tuple[str, str], Session] = {}
    if batch.placed:
        keys = sorted({(p.owner, p.session_id) for p in batch.placed})
        heads = yield Heads(keys, batch.placed[0].at)
        contracts = _place(heads, batch.placed)
        yield Insert("contract", [row_of(row) for row in contracts])
        yield Change(
            "update_session",
            [
                (s.n, s.head, s.completed, s.failed, s.cancelled, s.updated_at, *key)
                for key, s in sorted(heads.items())
            ],
        )
    if batch.new:
        yield Insert("execution", [row_of(execution) for execution in batch.new])
    if batch.changed:
        changed = sorted(batch.changed.values(), key=lambda e: e.id)
        yield Change("update_execution", [_changes(execution) for execution in changed])
    if batch.events:
        yield Insert("event", batch.events)
    if batch.tally:
        yield Change("add_tally", [(a, *batch.tally[a]) for a in sorted(batch.tally)])
    yield from _write_rare(batch)
    yield Saved([*batch.new, *batch.changed.values()], list(heads.values()))


def _write_rare(batch: _Batch) -> Generator[Statement, Any, None]:
    if batch.questions_lost:
        yield Change("lose_questions", [(i,) for i in sorted(batch.questions_lost)])
    if batch.questions_new:
        yield Insert("question", [row_of(question) for question in batch.questions_new])
    if batch.questions_changed:
        yield Change(
            "update_question",
            [(q.state.value, q.answer, q.answered_by, q.id) for q in batch.questions_changed],
        )
    if batch.keys:
        yield Insert("api_key", batch.keys)
    if batch.audits:
        ((n, digest),) = yield Query("lock_audit_head", [(1,)])
        rows: list[list[Any]] = []
        for draft, at in batch.audits:
            n += 1
            row = AuditRow(
                n=n,
                at=at,
                owner=draft.owner,
                actor=draft.actor,
                action=draft.action,
                target=draft.target,
                outcome=draft.outcome,
                detail=draft.detail,
                hash=GENESIS,
            )
            digest = audit_hash(bytes(digest), row)
            rows.append([*row_of(row)[:-1], digest])
        yield Insert("audit", rows)
        yield Change("update_audit_head", [(n, digest)])


UPDATED = (
    "state",
    "agent_id",
    "attempt",
    "worker",
    "last_seq",
    "digest",
    "run_at",
    "cancel_requested_at",
    "started_at",
    "finished_at",
    "outcome",
    "error_code",
    "cursor",
    "response_id",
    "response_n",
    "id",
)
"""What ``update_execution`` sets, in its parameters' order; the id comes last."""


def _changes(e: Execution) -> tuple[Any, ...]:
    return (
        e.state.value,
        e.agent_id,
        e.attempt,
        e.worker,
        e.last_seq,
        e.digest,
        e.run_at,
        e.cancel_requested_at,
        e.started_at,
        e.finished_at,
        e.outcome,
        e.error_code,
        e.cursor,
        e.response_id,
        e.response_n,
        e.id,
    )



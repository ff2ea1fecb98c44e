"""One decision per kind of intent: what it does to the locked rows of its batch.

A decision changes records in memory and notes what is to be written; it refuses before it
changes anything. ``program`` locks what decisions look at and writes what they noted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from retinue.domain.audit import AuditDraft
from retinue.domain.contract import Draft
from retinue.domain.event import (
    Event,
    EventData,
    EventType,
    chain_answer,
    chain_event,
    hash_data,
)
from retinue.domain.execution import ACTIVE, TERMINAL, Execution, Hold, State, advance
from retinue.domain.intent import (
    Answer,
    Append,
    Ask,
    Audit,
    Cancel,
    CloseQuestion,
    Expire,
    Fence,
    Finish,
    Prioritize,
    PutKey,
    Refuse,
    Requeue,
)
from retinue.domain.policy import rank_of
from retinue.domain.question import Question, QuestionState
from retinue.domain.result import Appended, Cancelling, Conflict, Ok, Rejected, Result
from retinue.domain.session import Session
from retinue.domain.strictjson import dumps
from retinue.storage.statements import Change
from retinue.storage.tables import row_of

Locked = dict[str, Execution]
Asked = dict[str, Question]


class Placed(msgspec.Struct):
    """A contract that waits for its place in the chain."""

    owner: str
    session_id: str
    draft: Draft
    at: int
    execution: Execution | None = None


class Batch:
    """What a batch has decided so far, to be written at its end."""

    def __init__(self) -> None:
        self.new: list[Execution] = []
        self.changed: dict[str, Execution] = {}
        self.events: list[list[Any]] = []
        self.placed: list[Placed] = []
        self.heads: dict[tuple[str, str], Session] = {}
        self.questions_new: list[Question] = []
        self.questions_changed: list[Question] = []
        self.questions_lost: list[str] = []
        self.tally: dict[str, list[int]] = {}
        self.audits: list[tuple[AuditDraft, int]] = []
        self.keys: list[list[Any]] = []
        self.early: dict[tuple[str, str], Session] | None = None  # heads locked before deciding
        self.witnessed: list[tuple[int, Callable[[int], Change]]] = []

    def witness(self, draft: AuditDraft, at: int, *changes: Callable[[int], Change]) -> None:
        """Note an audit row, and what is to be written once its number is known."""
        self.audits.append((draft, at))
        place = len(self.audits) - 1
        self.witnessed.extend((place, change) for change in changes)

    def add_events(self, execution: Execution, events: Sequence[EventData], at: int) -> int:
        """Give the events numbers and chain them; return the first one's number."""
        first = execution.last_seq + 1
        for event in events:
            execution.last_seq += 1
            data = dumps(event.data)
            row = Event(execution.id, execution.last_seq, event.type, at, data)
            execution.digest = chain_event(execution.digest, row)
            self.events.append([execution.id, execution.last_seq, event.type.value, at, data])
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
        if execution.state is State.INPUT_REQUIRED:
            self.questions_lost.append(execution.id)
            if state is State.COMPLETED:
                # It asked, and went on without waiting for the answer.
                execution.state = advance(execution.state, State.RUNNING)
        execution.state = advance(execution.state, state)
        first = self.add_events(execution, events, at)
        execution.worker = None
        execution.hold = Hold.NONE
        execution.finished_at = at
        execution.outcome = outcome
        execution.error_code = error_code
        execution.response_id = response.id
        self.changed[execution.id] = execution
        self.placed.append(Placed(execution.owner, execution.session_id, response, at, execution))
        if execution.agent_id is not None and execution.counts:
            counts = self.tally.setdefault(execution.agent_id, [0, 0])
            counts[0 if state is State.COMPLETED else 1] += 1
        return first


def fenced(locked: Locked, fence: Fence) -> Execution | Conflict:
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


# -- executions --------------------------------------------------------------------------------


def _append(batch: Batch, intent: Append, locked: Locked, _: Asked) -> Result:
    execution = fenced(locked, intent.fence)
    if isinstance(execution, Conflict):
        return execution
    first = batch.add_events(execution, intent.events, intent.at)
    batch.changed[execution.id] = execution
    return Appended(first)


def _finish(batch: Batch, intent: Finish, locked: Locked, _: Asked) -> Result:
    execution = fenced(locked, intent.fence)
    if isinstance(execution, Conflict):
        return execution
    execution.reason = intent.reason
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


def _requeue(batch: Batch, intent: Requeue, locked: Locked, _: Asked) -> Result:
    execution = fenced(locked, intent.fence)
    if isinstance(execution, Conflict):
        return execution
    if execution.cancel_requested_at is not None:
        return Conflict("cancelled")
    if execution.state is State.INPUT_REQUIRED:
        batch.questions_lost.append(execution.id)
    execution.state = advance(execution.state, State.QUEUED)
    execution.worker = None
    if execution.deadline_at is not None:
        execution.deadline_at += intent.stood_us
    execution.run_at = intent.run_at
    execution.interrupted += intent.uncounted
    execution.hold = Hold.TIME if intent.run_at > intent.at else Hold.NONE
    batch.changed[execution.id] = execution
    return Ok()


def _cancel(batch: Batch, intent: Cancel, locked: Locked, _: Asked) -> Result:
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
            execution.known_in_queue,
        )
    return Cancelling(execution.state, worker)


def _expire(batch: Batch, intent: Expire, locked: Locked, _: Asked) -> Result:
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
        execution.known_in_queue,
    )
    return Ok()


def _prioritize(batch: Batch, intent: Prioritize, locked: Locked, _: Asked) -> Result:
    execution = locked.get(intent.execution_id)
    if execution is None or (intent.owner is not None and execution.owner != intent.owner):
        return Rejected("not_found")
    if execution.state not in {State.QUEUED, State.SCHEDULED}:
        return Conflict("started", {"state": execution.state.value})
    execution.priority = intent.priority
    execution.rank = rank_of(execution.waits_since, intent.priority, intent.step_us)
    batch.changed[execution.id] = execution
    batch.audits.append((intent.audit, intent.at))
    return Ok()


def _refuse(batch: Batch, intent: Refuse, _locked: Locked, _: Asked) -> Result:
    for draft in (intent.request, intent.response):
        batch.placed.append(Placed(intent.owner, intent.session_id, draft, intent.at))
    return Ok()


# -- questions ---------------------------------------------------------------------------------


def _ask(batch: Batch, intent: Ask, locked: Locked, _: Asked) -> Result:
    execution = fenced(locked, intent.fence)
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
            kind=intent.kind,
            role=intent.role,
        )
    )
    return Appended(first)


def _answer(batch: Batch, intent: Answer, locked: Locked, questions: Asked) -> Result:
    question = questions.get(intent.question_id)
    if question is None or (intent.owner is not None and question.owner != intent.owner):
        return Rejected("not_found")
    execution = _resume(batch, locked, question)
    if isinstance(execution, Conflict):
        return execution
    question.state = QuestionState.ANSWERED
    question.answer = intent.answer
    question.answered_by = intent.by
    _close(batch, execution, question)
    return Ok()


def _close_question(
    batch: Batch, intent: CloseQuestion, locked: Locked, questions: Asked
) -> Result:
    question = questions.get(intent.question_id)
    if question is None:
        return Rejected("not_found")
    execution = _resume(batch, locked, question)
    if isinstance(execution, Conflict):
        return execution
    question.state = QuestionState(intent.state)
    _close(batch, execution, question)
    return Ok()


def _close(batch: Batch, execution: Execution, question: Question) -> None:
    """Take how a question was closed into the digest of its execution's events."""
    hashed = hash_data(question.answer) if question.answer is not None else None
    question.closed_seq = execution.last_seq
    execution.digest = chain_answer(
        execution.digest, question.id, question.state.value, question.answered_by, hashed
    )
    batch.questions_changed.append(question)


def _resume(batch: Batch, locked: Locked, question: Question) -> Execution | Conflict:
    """Let the execution that waits for ``question`` run on, or say why it does not wait."""
    if question.state is not QuestionState.OPEN:
        return Conflict("answered", {"state": question.state.value})
    execution = locked.get(question.execution_id)
    if execution is None or execution.state is not State.INPUT_REQUIRED:
        # Ended or requeued by an earlier intent of this very batch: the question is lost.
        return Conflict("answered", {"state": QuestionState.LOST.value})
    execution.state = advance(execution.state, State.RUNNING)
    batch.changed[execution.id] = execution
    return execution


# -- keys and the audit ------------------------------------------------------------------------


def _put_key(batch: Batch, intent: PutKey, _locked: Locked, _: Asked) -> Result:
    batch.keys.append(row_of(intent.key))
    batch.audits.append((intent.audit, intent.key.created_at))
    return Ok()


def _audit(batch: Batch, intent: Audit, _locked: Locked, _: Asked) -> Result:
    batch.audits.append((intent.draft, intent.at))
    return Ok()


DECIDE: dict[type, Callable[[Batch, Any, Locked, Asked], Result]] = {
    Append: _append,
    Finish: _finish,
    Requeue: _requeue,
    Cancel: _cancel,
    Expire: _expire,
    Prioritize: _prioritize,
    Refuse: _refuse,
    Ask: _ask,
    Answer: _answer,
    CloseQuestion: _close_question,
    PutKey: _put_key,
    Audit: _audit,
}
"""How each kind is decided. Those that are not here need statements of their own."""

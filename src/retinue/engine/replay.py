"""Replaying executions: their events, and the questions among them, against their digest.

The events of a page of executions are read as one stream. A digest takes in each event in order,
and at its place how each question was closed. What was erased is there by its hash; what was
removed is not replayed, and the seal in the RESPONSE still vouches for the digest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence

from retinue.domain.audit import AuditRow
from retinue.domain.contract import GENESIS
from retinue.domain.event import (
    ERASED,
    Event,
    EventType,
    chain_answer,
    chain_event,
    hash_data,
    is_sealed,
)
from retinue.domain.execution import Execution, State
from retinue.domain.question import Question, QuestionState
from retinue.domain.retention import ERASE, GONE_ERASED, REMOVED, RETIRE, Mark
from retinue.domain.strictjson import loads
from retinue.engine.verdict import UNREADABLE, Broken, Fault, Progress, stored
from retinue.interfaces import Store

_PAGE = 2000
_CLOSED = (QuestionState.ANSWERED, QuestionState.EXPIRED, QuestionState.WITHDRAWN)
_AUDITS_KEPT = 64

Stream = AsyncIterator[tuple[Event, bytes | None]]


class Marks:
    """What the audit says was removed and erased; marks that it does not know do not count."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._audits: dict[int, tuple[str, frozenset[str]]] = {}

    async def of(self, ids: Sequence[str]) -> dict[tuple[str, str], Mark]:
        """Return the marks of these ids that an audit row vouches for, by id and kind."""
        found = await self._store.marks_of(ids) if ids else []
        unknown = sorted({mark.audit_n for mark in found} - self._audits.keys())
        if len(self._audits) > _AUDITS_KEPT:
            self._audits.clear()
            unknown = sorted({mark.audit_n for mark in found})
        for row in await self._store.audit_rows(unknown):
            self._audits[row.n] = (row.action, _named(row))
        return {(m.id, m.kind): m for m in found if self._vouched(m)}

    def _vouched(self, mark: Mark) -> bool:
        action, ids = self._audits.get(mark.audit_n, ("", frozenset()))
        fits = action == RETIRE if mark.kind == REMOVED else action in ERASE
        return fits and mark.id in ids


def _named(row: AuditRow) -> frozenset[str]:
    said = loads(row.detail)
    return frozenset((*said.get("executions", ()), *said.get("contracts", ())))


class Replay:
    """Replays executions a page at a time."""

    def __init__(self, store: Store, progress: Progress) -> None:
        self._store = store
        self._progress = progress

    async def faults(
        self, executions: Sequence[Execution], marks: Mapping[tuple[str, str], Mark]
    ) -> dict[str, Fault]:
        """Replay executions; return what is wrong, by execution."""
        left = {e.id: e for e in executions if (e.id, REMOVED) not in marks}
        if not left:
            return {}
        asked: dict[str, list[Question]] = {}
        for question in await self._store.questions_of(list(left)):
            asked.setdefault(question.execution_id, []).append(question)
        runs = {i: _Run(e, asked.get(i, []), (i, GONE_ERASED) in marks) for i, e in left.items()}
        faults: dict[str, Fault] = {}
        place, ids = ("", 0), sorted(runs)
        waiting = deque(ids)
        while waiting:
            rows = await self._store.events_after(list(waiting), place, _PAGE)
            for event, hashed in rows:
                self._progress.events += 1
                place = (event.execution_id, event.seq)
                while waiting and waiting[0] < event.execution_id:
                    waiting.popleft()
                if event.execution_id not in faults:
                    _note(faults, runs[event.execution_id], event, hashed)
            if not rows:
                break
        for run in runs.values():
            if run.execution.id not in faults:
                _note(faults, run)
        return faults


def _note(
    faults: dict[str, Fault], run: _Run, event: Event | None = None, hashed: bytes | None = None
) -> None:
    try:
        if event is not None:
            run.take(event, hashed)
        else:
            run.end()
    except Broken as broken:
        faults[run.execution.id] = broken.fault
    except UNREADABLE as error:
        reason = f"the row cannot be read: {type(error).__name__}: {error}"
        faults[run.execution.id] = Fault(run.name, run.seq + 1, reason, run.execution.id)


class _Run:
    """One execution being replayed."""

    def __init__(self, execution: Execution, questions: list[Question], erased: bool) -> None:
        self.execution = execution
        self.name = f"events of {execution.id}"
        self.seq = 0
        self._erased = erased
        self._digest = GENESIS
        self._first_kind = not is_sealed(execution.digest)
        self._attempt = 1
        self._waits = False
        self._questions = {question.id: question for question in questions}
        self._closed = {q.closed_seq: q for q in questions if q.closed_seq is not None}

    def take(self, event: Event, hashed: bytes | None) -> None:
        """Take in the next event."""
        if event.seq > self.execution.last_seq:
            return  # written while we read; or it shows by the RESPONSE's seal
        self.seq += 1
        if event.seq != self.seq:
            raise self._broken(f"event {self.seq} is missing")
        stored(event.data)
        if hashed is not None and not (self._erased and event.data == ERASED):
            raise self._broken("it was erased, and the audit does not say by whom")
        self._digest = chain_event(self._digest, event, hashed, first_kind=self._first_kind)
        if event.type is EventType.ATTEMPT_STARTED and event.data != ERASED:
            self._attempt = loads(event.data)["attempt"]
        if event.type is EventType.INPUT_REQUIRED:
            self._asked(event)
        question = self._closed.get(event.seq)
        if question is not None:
            self._answered(question)

    def _asked(self, event: Event) -> None:
        if event.data == ERASED:
            for one in [q for q in self._questions.values() if q.created_at == event.at]:
                del self._questions[one.id]
            return
        said = loads(event.data)
        question_id = str(said.get("question_id"))
        question: Question | None = self._questions.get(question_id)
        if question is None:
            if is_sealed(self.execution.digest):
                raise self._broken("the question that was asked is missing")
            return
        del self._questions[question_id]
        schema = loads(question.schema) if question.schema is not None else None
        shown = (question.prompt, schema, question.kind.value, question.role.value)
        told = (said["prompt"], said["schema"], said.get("kind", "input"))
        fits = question.owner == self.execution.owner and question.created_at == event.at
        if not self._erased:
            fits = fits and shown == (*told, said.get("role", "operator"))
            fits = fits and question.attempt == self._attempt
        if not fits:
            raise self._broken(f"question {question.id} was changed")
        is_open = question.state is QuestionState.OPEN
        self._waits = self._waits or is_open
        if is_open and self.execution.state is not State.INPUT_REQUIRED:
            raise self._broken(f"question {question.id} was changed: nobody waits for its answer")
        open_end = question.state in _CLOSED
        untold = open_end and question.closed_seq is None
        if untold and is_sealed(self.execution.digest):
            raise self._broken(f"question {question.id} was changed: nothing says how it ended")
        if not open_end and (question.answer, question.answered_by) != (None, None):
            raise self._broken(f"question {question.id} was changed: it was not answered")

    def _answered(self, question: Question) -> None:
        hashed = question.answer_hash
        if hashed is not None and not self._erased:
            raise self._broken(f"question {question.id} was erased, and the audit does not say so")
        if question.answer is not None:
            hashed = hash_data(stored(question.answer))
        self._digest = chain_answer(
            self._digest, question.id, question.state.value, question.answered_by, hashed
        )

    def end(self) -> None:
        """Compare what came out."""
        execution = self.execution
        if self.seq < execution.last_seq:
            self.seq += 1
            raise self._broken(f"event {self.seq} is missing")
        if self._erased and not is_sealed(execution.digest):
            return  # begun by an earlier version: its digest does not outlive what was erased
        if self._digest != stored(execution.digest):
            said = "they, or the answers among them, differ from their digest"
            raise Broken(self.name, self.seq, said, execution.id)
        if execution.state is State.INPUT_REQUIRED and not self._waits:
            raise self._broken("it waits for an answer, and no question is open")
        if self._questions:
            raise self._broken(f"question {min(self._questions)} was never asked")

    def _broken(self, reason: str) -> Broken:
        return Broken(self.name, self.seq, reason, self.execution.id)

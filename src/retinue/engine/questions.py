"""Questions: a running attempt waits for a person.

A question is a row; it is opened together with its event and the state ``input_required``, and
answered once, by compare-and-set. While it is open the execution's deadline stands still and the
question's own time runs; so do the deadlines of those that wait for its result, as far as they run
in this process. Whoever waits in this process hears of the answer at once; what was answered
through another process is found by the scheduler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from retinue.domain.event import EventData, EventType
from retinue.domain.execution import Execution
from retinue.domain.ids import now_us
from retinue.domain.intent import Append, Ask, CloseQuestion, Intent
from retinue.domain.policy import MOST_DELAY_US
from retinue.domain.principal import Role
from retinue.domain.question import QuestionKind, QuestionState
from retinue.domain.result import Appended, Conflict, Ok
from retinue.domain.strictjson import NotJson, check, dumps, loads
from retinue.engine.attempt import Attempt, Pause
from retinue.engine.journal import Journal
from retinue.engine.pen import publish
from retinue.engine.schema import check_schema
from retinue.errors import Fenced, InvalidInput, InvalidResult, Unanswered
from retinue.interfaces import Store

MOST_QUESTION = 64 * 1024
MOST_SECONDS = MOST_DELAY_US // 1_000_000


class Questions:
    """The questions of this process's attempts. ``write`` waits for a store that is away."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        running: dict[str, Attempt],
        write: Callable[[Intent], Awaitable[Any]],
    ) -> None:
        self._store = store
        self._journal = journal
        self._running = running
        self._write = write
        self._listeners: dict[str, list[asyncio.Queue[str]]] = {}

    async def recorded(self, execution: Execution) -> tuple[tuple[str, Any], ...]:
        """Return what people answered to earlier attempts: prompts and answers, in order."""
        found = await self._store.answered(execution.id)
        return tuple(
            (q.prompt, loads(q.answer if q.answer is not None else b"null")) for q in found
        )

    async def ask(self, attempt: Attempt, event: EventData, before: tuple[EventData, ...]) -> None:
        """Open a question, after the events that came before it.

        Raises:
            InvalidResult: the agent's question is not one.
            Fenced: the attempt is not the store's any more.
        """
        intent, seconds = _opening(attempt, event)
        if before:
            said = await self._write(Append(attempt.fence, before, intent.at))
            if not isinstance(said, Appended):
                raise Fenced
            publish(self._journal, attempt.execution.id, said.first_seq, before, intent.at)
        result = await self._write(intent)
        if isinstance(result, Conflict):
            if result.reason == "asked":
                raise InvalidResult("the agent asked while another question is open")
            raise Fenced
        shown = (intent.event,)
        publish(self._journal, attempt.execution.id, result.first_seq, shown, intent.at)
        attempt.question = intent.question_id
        self._halt(attempt, attempt)
        if seconds is not None:
            loop = asyncio.get_running_loop()
            question_id = intent.question_id
            loop.call_later(seconds, lambda: loop.create_task(self._expire(attempt, question_id)))

    async def _expire(self, attempt: Attempt, question_id: str) -> None:
        result = await self._write(
            CloseQuestion(question_id, QuestionState.EXPIRED.value, now_us())
        )
        if isinstance(result, Ok):
            await self.answered(attempt.execution.id, question_id, Unanswered())

    async def withdraw(self, attempt: Attempt, question_id: str) -> None:
        """Close a question that its agent does not ask any more; the execution goes on running.

        One that was answered meanwhile stays so; its agent has no use for the answer.
        """
        if attempt.question != question_id:
            return
        await self._write(CloseQuestion(question_id, QuestionState.WITHDRAWN.value, now_us()))
        if attempt.question == question_id:
            attempt.question = None
            self.ended(attempt)

    async def answered(self, execution_id: str, question_id: str, value: Any) -> None:
        """Hand an answer (or the error that stands for it) to the agent that asked."""
        attempt = self._running.get(execution_id)
        if attempt is None or attempt.question != question_id:
            return
        attempt.question = None
        self.ended(attempt)
        instance = await attempt.entry.ready()
        await instance.answer(question_id, value)

    # -- those above who wait for it -----------------------------------------------------------

    def stand_still(self, attempt: Attempt) -> Callable[[], None]:
        """Let deadlines stand still as they do for a question; return what lets them go on."""
        pause = Pause()
        self._halt(pause, attempt)
        return lambda: self.ended(pause)

    def _halt(self, asker: Attempt | Pause, attempt: Attempt) -> None:
        """Let the deadlines of all who wait for ``attempt`` stand still; tell who listens."""
        one: Attempt | None = attempt
        while one is not None:
            one.halt(asker)
            for listener in self._listeners.get(one.execution.id, ()) if asker.question else ():
                listener.put_nowait(asker.question or "")
            above = self._running.get(one.execution.parent_id or "")
            waits = above is not None and one.execution.id in above.awaited
            one = above if waits else None

    @staticmethod
    def ended(asker: Attempt | Pause) -> None:
        """Take in that an attempt asks no more, or that its pause is over."""
        halted, asker.halted = asker.halted, []
        for one in halted:
            one.go_on(asker)

    def forget_call(self, parent: Attempt, child_id: str) -> None:
        """Take in that ``parent`` does not wait for one of its calls any more."""
        parent.awaited.discard(child_id)
        child = self._running.get(child_id)
        for asker in list(child.asking) if child is not None else ():
            if parent in asker.halted:
                place = asker.halted.index(parent)
                above, asker.halted = asker.halted[place:], asker.halted[:place]
                for one in above:
                    one.go_on(asker)

    @contextmanager
    def listen(self, execution_id: str) -> Iterator[asyncio.Queue[str]]:
        """Give the ids of the questions that are asked by an execution, or below it, here."""
        asked: asyncio.Queue[str] = asyncio.Queue()
        attempt = self._running.get(execution_id)
        for asker in attempt.asking if attempt is not None else ():
            asked.put_nowait(asker.question or "")
        listeners = self._listeners.setdefault(execution_id, [])
        listeners.append(asked)
        try:
            yield asked
        finally:
            listeners.remove(asked)
            if not listeners:
                self._listeners.pop(execution_id, None)


def _opening(attempt: Attempt, event: EventData) -> tuple[Ask, float | None]:
    """Return the intent that opens what an agent asks, and how long it may stay open.

    Raises:
        InvalidResult: it is no question, or its schema is none.
    """
    data = event.data
    schema = data.get("schema")
    try:
        check(data, MOST_QUESTION)
        if schema is not None:
            check_schema(schema)
    except (NotJson, InvalidInput) as error:
        raise InvalidResult(f"the agent's question: {error}") from None
    try:
        kind = QuestionKind(data.get("kind", QuestionKind.INPUT))
        role = Role(data.get("role", Role.OPERATOR))
    except ValueError as error:
        raise InvalidResult(f"the agent's question: {error}") from None
    names = ("question_id", "prompt", "schema")
    shown = EventData(EventType.INPUT_REQUIRED, {name: data.get(name) for name in names})
    shown.data.update(kind=kind.value, role=role.value)
    seconds = data.get("timeout")
    if not (seconds is None or (type(seconds) in (int, float) and 0 <= seconds <= MOST_SECONDS)):
        raise InvalidResult("the agent's question: its timeout is no number of seconds")
    at = now_us()
    return (
        Ask(
            attempt.fence,
            data["question_id"],
            shown,
            data["prompt"],
            dumps(schema) if schema is not None else None,
            at + int(seconds * 1_000_000) if seconds is not None else None,
            at,
            kind,
            role,
        ),
        seconds,
    )

"""The attempts of this process: from a leased record to its end in the ledger.

The agent's events are journaled, then published; its end (terminal event, state and RESPONSE) is
one commit, and only then does the caller get the reply. A store that is away is waited for: an
agent's result is never dropped while it may still be written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from retinue.domain.event import EventData, EventType
from retinue.domain.execution import Execution
from retinue.domain.ids import now_us
from retinue.domain.intent import (
    Append,
    Appended,
    Ask,
    CloseQuestion,
    Conflict,
    Finish,
    Ok,
    Requeue,
)
from retinue.domain.policy import Delivery, may_repeat
from retinue.domain.question import QuestionState
from retinue.domain.strictjson import NotJson, TooMuch, check, dumps, encode, loads
from retinue.engine.attempt import Attempt
from retinue.engine.journal import Journal
from retinue.engine.outcome import End, Reply, completed, failed, ids_of, reply, report, response
from retinue.engine.pen import PATIENCE, Pen, publish
from retinue.engine.registry import Entry, Registry
from retinue.errors import (
    AgentFailed,
    Cancelled,
    ExecutionError,
    Fenced,
    HumanInputRequired,
    InvalidInput,
    InvalidResult,
    RetinueError,
    ShuttingDown,
    Unanswered,
    Unavailable,
    WorkerLost,
    said,
)
from retinue.interfaces import Job, Store

log = logging.getLogger(__name__)
DOUBT_SECONDS = 60.0
MOST_QUESTION = 64 * 1024
_NOBODYS_FAULT = (
    Cancelled,
    InvalidInput,
    Fenced,
    HumanInputRequired,
    ShuttingDown,
    Unanswered,
)


class Attempts:
    """The attempts of this process."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        registry: Registry,
        *,
        max_result_bytes: int,
        on_free: Callable[[Entry], None],
        on_later: Callable[[str, int], None],
        grown: set[tuple[str, str]],
    ) -> None:
        self._store = store
        self._journal = journal
        self._registry = registry
        self._max_result = max_result_bytes
        self._on_free = on_free
        self._on_later = on_later
        self._grown = grown
        self.running: dict[str, Attempt] = {}
        self.broken: set[str] = set()
        self._doubtful_until = 0.0

    def doubt(self) -> None:
        """Note that a lease may have been written without its answer reaching this process."""
        self._doubtful_until = time.monotonic() + DOUBT_SECONDS

    @property
    def doubtful(self) -> bool:
        """Whether the store may hold a lease of this process that nobody works on."""
        return time.monotonic() < self._doubtful_until

    def start(self, execution: Execution, body: bytes, entry: Entry, call: int) -> Attempt:
        """Run a leased execution on an agent whose slot is taken already."""
        attempt = Attempt(execution, body, entry, call)
        self.running[execution.id] = attempt
        attempt.task = asyncio.create_task(self._run(attempt))
        return attempt

    def cancel(self, execution_id: str, by: str) -> None:
        """Stop an execution that runs here because somebody asked."""
        attempt = self.running.get(execution_id)
        if attempt is not None:
            attempt.end(Cancelled("cancelled by " + by, details={"by": by}, outcome="unknown"))

    async def _run(self, attempt: Attempt) -> None:
        entry = attempt.entry
        answer: Reply | None = None
        try:
            end = await self._perform(attempt)
            self._judge(attempt, end)
            if end.error is not None and not isinstance(end.error, Cancelled):
                report(attempt.execution, end.error)
            answer = await self._conclude(attempt, end, await self._rest(attempt))
        except BaseException:
            # A fault of ours: the execution stays leased, and the next start takes it over.
            self.broken.add(attempt.execution.id)
            log.exception("attempt failed", extra=ids_of(attempt.execution))
        finally:
            del self.running[attempt.execution.id]
            attempt.tell(answer)
            attempt.released = True
            if not attempt.lent:
                self._registry.give(entry)
                self._on_free(entry)

    def _pen(self, attempt: Attempt) -> Pen:
        """Return the attempt's pen; most attempts write nothing before their end."""
        if attempt.pen is None:
            attempt.pen = Pen(
                self._store, self._journal, attempt.fence, lambda: attempt.end(Fenced())
            )
        return attempt.pen

    @staticmethod
    async def _rest(attempt: Attempt) -> tuple[EventData, ...]:
        return await attempt.pen.rest() if attempt.pen is not None else ()

    async def _perform(self, attempt: Attempt) -> End:
        """Have the agent do it; every way it can go becomes an ``End``."""
        try:
            return await self._drive(attempt)
        except asyncio.CancelledError:
            if attempt.stop is None:
                raise
            assert attempt.task is not None
            attempt.task.uncancel()
            return failed(attempt.stop)
        except RetinueError as error:
            return failed(error)
        except BaseException as error:
            return failed(ExecutionError(said(error)))
        finally:
            attempt.over = True
            if attempt.timer is not None:
                attempt.timer.cancel()

    async def _drive(self, attempt: Attempt) -> End:
        execution = attempt.execution
        job = _job(execution, attempt.body)
        final: EventData | None = None
        if execution.deadline_at is not None:
            left = execution.deadline_at - now_us()
            if left <= 0:
                raise attempt.late()
            attempt.start_clock(left / 1_000_000)
        instance = attempt.entry.instance or await attempt.entry.ready()
        async with instance.execute(job) as events:
            async for event in events:
                kind = event.type
                if kind is EventType.COMPLETED:
                    final = event
                    break
                if kind is EventType.INPUT_REQUIRED:
                    await self._ask(attempt, event)
                else:
                    await self._pen(attempt).write(event)
        if final is None:
            raise InvalidResult("the agent ended without a result")
        try:
            body = encode(final.data.get("result"), self._max_result)
        except TooMuch as error:
            raise InvalidResult(
                f"the agent's result is {error.reason}", details={"limit": self._max_result}
            ) from None
        except NotJson as error:
            raise InvalidResult(f"the agent's result is not JSON: {error}") from None
        return completed(body, final.data.get("usage"))

    @staticmethod
    def _judge(attempt: Attempt, end: End) -> None:
        """Tell the agent's breaker how it went."""
        breaker = attempt.entry.breaker
        if end.error is None or isinstance(end.error, AgentFailed):
            breaker.succeeded(attempt.call)
        elif isinstance(end.error, _NOBODYS_FAULT) or attempt.came_late:
            breaker.abandoned(attempt.call)
        else:
            breaker.failed(attempt.call, time.monotonic())

    # -- the end -------------------------------------------------------------------------------

    async def _conclude(
        self, attempt: Attempt, end: End, events: tuple[EventData, ...]
    ) -> Reply | None:
        execution = attempt.execution
        if isinstance(end.error, Fenced | WorkerLost):
            log.warning("fenced", extra=ids_of(execution))
            return None
        if end.error is not None and self._again(attempt, end.error):
            refused = await self._requeue(attempt, end.error, events)
            if refused != "cancelled":
                return None
            end, events = failed(Cancelled(details={"by": "request"}, outcome="unknown")), ()
        at = now_us()
        events = (*events, end.event)
        draft = response(execution, end)
        error = end.error
        result = await self._write(
            Finish(
                attempt.fence,
                end.state,
                events,
                draft,
                at,
                error.outcome if error is not None else None,
                error.code if error is not None else None,
            )
        )
        if not isinstance(result, Appended):
            log.warning("late end refused: %s", result, extra=ids_of(execution))
            return None
        self._grown.add((execution.owner, execution.session_id))
        publish(self._journal, execution.id, result.first_seq, events, at)
        return reply(execution, end)

    @staticmethod
    def _again(attempt: Attempt, error: RetinueError) -> bool:
        execution = attempt.execution
        if execution.attempt >= execution.max_attempts:
            return False
        if isinstance(attempt.stop, ShuttingDown):
            # No failure of the agent's: as after a crash, the delivery policy alone decides.
            return execution.delivery is not Delivery.AT_MOST_ONCE
        if attempt.stop is not None:
            return False
        retry = attempt.entry.definition.retry
        if not may_repeat(
            execution.delivery,
            retry,
            attempt=execution.attempt,
            kind=error.kind,
            outcome=error.outcome,
        ):
            return False
        due = now_us() + retry.wait_us(execution.attempt)
        return execution.deadline_at is None or due < execution.deadline_at

    async def _requeue(
        self, attempt: Attempt, error: RetinueError, events: tuple[EventData, ...]
    ) -> str | None:
        """Give the execution back for another attempt, saying why; return why that is refused."""
        execution = attempt.execution
        wait = attempt.entry.definition.retry.wait_us(execution.attempt)
        note = {
            "level": "warning",
            "message": f"attempt {execution.attempt} failed: {error.message}",
            "code": error.code,
            "retry_in_ms": wait // 1000,
        }
        events = (*events, EventData(EventType.LOG, note))
        at = now_us()
        said = await self._write(Append(attempt.fence, events, at))
        if not isinstance(said, Appended):
            return "fenced"
        publish(self._journal, execution.id, said.first_seq, events, at)
        result = await self._write(Requeue(attempt.fence, at + wait, at))
        if isinstance(result, Conflict):
            return result.reason
        self._on_later(execution.queue_key, at + wait)
        return None

    async def _write(self, intent: Any) -> Any:
        """Write, waiting for the store as long as it is away."""
        while True:
            try:
                return await self._store.write(intent)
            except WorkerLost:
                return Conflict("fenced")
            except Unavailable as error:
                log.warning("store away: %s", error.message)
                await asyncio.sleep(PATIENCE)

    # -- questions -----------------------------------------------------------------------------

    async def _ask(self, attempt: Attempt, event: EventData) -> None:
        """Open a question: the deadline stands still, the question's own time runs."""
        data = event.data
        try:
            check(data, MOST_QUESTION)
        except NotJson as error:
            raise InvalidResult(f"the agent's question: {error}") from None
        before = await self._rest(attempt)
        at = now_us()
        if before:
            said = await self._write(Append(attempt.fence, before, at))
            if not isinstance(said, Appended):
                raise Fenced
            publish(self._journal, attempt.execution.id, said.first_seq, before, at)
        seconds = data.get("timeout")
        schema = data.get("schema")
        shown = EventData(
            EventType.INPUT_REQUIRED,
            {"question_id": data["question_id"], "prompt": data["prompt"], "schema": schema},
        )
        result = await self._write(
            Ask(
                attempt.fence,
                data["question_id"],
                shown,
                data["prompt"],
                dumps(schema) if schema is not None else None,
                at + int(seconds * 1_000_000) if seconds is not None else None,
                at,
            )
        )
        if isinstance(result, Conflict):
            if result.reason == "asked":
                raise InvalidResult("the agent asked while another question is open")
            raise Fenced
        publish(self._journal, attempt.execution.id, result.first_seq, (shown,), at)
        attempt.question = data["question_id"]
        attempt.stop_clock()
        loop = asyncio.get_running_loop()
        if seconds is not None:
            loop.call_later(
                seconds, lambda: loop.create_task(self._expire(attempt, data["question_id"]))
            )

    async def _expire(self, attempt: Attempt, question_id: str) -> None:
        result = await self._write(
            CloseQuestion(question_id, QuestionState.EXPIRED.value, now_us())
        )
        if isinstance(result, Ok):
            await self.answered(attempt.execution.id, question_id, Unanswered())

    async def answered(self, execution_id: str, question_id: str, value: Any) -> None:
        """Hand an answer (or the error that stands for it) to the agent that asked."""
        attempt = self.running.get(execution_id)
        if attempt is None or attempt.question != question_id:
            return
        attempt.question = None
        if attempt.left is not None and not attempt.over:
            attempt.start_clock(attempt.left)
            attempt.left = None
        instance = await attempt.entry.ready()
        await instance.answer(question_id, value)


def _job(execution: Execution, body: bytes) -> Job:
    sent = loads(body)
    return Job(execution, sent.get("parameters"), sent.get("context"), sent.get("intent"))

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
from typing import Any, cast

import msgspec

from retinue.domain.budget import Budget, Limit, Usage
from retinue.domain.event import EventData, EventType
from retinue.domain.execution import DEAD_LETTER, Execution
from retinue.domain.ids import now_us
from retinue.domain.intent import Append, Finish, Requeue
from retinue.domain.policy import Delivery, repeatable
from retinue.domain.result import Appended, Conflict
from retinue.domain.strictjson import NotJson, TooMuch, encode, loads
from retinue.engine.attempt import Attempt, Resumed
from retinue.engine.entry import Entry
from retinue.engine.guard import Cache, cache_key
from retinue.engine.journal import Journal
from retinue.engine.outcome import (
    End,
    Reply,
    completed,
    dead_letter,
    failed,
    ids_of,
    reply,
    report,
    response,
)
from retinue.engine.pen import PATIENCE, Pen, publish
from retinue.engine.questions import Questions
from retinue.engine.registry import Registry
from retinue.errors import (
    AgentFailed,
    AgentUnavailable,
    BudgetExceeded,
    Cancelled,
    ExecutionError,
    Fenced,
    HumanInputRequired,
    InvalidInput,
    InvalidResult,
    RetinueError,
    ShuttingDown,
    StoreBroken,
    Unanswered,
    Unavailable,
    WorkerLost,
    said,
)
from retinue.interfaces import Job, Keeping, Store

log = logging.getLogger(__name__)
DOUBT_SECONDS = 60.0
CACHE_BYTES = 32 << 20
_PAGE = 1000
_NOBODYS_FAULT = (
    AgentUnavailable,
    BudgetExceeded,
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
        on_later: Callable[[Execution, int], None],
        on_ended: Callable[[str, str], None],
        keeps: Callable[[Entry], bool],
        grown: set[tuple[str, str]],
    ) -> None:
        self._store = store
        self._journal = journal
        self._registry = registry
        self._max_result = max_result_bytes
        self._on_free = on_free
        self._on_later = on_later
        self._on_ended = on_ended
        self.keeps = keeps
        self._grown = grown
        self.running: dict[str, Attempt] = {}
        self.superseded: set[asyncio.Task[None]] = set()
        """Attempts of which this process was thought dead: it took its own work over."""
        self.broken: set[str] = set()
        self._doubtful_until = 0.0
        self._cache = Cache(CACHE_BYTES)
        self.questions = Questions(store, journal, self.running, self.write)

    def doubt(self) -> None:
        """Note that a lease may have been written without its answer reaching this process."""
        self._doubtful_until = time.monotonic() + DOUBT_SECONDS

    @property
    def doubtful(self) -> bool:
        """Whether the store may hold a lease of this process that nobody works on."""
        return time.monotonic() < self._doubtful_until

    def start(
        self,
        execution: Execution,
        body: bytes,
        entry: Entry,
        call: int,
        resumed: Resumed | None = None,
    ) -> Attempt:
        """Run a leased execution on an agent whose slot is taken already.

        With ``resumed`` it goes on where an earlier server left it.
        """
        attempt = Attempt(execution, body, entry, call)
        attempt.resumed = resumed
        earlier = self.running.get(execution.id)
        if earlier is not None and earlier.task is not None:
            earlier.end(Fenced())
            self.superseded.add(earlier.task)
            earlier.task.add_done_callback(self.superseded.discard)
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
            if end.error is not None and not isinstance(end.error, Cancelled | Fenced):
                report(attempt.execution, end.error)
            answer = await self._conclude(attempt, end, await self._rest(attempt))
            if answer is not None and entry.instance is not None and self.keeps(entry):
                cast(Keeping, entry.instance).over(attempt.execution.id)
        except BaseException:
            # A fault of ours: the execution stays leased, and the next start takes it over.
            self.broken.add(attempt.execution.id)
            log.exception("attempt failed", extra=ids_of(attempt.execution))
        finally:
            if self.running.get(attempt.execution.id) is attempt:
                del self.running[attempt.execution.id]
            self.questions.ended(attempt)
            attempt.tell(answer)
            if not attempt.lent:
                self._registry.slots.give(entry)
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
            if attempt.resumed is not None:
                attempt.resumed.process.kill()  # it ended before it went on
            if attempt.timer is not None:
                attempt.timer.cancel()

    async def _drive(self, attempt: Attempt) -> End:
        execution = attempt.execution
        if execution.deadline_at is not None:
            left = execution.deadline_at - now_us()
            if left <= 0 and attempt.resumed is None:
                raise attempt.late()
            attempt.start_clock(max(left, 0) / 1_000_000)
        sent = loads(attempt.body)
        self._allot(attempt, sent)
        answers: tuple[tuple[str, Any], ...] = ()
        if execution.attempt > 1 or attempt.resumed is not None:
            answers = await self._take_up(attempt)
        key = _cache_key(attempt, sent)
        if key is not None:
            kept = self._cache.get(key, time.monotonic())
            if kept is not None:
                return completed(kept, {"cached": True})
        asked = sent.get("parameters"), sent.get("context"), sent.get("intent")
        final = await self._listen(attempt, Job(execution, *asked, answers, attempt.budget))
        body = self._result(final)
        if key is not None and not attempt.effects:
            seconds = attempt.entry.definition.cache_seconds
            self._cache.put(key, body, time.monotonic(), seconds)
        usage = final.data.get("usage") or (attempt.spent and attempt.spent.as_dict())
        return completed(body, {"usage": usage} if usage else {})

    async def _listen(self, attempt: Attempt, job: Job) -> EventData:
        """Journal what the agent emits; return its last event."""
        loop = asyncio.get_running_loop()
        instance = attempt.entry.instance or await attempt.entry.ready()
        if attempt.resumed is None:
            begun = instance.execute(job)
        else:
            begun = cast(Keeping, instance).resume(job, *attempt.resumed)
        async with begun as events:
            attempt.resumed = None  # leaving this ends what it found
            async for event in events:
                attempt.heard_at = loop.time()
                kind = event.type
                if kind is EventType.COMPLETED:
                    return event
                if kind is EventType.INPUT_REQUIRED:
                    attempt.effects = True
                    if event.data.get("withdrawn"):
                        await self.questions.withdraw(attempt, event.data["question_id"])
                    else:
                        await self.questions.ask(attempt, event, await self._rest(attempt))
                    continue
                await self._pen(attempt).write(event)
                if kind is EventType.USAGE:
                    attempt.charge(event)
                elif kind is EventType.TOOL_CALL:
                    attempt.effects = True
        raise InvalidResult("the agent ended without a result")

    def _result(self, final: EventData) -> bytes:
        try:
            return encode(final.data.get("result"), self._max_result)
        except TooMuch as error:
            raise InvalidResult(
                f"the agent's result is {error.reason}", details={"limit": self._max_result}
            ) from None
        except NotJson as error:
            raise InvalidResult(f"the agent's result is not JSON: {error}") from None

    def _allot(self, attempt: Attempt, sent: dict[str, Any]) -> None:
        """Give the attempt its budget, within that of the one that had it done."""
        parent = self.running.get(attempt.execution.parent_id or "")
        above = parent.budget if parent is not None else None
        limit = sent.get("budget")
        if limit is not None or above is not None:
            own = msgspec.convert(limit, Limit) if limit is not None else None
            attempt.budget = Budget(own, parent=above)

    async def _take_up(self, attempt: Attempt) -> tuple[tuple[str, Any], ...]:
        """Take up what earlier attempts left: what they spent, and what they were answered."""
        if attempt.budget is not None or attempt.resumed is not None:
            spent, mine = await self._spent(attempt.execution)
            if attempt.budget is not None:
                attempt.budget.spent = spent
            if attempt.resumed is not None and mine != Usage():
                attempt.spent = mine
        return await self.questions.recorded(attempt.execution)

    async def _spent(self, execution: Execution) -> tuple[Usage, Usage]:
        """Return what was spent so far, and what of it by the latest attempt."""
        spent = mine = Usage()
        seq = 0
        while page := await self._store.events(execution.id, after=seq, limit=_PAGE):
            seq = page[-1].seq
            for event in page:
                if event.type is EventType.ATTEMPT_STARTED:
                    mine = Usage()
                elif event.type is EventType.USAGE:
                    usage = msgspec.json.decode(event.data, type=Usage)
                    spent, mine = spent.plus(usage), mine.plus(usage)
        return spent, mine

    @staticmethod
    def _judge(attempt: Attempt, end: End) -> None:
        """Tell the agent's breaker how it went."""
        breaker = attempt.entry.breaker
        if end.error is None or isinstance(end.error, AgentFailed):
            breaker.succeeded(attempt.call)
        elif isinstance(end.error, _NOBODYS_FAULT) or attempt.came_late or end.error.echo:
            breaker.abandoned(attempt.call)
        else:
            breaker.failed(attempt.call, time.monotonic())

    # -- the end -------------------------------------------------------------------------------

    async def _conclude(
        self, attempt: Attempt, end: End, events: tuple[EventData, ...]
    ) -> Reply | None:
        execution = attempt.execution
        if isinstance(end.error, Fenced | WorkerLost):
            log.warning("not ended here: %s", end.error.message, extra=ids_of(execution))
            return None
        error = end.error
        reason = None
        if error is not None and self._repeatable(attempt, error):
            stopping = isinstance(attempt.stop, ShuttingDown)
            if not stopping and execution.attempts_used >= execution.max_attempts:
                end, reason = dead_letter(error, execution.attempt), DEAD_LETTER
            elif self._in_time(attempt):
                refused = await self._requeue(attempt, error, events)
                if refused != "cancelled":
                    return None
                error = Cancelled(details={"by": "request"}, outcome="unknown")
                end, events = failed(error), ()
        at = now_us()
        events = (*events, end.event)
        draft = response(execution, end)
        result = await self.write(
            Finish(
                attempt.fence,
                end.state,
                events,
                draft,
                at,
                error.outcome if error is not None else None,
                error.code if error is not None else None,
                reason,
            )
        )
        if not isinstance(result, Appended):
            log.warning("late end refused: %s", result, extra=ids_of(execution))
            return None
        self._grown.add((execution.owner, execution.session_id))
        publish(self._journal, execution.id, result.first_seq, events, at)
        self._on_ended(execution.owner, execution.session_id)
        return reply(execution, end)

    def _repeatable(self, attempt: Attempt, error: RetinueError) -> bool:
        """Say whether this is an end to try again after, were there attempts left."""
        execution = attempt.execution
        if isinstance(attempt.stop, ShuttingDown):
            # No failure of the agent's: as after a crash, the delivery policy alone decides.
            return execution.delivery is not Delivery.AT_MOST_ONCE
        if attempt.stop is not None:
            return False
        if isinstance(error, AgentUnavailable) and self._registry.refusing(execution.queue_key):
            return False  # who comes now is refused, too
        return repeatable(
            execution.delivery,
            attempt.entry.definition.retry,
            kind=error.kind,
            outcome=error.outcome,
        )

    @staticmethod
    def _in_time(attempt: Attempt) -> bool:
        """Say whether the next attempt could begin before the deadline."""
        execution = attempt.execution
        if isinstance(attempt.stop, ShuttingDown) or execution.deadline_at is None:
            return True
        wait = attempt.entry.definition.retry.wait_us(execution.attempt)
        return now_us() + wait < execution.deadline_at + int(attempt.stood * 1_000_000)

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
        said = await self.write(Append(attempt.fence, events, at))
        if not isinstance(said, Appended):
            return "fenced"
        publish(self._journal, execution.id, said.first_seq, events, at)
        uncounted = isinstance(attempt.stop, ShuttingDown)
        stood_us = int(attempt.stood * 1_000_000)
        result = await self.write(Requeue(attempt.fence, at + wait, at, uncounted, stood_us))
        if isinstance(result, Conflict):
            return result.reason
        self._on_later(execution, at + wait)
        return None

    async def write(self, intent: Any) -> Any:
        """Write, waiting for the store as long as it is away."""
        while True:
            try:
                return await self._store.write(intent)
            except (WorkerLost, StoreBroken):
                return Conflict("fenced")
            except Unavailable as error:
                log.warning("store away: %s", error.message)
                await asyncio.sleep(PATIENCE)


def _cache_key(attempt: Attempt, sent: dict[str, Any]) -> bytes | None:
    definition = attempt.entry.definition
    if not definition.cache_seconds:
        return None
    asked = [attempt.execution.capability, *map(sent.get, ("parameters", "context", "intent"))]
    owner = attempt.execution.owner
    return cache_key(owner, definition.agent_id, definition.version, asked)

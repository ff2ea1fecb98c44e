"""What happens by itself: deadlines, delays, turns, takeovers, polls, anchors.

One loop, once a second; everything it does is also safe to do late or twice. Stored times are
compared with stored times; waiting uses the monotonic clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from retinue.domain.audit import ANCHOR, AuditDraft
from retinue.domain.execution import DEAD_LETTER, Execution, State
from retinue.domain.ids import follow_clock, now_us
from retinue.domain.intent import Audit, Expire, Fence, Finish, Requeue
from retinue.domain.policy import Delivery
from retinue.domain.question import QuestionState
from retinue.domain.result import Conflict, Ok
from retinue.domain.strictjson import dumps, loads
from retinue.engine.attempts import Attempts
from retinue.engine.delays import Delays
from retinue.engine.journal import Journal
from retinue.engine.outcome import End, dead_letter, failed, response
from retinue.engine.queue import Queue
from retinue.engine.retention import Retention
from retinue.engine.reunion import Reunion
from retinue.engine.turns import Turns, interrupter
from retinue.errors import Cancelled, RetinueError, Timeout, Unanswered, WorkerLost
from retinue.interfaces import Store

log = logging.getLogger(__name__)
TICK_SECONDS = 1.0
ANCHOR_SECONDS = 60.0
JUMP_SECONDS = 2.0
_PAGE = 500


class Recovered:
    """What a start-up found of earlier, dead workers."""

    def __init__(self) -> None:
        self.requeued = 0
        self.failed = 0
        self.cancelled = 0


class Scheduler:
    """The periodic work of one process."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        queue: Queue,
        attempts: Attempts,
        delays: Delays,
        turns: Turns,
        grown: set[tuple[str, str]],
        *,
        follow: Callable[[], Awaitable[None]],
        retention: Retention,
    ) -> None:
        self._store = store
        self._journal = journal
        self._queue = queue
        self._delays = delays
        self._turns = turns
        self._attempts = attempts
        self._idle: set[Fence] = set()
        self._stop = asyncio.Event()
        self._bell = asyncio.Event()
        self._grown = grown
        self._follow = follow
        self._anchor_due = 0.0
        self._jumped = False
        self._retention = retention
        self._cleaning: asyncio.Task[None] | None = None
        self.reunion: Reunion | None = None

    def stop(self) -> None:
        """Make ``run`` return."""
        self._stop.set()
        self._bell.set()

    def at(self, when: int) -> None:
        """Look again at ``when`` (microseconds UTC): a deadline falls then."""
        delay = max(when - now_us(), 0) / 1_000_000
        asyncio.get_running_loop().call_later(delay, self._bell.set)

    def soon(self) -> None:
        """Look again now."""
        self._bell.set()

    async def run(self) -> None:
        """Tick until stopped."""
        loop = asyncio.get_running_loop()
        self._anchor_due = loop.time() + ANCHOR_SECONDS
        self._cleaning = asyncio.create_task(self._clean())
        while not self._stop.is_set():
            # Before the look: what rings during it may not be seen by it.
            self._bell.clear()
            try:
                await self.tick()
                if loop.time() >= self._anchor_due:
                    self._anchor_due = loop.time() + ANCHOR_SECONDS
                    await self.anchor()
            except RetinueError as error:
                log.warning("the store is away: %s", error.message)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._bell.wait(), TICK_SECONDS)
        self._cleaning.cancel()
        await asyncio.wait({self._cleaning})

    async def _clean(self) -> None:
        """Have retention do its rounds, beside the loop: a long one holds up nothing else."""
        while True:
            try:
                await self._retention.round()
            except RetinueError as error:
                log.warning("retention waits for the store: %s", error.message)
            except Exception:
                log.exception("a round of retention failed")
            await asyncio.sleep(self._retention.interval)

    async def tick(self) -> None:
        """Do everything that is due."""
        self._look_at_the_clock()
        await self._follow()
        now = now_us()
        for execution in await self._store.overdue(now, _PAGE):
            await self._expire(execution, now)
        await self.recover()
        if self._attempts.doubtful or self._idle:
            await self._give_back()
        await self._delays.look()
        await self._turns.look()
        self._queue.found(await self._store.backlog())
        mine = list(self._attempts.running)
        watched = list({*self._journal.watched, *mine})
        await self._hear_answers()
        for start in range(0, len(watched), _PAGE):
            seen = await self._store.watch(watched[start : start + _PAGE])
            self._journal.heard(seen)
            for one in seen:
                if one.cancel_requested:
                    self._attempts.cancel(one.id, "request")

    def _look_at_the_clock(self) -> None:
        ahead = follow_clock()
        jumped, self._jumped = self._jumped, abs(ahead) > JUMP_SECONDS
        if self._jumped and not jumped:
            log.warning(
                "the system's clock was set: it is %+.0f s off; recorded times go on steadily and"
                " take it over at the next start",
                ahead,
            )

    async def _hear_answers(self) -> None:
        """Hand in the answers to questions asked here that were given through other processes."""
        for attempt in list(self._attempts.running.values()):
            if attempt.question is None:
                continue
            question = await self._store.question(attempt.question, None)
            if question is None or question.state is QuestionState.OPEN:
                continue
            value = loads(question.answer) if question.answer is not None else Unanswered()
            await self._attempts.questions.answered(question.execution_id, question.id, value)

    async def _expire(self, execution: Execution, now: int) -> None:
        allowed = (execution.allowed_us or 0) // 1000
        tried = execution.attempt
        where = f"queued again after attempt {tried}" if tried else "still queued"
        end = failed(
            Timeout(
                f"Agent invocation timed out after {allowed}ms, {where}",
                details={
                    "elapsed_ms": (now - execution.waits_since) // 1000,
                    "agent_state": "queued",
                },
                outcome=execution.known_in_queue,
            )
        )
        self._grown.add((execution.owner, execution.session_id))
        await self._store.write(
            Expire(
                execution.id, end.state, (end.event,), response(execution, end), now, "E_TIMEOUT"
            )
        )
        self._journal.heard(await self._store.watch([execution.id]))
        self._turns.ended(execution.owner, execution.session_id)

    async def _give_back(self) -> None:
        """Queue again what is leased to this process but was never started here.

        A lease whose answer was lost on the way (the caller left, the store went away) is such a
        one. It has to be seen twice, a tick apart: the first time its answer may be on the way.
        """
        known = self._attempts.running.keys() | self._attempts.broken
        idle = {f for f in await self._store.held() if f.execution_id not in known}
        again = idle & self._idle
        self._idle = idle - again
        for fence in again:
            now = now_us()
            result = await self._store.write(Requeue(fence, now, now, uncounted=True))
            if isinstance(result, Ok):
                log.warning("queued again: leased, but never started: %s", fence.execution_id)
            elif isinstance(result, Conflict) and result.reason == "cancelled":
                execution = await self._store.execution(fence.execution_id, None)
                assert execution is not None
                error = Cancelled(details={"by": "request"}, outcome="unknown")
                await self._end(execution, fence, failed(error), now)

    async def recover(self) -> Recovered:
        """Take over what dead workers left running, each by its delivery policy."""
        found = Recovered()
        if self.reunion is not None and not self._queue.closed:
            await self.reunion.run()
        while orphans := await self._store.orphans(_PAGE):
            unwanted = await self._interrupted()
            for execution in orphans:
                await self._take_over(execution, found, unwanted.get(execution.id))
            if len(orphans) < _PAGE:
                break
        if found.requeued or found.failed or found.cancelled:
            log.warning(
                "took over from dead workers: %d requeued, %d failed with unknown outcome,"
                " %d cancelled",
                found.requeued,
                found.failed,
                found.cancelled,
            )
        return found

    async def _stood(self, execution: Execution, now: int) -> int:
        """Return for how long the deadline has stood still for the question that is open."""
        if execution.state is not State.INPUT_REQUIRED:
            return 0
        asked = await self._store.questions_of([execution.id])
        return sum(now - q.created_at for q in asked if q.state is QuestionState.OPEN)

    async def _interrupted(self) -> dict[str, str]:
        """Return what is to be cancelled for one that came after it, and by whom.

        That one says so in the store: its worker may have died before it did anything about it.
        """
        waiting = await self._store.interrupting(_PAGE)
        return {i: interrupter(e) for e in waiting for i in await self._store.ahead(e)}

    async def _take_over(self, execution: Execution, found: Recovered, by: str | None) -> None:
        if self.reunion is not None and await self.reunion.awaited(execution):
            return
        fence = Fence(execution.id, execution.attempt, execution.worker or "")
        now = now_us()
        if execution.cancel_requested_at is not None or by is not None:
            details = {"by": by or "request"}
            error: RetinueError = Cancelled(details=details, outcome="unknown")
            found.cancelled += await self._end(execution, fence, failed(error), now)
        elif (
            execution.delivery is not Delivery.AT_MOST_ONCE
            and execution.attempts_used < execution.max_attempts
        ):
            again = Requeue(fence, now, now, stood_us=await self._stood(execution, now))
            if isinstance(await self._store.write(again), Ok):
                found.requeued += 1
                self._queue.queued(execution.queue_key)
        elif execution.delivery is not Delivery.AT_MOST_ONCE:
            end = dead_letter(WorkerLost(), execution.attempt)
            found.failed += await self._end(execution, fence, end, now, DEAD_LETTER)
        else:
            error = WorkerLost(details={"attempt": execution.attempt})
            found.failed += await self._end(execution, fence, failed(error), now)

    async def _end(
        self, execution: Execution, fence: Fence, end: End, now: int, reason: str | None = None
    ) -> bool:
        assert end.error is not None
        self._grown.add((execution.owner, execution.session_id))
        result = await self._store.write(
            Finish(
                fence,
                end.state,
                (end.event,),
                response(execution, end),
                now,
                end.error.outcome,
                end.error.code,
                reason,
            )
        )
        self._journal.heard(await self._store.watch([execution.id]))
        self._turns.ended(execution.owner, execution.session_id)
        return isinstance(result, Ok)

    async def resume(self) -> None:
        """Take up the anchoring where an earlier process left it, however that ended."""
        self._grown.update(await self._store.unanchored())

    async def anchor(self) -> None:
        """Write the heads of the chains that grew since the last anchor into the audit chain."""
        grown = sorted(self._grown)
        self._grown.clear()
        for start in range(0, len(grown), _PAGE):
            heads: list[list[object]] = []
            for owner, session_id in grown[start : start + _PAGE]:
                session = await self._store.session(owner, session_id)
                if session is not None:
                    heads.append([owner, session_id, session.n, bytes(session.head).hex()])
            draft = AuditDraft(
                owner="",
                actor="retinue",
                action=ANCHOR,
                target="contract",
                detail=dumps({"heads": heads}),
            )
            await self._store.write(Audit(draft, now_us()))

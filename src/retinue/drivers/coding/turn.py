"""One turn of a coding CLI: an execution, as an async context manager that iterates its events.

What the CLI says is heard by one task, which tells the turn (a ``Scribe``), and taken from here by
the engine. Text that is not taken yet is one event, so a CLI that writes faster than the store
costs less per piece, and past a bound it waits. The first end that is told is the turn's end,
whatever the process does after it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec

from retinue.domain.event import EventData, EventType
from retinue.domain.ids import ulid
from retinue.drivers.coding.natives import Native
from retinue.drivers.coding.scribe import Ask, fitting
from retinue.drivers.coding.versions import doubt
from retinue.errors import BudgetExceeded, CommunicationError, InvalidResult, RetinueError
from retinue.interfaces import Job

if TYPE_CHECKING:
    from retinue.drivers.coding.driver import CodingInstance

MOST_EVENTS = 256
MOST_TEXT = 64 * 1024
THOUGHT_SECONDS = 0.3
MOST_THOUGHT = 2_000


class Turn:
    """What all turns have: events, questions, budgets, silence. Subclasses speak with a CLI."""

    def __init__(self, instance: CodingInstance, job: Job) -> None:
        self.instance = instance
        self.config = instance.config
        self.job = job
        self.native: Native | None = None
        self.over = False
        self.ended = asyncio.Event()
        self.error: RetinueError | None = None
        self.cost = 0.0
        self._result: Any = None
        self._loop = asyncio.get_running_loop()
        self._events: deque[EventData] = deque()
        self._text: list[str] = []
        self._text_size = 0
        self._size = 0
        self._thought: list[str] = []
        self._thought_timer: asyncio.TimerHandle | None = None
        self._bell: asyncio.Future[None] | None = None
        self._space: asyncio.Future[None] | None = None
        self._asks: dict[str, Ask] = {}
        self._question_now: tuple[str, Ask] | None = None
        self._tools: dict[str, str] = {}
        self._replies = 0
        self._heard_at = self._loop.time()
        self._retry: str | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._lock: asyncio.Lock | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._finish: asyncio.Task[None] | None = None
        self._held = False

    # -- its life: what subclasses do ------------------------------------------------------------

    async def start(self) -> None:
        """Begin to speak with the CLI."""
        raise NotImplementedError

    async def close(self, grace: float) -> None:
        """End whatever ``start`` began; when ``error`` is set or there is no end, stop the work."""
        raise NotImplementedError

    @property
    def paused(self) -> bool:
        """Whether a person has stopped its process where it is."""
        return False

    # -- the engine's side ---------------------------------------------------------------------

    async def __aenter__(self) -> AsyncIterator[EventData]:
        execution = self.job.execution
        self.instance.running.add(self)
        try:
            lock = self.instance.natives.turn(execution.owner, execution.session_id)
            await lock.acquire()
            self._lock = lock
            self.native = await asyncio.to_thread(
                self.instance.natives.find, execution.owner, execution.session_id
            )
            await self.start()
        except BaseException:
            await asyncio.shield(self.finish(0.0))
            raise
        self._heard_at = self._loop.time()
        self._watch()
        return self

    async def __aexit__(self, *_: object) -> None:
        ending = self.finish(self.config.stop_seconds)
        if self.error is not None or not self.ended.is_set():
            await asyncio.shield(ending)  # nothing works on after a failure was recorded

    def finish(self, grace: float) -> asyncio.Task[None]:
        """End the turn, whoever waits for that; what is told from now on is not heard."""
        if self._finish is None:
            self._finish = self.instance.aside(self._end_all(grace))
        return self._finish

    async def _end_all(self, grace: float) -> None:
        self.over = True
        for timer in (self._watching, self._thought_timer):
            if timer is not None:
                timer.cancel()
        self._ring()
        self._release()
        if self._question_now is not None:
            self.instance.questions.pop(self._question_now[0], None)
        try:
            await self.close(grace)
            if self._keeping is not None:
                await asyncio.wait({self._keeping})
            if self.native is not None and self._held:
                await asyncio.to_thread(self.instance.natives.keep, self.native, known=True)
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None
            self.instance.running.discard(self)

    def __aiter__(self) -> AsyncIterator[EventData]:
        return self

    async def __anext__(self) -> EventData:
        while True:
            event = self._next()
            if event is not None:
                return event
            if self.over:
                raise StopAsyncIteration
            self._bell = self._loop.create_future()
            await self._bell

    def _next(self) -> EventData | None:
        if not self._events:
            self._flush_text()
        if self._events:
            event = self._events.popleft()
            if self._space is not None and len(self._events) <= MOST_EVENTS // 2:
                self._release()
            return event
        if self.ended.is_set():
            self.over = True
            if self.error is not None:
                raise self.error
            return EventData(EventType.COMPLETED, {"result": self._result})
        if self._asks and self._question_now is None:
            return self._question()
        return None

    # -- back-pressure -------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether as much waits for the engine as may."""
        return len(self._events) >= MOST_EVENTS and not self.over

    async def room(self) -> None:
        """Return when the engine has taken something."""
        while self.full:
            self._space = self._loop.create_future()
            await self._space

    def _release(self) -> None:
        if self._space is not None and not self._space.done():
            self._space.set_result(None)
        self._space = None

    def _ring(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    # -- what the CLI does (Scribe) --------------------------------------------------------------

    def heard(self) -> None:
        """Note that it lives: something came."""
        self._heard_at = self._loop.time()

    def begun(self, native: str | None, version: str | None, model: str | None) -> None:
        """Keep the CLI's own session, and say which version speaks."""
        execution = self.job.execution
        resumed = self.native is not None and self.native.native_session == native
        if native is not None:
            cost = self.native.cost_usd if resumed and self.native is not None else 0.0
            self.native = Native(
                owner=execution.owner,
                session_id=execution.session_id,
                native_session=native,
                version=version,
                cost_usd=cost,
            )
            self._held = True
            # At once: a crash in the middle of the turn is to find it, too.
            self._keeping = self.instance.aside(
                asyncio.to_thread(self.instance.natives.keep, self.native)
            )
        words = [self.config.kind, version, model, "goes on with" if resumed else "begins", native]
        facts = {"native_session": native, "version": version, "model": model, "resumed": resumed}
        message = " ".join(word for word in words if word)
        self.note(EventType.LOG, {"level": "info", "message": message, **facts})
        said = doubt(self.config.kind, version)
        if said is not None:
            self.warn(said)

    def say(self, text: str) -> None:
        """Take text of the answer."""
        if not text or self.over or self.ended.is_set():
            return
        if self._thought:
            self._flush_thought()
        self._text.append(text)
        self._text_size += len(text)
        if self._text_size >= MOST_TEXT:
            self._flush_text()
        self._ring()

    def think(self, text: str) -> None:
        """Take a piece of thought; pieces that follow one another soon are one event."""
        if not text or self.over or self.ended.is_set():
            return
        self._flush_text()
        self._thought.append(text)
        if sum(map(len, self._thought)) >= MOST_THOUGHT:
            self._flush_thought()
        elif self._thought_timer is None:
            self._thought_timer = self._loop.call_later(THOUGHT_SECONDS, self._flush_thought)

    def _flush_text(self) -> None:
        if self._text:
            content = "".join(self._text)
            self._text.clear()
            self._text_size = 0
            self._size += len(content)
            if self._size > self.instance.lent.max_result_bytes:
                most = self.instance.lent.max_result_bytes
                self.fail(InvalidResult(f"the agent said more than {most} characters"))
                return
            self._events.append(EventData(EventType.CONTENT_CHUNK, {"content": content}))

    def _flush_thought(self) -> None:
        if self._thought_timer is not None:
            self._thought_timer.cancel()
            self._thought_timer = None
        if self._thought:
            content = "".join(self._thought)
            self._thought.clear()
            data = {"status": "thinking", "content": content}
            self._events.append(EventData(EventType.THINKING, data))
            self._ring()

    def note(self, kind: EventType, data: dict[str, Any]) -> None:
        """Take any other event."""
        if self.over or self.ended.is_set():
            return
        self._flush_thought()
        self._flush_text()
        self._events.append(EventData(kind, data))
        self._ring()

    def called(self, key: str, tool: str, arguments: Any, **more: Any) -> None:
        """Note that a tool is called."""
        if key in self._tools:
            return
        self._tools[key] = tool
        data = {"tool_name": tool, "arguments": fitting(arguments), "tool_call_id": key, **more}
        self.note(EventType.TOOL_CALL, data)

    def answered(self, key: str, result: Any, *, is_error: bool = False, **more: Any) -> None:
        """Note what a tool answered."""
        tool = self._tools.pop(key, None)
        data = {"tool_name": tool, "result": fitting(result), "is_error": is_error}
        self.note(EventType.TOOL_RESULT, {**data, "tool_call_id": key, **more})

    def warn(self, message: str, **more: Any) -> None:
        """Take a warning."""
        said = self.instance.place.masked(message)
        self._retry = said if "retry" in more else self._retry
        self.note(EventType.LOG, {"level": "warning", "message": said, **more})

    def replied(self) -> None:
        """Count one reply of the model; one too many ends the turn."""
        self._replies += 1
        most = self.config.max_turns
        if most is not None and self._replies > most:
            limit = f"max_turns {most}"
            self.fail(
                BudgetExceeded(
                    f"the task took more than it may ({limit})", details={"limit": limit}
                )
            )

    def spent(self, tokens_in: int, tokens_out: int, cost: float = 0.0, **more: Any) -> None:
        """Take what was spent; past what the agent may spend on a task, the turn ends."""
        if not (tokens_in or tokens_out or cost):
            return
        usage = {"input_tokens": tokens_in, "output_tokens": tokens_out, "cost_usd": cost}
        self.note(EventType.USAGE, {**usage, **more})
        self.cost += cost
        most = self.config.max_cost_usd
        if most is not None and self.cost > most + 1e-9:
            limit = f"max_cost_usd {most:g}"
            self.fail(
                BudgetExceeded(
                    f"the task spent more than it may ({limit})",
                    details={"limit": limit, "spent": {"cost_usd": self.cost}},
                )
            )

    def settled(self, total: float) -> None:
        """Take what the CLI says its whole session cost: the rest of it was earlier turns'."""
        before = self.native.cost_usd if self.native is not None else 0.0
        if total < before:
            before = 0.0  # it has begun to count anew
        if self.native is not None:
            self.native = msgspec.structs.replace(self.native, cost_usd=total)
        self.spent(0, 0, total - before)

    def end(self, result: Any) -> None:
        """Note that the turn has ended well; the first end counts."""
        if not self.ended.is_set():
            self._flush_thought()
            self._flush_text()
            self._result = result
            self._finished()

    def fail(self, error: RetinueError) -> None:
        """Note that the turn has failed; the first end counts."""
        if not self.ended.is_set():
            self._flush_thought()
            self.error = error
            self._flush_text()
            self._finished()

    def _finished(self) -> None:
        self.ended.set()
        self._asks.clear()
        self._ring()

    # -- questions -----------------------------------------------------------------------------

    def ask(self, ask: Ask) -> None:
        """Answer by the agent's policy, or have a person asked; one question is open at a time."""
        verdict = self.config.judge(ask.tool)
        if verdict == "ask":
            self._asks[ask.key] = ask
            self._ring()
            return
        allowed = verdict == "allow"
        if not allowed:
            self.warn(f"{ask.tool} was refused by the agent's policy", tool_name=ask.tool)
        ask.reply(allowed, "" if allowed else "refused by the policy of this agent")

    def withdrawn(self, key: str) -> None:
        """Do not ask any more."""
        self._asks.pop(key, None)

    def _question(self) -> EventData:
        key, ask = next(iter(self._asks.items()))
        del self._asks[key]
        question_id = ulid()
        self._question_now = (question_id, ask)
        self.instance.questions[question_id] = self
        data = {
            "question_id": question_id,
            "prompt": ask.prompt[:4000],
            "schema": {"type": "boolean"},
            "timeout": self.config.question_seconds,
            "kind": "approval",
            "role": "operator",
        }
        return EventData(EventType.INPUT_REQUIRED, data)

    def decided(self, question_id: str, answer: Any) -> None:
        """Hand a person's answer to the CLI; no answer in time is a no."""
        if self._question_now is None or self._question_now[0] != question_id:
            return
        ask = self._question_now[1]
        self._question_now = None
        self.heard()
        if isinstance(answer, BaseException):
            self.warn(f"nobody answered in time: {ask.tool} is refused", tool_name=ask.tool)
            ask.reply(False, "nobody answered in time")
        else:
            ask.reply(answer is True, "" if answer is True else "a person said no")
        self._ring()

    # -- silence -------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look whether it still says anything; alive is not healthy."""
        if self.over or self.ended.is_set():
            return
        now = self._loop.time()
        waits = self._question_now is not None or self._asks or self._tools or self.full
        if waits or self.paused:
            self._heard_at = now
        silent = now - self._heard_at
        most = self.config.silence_seconds
        if silent >= most:
            said = f"; the last thing was: {self._retry}" if self._retry else ""
            self.fail(
                CommunicationError(f"{self.config.kind} has said nothing for {silent:.0f} s{said}")
            )
            return
        self._watching = self._loop.call_later(max(most - silent, 0.05), self._watch)

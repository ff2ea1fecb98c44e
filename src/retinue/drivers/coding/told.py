"""What a coding CLI does in one turn, taken down: text, tools, costs, questions, the end.

The first end that is told is the turn's end, whatever the process does after it. All that is
recorded leaves here, and nothing of it repeats a credential; see ``secrecy``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from retinue.domain.event import EventData, EventType
from retinue.domain.instance import InstanceRecord
from retinue.drivers.coding.asking import Asking, Opened
from retinue.drivers.coding.natives import Native
from retinue.drivers.coding.scribe import Ask, fitting
from retinue.drivers.coding.secrecy import Secrecy
from retinue.drivers.coding.speech import MOST_TEXT, Speech
from retinue.drivers.coding.versions import doubt
from retinue.errors import BudgetExceeded, CommunicationError, InvalidResult, RetinueError, said
from retinue.interfaces import Job

if TYPE_CHECKING:
    from retinue.drivers.coding.driver import CodingInstance

log = logging.getLogger(__name__)
MOST_EVENTS = 256
THOUGHT_SECONDS = 0.3
MOST_THOUGHT = 2_000


class Told:
    """Takes down what a CLI does in one turn, for the engine to take from here."""

    def __init__(self, instance: CodingInstance, job: Job) -> None:
        self.instance = instance
        self.config = instance.config
        self.job = job
        self.native: Native | None = None
        self.over = False
        self.ended = asyncio.Event()
        self.error: RetinueError | None = None
        self.cost = 0.0
        self.asking = Asking()
        self.elsewhere = False
        """Whether its session has a history, of which nothing is known on this server."""
        self.queued = False
        """Whether it waits until the CLI takes more work."""
        self._result: Any = None
        self._most = instance.lent.max_result_bytes
        self._secrecy = Secrecy(self.config.environment, instance.place.masked)
        self._speech = Speech(self._secrecy.credentials, self._secrecy.of_work)
        self._loop = asyncio.get_running_loop()
        self._events: deque[EventData] = deque()
        self._thought: list[str] = []
        self._thought_timer: asyncio.TimerHandle | None = None
        self._bell: asyncio.Future[None] | None = None
        self._space: asyncio.Future[None] | None = None
        self._tools: dict[str, str] = {}
        self._replies = 0
        self._heard_at = self._loop.time()
        self._retry: str | None = None
        self._trouble: str | None = None
        self._missed: str | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._held = False

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
            known = self.native if resumed else None
            self.native = msgspec.structs.replace(
                known
                or Native(
                    owner=execution.owner,
                    session_id=execution.session_id,
                    native_session=native,
                ),
                version=version,
            )
            self._held = True
            # At once: a crash in the middle of the turn is to find it, too.
            self._keeping = self.instance.aside(self._keep(self.native))
        words = [self.config.kind, version, model, "goes on with" if resumed else "begins", native]
        facts = {"native_session": native, "version": version, "model": model, "resumed": resumed}
        message = " ".join(word for word in words if word)
        self.note(EventType.LOG, {"level": "info", "message": message, **facts})
        said = doubt(self.config.kind, version)
        if said is not None:
            self.warn(said)
        if self.elsewhere:
            self.elsewhere = False
            self.warn(
                f"this session has had tasks of {self.instance.handle.agent_id} before, but which"
                f" session of {self.config.kind}'s own that was is not known on this server: it"
                " begins anew and knows nothing of them"
            )

    async def _keep(self, native: Native, *, known: bool = False) -> None:
        """Keep which session of the CLI's this is; the work goes on when that fails."""
        try:
            await asyncio.to_thread(self.instance.natives.keep, native, known=known)
        except OSError as error:
            lost = f"which session of {self.config.kind} this is cannot be kept: {said(error)}"
            log.warning("%s: %s", self.instance.handle.agent_id, lost)
            self.warn(f"{lost}; a follow-up begins anew")

    def say(self, text: str) -> None:
        """Take text of the answer."""
        if not text or self.over or self.ended.is_set():
            return
        self.troubled(None)
        if self._thought:
            self._flush_thought()
        speech = self._speech
        speech.add(text)
        if speech.place > self._most:
            self.fail(InvalidResult(f"the agent said more than {self._most} characters"))
        elif speech.size >= MOST_TEXT:
            self._flush_text(last=False)
        if self._bell is not None:
            self._ring()

    @property
    def place(self) -> int:
        """How much of the answer has been said."""
        return self._speech.place

    def back(self, place: int) -> None:
        """Take back what was said of the answer behind ``place``."""
        if not self.over and not self.ended.is_set():
            self._flush_thought()
            self._events.extend(self._speech.back(place))
            self._ring()

    def think(self, text: str) -> None:
        """Take a piece of thought; pieces that follow one another soon are one event."""
        if not text or self.over or self.ended.is_set():
            return
        if not isinstance(text, str):
            raise TypeError(f"thought is {type(text).__name__}")
        self.troubled(None)
        self._flush_text()
        self._thought.append(text)
        if sum(map(len, self._thought)) >= MOST_THOUGHT:
            self._flush_thought(last=False)
        elif self._thought_timer is None:
            flush = partial(self._flush_thought, last=False)
            self._thought_timer = self._loop.call_later(THOUGHT_SECONDS, flush)

    def _flush_text(self, *, last: bool = True) -> None:
        event = self._speech.take(last=last)
        if event is not None:
            self._events.append(event)

    def _flush_thought(self, *, last: bool = True) -> None:
        if self._thought_timer is not None:
            self._thought_timer.cancel()
            self._thought_timer = None
        if self._thought:
            content = self._secrecy.of_work("".join(self._thought))
            held = "" if last else self._speech.beginning(content)
            self._thought = [held] if held else []
            content = content[: len(content) - len(held)]
            if not content:
                return
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
        self.troubled(None)
        data = {"tool_name": tool, "arguments": fitting(arguments), "tool_call_id": key, **more}
        self.note(EventType.TOOL_CALL, data)

    def answered(self, key: str, result: Any, *, is_error: bool = False, **more: Any) -> None:
        """Note what a tool answered."""
        tool = self._tools.pop(key, None)
        data = {"tool_name": tool, "result": fitting(result), "is_error": is_error}
        self.note(EventType.TOOL_RESULT, {**data, "tool_call_id": key, **more})

    def warn(self, message: str, **more: Any) -> None:
        """Take a warning."""
        if "retry" in more:
            self._retry = message
            self.troubled(message)
        self.note(EventType.LOG, {"level": "warning", "message": message, **more})

    def troubled(self, what: str | None) -> None:
        """Take note of what its work is held up by; None: it is not any more."""
        if what == self._trouble:
            return
        before, self._trouble = self._trouble, what
        record = self.record
        if record is not None and record.reason in {None, before}:
            record.reason = what

    @property
    def record(self) -> InstanceRecord | None:
        """Its process, on record, if it has one."""
        return None

    def missed(self, message: str) -> None:
        """Warn of something it said that could not be read: its end may have been in that."""
        self._missed = message
        self.warn(message)

    def without(self, error: RetinueError) -> RetinueError:
        """Return how it ended, with what of it was missed."""
        if self._missed is not None:
            error.message += f"; {self._missed}"
            error.args = (error.message,)
        return error

    def misunderstood(self, error: Exception) -> None:
        """Fail: a message of its was not what it should be."""
        self.fail(CommunicationError(f"{self.config.kind} cannot be understood: {said(error)}"))

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
        """Note that the turn has failed; the first end counts, and nothing prevents it."""
        if self.ended.is_set():
            return
        self.error = self._secrecy.error(error)
        try:
            self._flush_thought()
            self._flush_text()
        except Exception:
            log.exception("the last that %s said is lost", self.instance.handle.agent_id)
        finally:
            self._finished()

    def _finished(self) -> None:
        self.ended.set()
        self._ring()

    # -- questions -----------------------------------------------------------------------------

    def ask(self, ask: Ask) -> None:
        """Answer by the agent's policy, or have a person asked; one question is open at a time."""
        if self.over or self.ended.is_set():
            ask.reply(None, "the task is over")  # leave is not given any more
            return
        verdict = self.config.judge(ask.tool)
        if verdict == "ask":
            self.withdrawn(ask.key)  # else two would be answered as one
            self.asking.add(ask)
            self._ring()
            return
        allowed = verdict == "allow"
        if not allowed:
            self.warn(f"{ask.tool} was refused by the agent's policy", tool_name=ask.tool)
        ask.reply(allowed, "" if allowed else "refused by the policy of this agent")

    def withdrawn(self, key: str) -> None:
        """Do not ask any more; a question that is open is closed, and an answer to it refused."""
        opened = self.asking.withdraw(key)
        if opened is None:
            return
        self.instance.questions.pop(opened.id, None)
        self.heard()
        said = f"{self.config.kind} does not ask any more: {opened.ask.tool}"
        self.note(EventType.LOG, {"level": "info", "message": said})
        closed = {"question_id": opened.id, "withdrawn": True}
        self.note(EventType.INPUT_REQUIRED, closed)

    def _question(self, opened: Opened) -> EventData:
        self.instance.questions[opened.id] = self
        data = {
            "question_id": opened.id,
            "prompt": opened.ask.prompt,
            "schema": {"type": "boolean"},
            "timeout": self.config.question_seconds,
            "kind": "approval",
            "role": "operator",
        }
        return EventData(EventType.INPUT_REQUIRED, data)

    def decided(self, question_id: str, answer: Any) -> None:
        """Hand a person's answer to the CLI; no answer in time is a no."""
        ask = self.asking.close(question_id)
        if ask is None:
            return
        self.heard()
        if self.over or self.ended.is_set():
            ask.reply(None, "the task is over")
            return
        if isinstance(answer, BaseException):
            self.warn(f"nobody answered in time: {ask.tool} is refused", tool_name=ask.tool)
            ask.reply(False, "nobody answered in time")
        else:
            ask.reply(answer is True, "" if answer is True else "a person said no")
        self._ring()

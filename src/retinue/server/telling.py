"""One execution, told to who asked for it: its events become frames, its end the answer.

The protocol's frames are the same whichever door they leave by: ``server.stdio`` writes them as
lines, ``server.invocations`` sends them over HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, Protocol

import msgspec

from retinue.domain.event import Event, EventType
from retinue.domain.principal import Principal
from retinue.domain.question import QuestionState
from retinue.domain.strictjson import loads
from retinue.errors import HumanInputRequired, NotFound, RetinueError, Timeout
from retinue.orchestrator import Orchestrator
from retinue.orchestrator.invoking import DEFAULT_MS, asking_of, result_in, timed_out, unanswered
from retinue.wire import envelope
from retinue.wire.payloads import Invoke, InvokeOptions, Note
from retinue.wire.streams import Narration, answer

_NOTES = frozenset(
    {
        EventType.THINKING,
        EventType.TOOL_CALL,
        EventType.TOOL_RESULT,
        EventType.PROGRESS,
        EventType.LOG,
        EventType.USAGE,
    }
)
_NO_OPTIONS = InvokeOptions()


class Hearer(Protocol):
    """Who asked: whose frames these are, and how long one may be."""

    orchestrator: Orchestrator
    principal: Principal
    line_bytes: int

    def send(self, line: bytes, /) -> None:
        """Send a frame; it waits for nothing."""
        ...

    async def room(self) -> None:
        """Return once there is room for more: who reads slowly holds back what it is told."""
        ...


class Telling:
    """Answers the request ``message_id`` with what becomes of an execution.

    ``asked`` is None where the execution was asked for earlier. ``node`` is the name of what an
    agent says without naming a node.
    """

    def __init__(
        self,
        door: Hearer,
        message_id: str,
        asked: Invoke | None,
        *,
        node: str = "",
        stop_at_questions: bool = False,
    ) -> None:
        options = (asked.options if asked is not None else None) or _NO_OPTIONS
        self._door = door
        self._to = message_id
        self._asked = asked
        self._options = options
        self._stops = stop_at_questions
        self._began = time.monotonic()
        self._limit_ms = options.timeout_ms if options.timeout_ms is not None else DEFAULT_MS
        self._tokens = 0
        self._node = node
        self._narration = Narration(
            message_id,
            only=options.stream_node,
            accumulated=options.accumulated,
            line_bytes=door.line_bytes,
        )

    # -- what becomes of it --------------------------------------------------------------------

    async def within(self, timeout_ms: float | None, work: Awaitable[None]) -> None:
        """Wait no longer than that; the execution itself goes on.

        Raises:
            Timeout: it has not ended.
        """
        try:
            async with asyncio.timeout(timeout_ms / 1000 if timeout_ms is not None else None):
                await work
        except TimeoutError:
            raise Timeout(
                f"it has not ended within {timeout_ms:g}ms, and goes on",
                details={"elapsed_ms": self._elapsed()},
            ) from None

    async def end_of(self, execution_id: str, timeout_ms: float | None) -> None:
        """Wait for the end of an execution that was asked for earlier.

        Raises:
            RetinueError: there is none, it has not ended in time, or ended without a result.
        """
        execution = await self._door.orchestrator.execution(execution_id, self._door.principal)
        # Only its last event is of interest.
        after = max(execution.last_seq - 1, 0) if execution.terminal else execution.last_seq
        await self.within(timeout_ms, self.follow(execution_id, after=after))

    async def step_of(self, execution_id: str, timeout_ms: float | None) -> None:
        """Wait for its end or (``stop_at_questions``) for what it asks.

        Raises:
            RetinueError: as ``end_of`` does.
        """
        await self._door.orchestrator.execution(execution_id, self._door.principal)
        await self.within(timeout_ms, self.follow(execution_id))

    async def follow(self, execution_id: str, *, after: int = 0) -> None:
        """Tell of the execution from event ``after`` on, until its request is answered.

        Raises:
            RetinueError: it ended without a result, or this system stops first.
        """
        async with aclosing(self.steps(execution_id, after=after)) as steps:
            async for _ in steps:
                pass

    async def steps(
        self, execution_id: str, *, after: int = 0, heartbeat: float | None = None
    ) -> AsyncGenerator[None, None]:
        """Do what ``follow`` does and yield whenever something was told, or nothing happened.

        Raises:
            RetinueError: as ``follow`` does.
        """
        door = self._door
        batches = door.orchestrator.follow(
            execution_id, after=after, heartbeat=heartbeat, principal=door.principal
        )
        async with aclosing(batches) as events:
            async for some in events:
                for event in some:
                    if await self._tell(execution_id, event):
                        return
                yield
        raise unanswered(execution_id)

    async def _tell(self, execution_id: str, event: Event) -> bool:
        """Tell of one event; return whether that was the answer."""
        await self._door.room()
        data = loads(event.data)
        kind = event.type
        if kind is EventType.CONTENT_CHUNK:
            if self._options.stream:
                node = data.get("node_name") or self._node or execution_id
                reset = bool(data.get("is_reset"))
                for line in self._narration.say(node, data.get("content", ""), reset=reset):
                    self._door.send(line)
        elif kind is EventType.ATTEMPT_STARTED:
            self._narration.reset()
        elif kind is EventType.INPUT_REQUIRED:
            return await self._question(data["question_id"])
        elif kind in _NOTES:
            self._note(kind, data)
        elif event.terminal:
            await self._end(execution_id, kind, data)
            return True
        return False

    async def _end(self, execution_id: str, kind: EventType, data: dict[str, Any]) -> None:
        try:
            result = result_in(kind, data, execution_id)
        except RetinueError as error:
            if self._asked is not None and isinstance(error, Timeout):
                door = self._door
                execution = await door.orchestrator.execution(execution_id, door.principal)
                started = execution.started_at is not None
                timed_out(error, self._limit_ms, self._elapsed(), started=started)
            raise
        self._succeed(execution_id, result)

    def _note(self, kind: EventType, data: dict[str, Any]) -> None:
        if kind is EventType.USAGE:
            self._tokens += data.get("input_tokens", 0) + data.get("output_tokens", 0)
        if self._options.stream:
            note = envelope.control(Note(event=kind.value, data=data), to=self._to)
            line = envelope.encode_checked(note)
            if len(line) <= self._door.line_bytes:
                self._door.send(line)

    async def _question(self, question_id: str) -> bool:
        door = self._door
        try:
            question = await door.orchestrator.question(question_id, door.principal)
        except NotFound:
            return False
        if question.state is not QuestionState.OPEN:
            return False
        asking = asking_of(question)
        if self._stops:
            ids = msgspec.to_builtins(asking)
            payload = {"status": "human_input_required", "human_input": ids}
            door.send(envelope.encode_checked(envelope.response(self._to, payload)))
            return True
        if self._options.human_input == "error":
            raise HumanInputRequired(
                f"the agent asks: {question.prompt}", details=msgspec.to_builtins(asking)
            )
        if self._asked is not None:
            door.send(envelope.encode_checked(envelope.control(asking, to=self._to)))
        return False

    def _succeed(self, execution_id: str, result: Any) -> None:
        metadata = {
            "invoke_id": execution_id,
            "duration_ms": self._elapsed(),
            "tokens_used": self._tokens,
        }
        for line in self._narration.complete():
            self._door.send(line)
        for line in answer(self._to, result, metadata, self._door.line_bytes):
            self._door.send(line)

    def _elapsed(self) -> int:
        return int((time.monotonic() - self._began) * 1000)

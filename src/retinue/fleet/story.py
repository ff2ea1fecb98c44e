"""One invocation, followed to its end, and those who hear of it."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import msgspec

from retinue.domain.event import Event, EventType
from retinue.domain.question import QuestionState
from retinue.domain.strictjson import loads
from retinue.errors import ExecutionError, RetinueError, Timeout, said
from retinue.orchestrator import Orchestrator
from retinue.orchestrator.invoking import asking_of, result_in, timed_out, unanswered
from retinue.wire.payloads import Asking

log = logging.getLogger(__name__)


class Invoked(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an invocation that went well."""

    result: Any
    invoke_id: str
    duration_ms: int
    tokens_used: int = 0
    success: bool = True


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of what an agent says. ``is_reset``: what this node said before does not count."""

    text: str
    node_name: str
    is_reset: bool = False


Chunk = Callable[[Said], Any]
Complete = Callable[[Invoked], Any]
Failed = Callable[[RetinueError], Any]


class Listener:
    """The callbacks of one invocation; whatever they do, it goes on."""

    def __init__(
        self, on_chunk: Chunk | None, on_complete: Complete | None, on_error: Failed | None
    ) -> None:
        self._on_chunk = on_chunk
        self._on_complete = on_complete
        self._on_error = on_error
        self._over = False

    async def chunk(self, said_now: Said) -> None:
        """Tell of a piece."""
        if self._on_chunk is None or self._over:
            return
        try:
            await _called(self._on_chunk, said_now)
        except Exception as error:
            frame = msgspec.to_builtins(said_now)
            fault = ExecutionError(
                f"on_chunk raised {said(error)}", details={"callback": "on_chunk", "frame": frame}
            )
            fault.__cause__ = error
            await self.failed(fault)

    async def completed(self, done: Invoked) -> None:
        """Tell of the end."""
        if self._on_complete is None or self._over:
            return
        self._over = True
        try:
            await _called(self._on_complete, done)
        except Exception:
            log.exception("on_complete raised; the invocation itself went well")

    async def failed(self, error: RetinueError) -> None:
        """Tell of a failure."""
        if self._on_error is None or self._over:
            return
        self._over = True
        try:
            await _called(self._on_error, error)
        except Exception:
            log.exception("on_error raised")


async def _called(callback: Callable[[Any], Any], value: Any) -> None:
    answer = callback(value)
    if inspect.isawaitable(answer):
        await answer


class Story:
    """One invocation, followed to its end."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        invoke_id: str,
        limit_ms: float | None,
        node: str = "",
        listener: Listener | None = None,
    ) -> None:
        self._orchestrator = orchestrator
        self._id = invoke_id
        self._limit_ms = limit_ms
        self._node = orchestrator.definition(node).agent_id if node else ""
        self._listener = listener
        self._spoke: set[str] = set()
        self._void: set[str] = set()
        self._tokens = 0
        self._began = time.monotonic()

    async def end(self) -> Invoked:
        """Return how it ended."""
        found = await self._follow(questions=False)
        assert isinstance(found, Invoked)
        return found

    async def end_or_question(self) -> Invoked | Asking:
        """Return how it ended, or what it asks."""
        return await self._follow(questions=True)

    async def _follow(self, *, questions: bool) -> Invoked | Asking:
        async with aclosing(self._orchestrator.follow(self._id)) as batches:
            async for events in batches:
                for event in events:
                    data = loads(event.data)
                    if event.terminal:
                        return await self._ended(event, data)
                    if event.type is EventType.INPUT_REQUIRED and questions:
                        question = await self._orchestrator.question(data["question_id"])
                        if question.state is QuestionState.OPEN:
                            return asking_of(question)
                    await self._told(event.type, data)
        raise unanswered(self._id)

    async def _told(self, kind: EventType, data: dict[str, Any]) -> None:
        if kind is EventType.USAGE:
            self._tokens += data.get("input_tokens", 0) + data.get("output_tokens", 0)
        elif kind is EventType.ATTEMPT_STARTED:
            self._void = set(self._spoke)
        elif kind is EventType.CONTENT_CHUNK and self._listener is not None:
            node = data.get("node_name") or self._node
            reset = bool(data.get("is_reset")) or node in self._void
            self._void.discard(node)
            self._spoke.add(node)
            text = data.get("content", "")
            await self._listener.chunk(Said(text=text, node_name=node, is_reset=reset))

    async def _ended(self, event: Event, data: dict[str, Any]) -> Invoked:
        execution = await self._orchestrator.execution(self._id)
        try:
            result = result_in(event.type, data, self._id)
        except Timeout as error:
            if self._limit_ms is not None:
                elapsed = int((time.monotonic() - self._began) * 1000) + 1
                started = execution.started_at is not None
                timed_out(error, self._limit_ms, elapsed, started=started)
            raise
        finished = execution.finished_at or execution.created_at
        return Invoked(
            result=result,
            invoke_id=self._id,
            duration_ms=(finished - execution.created_at) // 1000,
            tokens_used=self._tokens,
        )

"""One execution by a worker: a request, what comes about it as events, its end.

The outcome is the response or the error frame. Whoever leaves before that has the worker told to
cancel; what it still says is dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec

from retinue.domain.event import EventData, EventType
from retinue.domain.ids import iso, now_us, ulid
from retinue.domain.latency import Operation
from retinue.errors import (
    Cancelled,
    CommunicationError,
    ExecutionError,
    InvalidInput,
    InvalidResult,
    RetinueError,
)
from retinue.interfaces import Job
from retinue.wire import envelope
from retinue.wire.envelope import Error, Response, Stream
from retinue.wire.faults import error_of
from retinue.wire.payloads import RESULT_NODE, Asking, Cancel, Note
from retinue.wire.strict import BadFrame, decode_strictly

if TYPE_CHECKING:
    from retinue.drivers.stdio.instance import StdioInstance

MOST_EVENTS = 1_000
_NOTES = frozenset(
    {
        EventType.THINKING,
        EventType.TOOL_CALL,
        EventType.TOOL_RESULT,
        EventType.PROGRESS,
        EventType.USAGE,
        EventType.LOG,
    }
)


class Performance:
    """One execution by a worker: an async context manager that iterates its events."""

    __slots__ = (
        "_answers",
        "_begun",
        "_bell",
        "_calls",
        "_closed",
        "_error",
        "_events",
        "_heard",
        "_instance",
        "_meter",
        "_over",
        "_pieces",
        "_size",
        "_taken",
        "_used",
        "job",
        "message_id",
        "questions",
    )

    def __init__(self, instance: StdioInstance, job: Job) -> None:
        self.job = job
        self.message_id = envelope.new_id()
        self.questions: set[str] = set()
        self._instance = instance
        self._answers = list(job.answers)
        self._events: deque[EventData] = deque()
        self._bell: asyncio.Future[None] | None = None
        self._error: RetinueError | None = None
        self._pieces: list[str] = []
        self._size = 0
        self._over = False
        self._closed = False
        self._calls: set[asyncio.Task[None]] = set()
        self._meter = meter = instance.lent.meter
        self._begun = meter.clock() if meter is not None else 0.0
        self._heard: deque[float] = deque()
        self._taken: float | None = None
        self._used = False

    async def __aenter__(self) -> AsyncIterator[EventData]:
        self._instance.begin(self, self._request())
        return self

    def _request(self) -> envelope.Request:
        job, execution = self.job, self.job.execution
        options: dict[str, Any] = {"stream": True, "accumulated": False}
        if execution.capability is not None:
            options["capability"] = execution.capability
        payload: dict[str, Any] = {
            "operation": "agent.invoke",
            "agent_name": execution.agent_id,
            "input": job.parameters,
            "metadata": {
                "invoke_id": execution.id,
                "session_id": execution.session_id,
                "user_id": execution.created_by,
                "attempt": execution.attempt,
            },
            "options": options,
        }
        if job.context is not None:
            payload["context"] = job.context
        if job.intent is not None:
            payload["intent"] = job.intent
        return envelope.Request(
            message_id=self.message_id,
            correlation_id=self.message_id,
            timestamp=iso(now_us()),
            payload=payload,
        )

    def __aiter__(self) -> AsyncIterator[EventData]:
        return self

    async def __anext__(self) -> EventData:
        if self._taken is not None:
            self._handed_on()
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            self._bell = asyncio.get_running_loop().create_future()
            await self._bell
        event = self._events.popleft()
        if self._heard and event.type is EventType.CONTENT_CHUNK:
            self._taken = self._heard.popleft()
        if len(self._events) == MOST_EVENTS - 1:
            self._instance.pipe.drained()
        return event

    def _handed_on(self) -> None:
        """Count how long the last chunk took from the pipe into the journal."""
        assert self._meter is not None
        assert self._taken is not None
        self._meter.since(Operation.CHUNK, self._taken)
        self._taken = None

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        if self._meter is not None:
            if self._taken is not None:
                self._handed_on()
            kind = Operation.LLM_INVOKE if self._used else Operation.INVOKE
            self._meter.since(kind, self._begun)
        instance = self._instance
        for question in self.questions:
            instance.questions.pop(question, None)
        for call in self._calls:
            call.cancel()
        if not self._over:
            instance.pipe.leave(self.message_id)
            try:
                instance.pipe.order(Cancel(request_id=self.message_id))
            except CommunicationError:
                pass  # it is gone, which is as good
        instance.done(self, failed=isinstance(self._error, ExecutionError))

    # -- what comes ----------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether the journal does not keep up with what comes."""
        return len(self._events) >= MOST_EVENTS

    def hear(self, frame: Response | Stream | Error) -> None:
        """Take in a frame about this request."""
        if isinstance(frame, Stream):
            self._streamed(frame)
            return
        self._over = True
        if isinstance(frame, Error):
            self._error = _ended_by(error_of(frame.payload))
        else:
            try:
                self._put(EventType.COMPLETED, {"result": self._result(frame.payload)})
            except InvalidResult as error:
                self._error = error
        self._ring()

    def _streamed(self, frame: Stream) -> None:
        chunk = frame.payload
        if chunk.node_name == RESULT_NODE:
            if chunk.is_reset:
                self._pieces.clear()
                self._size = 0
            self._size += len(chunk.chunk)
            self._pieces.append(chunk.chunk)
            most = self._instance.lent.max_result_bytes
            if self._size > most and self._error is None:
                self._error = InvalidResult(
                    f"the agent's result is larger than {most} bytes", details={"limit": most}
                )
                self._pieces.clear()
                self._ring()
            return
        self._instance.lifecycle.streamed()
        if not chunk.chunk and not chunk.is_reset:
            return  # the end of a node, which our events do not have
        data: dict[str, Any] = {"content": chunk.chunk}
        if chunk.node_name:
            data["node_name"] = chunk.node_name
        if chunk.is_reset:
            data["is_reset"] = True
        if self._meter is not None:
            self._heard.append(self._meter.clock())
        self._put(EventType.CONTENT_CHUNK, data)
        self._ring()

    def _result(self, payload: dict[str, Any]) -> Any:
        status, node = payload.get("status"), payload.get("result_node")
        if status != "success":
            said = "no status" if status is None else f"the status {str(status)[:80]!r}"
            raise InvalidResult(
                f"the worker answered with {said}: a good answer has the status 'success'",
                details={"path": "$.payload.status"},
            )
        if node is None:
            return payload.get("result")
        if node != RESULT_NODE:
            raise InvalidResult(
                f"the worker's result is in the node {str(node)[:80]!r}, not in {RESULT_NODE}",
                details={"path": "$.payload.result_node"},
            )
        try:
            return decode_strictly("".join(self._pieces).encode())
        except BadFrame as error:
            raise InvalidResult(f"the agent's result, in pieces: {error.message}") from None

    def noted(self, note: Note) -> None:
        """Take in something that the agent says beside its answer."""
        if note.event in _NOTES:
            self._used = self._used or note.event == EventType.USAGE
            self._put(EventType(note.event), note.data)
            self._ring()
        else:
            self._instance.note(f"an event of no known kind: {note.event[:80]!r}")

    def asked(self, asking: Asking) -> None:
        """Take in a question; one that was answered to an earlier attempt is not asked again."""
        for place, (prompt, answer) in enumerate(self._answers):
            if prompt == asking.prompt:
                del self._answers[place]
                text = f"answered already, to an earlier attempt: {prompt}"
                self._put(EventType.LOG, {"level": "info", "message": text})
                self._ring()
                self._instance.provide(asking, answer)
                return
        question_id = ulid()
        self.questions.add(question_id)
        self._instance.questions[question_id] = asking
        data = {
            "question_id": question_id,
            "prompt": asking.prompt,
            "schema": asking.schema,
            "timeout": asking.timeout_ms / 1000 if asking.timeout_ms is not None else None,
            "kind": asking.kind,
            "role": asking.role,
        }
        self._put(EventType.INPUT_REQUIRED, data)
        self._ring()

    def calls(self, call: asyncio.Task[None]) -> None:
        """Have a call of the agent's end with this execution."""
        if self._closed:
            call.cancel()
            return
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    def fail(self, error: RetinueError) -> None:
        """Take in that nothing more will come."""
        self._over = True
        self._error = self._error or error
        self._ring()

    def _put(self, kind: EventType, data: dict[str, Any]) -> None:
        self._events.append(EventData(kind, data))

    def _ring(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)


def _ended_by(error: RetinueError) -> RetinueError:
    """Return what a worker's error means here: nobody here cancelled what it says was cancelled."""
    if isinstance(error, Cancelled):
        return CommunicationError(
            f"the worker ended it: {error.message}", details=error.details, outcome="unknown"
        )
    return error


def control_of(payload: dict[str, Any]) -> Asking | Note | None:
    """Return what a worker says beside its answers; None: nothing that is known.

    Raises:
        InvalidInput: it is not as it should be.
    """
    operation = payload.get("operation")
    kind = {"human_input.request": Asking, "agent.event": Note}.get(str(operation))
    if kind is None:
        return None
    try:
        said: Asking | Note = msgspec.convert(payload, kind)
        return said
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{operation}: {error}") from None

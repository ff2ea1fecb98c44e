"""What a worker's agents have others do: requests of the worker's own, within ours.

Each is answered exactly once, whatever becomes of it: a refusal, a fault of ours and the end of the
execution it was made for are answers, too. How many one process has in progress is bounded, and an
answer waits until the process has taken those before it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from retinue.domain.execution import Task
from retinue.domain.principal import Authority
from retinue.drivers.stdio.pipe import Pipe
from retinue.errors import (
    Cancelled,
    InvalidInput,
    QueueFull,
    RetinueError,
    TooLarge,
    UnknownOperation,
    said,
)
from retinue.interfaces import DriverContext, Job
from retinue.wire.envelope import Request
from retinue.wire.faults import limit_us, operation_of, payload_as
from retinue.wire.payloads import Invoke
from retinue.wire.streams import answer
from retinue.wire.strict import BadFrame

log = logging.getLogger(__name__)
MOST_CALLS = 1_000


class Calls:
    """The requests of one process that are in progress, by their message_id."""

    def __init__(self, pipe: Pipe, lent: DriverContext, from_agent: str, line_bytes: int) -> None:
        self._pipe = pipe
        self._lent = lent
        self._from_agent = from_agent
        self._line_bytes = line_bytes
        self._running: dict[str, asyncio.Task[None]] = {}

    def begin(self, frame: Request, job: Job | None) -> asyncio.Task[None] | None:
        """Perform a request on behalf of ``job``; return what does, or None: it was refused."""
        refused = self._refusal(frame, job)
        if refused is not None or job is None:
            self._pipe.refuse(frame.message_id, refused or RetinueError())
            return None
        call = asyncio.create_task(self._perform(frame, job))
        self._running[frame.message_id] = call
        call.add_done_callback(lambda done: self._done(frame.message_id, done))
        return call

    def _refusal(self, frame: Request, job: Job | None) -> RetinueError | None:
        if frame.message_id in self._running:
            self._pipe.stray("duplicate_id", lambda: f"request {frame.message_id[:80]}")
            return InvalidInput(
                f"request {frame.message_id[:80]} is in progress; its message_id is taken",
                details={"bad_frame": "duplicate_id"},
            )
        if job is None:
            return InvalidInput(
                "a request says by its correlation_id for which request it is made;"
                " none that is in progress has that message_id",
                details={"path": "$.correlation_id"},
            )
        if len(self._running) >= MOST_CALLS:
            return QueueFull(
                f"{MOST_CALLS} requests of this process are in progress, which is the limit"
            )
        return None

    def _done(self, message_id: str, call: asyncio.Task[None]) -> None:
        """Answer what ended without an answer."""
        del self._running[message_id]
        if call.cancelled():
            error: RetinueError = Cancelled(
                "the request that this was asked for has ended", outcome="unknown"
            )
        elif (fault := call.exception()) is None:
            return
        elif isinstance(fault, RetinueError):
            error = fault
        else:
            log.error("a worker's request failed unexpectedly", exc_info=fault)
            error = RetinueError(said(fault), outcome="unknown")
        self._pipe.refuse(message_id, error)

    async def _perform(self, frame: Request, job: Job) -> None:
        operation = operation_of(frame.payload)
        if operation != "agent.invoke":
            raise UnknownOperation(f"there is no operation {operation[:80]!r}")
        result = await self._call(job, payload_as(frame.payload, Invoke))
        for line in answer(frame.message_id, result, {}, self._line_bytes):
            await self._pipe.owed.room()
            self._pipe.answer(line)

    async def _call(self, job: Job, asked: Invoke) -> Any:
        execution = job.execution
        options = asked.options
        timeout = options.timeout_ms if options is not None else None
        given = asked.input
        task = Task(
            session_id=execution.session_id,
            capability=options.capability if options is not None else None,
            agent_id=asked.agent_name or None,
            parameters=given if given is not msgspec.UNSET else {},
            context=asked.context,
            intent=asked.intent,
            deadline_us=limit_us(timeout) if timeout is not None else None,
        )
        authority = Authority(
            owner=execution.owner,
            created_by=execution.created_by,
            from_agent=execution.agent_id or self._from_agent,
            parent_id=execution.id,
            depth=execution.depth + 1,
        )
        return await self._lent.submit(task, authority)

    def refuse_bad(self, bad: BadFrame) -> None:
        """Answer a line that is no frame, where it says that it was to be a request."""
        if bad.made_out("type") == "request":
            large = bad.kind_of_fault == "oversize"
            error = TooLarge(bad.message, details=bad.details) if large else bad
            self._pipe.refuse(bad.made_out("message_id") or None, error)

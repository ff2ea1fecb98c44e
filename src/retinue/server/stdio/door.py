"""Requests and orders of one parent: which operation, which execution, and the end of it all.

Everything a parent asks goes through the orchestrator. A request that is accepted is durable: what
the parent does not hear of any more goes on, and ``agent.result`` finds it, on another connection
and after a restart, too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from retinue.domain.agent import AgentDefinition
from retinue.domain.ids import iso, now_us, ulid
from retinue.domain.principal import Principal
from retinue.errors import (
    Cancelled,
    InvalidInput,
    QueueFull,
    RetinueError,
    ShuttingDown,
    Stopped,
    TooLarge,
    UnknownOperation,
    said,
)
from retinue.orchestrator import LOCAL_ADMIN, Orchestrator
from retinue.orchestrator.invoking import DEFAULT_MS, begun, pending, provide, task_of, unanswered
from retinue.server.telling import Telling
from retinue.wire import envelope
from retinue.wire.envelope import Control, Frame, Request
from retinue.wire.faults import fault_line, operation_of, payload_as
from retinue.wire.payloads import (
    Ability,
    Cancel,
    Card,
    Invoke,
    NextStep,
    Pending,
    Provide,
    Ready,
    Result,
    Shutdown,
)
from retinue.wire.strict import BadFrame

log = logging.getLogger(__name__)
GRACE_MS = 5000.0
LOOK_SECONDS = 0.1
LAST_SECONDS = 2.0
MAX_IN_FLIGHT = 1000


class StdioDoor:
    """One parent."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        send: Callable[[bytes], None],
        room: Callable[[], Coroutine[Any, Any, None]],
        *,
        principal: Principal = LOCAL_ADMIN,
        line_bytes: int = envelope.LINE_BYTES,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self.orchestrator = orchestrator
        self.principal = principal
        self.line_bytes = line_bytes
        self.session_id = f"stdio-{ulid()}"
        self.send = send
        self.room = room
        self._most = max_in_flight
        self._running: dict[str, asyncio.Task[None]] = {}
        self._executions: dict[str, str] = {}
        self._about: dict[str, str] = {}
        """Which execution each request waits for; those of ``_executions`` end with theirs."""
        self._unwanted: set[str] = set()
        self._operations: dict[str, Callable[[Request], Awaitable[None]]] = {
            "agent.invoke": self._invoke,
            "agent.result": self._result,
            "agent.next_step": self._next_step,
            "human_input.pending": self._pending,
            "human_input.provide": self._provide,
        }
        self._grace_ms: float | None = None
        self.stopping = asyncio.Event()

    def ready(self) -> None:
        """Say who is here."""
        cards = [_card(self.orchestrator.definition(word)) for word in self.orchestrator.names()]
        ready = Ready(module_name="retinue", agents=[c.name for c in cards], catalog=list(cards))
        self.send(envelope.encode_checked(envelope.control(ready)))

    # -- what comes ----------------------------------------------------------------------------

    def take(self, item: Frame | BadFrame) -> None:
        """Take in a frame, or a line that is none."""
        if isinstance(item, BadFrame):
            self._refuse(item)
        elif isinstance(item, Control):
            self._order(item)
        elif isinstance(item, Request):
            self._request(item)
        else:
            log.warning("a %s frame answers nothing that was asked", type(item).__name__.lower())

    def _refuse(self, bad: BadFrame) -> None:
        log.warning("bad frame (%s): %s: %r", bad.kind_of_fault, bad.message, bad.excerpt)
        error: RetinueError = bad
        if bad.kind_of_fault == "oversize":
            error = TooLarge(bad.message, details=bad.details)
        self.fail(bad.message_id, error)

    def _request(self, frame: Request) -> None:
        try:
            if self.stopping.is_set():
                raise ShuttingDown("this system is shutting down and takes no new work")
            if frame.message_id in self._running:
                raise InvalidInput(
                    f"request {frame.message_id} is in progress; its message_id is taken",
                    details={"bad_frame": "duplicate_id"},
                )
            operation = self._operations.get(operation_of(frame.payload))
            if operation is None:
                raise UnknownOperation(f"there is no operation {frame.payload['operation']!r}")
            if len(self._running) >= self._most:
                raise QueueFull(f"{self._most} requests are in progress, which is the limit")
        except RetinueError as error:
            self.fail(frame.message_id, error)
            return
        task = asyncio.create_task(self._perform(frame, operation))
        self._running[frame.message_id] = task
        task.add_done_callback(lambda _: self._done(frame.message_id))

    def _done(self, message_id: str) -> None:
        self._running.pop(message_id, None)
        self._executions.pop(message_id, None)
        self._about.pop(message_id, None)
        self._unwanted.discard(message_id)

    async def _perform(
        self, frame: Request, operation: Callable[[Request], Awaitable[None]]
    ) -> None:
        try:
            await operation(frame)
        except asyncio.CancelledError:
            self.fail(frame.message_id, self._left_open(frame.message_id))
        except Stopped as error:
            # In the protocol's words: E_SHUTTING_DOWN is for what was not begun.
            ended = Cancelled(error.message, details=error.details, outcome=error.outcome)
            self.fail(frame.message_id, ended)
        except RetinueError as error:
            self.fail(frame.message_id, error)
        except Exception as error:
            log.exception("a request failed unexpectedly")
            self.fail(frame.message_id, RetinueError(said(error)))

    def _left_open(self, message_id: str) -> RetinueError:
        """Return what a request is told that has no answer when this system stops."""
        execution_id = self._about.get(message_id)
        if execution_id is not None:
            return unanswered(execution_id)
        return Cancelled(
            "the system stopped while this request was taken; it may be on record",
            outcome="unknown",
        )

    def _order(self, frame: Control) -> None:
        operation = frame.payload.get("operation")
        try:
            if operation == "ping":
                in_flight = len(self._running)
                now = iso(now_us())
                self.reply(
                    frame.message_id,
                    {"status": "pong", "timestamp": now, "in_flight": in_flight},
                )
            elif operation == "shutdown":
                shutdown: Shutdown = payload_as(frame.payload, Shutdown)
                self.reply(frame.message_id, {"status": "shutting_down"})
                self.stop(shutdown.timeout_ms)
            elif operation == "cancel":
                self._cancel(frame.message_id, payload_as(frame.payload, Cancel))
            elif operation is not None:
                raise UnknownOperation(f"there is no control operation {operation!r}")
        except RetinueError as error:
            self.fail(frame.message_id, error)

    def _cancel(self, message_id: str | None, cancel: Cancel) -> None:
        there = cancel.request_id in self._running
        self.reply(message_id, {"status": "cancelling" if there else "not_running"})
        execution_id = self._executions.get(cancel.request_id)
        if execution_id is None:
            if there:
                self._unwanted.add(cancel.request_id)  # it is being accepted just now
            return
        asked = f"{cancel.request_id}:cancel"
        task = asyncio.create_task(self._end(execution_id))
        self._running[asked] = task
        task.add_done_callback(lambda _: self._running.pop(asked, None))

    async def _end(self, execution_id: str) -> None:
        try:
            await self.orchestrator.cancel(execution_id, self.principal)
        except RetinueError as error:
            log.warning("execution %s cannot be cancelled: %s", execution_id, error.message)

    # -- what goes -----------------------------------------------------------------------------

    def reply(self, to: str | None, payload: dict[str, Any]) -> None:
        """Send a response."""
        self.send(envelope.encode_checked(envelope.response(to, payload)))

    def fail(self, to: str | None, error: RetinueError) -> None:
        """Send an error frame."""
        self.send(fault_line(to, error, self.line_bytes))

    # -- operations ----------------------------------------------------------------------------

    async def _invoke(self, frame: Request) -> None:
        asked: Invoke = payload_as(frame.payload, Invoke)
        task = task_of(self.orchestrator, asked, self.session_id)
        node = ""
        if task.agent_id is not None:
            node = self.orchestrator.definition(task.agent_id).agent_id
        telling = Telling(self, frame.message_id, asked, node=node)
        accepted = await self.orchestrator.submit(task, self.principal)
        if asked.options is not None and asked.options.run_async:
            self.reply(frame.message_id, begun(accepted.execution_id))
            return
        self._executions[frame.message_id] = accepted.execution_id
        self._about[frame.message_id] = accepted.execution_id
        if frame.message_id in self._unwanted:
            await self._end(accepted.execution_id)
        await telling.follow(accepted.execution_id)

    async def _result(self, frame: Request) -> None:
        asked: Result = payload_as(frame.payload, Result)
        self._about[frame.message_id] = asked.invoke_id
        await Telling(self, frame.message_id, None).end_of(asked.invoke_id, asked.timeout_ms)

    async def _next_step(self, frame: Request) -> None:
        asked: NextStep = payload_as(frame.payload, NextStep)
        self._about[frame.message_id] = asked.invoke_id
        telling = Telling(self, frame.message_id, None, stop_at_questions=True)
        await telling.step_of(asked.invoke_id, asked.timeout_ms)

    async def _pending(self, frame: Request) -> None:
        asked: Pending = payload_as(frame.payload, Pending)
        found = await pending(self.orchestrator, asked.invoke_id, self.principal)
        self.reply(frame.message_id, {"status": "success", "result": found})

    async def _provide(self, frame: Request) -> None:
        given: Provide = payload_as(frame.payload, Provide)
        ids = await provide(self.orchestrator, given, self.principal)
        self.reply(frame.message_id, {"status": "success", "result": ids})

    # -- the end -------------------------------------------------------------------------------

    def stop(self, timeout_ms: float | None = None) -> None:
        """Take nothing new; ``drain`` then ends."""
        grace = timeout_ms if timeout_ms is not None else GRACE_MS
        self._grace_ms = min(grace, self._grace_ms if self._grace_ms is not None else grace)
        self.stopping.set()

    async def drain(self, end: Callable[[], Awaitable[object]]) -> None:
        """Return once all requests are answered, or the time allowed is over.

        It is over, too, when only people are waited for. Then ``end`` stops what runs: who waits
        for that hears how it ended, and who waits for what goes on later hears that.
        """
        deadline = time.monotonic() + (self._grace_ms or 0) / 1000
        await asyncio.sleep(0)
        while self._running and (left := deadline - time.monotonic()) > 0 and not self._only_asks():
            await asyncio.wait(self._running.values(), timeout=min(left, LOOK_SECONDS))
        if self._running:
            await end()
            over = [task for m, task in list(self._running.items()) if await self._is_over(m)]
            if over:
                await asyncio.wait(over, timeout=LAST_SECONDS)
        waiting = list(self._running.values())
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)

    def _only_asks(self) -> bool:
        """Whether all that is waited for waits for a person."""
        asks = self.orchestrator.asks
        return all(m in self._about and asks(self._about[m]) for m in self._running)

    async def _is_over(self, message_id: str) -> bool:
        execution_id = self._about.get(message_id)
        if execution_id is None:
            return False
        try:
            return (await self.orchestrator.execution(execution_id, self.principal)).terminal
        except RetinueError:
            return False


def _card(definition: AgentDefinition) -> Card:
    return Card(
        name=definition.agent_id,
        description=definition.description,
        version=definition.version,
        capabilities=[
            Ability(name=c.name, description=c.description, parameters=c.parameters)
            for c in definition.capabilities
        ],
        nodes=list(definition.nodes),
        options={"concurrency": definition.concurrency, "timeout": DEFAULT_MS / 1000},
    )

"""The worker: one thread reads frames, the loop performs them.

The reader answers control frames itself, so a ping is answered while every agent is busy, even one
that blocks the loop. It ends at shutdown, at the end of input or at SIGTERM: what runs may finish
within the time allowed, what does not is answered with ``E_CANCELLED``, and the exit code is 0.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from retinue.agent import Agent
from retinue.domain.ids import iso, now_us
from retinue.errors import (
    AgentNotFound,
    Cancelled,
    CommunicationError,
    InvalidInput,
    QueueFull,
    RetinueError,
    ShuttingDown,
    TooLarge,
    UnknownOperation,
)
from retinue.sdk.catalog import Reference, Served, catalog
from retinue.sdk.invocation import Invocation, threaded
from retinue.sdk.output import GRACE_SECONDS, LOOK_SECONDS, Output, hung_up, take_stdio
from retinue.wire import envelope
from retinue.wire.envelope import Control, Error, Frame, Request, Response, Stream
from retinue.wire.faults import error_of, fault_of, payload_as
from retinue.wire.payloads import RESULT_NODE, Cancel, Invoke, Provide, Ready, Shutdown
from retinue.wire.reader import FrameReader
from retinue.wire.strict import BadFrame, decode_strictly

CHUNK = 64 * 1024
GRACE_MS = GRACE_SECONDS * 1000
MAX_IN_FLIGHT = 1000
_MOST_AHEAD = 2 * MAX_IN_FLIGHT
"""How many frames are read that the loop has not taken yet: it may be waiting for the parent."""
_LINE_VARIABLE = "RETINUE_LINE_BYTES"
_SHOWN_BAD = 100


class Worker:
    """Serves agents on two file descriptors."""

    def __init__(
        self,
        agents: dict[str, Served],
        source: int,
        target: int,
        *,
        module_name: str,
        line_bytes: int,
        max_in_flight: int,
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self.home = threading.get_ident()
        self.line_bytes = line_bytes
        self.output = Output(target, self.loop.call_soon, source)
        self.late = 0
        self._agents = agents
        self._module_name = module_name
        self._source = source
        self._reader = FrameReader(line_bytes)
        self._most = max_in_flight
        self._running: dict[str, Invocation] = {}
        self._by_invoke: dict[str, list[Invocation]] = {}
        self._calls: dict[str, asyncio.Future[Any]] = {}
        self._pieces: dict[str, list[str]] = {}
        self._handed = self._taken = 0
        self._took = threading.Event()
        self._stopping = False
        self._deadline: float | None = None
        self._stopped = asyncio.Event()
        self._empty = asyncio.Event()

    def run(self) -> int:
        """Serve until the end; return the exit code."""
        try:
            return self.loop.run_until_complete(self._main())
        finally:
            self.output.flush()

    async def _main(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            if threading.current_thread() is threading.main_thread():
                # Not the loop's: it may be waiting for a parent that does not read.
                signal.signal(number, lambda *_: self._end_within(GRACE_MS))
        cards = [served.card() for served in self._agents.values()]
        ready = Ready(
            module_name=self._module_name,
            agents=[card.name for card in cards],
            catalog=list(cards),
        )
        self.send(envelope.control(ready))
        self.output.flush()
        threading.Thread(target=self._read, name="frames", daemon=True).start()
        await self._stopped.wait()
        await asyncio.sleep(0)  # what came before the end may still have to begin
        while self._running and self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                break
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), left)
            except TimeoutError:
                break
        for running in list(self._running.values()):
            running.end(Cancelled("the worker is shutting down", outcome="unknown"))
        await asyncio.sleep(0)
        return 0

    # -- the reader's thread -------------------------------------------------------------------

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._source, CHUNK)
            except OSError:
                chunk = b""
            found = self._reader.feed(chunk) if chunk else self._reader.rest()
            self._sort(found)
            if not chunk:
                self._end_within(GRACE_MS)
                return
            self._wait_for_the_loop()

    def _wait_for_the_loop(self) -> None:
        while self._handed - self._taken > _MOST_AHEAD:
            self._took.clear()
            if not self._took.wait(LOOK_SECONDS) and hung_up(self._source):
                self._end_within(GRACE_MS)

    def _sort(self, found: list[Frame | BadFrame]) -> None:
        """Answer what is for the reader, and hand the rest to the loop, in order."""
        batch: list[Frame] = []
        for item in found:
            if isinstance(item, BadFrame):
                self._refuse(item)
            elif isinstance(item, Control):
                if batch and item.payload.get("operation") != "ping":
                    self._hand_over(batch)
                    batch = []
                self._order(item)
            else:
                batch.append(item)
        if batch:
            self._hand_over(batch)

    def _hand_over(self, batch: list[Frame]) -> None:
        self._handed += len(batch)
        self._soon(self._take, batch, self._stopping)

    def _soon(self, call: Callable[..., object], *values: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(call, *values)
        except RuntimeError:
            pass  # the loop is closed: the program is ending

    def _refuse(self, bad: BadFrame) -> None:
        """Say that a line was no frame; its sender may be waiting for an answer to it."""
        kind = bad.kind_of_fault
        if self._reader.counts[kind] <= _SHOWN_BAD:
            print(f"bad frame ({kind}): {bad.message}: {bad.excerpt!r}", file=sys.stderr)
        error: RetinueError = bad
        if kind == "oversize":
            error = TooLarge(bad.message, details=bad.details)
        if bad.correlation_id is not None:
            self._soon(self._misread, bad)
        self.send(envelope.error(bad.message_id, fault_of(error)))

    def _order(self, frame: Control) -> None:
        payload = frame.payload
        operation = payload.get("operation")
        grace: float | None = None
        try:
            if operation == "ping":
                answer = {
                    "status": "pong",
                    "timestamp": iso(now_us()),
                    "in_flight": len(self._running),
                    "bad_frames": sum(self._reader.counts.values()),
                }
            elif operation == "shutdown":
                shutdown: Shutdown = payload_as(payload, Shutdown)
                answer = {"status": "shutting_down"}
                self._stopping = True
                grace = shutdown.timeout_ms if shutdown.timeout_ms is not None else GRACE_MS
            elif operation == "cancel":
                cancel: Cancel = payload_as(payload, Cancel)
                # The loop answers: only it knows what it has begun.
                self._soon(self._cancel, frame.message_id, cancel)
                return
            elif operation is None and "status" in payload:
                return  # something to know, not to do
            else:
                raise UnknownOperation(f"there is no control operation {operation!r}")
        except RetinueError as error:
            self.send(envelope.error(frame.message_id, fault_of(error)))
        else:
            self.send(envelope.response(frame.message_id, answer))
            if grace is not None:
                # Only now: the program may end before anything else is written.
                self._end_within(grace)

    def _end_within(self, grace_ms: float) -> None:
        """Have the program end; from any thread, also while the loop waits for its reader."""
        at = time.monotonic() + grace_ms / 1000
        self.output.give_up_at = min(at, self.output.give_up_at or at)
        self._soon(self._stop, grace_ms)

    # -- the loop's thread ---------------------------------------------------------------------

    def _take(self, batch: list[Frame], stopping: bool) -> None:
        """Begin what was asked; what came before a shutdown is taken, what came after it not."""
        self._taken += len(batch)
        self._took.set()
        for frame in batch:
            if not isinstance(frame, Request):
                self._answered(frame)
                continue
            try:
                self._begin(frame, stopping)
            except RetinueError as error:
                self.send(envelope.error(frame.message_id, fault_of(error)))

    def _begin(self, frame: Request, stopping: bool) -> None:
        operation = frame.payload.get("operation")
        if operation == "human_input.provide":
            self._provide(frame)
            return
        if operation != "agent.invoke":
            named = operation is not None
            raise UnknownOperation(
                f"there is no operation {operation!r}" if named else "it names no operation"
            )
        asked: Invoke = payload_as(frame.payload, Invoke)
        limit = asked.options.timeout_ms if asked.options is not None else None
        if limit is not None and limit <= 0:
            raise InvalidInput(
                "timeout_ms is more than 0", details={"path": "$.payload.options.timeout_ms"}
            )
        if stopping:
            raise ShuttingDown("this worker is shutting down and takes no new work")
        if frame.message_id in self._running:
            self._reader.count("duplicate_id")
            raise InvalidInput(
                f"request {frame.message_id} is in progress; its message_id is taken",
                details={"bad_frame": "duplicate_id"},
            )
        served = self._agents.get(asked.agent_name)
        if served is None:
            raise AgentNotFound(
                f"there is no agent {asked.agent_name!r} here",
                details={"agents": list(self._agents)},
            )
        if len(self._running) >= self._most:
            raise QueueFull(f"{self._most} requests are in progress, which is the limit")
        invocation = Invocation(self, frame.message_id, asked, served)
        self._running[frame.message_id] = invocation
        self._by_invoke.setdefault(invocation.execution_id, []).append(invocation)
        invocation.start()

    def _provide(self, frame: Request) -> None:
        given: Provide = payload_as(frame.payload, Provide)
        # An earlier attempt, which nobody wants any more, may still be here under the same id.
        found = self._by_invoke.get(given.invoke_id, [])
        latest = found[-1] if found else None
        invocation = next((one for one in found if one.asks(given.input_id)), latest)
        if invocation is None:
            raise InvalidInput(
                f"no invocation {given.invoke_id} is in progress",
                details={"path": "$.payload.invoke_id"},
            )
        error = error_of(given.error) if given.error is not None else None
        invocation.provide(given.input_id, given.value, error)
        ids = {"invoke_id": given.invoke_id, "input_id": given.input_id}
        self.send(envelope.response(frame.message_id, {"status": "success", "result": ids}))

    def _cancel(self, message_id: str | None, cancel: Cancel) -> None:
        running = self._running.get(cancel.request_id)
        there = running is not None and not running.closed
        status = "cancelling" if there else "not_running"
        self.send(envelope.response(message_id, {"status": status}))
        if running is not None:
            running.end(Cancelled(cancel.reason))

    def _stop(self, grace_ms: float) -> None:
        self._stopping = True
        deadline = time.monotonic() + grace_ms / 1000
        self._deadline = min(deadline, self._deadline or deadline)
        self._stopped.set()
        self._empty.set()

    def ended(self, invocation: Invocation) -> None:
        """Forget an invocation whose agent has come to its end."""
        self._running.pop(invocation.message_id, None)
        same = self._by_invoke[invocation.execution_id]
        same.remove(invocation)
        if not same:
            del self._by_invoke[invocation.execution_id]
        self._empty.set()

    def send(self, frame: Frame) -> None:
        """Send a frame of our own making; from any thread."""
        self.output.send(envelope.encode_checked(frame))

    def in_thread(self, call: Callable[..., Any], *values: Any) -> asyncio.Future[Any]:
        """Run something that blocks in a thread of its own."""
        return threaded(self.loop, "agent", call, *values)

    # -- what we ask the parent ----------------------------------------------------------------

    async def ask_parent(self, payload: Any, *, within: str) -> Any:
        """Ask the parent for something on behalf of the request ``within``; return the result.

        Raises:
            RetinueError: it answered with an error.
        """
        asked = envelope.request(payload, within=within)
        line = envelope.encode_message(asked)
        if len(line) > self.line_bytes:
            raise TooLarge(f"that is larger than a frame may be ({self.line_bytes} bytes)")
        future: asyncio.Future[Any] = self.loop.create_future()
        self._calls[asked.message_id] = future
        self.output.send(line)
        try:
            return await future
        finally:
            self._calls.pop(asked.message_id, None)
            self._pieces.pop(asked.message_id, None)

    def _answered(self, frame: Response | Stream | Error | Control) -> None:
        to = frame.correlation_id or ""
        future = self._calls.get(to)
        if future is None or future.done():
            if not (isinstance(frame, Error) and frame.correlation_id is None):
                self._reader.count("unknown_correlation")
            return
        if isinstance(frame, Stream):
            if frame.payload.node_name == RESULT_NODE:
                if frame.payload.is_reset:
                    self._pieces.pop(to, None)
                self._pieces.setdefault(to, []).append(frame.payload.chunk)
        elif isinstance(frame, Error):
            future.set_exception(error_of(frame.payload))
        elif isinstance(frame, Response):
            try:
                future.set_result(_result(frame.payload, self._pieces.get(to, [])))
            except RetinueError as error:
                future.set_exception(error)

    def _misread(self, bad: BadFrame) -> None:
        """Fail the call whose answer was no frame: no other one will come."""
        future = self._calls.get(bad.correlation_id or "")
        if future is not None and not future.done():
            message = f"the parent's answer is no frame: {bad.message}"
            future.set_exception(CommunicationError(message))


def _result(payload: dict[str, Any], pieces: list[str]) -> Any:
    """Return what a response brings.

    Raises:
        CommunicationError: it is no success, or its pieces are no JSON.
    """
    # One who leaves the status out and brings a result is understood all the same.
    status = payload.get("status", "success" if "result" in payload else None)
    if status != "success":
        said = str(status)[:80]
        raise CommunicationError(f"the parent answered with the status {said!r}, not with a result")
    if not payload.get("result_node"):
        return payload.get("result")
    try:
        return decode_strictly("".join(pieces).encode())
    except (RetinueError, ValueError) as error:
        raise CommunicationError(
            f"the pieces of the parent's answer are no JSON: {error}"
        ) from None


def serve(
    *agents: Agent | type[Agent] | Reference | str,
    module_name: str | None = None,
    line_bytes: int | None = None,
    max_in_flight: int = MAX_IN_FLIGHT,
    pipes: tuple[int, int] | None = None,
) -> int:
    """Serve ``agents`` on stdin and stdout until the parent ends it; return the exit code.

    An agent is an object, a class that needs no arguments, or a reference (``pkg.mod:Class``, or
    ``Reference(name, "pkg.mod:Class")``) that is imported when it is first invoked. A frame may
    have ``line_bytes`` (default: what the parent says, else 1 MiB); more than ``max_in_flight``
    invocations at a time are refused with ``E_QUEUE_FULL``. ``pipes`` are file descriptors to read
    and to write, in place of stdin and stdout.
    """
    served = catalog(agents)
    if line_bytes is None:
        line_bytes = int(os.environ.get(_LINE_VARIABLE) or envelope.LINE_BYTES)
    if module_name is None:
        main = sys.modules.get("__main__")
        spec = getattr(main, "__spec__", None)
        module_name = spec.name if spec is not None else os.path.basename(sys.argv[0] or "worker")
    source, target = pipes or take_stdio()
    worker = Worker(
        served,
        source,
        target,
        module_name=module_name,
        line_bytes=line_bytes,
        max_in_flight=max_in_flight,
    )
    return worker.run()

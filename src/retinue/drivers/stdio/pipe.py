"""What is under way on one worker's pipes: who asked what, and which frame is whose.

Any number of requests may be open; answers come in any order. A frame that belongs to nobody, and a
line that is no frame, is counted by its kind and noted in the log; the reader goes on with the next
one. When the worker is gone everybody who waits is told at once.

However much a worker writes, others have their turn after ``BREATH_SECONDS``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from retinue.domain.ids import iso, now_us
from retinue.drivers.stdio.complaints import Complaints
from retinue.drivers.stdio.owed import Owed
from retinue.errors import CommunicationError, InvalidResult, Outcome, RetinueError, TooLarge
from retinue.process.child import Child
from retinue.process.reading import Reader
from retinue.wire import envelope
from retinue.wire.envelope import Control, Error, Frame, Request, Response, Stream
from retinue.wire.exchange import Exchanges
from retinue.wire.faults import error_of, fault_line
from retinue.wire.reader import FrameReader
from retinue.wire.strict import BadFrame

EXIT_SECONDS = 0.25
BREATH_SECONDS = 0.005
MOST_LATE = 4_096
MOST_BAD_LINES = 10_000
_ANSWERS = frozenset({"response", "error"})


class Hearer(Protocol):
    """Who sent a request and hears what comes about it."""

    def hear(self, frame: Response | Stream | Error) -> None:
        """Take in a frame; a response or an error is the last one."""
        ...

    def fail(self, error: RetinueError) -> None:
        """Take in that nothing more will come, and why."""
        ...

    @property
    def full(self) -> bool:
        """Whether no more should come for now."""
        ...


class Order:
    """A request whose answer is one frame."""

    full = False

    def __init__(self) -> None:
        self.future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.future.add_done_callback(_looked_at)

    def hear(self, frame: Response | Stream | Error) -> None:
        """Take in the answer."""
        if self.future.done():
            return
        if isinstance(frame, Response):
            self.future.set_result(frame.payload)
        elif isinstance(frame, Error):
            self.future.set_exception(error_of(frame.payload))

    def fail(self, error: RetinueError) -> None:
        """Take in that there will be none."""
        if not self.future.done():
            self.future.set_exception(error)


def _looked_at(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # an order whose answer nobody wants may fail


class Pipe:
    """One worker's stdin and stdout.

    ``on_control``, ``on_request`` and ``on_error`` get the frames that answer nothing, ``on_bad``
    each line that is no frame and no answer, ``note`` a line for the log. ``frame_log``: it gets
    every frame. After more than ``most_bad`` lines in a row that are no frames ``on_rubbish`` is
    told why there is no use in going on, and nothing more is taken in.
    """

    def __init__(
        self,
        child: Child,
        line_bytes: int,
        *,
        on_control: Callable[[Control], None],
        on_request: Callable[[Request], None],
        on_error: Callable[[Error], None],
        on_bad: Callable[[BadFrame], None],
        on_rubbish: Callable[[str], None],
        note: Callable[[str], None],
        frame_log: bool = False,
        most_bad: int = MOST_BAD_LINES,
    ) -> None:
        assert child.stdin is not None
        assert isinstance(child.stdout, Reader)
        self.reader = FrameReader(line_bytes)
        self.last_frame = time.monotonic()
        self.late = 0
        self.held = False
        self.last_held = 0.0
        self.over: RetinueError | None = None
        self.why: str | None = None
        self.complaints = Complaints(note, most_bad)
        self.owed = Owed(child.stdin)
        self._child = child
        self._stdin = child.stdin
        self._stdout = child.stdout
        self._line_bytes = line_bytes
        self._on_control = on_control
        self._on_request = on_request
        self._on_error = on_error
        self._on_bad = on_bad
        self._on_rubbish = on_rubbish
        self._note = note
        self._frame_log = frame_log
        self._exchanges = Exchanges()
        self._hearers: dict[str, tuple[Hearer, int]] = {}
        self._left: dict[str, None] = {}
        self._room = asyncio.Event()
        self._stuffed: Hearer | None = None
        self._exited = False
        self._spoiled = False
        self._told = False

    # -- writing -------------------------------------------------------------------------------

    def begin(self, frame: Request | Control, hearer: Hearer) -> None:
        """Send a request; ``hearer`` hears what comes about it.

        Raises:
            TooLarge: it is longer than a line may be.
            CommunicationError: the worker is gone; it was not sent.
        """
        assert frame.message_id is not None
        message_id = frame.message_id
        line = self._line(frame)
        place = self._put(line)
        self._exchanges.begin(message_id)
        self._hearers[message_id] = (hearer, place)

    def order(self, payload: Any) -> asyncio.Future[dict[str, Any]]:
        """Send a control frame; return what will be its answer's payload.

        Raises:
            CommunicationError: the worker is gone.
        """
        order = Order()
        self.begin(envelope.control(payload), order)
        return order.future

    def ask(self, payload: Any) -> asyncio.Future[dict[str, Any]]:
        """Send a request; return what will be its answer's payload.

        Raises:
            CommunicationError: the worker is gone.
        """
        order = Order()
        self.begin(envelope.request(payload), order)
        return order.future

    def send(self, frame: Frame) -> None:
        """Send an answer; a worker that is gone does not hear it.

        Raises:
            TooLarge: it is longer than a line may be.
        """
        self.answer(self._line(frame))

    def answer(self, line: bytes) -> None:
        """Send a line that answers something; see ``send``."""
        try:
            place = self._put(line)
        except CommunicationError:
            return
        self.owed.add(place, len(line))

    def refuse(self, to: str | None, error: RetinueError) -> None:
        """Answer the worker's request ``to`` with an error."""
        self.answer(fault_line(to, error, self._line_bytes))

    def _line(self, frame: Frame) -> bytes:
        line = envelope.encode_checked(frame)
        if len(line) > self._line_bytes:
            raise TooLarge(
                f"the request has {len(line)} bytes; a line may have {self._line_bytes}",
                details={"limit": self._line_bytes},
            )
        if self._frame_log:
            self._note("> " + line.decode().rstrip("\n"))
        return line

    def _put(self, line: bytes) -> int:
        if self.over is not None:
            raise CommunicationError(self.over.message, outcome="not_started")
        try:
            return self._stdin.put(line)
        except CommunicationError as error:
            error.outcome = "not_started"
            raise

    def leave(self, message_id: str) -> None:
        """Wait for a request no more: what still comes about it is dropped and counted."""
        if self._hearers.pop(message_id, None) is not None:
            self._exchanges.end(message_id)
            self._left[message_id] = None
            if len(self._left) > MOST_LATE:
                del self._left[next(iter(self._left))]
        self.drained()

    # -- reading -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read until the worker is gone, and tell everybody."""
        self._child.when_exited(self._on_exit)
        while (chunk := await self._stdout.next()) is not None:
            await self._feed(chunk)
        for item in self.reader.rest() if not self._spoiled else ():
            self._take(item)
        try:
            # The end of its output is mostly its own, which is heard of a moment later.
            async with asyncio.timeout(EXIT_SECONDS):
                self._end(f"the worker {await self._child.wait()}")
        except TimeoutError:
            self._end("the worker closed its output")

    def drained(self) -> None:
        """Go on reading: a hearer has room again."""
        self._room.set()

    def _on_exit(self, _: object) -> None:
        """Take what it wrote before it ended: something it started may hold its output open."""
        self._exited = True
        self._room.set()
        self.owed.over()
        self._stdout.last_look()

    def _end(self, why: str) -> None:
        """Tell everybody that nothing more will come."""
        self.complaints.rest()
        if self.why is not None:
            why = f"the worker was ended: {self.why}"
        if self.over is None:
            status = self._child.exit
            details = {
                "exit_code": status.code if status is not None else None,
                "signal": status.signal if status is not None else None,
                "reason": status.reason if status is not None else None,
            }
            self.over = CommunicationError(why, details=details)
        hearers, self._hearers = self._hearers, {}
        for hearer, place in hearers.values():
            # A line that the pipe never took was not read.
            sent = self._stdin.bytes >= place
            outcome: Outcome = "unknown" if sent else "not_started"
            error = CommunicationError(
                self.over.message, details=self.over.details, outcome=outcome
            )
            # One end is one failure, however many it meets.
            error.echo = self._told
            self._told = self._told or not isinstance(hearer, Order)
            hearer.fail(error)

    def _useless(self) -> bool:
        """Say whether what it writes is not taken in any more."""
        return self._spoiled

    async def _feed(self, chunk: bytes) -> None:
        if self._useless():
            return
        count = 0
        begun = time.monotonic()
        for item in self.reader.each(chunk):
            count += 1
            self._take(item)
            if self._useless():
                break
            if self._stuffed is not None or self.owed.too_much:
                await self._keeping_up()
            if time.monotonic() - begun > BREATH_SECONDS:
                await asyncio.sleep(0)
                begun = time.monotonic()
        self._stdout.counts.lines += count - 1  # the piece counted as one
        if time.monotonic() - begun > BREATH_SECONDS / 2:
            await asyncio.sleep(0)

    async def _keeping_up(self) -> None:
        """Leave the worker waiting in its write while one of both sides does not keep up."""
        while self._stuffed is not None and self._stuffed.full and not self._exited:
            self.held = True  # whoever asked does not: no fault of the worker's
            self._room.clear()
            await self._room.wait()
            self.last_held = time.monotonic()
        self.held = False
        self._stuffed = None
        if self.owed.too_much:
            await self.owed.room()

    def _take(self, item: Frame | BadFrame) -> None:
        if self.over is not None:
            return  # what it left behind still writes
        if isinstance(item, BadFrame):
            self._bad(item)
            return
        self.last_frame = time.monotonic()
        self.complaints.well()
        if self._frame_log:
            self._note("< " + envelope.encode_checked(item).decode().rstrip("\n"))
        fault = self._exchanges.take(item)
        if fault is not None:
            self._out_of_place(fault, item)
        elif isinstance(item, Response | Error | Stream):
            self._hand_over(item)
        elif isinstance(item, Control):
            self._on_control(item)
        else:
            self._on_request(item)

    def _hand_over(self, frame: Response | Error | Stream) -> None:
        to = frame.correlation_id
        if to is None:
            assert isinstance(frame, Error)
            fault = frame.payload
            self.complaints.say(lambda: f"error: {fault.error_code}: {fault.message}")
            self._on_error(frame)
            return
        if isinstance(frame, Stream):
            hearer = self._hearers[to][0]
            hearer.hear(frame)
            if hearer.full:
                self._stuffed = hearer
        else:
            self._hearers.pop(to)[0].hear(frame)

    def _out_of_place(self, fault: str, frame: Frame) -> None:
        to = frame.correlation_id or ""
        if to in self._left:
            # Not wrong: it did not know yet that nobody waits.
            self.late += 1
            if isinstance(frame, Response | Error):
                del self._left[to]
            return
        self.stray(fault, lambda: envelope.encode_checked(frame)[:200].decode("utf-8", "replace"))

    def stray(self, kind: str, text: Callable[[], str]) -> None:
        """Count and note a frame that is out of place."""
        self.reader.count(kind)
        self.complaints.of(kind, text)

    def _bad(self, bad: BadFrame) -> None:
        """Note a line that is no frame; if it was an answer, who waits for it is told.

        Anything else that it may have been does not end what it is about.
        """
        self.complaints.of(bad.kind_of_fault, lambda: f"{bad.message}: {bad.excerpt}")
        why = self.complaints.too_many()
        if why is not None:
            self._spoiled = True
            self._on_rubbish(why)
            return
        if bad.kind_of_fault == "incomplete":
            return  # it ended while it wrote this, and that is what is said
        if bad.made_out("type") not in _ANSWERS:
            self._on_bad(bad)
            return
        to = bad.made_out("correlation_id")
        if to is not None and to in self._hearers:
            hearer = self._hearers.pop(to)[0]
            self._exchanges.end(to)
            self._left[to] = None
            hearer.fail(
                InvalidResult(
                    f"the worker answered with what is no frame: {bad.message}",
                    details=bad.details,
                )
            )


def stamped(text: str) -> bytes:
    """Return a line for the log, with its time."""
    return f"{iso(now_us())} {text}\n".encode("utf-8", "backslashreplace")

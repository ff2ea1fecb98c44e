"""The HTTP protocol of uvicorn, with bounds on what it leaves unbounded.

uvicorn bounds neither the size of a request's head and trailers, nor the time that head and body
take to arrive, nor how long the rest of a body may go on coming once it was answered, nor how long
an answer waits for a reader that takes nothing. All are bounded here. Its plain-text refusals
become error bodies like all others, and each request gets a way to cut its connection at once.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import sys
import termios
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from retinue.errors import InvalidInput, Overloaded, RetinueError, Timeout
from retinue.server.admission import ALWAYS
from retinue.server.errors import error_messages
from retinue.server.streams import ABORT, LEFT

log = logging.getLogger(__name__)

MOST_HEAD_BYTES = 64 * 1024
"""Of a request's head; its trailers, together with what chunking adds, may have as many again."""

UNSENT_BYTES = 32 * 1024
"""How much of an answer lies in memory before its sender has to wait."""

_CHUNKING = 8  # bytes around one byte of a body that comes in chunks of one


_ALWAYS = frozenset(path.encode() for path in ALWAYS)


class _Stop(Exception):
    """Raised inside the parser to stop it: the head is too large, or there is no room."""


class Crowd:
    """The connections beyond the bound, the longest there first; it says in the log that there are.

    One per server: connections are told apart, and how often it was said is remembered.
    """

    told_seconds = 10.0

    def __init__(self) -> None:
        self._there: dict[BoundedProtocol, None] = {}
        self._tell_at = 0.0

    def enter(self, connection: BoundedProtocol, most: int, bound: int) -> None:
        """Take one in; beyond ``most`` the one that is there the longest has to go."""
        now = connection.loop.time()
        if now >= self._tell_at:
            self._tell_at = now + self.told_seconds
            log.warning(
                "as many connections are open as may be (%d): who comes now is refused; raise the"
                " limit of open files (ulimit -n)",
                bound,
            )
        if len(self._there) >= most:
            oldest = next(iter(self._there))
            self.leave(oldest)
            oldest.transport.abort()
        self._there[connection] = None

    def leave(self, connection: BoundedProtocol) -> None:
        """Forget one that has ended, if it was here."""
        self._there.pop(connection, None)


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    A head has ``head_seconds`` to arrive and a body ``body_seconds``. The rest of a body that was
    answered already is read and dropped for ``linger_seconds``, so that the answer reaches a
    client that is still sending. Who takes nothing of an answer for ``send_seconds`` is cut. Beyond
    ``most_connections`` a connection gets one answer, if it asks within ``crowded_seconds``: 503,
    or how the service is. Of those there are ``most_refused``; a new one takes the place of the
    one that has been silent the longest, so that who asks at once is heard, however many only wait.
    """

    head_seconds = 30.0
    body_seconds = 30.0
    linger_seconds = 5.0
    send_seconds = 30.0
    crowded_seconds = 2.0
    most_connections = 1 << 20
    most_refused = 64
    crowd = Crowd()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._in_body = False
        self._head_bytes = 0
        self._named_bytes = 0  # in URL, headers and trailers
        self._extra_bytes = 0  # came in reads after the head's and were no body
        self._head_ended = False  # in the read that is being parsed
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._taken_at = 0.0
        self._crowded = False

    # -- connection ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: the first request's head may take ``head_seconds``."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=UNSENT_BYTES)
        self._crowded = len(self.connections) > self.most_connections
        if self._crowded:
            self.crowd.enter(self, self.most_refused, self.most_connections)
        self._start_timer(self.crowded_seconds if self._crowded else self.head_seconds, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_timer()
        self._stop_watching()
        self.crowd.leave(self)
        super().connection_lost(exc)
        cycle: Any = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            scope = cycle.scope
            leave, scope[LEFT] = scope.get(LEFT), True
            if callable(leave):
                leave()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; while a request is incomplete its time runs."""
        self._head_ended = False
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse_head()
            elif self._timer is None:
                self._start_timer(self.head_seconds, self._late)
        elif self._in_body:
            if not self._head_ended:
                self._extra_bytes += len(data)
            if self._extra_bytes > MOST_HEAD_BYTES:
                self._refuse_trailers()
            elif self._timer is None:
                self._start_timer(self.body_seconds, self._late)
        elif self._timer is not None:
            self._stop_timer()

    # -- request -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._named_bytes = self._extra_bytes = 0
        cast("dict[str, Any]", self.scope)[ABORT] = self.transport.abort

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer: those nobody reads."""
        self._count(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._extra_bytes -= len(body) * _CHUNKING
        super().on_body(body)

    def _count(self, length: int) -> None:
        self._named_bytes += length
        if self._named_bytes > MOST_HEAD_BYTES:
            raise _Stop

    def on_headers_complete(self) -> None:
        """End the head; the request starts."""
        self._in_head = False
        if self._crowded and self.url.partition(b"?")[0] not in _ALWAYS:
            raise _Stop
        self._head_ended = True
        self._in_body = True
        self._stop_timer()
        super().on_headers_complete()
        if self._crowded:
            self.cycle.keep_alive = False
            self.crowd.leave(self)

    def on_message_complete(self) -> None:
        """End the body; one that was answered already leaves an idle connection."""
        self._in_body = False
        super().on_message_complete()
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """End the answer; what is left of the request's body is not waited for very long."""
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete and not self.transport.is_closing():
            self._start_timer(self.linger_seconds, self.transport.abort)

    # -- sending -------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """Hear that the reader is slower than the answer; from now on it is watched."""
        super().pause_writing()
        self._unsent = self._waiting()
        self._taken_at = self.loop.time()
        self._watch_on()

    def resume_writing(self) -> None:
        """Hear that the reader took what there was."""
        self._stop_watching()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection; one whose reader never took the last answer at once."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def _watch_on(self) -> None:
        self._stop_watching()
        self._watch = self.loop.call_later(self.send_seconds / 6, self._look)

    def _look(self) -> None:
        """See whether the reader takes anything at all."""
        unsent, now = self._waiting(), self.loop.time()
        if unsent != self._unsent:
            self._unsent, self._taken_at = unsent, now
        if now - self._taken_at < self.send_seconds * 5 / 6:
            self._watch_on()
            return
        log.info("dropped a connection whose reader takes nothing")
        self.transport.abort()

    def _waiting(self) -> int:
        """Return how many bytes the other side has not taken: here, and in the kernel.

        The kernel asks for more only when a third of its buffer is free; a slow reader would seem
        to take nothing for a long time.
        """
        unsent = self.transport.get_write_buffer_size()
        connection = self.transport.get_extra_info("socket")
        try:
            queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4)
        except (OSError, AttributeError):
            return unsent
        return unsent + int.from_bytes(queued, sys.byteorder)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    # -- refusals ------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, too large a head, or anything when there is no room."""
        if self._crowded:
            asked: Any = self.cycle
            if asked is not None:
                return  # how the service is was asked before; the connection ends with that answer
            self.crowd.leave(self)
            full = Overloaded("as many connections are open as may be; try again later")
            self._refuse(full, HTTPStatus.SERVICE_UNAVAILABLE)
            return
        if self._named_bytes > MOST_HEAD_BYTES:
            self._refuse_head() if self._in_head else self._refuse_trailers()
            return
        self._refuse(InvalidInput("this is not a valid HTTP request"), HTTPStatus.BAD_REQUEST)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: an upgrade that is not taken is answered as plain HTTP."""

    def _refuse_head(self) -> None:
        large = InvalidInput(f"the head of the request is larger than {MOST_HEAD_BYTES} bytes")
        self._refuse(large, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _refuse_trailers(self) -> None:
        """End a request whose body does not end properly; what is answered already stays so."""
        if self.cycle.response_started:
            self.transport.close()
            return
        large = InvalidInput(f"the trailers are larger than {MOST_HEAD_BYTES} bytes")
        self._refuse(large, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        self._hang_up()

    def _late(self) -> None:
        """Refuse a request that does not arrive; what is answered already stays so."""
        self._timer = None
        if self._in_body and self.cycle.response_started:
            return
        if self._in_head and not self._head_bytes:
            self.transport.close()
            return
        what = "head" if self._in_head else "body"
        late = Timeout(f"the {what} of the request did not arrive in time", outcome="not_started")
        self._refuse(late, HTTPStatus.REQUEST_TIMEOUT)
        if self._in_body:
            self._hang_up()

    def _hang_up(self) -> None:
        """Let the endpoint that waits for a body hear that nobody is there any more."""
        self.cycle.disconnected = True
        self.cycle.message_event.set()

    def _refuse(self, error: RetinueError, status: int) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        start, body = error_messages(error, status)
        lines = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *start["headers"]):
            lines.extend((name, b": ", value, b"\r\n"))
        self.transport.write(b"".join((*lines, b"\r\n", body["body"])))
        self.transport.close()

    def _start_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

"""The HTTP protocol of uvicorn, with bounds on what it leaves unbounded.

uvicorn bounds neither the size of a request's head, nor the time that head and body take to
arrive, nor how long the rest of a body may go on coming once it was answered. All are bounded
here. Its plain-text refusals become error bodies like all others, and each request gets a way to
cut its connection at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from retinue.errors import InvalidInput, Timeout
from retinue.server.errors import error_messages
from retinue.server.streams import ABORT

MOST_HEAD_BYTES = 64 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    A head has ``head_seconds`` to arrive and a body ``body_seconds``. The rest of a body that was
    answered already is read and dropped for ``linger_seconds``, so that the answer reaches a
    client that is still sending.
    """

    head_seconds = 30.0
    body_seconds = 30.0
    linger_seconds = 5.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._in_body = False
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    # -- connection ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: the first request's head may take ``head_seconds``."""
        super().connection_made(transport)
        self._start_timer(self.head_seconds, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; while a request is incomplete its time runs."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse_head()
            elif self._timer is None:
                self._start_timer(self.head_seconds, self._late)
        elif self._in_body:
            if self._timer is None:
                self._start_timer(self.body_seconds, self._late)
        elif self._timer is not None:
            self._stop_timer()

    # -- request -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        cast("dict[str, Any]", self.scope)[ABORT] = self.transport.abort

    def on_headers_complete(self) -> None:
        """End the head; the request starts."""
        self._in_head = False
        self._in_body = True
        self._stop_timer()
        super().on_headers_complete()

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

    # -- refusals ------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(InvalidInput("this is not a valid HTTP request"), HTTPStatus.BAD_REQUEST)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: an upgrade that is not taken is answered as plain HTTP."""

    def _refuse_head(self) -> None:
        large = InvalidInput(f"the head of the request is larger than {MOST_HEAD_BYTES} bytes")
        self._refuse(large, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

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
            # The endpoint that waits for it hears that nobody is there any more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _refuse(self, error: InvalidInput | Timeout, status: int) -> None:
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

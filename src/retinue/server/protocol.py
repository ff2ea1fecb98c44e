"""The HTTP protocol of uvicorn, with bounds on what comes before a request is one.

uvicorn bounds neither the size of a request's head nor the time it takes to arrive; both are
bounded here. Its plain-text refusals become error bodies like all others, and each request gets a
way to cut its connection at once.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from retinue.errors import InvalidInput, Timeout
from retinue.server.errors import error_messages
from retinue.server.streams import ABORT

MOST_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 30.0


class _HeadTooLarge(Exception):
    """The URL and the headers are larger than ``MOST_HEAD_BYTES``."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    head_seconds = HEAD_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: the first request's head may take ``head_seconds``."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_seconds, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; while a head is incomplete its time runs."""
        super().data_received(data)
        if not self._in_head:
            self._stop_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_seconds, self._late)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        cast("dict[str, Any]", self.scope)[ABORT] = self.transport.abort

    def on_url(self, url: bytes) -> None:
        """Take a piece of the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End the head; the request starts."""
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or too much of it."""
        self._stop_timer()
        if self._head_bytes > MOST_HEAD_BYTES:
            large = InvalidInput(f"the head of the request is larger than {MOST_HEAD_BYTES} bytes")
            self._refuse(large, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            self._refuse(InvalidInput("this is not a valid HTTP request"), HTTPStatus.BAD_REQUEST)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: an upgrade that is not taken is answered as plain HTTP."""

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MOST_HEAD_BYTES:
            raise _HeadTooLarge

    def _late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._head_bytes:
            late = Timeout("the head of the request did not arrive in time", outcome="not_started")
            self._refuse(late, HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: InvalidInput | Timeout, status: int) -> None:
        start, body = error_messages(error, status)
        lines = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *start["headers"]):
            lines.extend((name, b": ", value, b"\r\n"))
        self.transport.write(b"".join((*lines, b"\r\n", body["body"])))
        self.transport.close()

"""Server-sent events: a journal's batches as one chunk each, large ones as several.

A stream ends in order after the terminal event or when the journal closes. It is cut when the
store fails, or by the protocol when its reader takes nothing for too long; the reader comes back
with the last number it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from retinue.domain.event import Piece
from retinue.errors import RetinueError
from retinue.server.gate import HEAD

log = logging.getLogger(__name__)

HEARTBEAT = b":\n\n"
ABORT = "retinue.abort"
"""The scope's key for cutting the connection at once, unsent bytes and all."""

LEFT = "retinue.left"
"""The scope's key for what the protocol calls when the client is gone; True once it is."""

_CUT_SECONDS = 1.0
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def frame(pieces: list[Piece]) -> bytes:
    """Return pieces of events as they are sent; none make a heartbeat."""
    return b"".join([piece.sse for piece in pieces]) if pieces else HEARTBEAT


class EventStream(Response):
    """The answer that streams ``batches``."""

    def __init__(self, batches: AsyncGenerator[list[Piece], None]) -> None:
        self.status_code = 200
        self.background = None
        self._batches = batches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the end, until the reader goes, or until it takes nothing any more."""
        writing = asyncio.ensure_future(self._write(scope, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done() and not writing.result():
                _cut(scope)
                await asyncio.wait({gone}, timeout=_CUT_SECONDS)
        finally:
            for task in (writing, gone):
                task.cancel()
            await asyncio.wait({writing, gone})

    async def _write(self, scope: Scope, send: Send) -> bool:
        """Write all there is; return whether it was all."""
        async with aclosing(self._batches) as batches:
            try:
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                if scope.get(HEAD):
                    await send({"type": "http.response.body", "body": b""})
                    return True
                async for pieces in batches:
                    body = frame(pieces)
                    pieces.clear()  # what waits to be sent is held once
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            except RetinueError as error:
                log.warning("stream cut: %s: %s", scope["path"], error.message)
                return False
        return True


def _cut(scope: Scope) -> None:
    abort = scope.get(ABORT)
    if abort is not None:
        abort()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

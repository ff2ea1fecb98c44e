"""Server-sent events: a journal's batches as one chunk each.

A stream ends in order after the terminal event or when the journal closes. It is cut when its
reader takes nothing for too long, or when the store fails; the reader comes back with the last
number it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from retinue.domain.event import Event
from retinue.errors import RetinueError

log = logging.getLogger(__name__)

HEARTBEAT = b":\n\n"
ABORT = "retinue.abort"
"""The scope's key for cutting the connection at once, unsent bytes and all."""

_CUT_SECONDS = 1.0
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def frame(events: list[Event]) -> bytes:
    """Return a batch as it is sent; no events make a heartbeat."""
    if not events:
        return HEARTBEAT
    return b"".join([b"id: %d\ndata: %b\n\n" % (event.seq, event.wire) for event in events])


class EventStream(Response):
    """The answer that streams ``batches``."""

    def __init__(self, batches: AsyncGenerator[list[Event], None], *, send_seconds: float) -> None:
        self.status_code = 200
        self.background = None
        self._batches = batches
        self._send_seconds = send_seconds

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
        loop = asyncio.get_running_loop()
        async with aclosing(self._batches) as batches:
            try:
                async with asyncio.timeout(None) as clock:
                    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                    async for events in batches:
                        clock.reschedule(loop.time() + self._send_seconds)
                        body = frame(events)
                        await send({"type": "http.response.body", "body": body, "more_body": True})
                        clock.reschedule(None)
                    clock.reschedule(loop.time() + self._send_seconds)
                    await send({"type": "http.response.body", "body": b""})
            except TimeoutError:
                if not clock.expired():
                    raise
                log.info("dropped a stream whose reader takes nothing: %s", scope["path"])
                return False
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

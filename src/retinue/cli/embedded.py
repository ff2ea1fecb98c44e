"""The server's app in this process: what the command line asks when no server runs.

The app is called through a transport instead of a socket; its answers stream. Whoever can open
the store's file is its admin, so nobody is asked for a credential here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import msgspec

from retinue.cli import output
from retinue.cli.client import Client
from retinue.domain.principal import Principal
from retinue.orchestrator import LOCAL_ADMIN
from retinue.runtime import Runtime
from retinue.server.app import Application, create_app
from retinue.server.auth import Access
from retinue.settings import Settings


class _Owner(Access):
    """Takes every caller for the local admin."""

    async def principal(self, headers: dict[bytes, bytes]) -> Principal:
        return LOCAL_ADMIN


@asynccontextmanager
async def opened(settings: Settings, *, working: bool) -> AsyncIterator[Client]:
    """Open the local store and yield a client of it; ``working`` also performs its tasks.

    No more than these: it is about to leave, and would take what it has begun down with it.

    Raises:
        RetinueError: the store cannot be opened, or an agent cannot be loaded.
    """
    runtime = Runtime(settings, own_only=True)
    await (runtime.start() if working else runtime.open())
    try:
        # Its agents are not there: what is said next would not say why.
        for name, failure in runtime.engine.pools.unready().items():
            output.note(f"worker {name} did not get ready: {failure.message}")
        app = cast("Application", create_app(runtime.orchestrator, settings, loopback=True))
        access = _Owner(runtime.orchestrator, loopback=True)
        app.door = msgspec.structs.replace(app.door, access=access)
        async with httpx.AsyncClient(
            base_url="http://127.0.0.1", transport=_InProcess(app), timeout=None
        ) as http:
            yield Client(http, local=True)
    finally:
        await (runtime.stop() if working else runtime.close())


class _InProcess(httpx.AsyncBaseTransport):
    """Hands requests to an ASGI app."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = _Exchange(await request.aread())
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 80),
        }
        return await exchange.begin(self._app(scope, exchange.receive, exchange.send))


class _Exchange(httpx.AsyncByteStream):
    """One request and its answer, whose body is passed on as it comes."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=64)
        self._start: asyncio.Future[MutableMapping[str, Any]] = (
            asyncio.get_running_loop().create_future()
        )
        self._closed = asyncio.Event()
        self._task: asyncio.Future[None] | None = None

    async def begin(self, serving: Any) -> httpx.Response:
        """Serve until the answer begins, and return it."""
        self._task = asyncio.ensure_future(self._serve(serving))
        try:
            start = await self._start
        except asyncio.CancelledError:
            self._closed.set()
            self._task.cancel()
            raise
        return httpx.Response(start["status"], headers=start["headers"], stream=self)

    async def _serve(self, serving: Any) -> None:
        try:
            await serving
        except Exception as error:
            if not self._start.done():
                self._start.set_exception(httpx.RemoteProtocolError(str(error)))
        finally:
            if not self._start.done():
                self._start.set_exception(httpx.RemoteProtocolError("no answer"))
            if not self._closed.is_set():
                await self._parts.put(None)

    async def receive(self) -> MutableMapping[str, Any]:
        """Give the app the body, and later word that we are gone."""
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Take a part of the answer from the app."""
        if message["type"] == "http.response.start":
            self._start.set_result(message)
        elif message.get("body") and not self._closed.is_set():
            await self._parts.put(message["body"])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (part := await self._parts.get()) is not None:
            yield part

    async def aclose(self) -> None:
        """Tell the app that nobody reads any more, and wait for it."""
        self._closed.set()
        while not self._parts.empty():
            self._parts.get_nowait()
        if self._task is not None:
            await asyncio.wait({self._task})

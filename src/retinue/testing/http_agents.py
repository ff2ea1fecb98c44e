"""A real agent over HTTP, for tests: a server of its own that does as its tasks tell it.

It speaks just enough HTTP to also break it on purpose. Runs in a thread of its own, so that a test
may be of any kind; ``with HttpAgent() as agent`` gives it a port that the system chose.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec

SECONDS = 20.0
_CHUNK = b"x" * 65536


class Received(msgspec.Struct, frozen=True):
    """A request as it arrived; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class HttpAgent:
    """An agent whose capability says what it does.

    ``good`` answers with what it was sent, ``deny`` says no, ``plain`` answers 1 without an
    envelope, ``status`` answers the status in ``parameters.status``, ``text`` no JSON, ``huge``
    never stops, ``drip`` sends a byte at a time, ``cut`` closes in the middle of the body,
    ``silent`` closes without an answer, ``redirect`` points to ``/elsewhere``, ``wait`` answers
    when ``let_go`` is called, ``once`` closes without an answer the first time it sees an
    ``Idempotency-Key``, ``zip`` and ``head`` answer compressed and with an endless head.
    ``health`` is the status of ``GET /health``; 0 does not answer.
    """

    def __init__(self, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.health = 200
        self.received: list[Received] = []
        self.open_connections = 0
        self.connections = 0
        self._tls = tls
        self._ready = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def executed(self) -> list[Received]:
        """Return the tasks it was given."""
        return [request for request in self.received if request.path.endswith("/execute")]

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Return once ``condition`` holds; it is looked at whenever anything happens here."""
        with self._changed:
            assert self._changed.wait_for(condition, SECONDS), f"never: {what}"

    def let_go(self) -> None:
        """Let the tasks that wait end."""
        self._loop.call_soon_threadsafe(self._let.set)

    # -- its life ------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End, with all connections."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(SECONDS)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop, self._let = asyncio.Event(), asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()
        self._accepting: set[asyncio.Task[None]] = set()
        # Not asyncio's server: closed while it accepts, it loses that connection.
        with socket.create_server(("127.0.0.1", self.port)) as listener:
            listener.setblocking(False)
            self.port = listener.getsockname()[1]
            self._loop.add_reader(listener, self._accept, listener)
            self._ready.set()
            await self._stop.wait()
            self._loop.remove_reader(listener)
        while self._accepting:
            await asyncio.wait(self._accepting)
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    def _note(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def _count(self, by: int) -> None:
        self.open_connections += by
        self.connections += by > 0

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it left already
            task = asyncio.create_task(self._begin(listener.accept()[0]))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    async def _begin(self, connection: socket.socket) -> None:
        reader = asyncio.StreamReader(limit=1 << 22)
        protocol = asyncio.StreamReaderProtocol(reader, self._accepted)
        with contextlib.suppress(OSError):  # no TLS came about
            await self._loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._tls)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connected(reader, writer))
        self._serving.add(task)
        task.add_done_callback(lambda _: writer.transport.abort())  # even if it never began
        task.add_done_callback(self._serving.discard)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._note(lambda: self._count(1))
        try:
            while await self._serve_one(reader, writer):
                pass
            writer.close()
            await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._note(lambda: self._count(-1))

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False ends the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, path, _ = first.split(" ")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Received(method, path, headers, body)
        self._note(lambda: self.received.append(request))
        if path.endswith("/health"):
            if not self.health:
                await self._until_gone(reader)
                return False
            await _answer(writer, self.health, b'{"status":"as told"}')
            return True
        if not path.endswith("/execute"):
            await _answer(writer, 404, b"{}")
            return True
        return await self._perform(request, reader, writer)

    async def _perform(
        self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        match request.json["capability"]:
            case "good":
                data = {"success": True, "data": request.json}
                await _answer(writer, 200, json.dumps(data).encode())
            case "deny":
                await _answer(writer, 200, b'{"success": false, "error": "not today"}')
            case "plain":
                await _answer(writer, 200, b"1")
            case "status":
                status = request.json["parameters"]["status"]
                await _answer(writer, status, b'{"detail": "as told"}')
            case "text":
                await _answer(writer, 200, b"<html>hello</html>", "text/html")
            case "zip":
                more = "Content-Encoding: gzip\r\n"
                await _answer(writer, 200, gzip.compress(b"1"), more=more)
            case "once" if [r.headers["idempotency-key"] for r in self.executed()].count(
                request.headers["idempotency-key"]
            ) > 1:
                await _answer(writer, 200, b'"done"')
            case "redirect":
                await _answer(writer, 302, b"", more=f"Location: {self.endpoint}/elsewhere\r\n")
            case "wait":
                gone = asyncio.create_task(self._until_gone(reader))
                let = asyncio.create_task(self._let.wait())
                await asyncio.wait({gone, let}, return_when=asyncio.FIRST_COMPLETED)
                let.cancel()
                if gone.done():
                    return False
                gone.cancel()
                await asyncio.wait({gone})  # it was reading
                await _answer(writer, 200, b'{"success": true, "data": "waited"}')
            case _:
                await self._break(request.json["capability"], writer)
                return False
        return True

    async def _break(self, how: str, writer: asyncio.StreamWriter) -> None:
        """Answer in a way that no agent should."""
        start = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        if how == "cut":
            writer.write(start + b'Content-Length: 100\r\n\r\n{"success": true, ')
            await writer.drain()
        elif how == "head":
            writer.write(start)
            while True:
                writer.write(b"X-More: %b\r\n" % _CHUNK[:1000])
                await writer.drain()
        elif how in {"huge", "drip"}:
            writer.write(start + b"Transfer-Encoding: chunked\r\n\r\n")
            part = _CHUNK if how == "huge" else b" "
            while True:
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
                await asyncio.sleep(0 if how == "huge" else 0.02)

    async def _until_gone(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1024):
                pass


async def _answer(
    writer: asyncio.StreamWriter,
    status: int,
    body: bytes,
    kind: str = "application/json",
    more: str = "",
) -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}"
    writer.write(head.encode() + b"\r\n" + body)
    await writer.drain()


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Return once ``condition`` holds, asked again and again."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)

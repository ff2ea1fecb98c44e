"""Trace and MemAgent as real HTTP servers in this process, for tests of what calls them.

They speak the protocols of the services and do what a test tells them: answer late, hang, answer
with an error, go away and come back at the same address. Each listens on a loopback port that the
operating system chose and lives in threads, so it serves a test whether that has an event loop or
not::

    with FakeTrace() as trace:
        settings = Settings(trace_url=trace.url)
        ...
        trace.wait(lambda: len(trace.events("session_001")) == 2)

Methods that wait block; from a coroutine call them through ``asyncio.to_thread``.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

__all__ = ["FakeMemAgent", "FakePeer", "FakeTrace", "Request"]

SECONDS = 20.0


class Request(NamedTuple):
    """A request as it came in; ``body`` is its JSON."""

    method: str
    path: str
    body: Any
    headers: dict[str, str]


Answer = tuple[int, Any]
"""A status and the JSON that goes with it."""
Rule = Callable[[Request], Answer | None]


class _Server(ThreadingHTTPServer):
    """Knows its connections, so that they end with it."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: callers that give up are part of the test."""

    def close(self) -> None:
        """Stop listening and break every connection."""
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class FakePeer:
    """A service that can be told how to behave. ``requests`` is all that came in, in order."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.delay = 0.0
        self._rules: list[Rule] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._changed = threading.Condition()
        self._server: _Server | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """Where it listens, or last listened."""
        return f"http://127.0.0.1:{self._port}"

    # -- being there, or not -------------------------------------------------------------------

    def start(self) -> None:
        """Listen, at the address of the last time."""
        if self._server is None:
            self._server = _Server(self._port, self._exchange_type())
            self._port = self._server.server_address[1]
            serving = threading.Thread(
                target=self._server.serve_forever, args=(0.02,), name="fake-peer", daemon=True
            )
            serving.start()

    def stop(self) -> None:
        """Go away: connections break, new ones are refused."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flowing.set()
        self.stop()

    # -- behaviour -----------------------------------------------------------------------------

    def hang(self) -> None:
        """Take requests, and answer none, until ``heal``."""
        self._flowing.clear()

    def answer(
        self, status: int, body: Any = None, *, when: Callable[[Request], bool] | None = None
    ) -> None:
        """Answer with ``status`` what ``when`` holds for (None: everything), until ``heal``."""

        def rule(request: Request) -> Answer | None:
            return (status, body) if when is None or when(request) else None

        self._rules.append(rule)

    def heal(self) -> None:
        """Be well again. What was hanging stays unanswered."""
        self._rules.clear()
        self.delay = 0.0
        hanging, self._flowing = self._flowing, threading.Event()
        self._flowing.set()
        hanging.set()

    # -- what came in --------------------------------------------------------------------------

    def wait(self, condition: Callable[[], object], seconds: float = SECONDS) -> None:
        """Return once ``condition`` holds; it is looked at after every request.

        Raises:
            AssertionError: it does not come about.
        """
        with self._changed:
            came = self._changed.wait_for(condition, seconds)
        assert came, f"it never came about; {len(self.requests)} requests came in"

    def came(self, path: str) -> list[Request]:
        """Return the requests for a path."""
        return [request for request in self.requests if request.path == path]

    def respond(self, request: Request) -> Answer:
        """Return what the service answers when it is well."""
        raise NotImplementedError

    def _serve(self, request: Request) -> Answer | None:
        """Return the answer to a request; None: there is none."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        flowing = self._flowing
        if not flowing.is_set():
            flowing.wait()
            return None
        if self.delay:
            time.sleep(self.delay)
        with self._changed:
            for rule in self._rules:
                answer = rule(request)
                if answer is not None:
                    return answer
            answer = self.respond(request)
            self._changed.notify_all()
            return answer

    def _exchange_type(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Exchange(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True  # else head and body of an answer come 40 ms apart
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._exchange(None)

            def do_POST(self) -> None:
                self._exchange(self.rfile.read(int(self.headers.get("content-length", 0))))

            def _exchange(self, raw: bytes | None) -> None:
                body = json.loads(raw) if raw else None
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = service._serve(Request(self.command, self.path, body, headers))
                if answer is None:
                    self.close_connection = True
                    return
                status, content = answer
                said = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Exchange


class FakeTrace(FakePeer):
    """Trace: keeps the events it took, by session, in the order it took them."""

    _EVENTS: ClassVar[re.Pattern[str]] = re.compile(r"/v1/sessions/([^/]+)/events")

    def __init__(self) -> None:
        self._taken: list[tuple[str, dict[str, Any]]] = []
        super().__init__()

    def events(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """Return the events of a session, or of all."""
        return [event for name, event in list(self._taken) if session_id in {None, name}]

    def sessions(self) -> list[str]:
        """Return the sessions it has events of, in the order of their first."""
        return list(dict.fromkeys(name for name, _ in list(self._taken)))

    def respond(self, request: Request) -> Answer:
        """Do what Trace does."""
        if request.path == "/v1/health":
            return HTTPStatus.OK, {"status": "healthy"}
        if request.path == "/v1/sessions":
            return HTTPStatus.OK, {"sessions": self.sessions()}
        match = self._EVENTS.fullmatch(request.path)
        if match is None:
            return HTTPStatus.NOT_FOUND, {"detail": "Not Found"}
        if request.method == "GET":
            return HTTPStatus.OK, {"events": self.events(match[1])}
        event = request.body
        if not isinstance(event, dict) or event.keys() != {"event_type", "data"}:
            return HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": "not an event"}
        self._taken.append((match[1], event))
        return HTTPStatus.OK, {"status": "ok"}


class FakeMemAgent(FakePeer):
    """MemAgent: compresses sessions it was told of. Its summary quotes what it was told.

    ``health_paths`` are the paths on which it says that it is well.
    """

    _SESSION: ClassVar[re.Pattern[str]] = re.compile(r"/v1/session/([^/]+)/(compress|memory-block)")

    def __init__(self, *health_paths: str) -> None:
        self.health_paths = health_paths or ("/v1/health",)
        self.intents: dict[str, str] = {}
        self.blocks: dict[str, dict[str, Any]] = {}
        super().__init__()

    def respond(self, request: Request) -> Answer:
        """Do what MemAgent does."""
        if request.path in self.health_paths:
            return HTTPStatus.OK, {"status": "healthy", "version": "v1"}
        if request.path == "/v1/session/init":
            return self._init(request.body)
        match = self._SESSION.fullmatch(request.path)
        if match is None:
            return HTTPStatus.NOT_FOUND, {"detail": "Not Found"}
        session_id, verb = match.groups()
        if session_id not in self.intents:
            return HTTPStatus.NOT_FOUND, {"detail": f"session {session_id} not found"}
        if verb == "memory-block":
            block = self.blocks.get(session_id)
            return HTTPStatus.OK, block or {"session_id": session_id, "summary": ""}
        return HTTPStatus.OK, self._compress(session_id, request.body)

    def _init(self, body: Any) -> Answer:
        session_id, intent = body.get("session_id", ""), body.get("intent")
        if not session_id.startswith("session_") or not intent:
            return HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": "session_id or intent"}
        if session_id in self.intents:
            return HTTPStatus.CONFLICT, {"detail": "the session exists"}
        self.intents[session_id] = intent
        answer = {"status": "ok", "session_id": session_id, "memory_block_id": f"mb_{session_id}"}
        return HTTPStatus.CREATED, answer

    def _compress(self, session_id: str, body: Any) -> dict[str, Any]:
        told = (body or {}).get("intent") or self.intents[session_id]
        words = told.split()
        summary = f"MemAgent on {session_id}: {' '.join(words[:40])}"
        compression = {
            "summary": summary,
            "key_decisions": [f"{len(words)} words were read"],
            "tokens_in": len(words),
            "tokens_out": len(summary.split()),
            "compression_ratio": len(words) / len(summary.split()),
        }
        block_id = f"mb_{session_id}"
        self.blocks[session_id] = {**compression, "session_id": session_id}
        return {
            "status": "ok",
            "compression": compression,
            "session_id": session_id,
            "memory_block_id": block_id,
        }

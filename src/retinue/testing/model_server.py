"""A model, as a server of this machine: the prompt says what it answers.

It speaks Anthropic Messages, OpenAI chat completions and Responses, and Gemini, streamed and whole,
on a loopback port that the operating system chose::

    with ModelServer() as models:
        run_an_agent(base_url=models.url, prompt='[[tool ls {"path": "."}]] [[say hi]]')
        assert models.requests[0].api == "anthropic"

The steps are those of ``script``; a tool ends a reply, what follows it is said to its answer.
``slow N SECONDS`` says N pieces, ``hang SECONDS`` stalls in the middle, ``http STATUS`` answers
with an error each time, ``httponce STATUS`` the first time, ``cut`` ends the connection in the
middle, ``cutonce`` the first time.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

from retinue.testing.model_wire import (
    CUT,
    Anthropic,
    Chat,
    Frame,
    Gemini,
    Responses,
    Wire,
    reply_of,
)
from retinue.testing.script import Step, parse, turn

SECONDS = 20.0
_APIS: tuple[tuple[str, str, Wire], ...] = (
    ("/messages", "anthropic", Anthropic()),
    ("/chat/completions", "openai-chat", Chat()),
    ("/responses", "openai-responses", Responses()),
    (":generateContent", "gemini", Gemini()),
    (":streamGenerateContent", "gemini", Gemini()),
)


class ModelRequest(NamedTuple):
    """A request as it came: which API, for which prompt, which reply to it (from 0)."""

    api: str
    path: str
    prompt: str
    reply: int
    body: dict[str, Any]
    headers: dict[str, str]


class ModelServer:
    """The server; in a ``with`` it listens. It has threads, so any kind of test can use it."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[ModelRequest] = []
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._once: set[tuple[str, int]] = set()
        self._numbers = itertools.count(1)
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.models = self
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def port(self) -> int:
        """Its port."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Its address; the OpenAI APIs are below ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    def wait(self, condition: Callable[[list[ModelRequest]], bool], what: str) -> None:
        """Return once ``condition`` holds of the requests."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.requests), SECONDS), what

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(SECONDS)

    # -- for the handler -----------------------------------------------------------------------

    def note(self, request: ModelRequest) -> None:
        """Remember a request."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    def number(self) -> str:
        """Return the number of a reply."""
        return str(next(self._numbers))

    def refusal(self, request: ModelRequest, steps: list[Step]) -> int | None:
        """Return the status to answer with, when the script wants an error."""
        for step in steps:
            if step.verb == "http":
                return int(step.number())
            key = (request.prompt, request.reply)
            if step.verb == "httponce" and key not in self._once:
                self._once.add(key)
                return int(step.number())
        return None

    def cut(self, request: ModelRequest, steps: list[Step]) -> list[Step]:
        """Return the steps with what is to be done once only done once."""
        if not any(step.verb == "cutonce" for step in steps):
            return steps
        key = (request.prompt, request.reply)
        first = key not in self._once
        self._once.add(key)
        cut = [Step("cut")] if first else []
        return [one for step in steps for one in (cut if step.verb == "cutonce" else [step])]

    def pause(self, seconds: float) -> None:
        """Wait, unless the server stops."""
        self._stopping.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    models: ModelServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that left is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._json(200, {})

    def do_GET(self) -> None:
        models = [{"id": "fake-model", "object": "model", "name": "models/fake-model"}]
        self._json(200, {"object": "list", "data": models, "models": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        path = self.path.partition("?")[0]
        if path.endswith(("/count_tokens", ":countTokens")):
            self._json(200, {"input_tokens": 10, "totalTokens": 10})
            return
        for end, api, wire in _APIS:
            if path.endswith(end):
                self._answer(api, wire, path, body)
                return
        self._json(404, {"error": {"message": f"nothing at {path}"}})

    def _answer(self, api: str, wire: Wire, path: str, body: dict[str, Any]) -> None:
        models = self.server.models
        asked = wire.asked(body, path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = ModelRequest(api, path, asked.prompt, asked.reply, body, headers)
        models.note(request)
        steps = turn(parse(asked.prompt), asked.reply)
        status = models.refusal(request, steps)
        if status is not None:
            self._json(status, wire.error(status))
            return
        reply = reply_of(models.cut(request, steps), models.number())
        model = str(body.get("model", "fake-model"))
        if asked.stream:
            self._stream(wire.frames(reply, model))
            return
        for piece in reply.pieces:
            if piece.kind == "wait":
                models.pause(piece.data)
        self._json(200, wire.whole(reply, model))

    def _json(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _stream(self, frames: Iterator[Frame]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        with suppress(OSError):  # it left
            for frame in frames:
                if isinstance(frame, float):
                    self.server.models.pause(frame)
                elif frame == CUT:
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                else:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(frame), frame))
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")


def main() -> None:
    """Serve until interrupted: ``python -m retinue.testing.model_server [PORT]``."""
    import sys  # noqa: PLC0415 of the program only

    with ModelServer(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as models:
        print(models.url, flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()

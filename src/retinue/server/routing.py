"""Operations: what a route takes and gives, declared once, served fast, and described in OpenAPI.

An endpoint is a coroutine that gets a ``Call`` and returns JSON bytes or a ``Response``. The route
is FastAPI's, so that it stands in OpenAPI; its app is ours: no dependency solving, no encoder
between the record and the wire. Query strings and bodies are msgspec records that forbid unknown
fields.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
import msgspec.inspect
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from retinue.domain.ids import is_ulid
from retinue.domain.principal import Principal
from retinue.domain.strictjson import NotJson, body_within, check, decode
from retinue.errors import InvalidInput, NotFound, RetinueError
from retinue.orchestrator import Orchestrator
from retinue.server.admission import share_of
from retinue.server.auth import Access
from retinue.server.errors import Refused, fault_answer
from retinue.server.gate import ANSWERED, HEADERS
from retinue.server.streams import LEFT
from retinue.settings import Settings
from retinue.wire.faults import fault_of

T = TypeVar("T", bound=msgspec.Struct)
R = TypeVar("R")

encode = msgspec.json.Encoder().encode

_MOST_PARAMETERS = 32
_INTEGER = re.compile(r"-?[0-9]{1,20}\Z", re.ASCII)
_PIECE_BYTES = 64 * 1024
_AT = re.compile(r" - at `(?P<path>[^`]*)`\Z")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]*)`")


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long we wait, in seconds.

    ``heartbeat``: between two signs of life on a silent stream. ``send``: for a reader to take
    anything of what it is sent.
    """

    heartbeat: float = 15.0
    send: float = 30.0


class Door(msgspec.Struct, frozen=True):
    """What every endpoint works with."""

    orchestrator: Orchestrator
    settings: Settings
    access: Access
    patience: Patience = Patience()


class Call(Request):
    """One request, as an endpoint sees it. ``principal`` is who calls (unless it is public)."""

    principal: Principal

    @property
    def door(self) -> Door:
        """What the endpoint works with."""
        door: Door = self.scope["app"].door
        return door

    @property
    def orchestrator(self) -> Orchestrator:
        """The use cases."""
        return self.door.orchestrator

    def header(self, name: bytes) -> str | None:
        """Return a header."""
        value: bytes | None = self.scope[HEADERS].get(name)
        return value.decode("latin-1") if value is not None else None

    async def read(self) -> bytes:
        """Return the body.

        Raises:
            TooLarge: it goes past the limit.
            Overloaded: too many bytes are held already.
            Refused: it ended early. (The time it has is the protocol's to bound.)
        """
        limit = self.door.settings.max_body_bytes
        share = share_of(self.scope)
        parts: list[bytes] = []
        total = 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise Refused(HTTPStatus.BAD_REQUEST, InvalidInput("the body ended early"))
            part: bytes = message.get("body", b"")
            total += len(part)
            body_within(total, limit)
            share.hold(len(part))
            if not message.get("more_body", False):
                return part if not parts else b"".join((*parts, part))
            parts.append(part)

    async def while_there(self, work: Coroutine[Any, Any, R]) -> R | None:
        """Return what ``work`` returns; None when the client left first: then it is stopped.

        For waiting only. Who waits for somebody that left holds a place that others need.
        """
        task = asyncio.current_task()
        assert task is not None
        left = False

        def leave() -> None:
            nonlocal left
            left = True
            task.cancel()

        if self.scope.get(LEFT):
            work.close()
            return None
        self.scope[LEFT] = leave
        try:
            return await work
        except asyncio.CancelledError:
            if not left:
                raise
            task.uncancel()
            return None
        finally:
            self.scope.pop(LEFT, None)

    async def record(self, kind: type[T]) -> T:
        """Return the body as a record.

        Raises:
            InvalidInput: it is not JSON, or not such a record; the message says what and where.
        """
        return record(decode(await self.read()), kind)

    def query(self, kind: type[T]) -> T:
        """Return the query string as a record.

        Raises:
            InvalidInput: a parameter is unknown, repeated, missing, or not valid.
        """
        raw: bytes = self.scope["query_string"]
        if not raw:
            return record({}, kind, prefix="")
        try:
            pairs = parse_qsl(
                raw.decode("latin-1"),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=_MOST_PARAMETERS,
            )
        except ValueError as error:
            raise InvalidInput(f"the query string is not valid: {error}") from None
        values = dict(pairs)
        for name in _integers(kind) & values.keys():
            if _INTEGER.match(values[name]) is None:
                raise InvalidInput(f"{name}: it must be a whole number", details={"path": name})
        if len(values) != len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InvalidInput(
                f"query parameters given twice: {', '.join(twice)}", details={"path": twice[0]}
            )
        try:
            check(values)
        except NotJson as error:
            path = error.path.removeprefix("$.")
            raise InvalidInput(f"{path}: {error.reason}", details={"path": path}) from None
        made = record(values, kind, prefix="")
        for name in values:
            if getattr(made, name) is None:
                # Converting texts takes the word null for none at all.
                raise InvalidInput(f"{name}: null is not a value of it", details={"path": name})
        return made

    def ulid(self, name: str, what: str) -> str:
        """Return a path parameter that is one of our ids.

        Raises:
            NotFound: it is none, so nothing has it.
        """
        given: str = self.path_params[name]
        if not is_ulid(given):
            raise NotFound(f"no {what} {given}")
        return given


@functools.cache
def _integers(kind: type[msgspec.Struct]) -> frozenset[str]:
    """Return the names of a query's whole numbers: msgspec would read 1e3 as one."""
    fields = msgspec.inspect.type_info(kind).fields  # type: ignore[attr-defined]
    return frozenset(f.encode_name for f in fields if isinstance(f.type, msgspec.inspect.IntType))


class _Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters, or an empty body."""


def record(value: Any, kind: type[T], *, prefix: str = "$.") -> T:
    """Return ``value``, decoded JSON or a query (whose texts may be numbers), as a record.

    Raises:
        InvalidInput: it does not fit; unknown fields are all named.
    """
    try:
        return msgspec.convert(value, kind, strict=bool(prefix))
    except msgspec.ValidationError as error:
        raise _unfit(value, kind, str(error), prefix) from None


def _unfit(value: Any, kind: type[msgspec.Struct], message: str, prefix: str) -> InvalidInput:
    if isinstance(value, dict):
        unknown = sorted(value.keys() - set(kind.__struct_fields__))
        if unknown:
            sort = "unknown fields" if prefix else "unknown query parameters"
            return InvalidInput(
                f"{sort}: {', '.join(unknown)}",
                details={"path": prefix + unknown[0], "unknown": unknown},
            )
    missing = _MISSING.search(message)
    at = _AT.search(message)
    path = at["path"] if at is not None else "$"
    if missing is not None:
        path = f"{path}.{missing['field']}"
    path = prefix + path.removeprefix("$").removeprefix(".") if path != "$" else "$"
    return InvalidInput(f"{path}: {_AT.sub('', message)}", details={"path": path})


Endpoint = Callable[[Call], Awaitable[bytes | Response]]


class Route(APIRoute):
    """A FastAPI route whose app is the endpoint itself."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = _serving(endpoint, self.status_code or 200)


def _serving(endpoint: Endpoint, status: int) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer = await endpoint(Call(scope, receive))
        if isinstance(answer, bytes):
            share = share_of(scope)
            if scope["method"] == "GET" and len(answer) > _PIECE_BYTES:
                share.hold(len(answer))  # what is only read can be read again
            else:
                share.hold_anyway(len(answer))
        scope[ANSWERED] = True
        if not isinstance(answer, bytes):
            await answer(scope, receive, send)
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer)),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if len(answer) > _PIECE_BYTES:
            await _send_in_pieces(send, answer)
        else:
            await send({"type": "http.response.body", "body": answer})

    return app


async def _send_in_pieces(send: Send, answer: bytes) -> None:
    """Send a large body piece by piece: what its reader does not take is not copied."""
    view = memoryview(answer)
    last = (len(answer) - 1) // _PIECE_BYTES * _PIECE_BYTES
    for at in range(0, last, _PIECE_BYTES):
        body = bytes(view[at : at + _PIECE_BYTES])
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": bytes(view[last:])})


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of the API: the route, and what OpenAPI says of it.

    ``query`` and ``body`` are the records it takes, ``gives`` the one it answers with (None: no
    JSON). ``errors`` are statuses beyond those that every operation may answer. ``headers`` are
    the request headers it reads: name → (what it is, JSON Schema). ``gives_text`` is the media type
    of an answer that is no JSON, ``text`` its schema (of a stream: of each event). ``faults``: its
    errors are told in the worker protocol's words, too. ``public`` needs no credential.
    """

    method: str
    path: str
    endpoint: Endpoint
    tag: str
    gives: Any = None
    gives_text: str | None = None
    text: dict[str, Any] | None = None
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    status: int = 200
    also: dict[int, Any] = {}
    errors: tuple[int, ...] = ()
    headers: dict[str, tuple[str, dict[str, Any]]] = {}
    faults: bool = False
    public: bool = False

    def guarded(self) -> Endpoint:
        """Return the endpoint behind what is the same for all: who calls, nothing stray sent."""
        endpoint, public, bare = self.endpoint, self.public, self.query is None
        bodiless = self.body is None and self.method in {"POST", "PUT", "PATCH"}

        @functools.wraps(endpoint)
        async def guarded(call: Call) -> bytes | Response:
            if not public:
                call.principal = await call.door.access.principal(call.scope[HEADERS])
            if bare and call.scope["query_string"]:
                call.query(_Nothing)
            if bodiless and (sent := await call.read()):
                record(decode(sent), _Nothing)
            return await endpoint(call)

        return _with_faults(guarded) if self.faults else guarded


def _with_faults(endpoint: Endpoint) -> Endpoint:
    @functools.wraps(endpoint)
    async def told(call: Call) -> bytes | Response:
        try:
            return await endpoint(call)
        except RetinueError as error:
            path = error.details.get("path")
            if isinstance(path, str):  # here the body is the payload
                error.details["path"] = path.replace("$.payload", "$", 1)
            error.message = error.message.replace("$.payload", "$")
            return fault_answer(error, fault_of(error))

    return told

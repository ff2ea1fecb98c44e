"""The gate: what every request must pass before a route sees it.

One plain ASGI layer. It checks where the request says it goes (Host: a web page that rebinds its
name to our address gets 421) and where it comes from (Origin: 403), bounds the body, and takes
JSON bodies only. It is also the one place where an exception becomes an answer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from retinue.domain.strictjson import body_within
from retinue.errors import Forbidden, InvalidInput, RetinueError, UnsupportedMedia
from retinue.server.admission import Admission
from retinue.server.errors import (
    Refused,
    from_router,
    send_error,
)

log = logging.getLogger(__name__)

MOST_HEADERS = 100
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")

HEADERS = "retinue.headers"
"""The scope's key for the request's headers as a dict of bytes."""

HEAD = "retinue.head"
"""The scope's key that says that only the head of the answer is wanted."""

ANSWERED = "retinue.answered"
"""The scope's key that says that an answer has begun."""

_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]@/\s]+)(?::[0-9]{0,5})?\Z")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_MOST_REMEMBERED = 1024
_MOST_DIGITS = 20


class Gate:
    """Lets requests through to ``app`` that are addressed to us, ours to answer, and bounded.

    ``hosts`` are names and addresses without a port (IPv6 in brackets); the address a connection
    arrived at is always one of ours.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str],
        origins: Iterable[str],
        most_bytes: int,
        admission: Admission,
    ) -> None:
        self._app = app
        self._admission = admission
        self._hosts = {host.lower() for host in (*LOOPBACK_NAMES, *hosts)}
        self._origins = {origin.lower().rstrip("/") for origin in origins}
        self._most_bytes = most_bytes
        self._seen_hosts: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on; answer what it or the route refuses."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            raw = scope["headers"]
            scope[HEADERS] = headers = dict(raw)
            if scope["method"] == "HEAD":
                # Asked as GET, answered without a body: that the server does by its own scope.
                scope = {**scope, "method": "GET", HEAD: True}
            if len(headers) != len(raw):
                _check_repeated(raw)
            self._check(scope, headers)
            with self._admission.admit(scope):
                await self._app(scope, receive, send)
        except RetinueError as error:
            await _refuse(scope, send, error, None)
        except Refused as refused:
            await _refuse(scope, send, refused.error, refused.status)
        except HTTPException as problem:
            said = from_router(problem, scope["method"], scope["path"])
            await _refuse(scope, send, said.error, said.status)
        except Exception:
            log.exception("request failed: %s %r", scope["method"], scope["path"])
            await _refuse(scope, send, RetinueError(), None)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if len(headers) > MOST_HEADERS:
            raise Refused(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                InvalidInput(f"more than {MOST_HEADERS} headers"),
            )
        host = headers.get(b"host", b"")
        if host not in self._seen_hosts:
            self._check_host(scope, host)
        if b"origin" in headers:
            self._check_origin(scope, headers[b"origin"])
        if scope["method"] in _WITH_BODY or b"content-length" in headers:
            self._check_body(scope, headers)

    def _check_host(self, scope: Scope, host: bytes) -> None:
        name = _without_port(host.decode("latin-1"))
        if name in self._hosts:
            if len(self._seen_hosts) < _MOST_REMEMBERED:
                self._seen_hosts.add(host)
            return
        if name not in _arrived_at(scope):
            raise Refused(
                HTTPStatus.MISDIRECTED_REQUEST,
                InvalidInput(
                    "this server does not answer for that host; name it in allowed_hosts",
                    details={"host": name},
                ),
            )

    def _check_origin(self, scope: Scope, header: bytes) -> None:
        origin = header.decode("latin-1").lower()
        if origin.rstrip("/") in self._origins:
            return
        try:
            parts = urlsplit(origin)
            plain = not (parts.path or parts.query or parts.fragment or parts.username)
        except ValueError:
            plain = False
        if plain and parts.scheme in {"http", "https"}:
            name = _without_port(parts.netloc)
            if name in self._hosts or name in _arrived_at(scope):
                return
        raise Forbidden(
            "requests from that origin are refused; name it in allowed_origins",
            details={"origin": origin},
        )

    def _check_body(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        said = headers.get(b"content-length")
        if said is not None:
            if not said.isdigit() or len(said) > _MOST_DIGITS:
                raise Refused(
                    HTTPStatus.BAD_REQUEST, InvalidInput("content-length is not a number")
                )
            length = int(said)
            if not length:
                return
            body_within(length, self._most_bytes)
        elif b"transfer-encoding" not in headers:
            return
        if scope["method"] not in _WITH_BODY:
            return
        kind = headers.get(b"content-type", b"")
        if kind != b"application/json" and not _is_json(kind):
            raise UnsupportedMedia(details={"content_type": kind.decode("latin-1")})
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UnsupportedMedia("the request body must not be compressed")


async def _refuse(scope: Scope, send: Send, error: RetinueError, status: int | None) -> None:
    if scope.get(ANSWERED):
        # Too late for an answer of ours: end the connection, so that the client sees it.
        raise ConnectionAbortedError(error.message)
    await send_error(send, error, status)


def _check_repeated(raw: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse a repeated header that says where, who or how much: which one counts is a guess."""
    single = {
        b"host",
        b"origin",
        b"authorization",
        b"x-api-key",
        b"content-length",
        b"content-type",
    }
    seen: set[bytes] = set()
    count = 0
    for name, _ in raw:
        count += 1
        if name in single and name in seen:
            word = name.decode("latin-1")
            raise Refused(HTTPStatus.BAD_REQUEST, InvalidInput(f"the header {word} is there twice"))
        seen.add(name)
    if count > MOST_HEADERS:
        raise Refused(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            InvalidInput(f"more than {MOST_HEADERS} headers"),
        )


def _is_json(kind: bytes) -> bool:
    return kind.partition(b";")[0].strip().lower() == b"application/json"


def _without_port(authority: str) -> str:
    """Return a Host or an authority without its port; IPv6 stays in its brackets.

    What is no name and no port is nobody's: an empty text.
    """
    found = _AUTHORITY.match(authority.strip().lower())
    return found["name"] if found is not None else ""


def _arrived_at(scope: Scope) -> tuple[str, ...]:
    """Return the address this connection came in on: a rebound name is never that."""
    server = scope.get("server")
    if not server:
        return ()
    address = str(server[0]).lower().removeprefix("::ffff:")
    return (f"[{address}]" if ":" in address else address,)

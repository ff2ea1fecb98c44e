"""Errors become HTTP here, and nowhere else: one table, one body.

Every error body is exactly ``{code, message, retryable, details}``, whatever refused the request:
a use case, the gate, the router, or a fault of ours.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import Message, Send

from retinue.errors import (
    AgentNotFound,
    CircuitOpen,
    CommunicationError,
    Conflict,
    Forbidden,
    Gone,
    HumanInputRequired,
    InvalidInput,
    NotFound,
    NotSupported,
    PeerRefused,
    ProviderError,
    QueueFull,
    RateLimited,
    RetinueError,
    SessionBusy,
    StoreFull,
    Timeout,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)

# A class that is not here takes the status of its nearest base.
STATUS: dict[type[RetinueError], HTTPStatus] = {
    RetinueError: HTTPStatus.INTERNAL_SERVER_ERROR,
    InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedMedia: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    NotFound: HTTPStatus.NOT_FOUND,
    AgentNotFound: HTTPStatus.NOT_FOUND,
    Gone: HTTPStatus.GONE,
    Conflict: HTTPStatus.CONFLICT,
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    NotSupported: HTTPStatus.UNPROCESSABLE_ENTITY,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    StoreFull: HTTPStatus.INSUFFICIENT_STORAGE,
    QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    RateLimited: HTTPStatus.TOO_MANY_REQUESTS,
    SessionBusy: HTTPStatus.CONFLICT,
    CircuitOpen: HTTPStatus.SERVICE_UNAVAILABLE,
    Timeout: HTTPStatus.GATEWAY_TIMEOUT,
    CommunicationError: HTTPStatus.BAD_GATEWAY,
    ProviderError: HTTPStatus.BAD_GATEWAY,
    PeerRefused: HTTPStatus.BAD_GATEWAY,
    HumanInputRequired: HTTPStatus.CONFLICT,
}

_RETRY_AFTER = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
# After these nothing more is expected on the connection. (After a body that is too large the rest
# of it is read and dropped for a while, else its sender would see a reset and not the answer.)
_CLOSING = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    }
)
_encode = msgspec.json.Encoder(enc_hook=str).encode


class ErrorBody(msgspec.Struct, frozen=True):
    """What every refused request gets."""

    code: str
    message: str
    retryable: bool
    details: dict[str, Any]


class Refused(Exception):
    """``error`` with a status of its own: for what HTTP itself refuses."""

    def __init__(self, status: int, error: RetinueError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error


def status_of(error: RetinueError) -> int:
    """Return the HTTP status of ``error``."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def retry_after(error: RetinueError) -> int:
    """Return the whole seconds after which another try makes sense, at least one."""
    wait = error.details.get("retry_after_ms", 1000)
    return max(math.ceil(wait / 1000), 1) if isinstance(wait, int | float) else 1


def from_router(problem: HTTPException, method: str, path: str) -> Refused:
    """Return what the router's own refusals are: no such path, or not with that method."""
    if problem.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (problem.headers or {}).get("Allow", "")
        details = {"method": method, "allowed": sorted(allowed.split(", "))}
        return Refused(405, NotSupported(f"{path} does not take {method}", details=details))
    if problem.status_code == HTTPStatus.NOT_FOUND:
        return Refused(404, NotFound(f"there is no {path}", details={"path": path}))
    return Refused(problem.status_code, InvalidInput(str(problem.detail)))


async def send_error(send: Send, error: RetinueError, status: int | None = None) -> None:
    """Answer with ``error``."""
    for message in error_messages(error, status):
        await send(message)


def error_messages(error: RetinueError, status: int | None = None) -> tuple[Message, Message]:
    """Return the two ASGI messages that answer with ``error``."""
    status = status or status_of(error)
    body = _encode(error.as_dict())
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    if status in _RETRY_AFTER:
        headers.append((b"retry-after", b"%d" % retry_after(error)))
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b'Bearer realm="retinue"'))
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append((b"allow", ", ".join(error.details.get("allowed", ())).encode()))
    if status in _CLOSING:
        headers.append((b"connection", b"close"))
    return (
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": body},
    )

"""Errors become HTTP here, and nowhere else: one table, one body.

Every error body is exactly ``{code, message, retryable, details}``, whatever refused the request:
a use case, the gate, the router, or a fault of ours.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any, Literal

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Send

from retinue.errors import (
    AgentNotFound,
    Cancelled,
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
    SettingsError,
    SpawnFailed,
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
    SettingsError: HTTPStatus.UNPROCESSABLE_ENTITY,
    SpawnFailed: HTTPStatus.SERVICE_UNAVAILABLE,
    Cancelled: HTTPStatus.CONFLICT,
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


class Fault(ErrorBody, frozen=True, kw_only=True):
    """What is refused, or failed, in the worker protocol's words, too.

    `error_code` is `code`, `error_type` its class, `outcome` what is known of the work:
    `not_started`, `failed`, or `unknown` (it may have had effects). What is refused before it
    reaches the operation has only the first four fields.
    """

    error_code: str | msgspec.UnsetType = msgspec.UNSET
    error_type: str | msgspec.UnsetType = msgspec.UNSET
    outcome: Literal["not_started", "failed", "unknown"] | msgspec.UnsetType = msgspec.UNSET


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
    return _messages(error, status or status_of(error), _encode(error.as_dict()))


def fault_answer(error: RetinueError, fault: object) -> Response:
    """Return the answer with ``error`` whose body has the fields of ``fault``, too."""
    body = _encode(error.as_dict() | msgspec.to_builtins(fault, enc_hook=str))
    status = status_of(error)
    headers = _headers(error, status)
    return Response(body, status, headers=headers, media_type="application/json")


def _messages(error: RetinueError, status: int, body: bytes) -> tuple[Message, Message]:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *((name.encode(), value.encode()) for name, value in _headers(error, status).items()),
    ]
    return (
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": body},
    )


def _headers(error: RetinueError, status: int) -> dict[str, str]:
    headers: dict[str, str] = {}
    if status in _RETRY_AFTER:
        headers["retry-after"] = str(retry_after(error))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = 'Bearer realm="retinue"'
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["allow"] = ", ".join(error.details.get("allowed", ()))
    if status in _CLOSING:
        headers["connection"] = "close"
    return headers

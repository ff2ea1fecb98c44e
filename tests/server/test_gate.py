"""Errors become answers: every class has its status, and a fault of ours says nothing of itself."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from retinue import errors
from retinue.errors import RetinueError
from retinue.server.admission import Admission
from retinue.server.errors import error_messages, fault_answer, status_of
from retinue.server.gate import ANSWERED, Gate
from retinue.wire.faults import fault_of

EXPECTED = {
    "RetinueError": 500,
    "InvalidInput": 422,
    "InvalidContext": 422,
    "TooLarge": 413,
    "UnsupportedMedia": 415,
    "EgressDenied": 422,
    "NotFound": 404,
    "Gone": 410,
    "AgentNotFound": 404,
    "Conflict": 409,
    "IllegalTransition": 409,
    "Unauthenticated": 401,
    "Forbidden": 403,
    "NotSupported": 422,
    "UnknownOperation": 422,
    "Unavailable": 503,
    "AgentUnavailable": 503,
    "StoreUnavailable": 503,
    "StoreFull": 507,
    "StoreBroken": 503,
    "StoreMissing": 503,
    "StoreDamaged": 500,
    "Overloaded": 503,
    "ShuttingDown": 503,
    "Stopped": 503,
    "Pending": 503,
    "PeerUnavailable": 503,
    "PeerRefused": 502,
    "QueueFull": 429,
    "RateLimited": 429,
    "SessionBusy": 409,
    "SettingsError": 422,
    "StoreLocked": 500,
    "LedgerBroken": 500,
    "AgentFailed": 500,
    "Unanswered": 504,
    "ExecutionError": 500,
    "Timeout": 504,
    "Cancelled": 409,
    "CircuitOpen": 503,
    "SpawnFailed": 503,
    "CommunicationError": 502,
    "IoError": 502,
    "ProviderError": 502,
    "ProviderBusy": 502,
    "WorkerLost": 502,
    "InvalidResult": 500,
    "BudgetExceeded": 500,
    "Fenced": 500,
    "HumanInputRequired": 409,
}


def classes() -> dict[str, type[RetinueError]]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, RetinueError)
    }


def test_every_error_has_its_status() -> None:
    assert {name: status_of(kind()) for name, kind in classes().items()} == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_error_has_the_one_body(name: str) -> None:
    error = classes()[name](details={"a": 1})
    start, body = error_messages(error)
    assert json.loads(body["body"]) == error.as_dict()
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"application/json"
    assert int(headers[b"content-length"]) == len(body["body"])
    assert (b"retry-after" in headers) == (start["status"] in {429, 503})
    assert (b"www-authenticate" in headers) == (start["status"] == 401)
    told = fault_answer(error, fault_of(error))
    assert told.status_code == start["status"]
    assert dict(told.raw_headers) == headers | {b"content-length": b"%d" % len(told.body)}
    fault = json.loads(bytes(told.body))
    assert fault.items() >= {"code": error.code, "message": error.message}.items()
    assert (fault["error_code"], fault["outcome"]) == (error.code, error.outcome)
    assert fault["details"].items() >= {"a": 1}.items()


@pytest.mark.parametrize(
    ("wait", "seconds"), [(None, 1), (1, 1), (1000, 1), (1001, 2), (59_900, 60), ("x", 1)]
)
def test_retry_after_is_in_whole_seconds(wait: Any, seconds: int) -> None:
    details = {"retry_after_ms": wait} if wait is not None else {}
    start, _ = error_messages(errors.QueueFull(details=details))
    assert dict(start["headers"])[b"retry-after"] == b"%d" % seconds


async def through(app: Any) -> list[Message]:
    """Send one request through the gate to ``app`` and return what comes back."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    admission = Admission(most_requests=1, most_streams=1, most_bytes=1024)
    gate = Gate(app, hosts=(), origins=(), most_bytes=1024, admission=admission)
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/x",
        "headers": [(b"host", b"localhost")],
    }
    await gate(scope, receive, send)
    return sent


async def test_a_fault_of_ours_is_500_without_a_word_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("the password is 1234")

    with caplog.at_level(logging.ERROR):
        start, body = await through(broken)
    assert start["status"] == 500
    assert json.loads(body["body"]) == {
        "code": "E_INTERNAL",
        "message": "Something went wrong inside Retinue.",
        "retryable": False,
        "details": {},
    }
    assert "the password is 1234" in caplog.text


async def test_a_fault_after_the_answer_began_ends_the_connection() -> None:
    async def torn(scope: Scope, receive: Receive, send: Send) -> None:
        scope[ANSWERED] = True
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise errors.StoreUnavailable

    with pytest.raises(ConnectionAbortedError):
        await through(torn)


async def test_details_that_are_no_json_are_shown_as_text() -> None:
    async def odd(scope: Scope, receive: Receive, send: Send) -> None:
        raise errors.Conflict("no", details={"what": object})

    _, body = await through(odd)
    assert json.loads(body["body"])["details"] == {"what": "<class 'object'>"}

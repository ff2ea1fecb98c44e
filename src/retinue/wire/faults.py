"""Our errors as a frame's payload (specification 000 §3.4), and back."""

from __future__ import annotations

from typing import Any

import msgspec

from retinue.errors import AgentFailed, ExecutionError, InvalidInput, RetinueError, error_from
from retinue.wire import envelope
from retinue.wire.payloads import Fault

_INTERNAL = "E_INTERNAL"
MOST_MS = 366 * 86_400_000.0
"""The longest that anything may be given: a year."""


def fault_of(error: RetinueError) -> Fault:
    """Return the payload of the error frame for ``error``."""
    details = dict(error.details)
    kind = error.kind
    if error.code == _INTERNAL and kind != "internal":
        details.setdefault("kind", kind)
        kind = "internal"
    return Fault(
        error_code=error.code,
        error_type=kind,
        message=error.message,
        retryable=error.retryable,
        details=details,
        outcome=error.outcome,
    )


def fault_line(to: str | None, error: RetinueError, line_bytes: int) -> bytes:
    """Return the error frame that answers the request ``to``, as a line of at most that length."""
    fault = fault_of(error)
    line = envelope.encode_checked(envelope.error(to, fault))
    if len(line) > line_bytes:
        fault = msgspec.structs.replace(fault, message=fault.message[:1000], details={})
        line = envelope.encode_checked(envelope.error(to, fault))
    if len(line) > line_bytes:  # its own message_id is that long
        line = envelope.encode_checked(envelope.error(None, fault))
    return line


def error_of(fault: Fault) -> RetinueError:
    """Return the exception that a peer's error frame stands for."""
    details = dict(fault.details or {})
    error = error_from({"code": fault.error_code, "message": fault.message, "details": details})
    if fault.error_code == _INTERNAL and details.get("kind") == AgentFailed.kind:
        error = AgentFailed(error.message, details=details)
    elif error.code != fault.error_code:
        error.details["error_code"] = fault.error_code
    if fault.outcome is not msgspec.UNSET:
        error.outcome = fault.outcome
    elif type(error) is ExecutionError:
        error.outcome = "failed"
    return error


def payload_as(payload: dict[str, Any], kind: Any) -> Any:
    """Return a frame's payload as one of the records of ``payloads``.

    Raises:
        InvalidInput: it does not fit; the message says where.
    """
    try:
        return msgspec.convert(payload, kind)
    except msgspec.ValidationError as error:
        text = str(error).replace("`$", "`$.payload")
        raise InvalidInput(text, details={"path": "$.payload"}) from None


def operation_of(payload: dict[str, Any]) -> str:
    """Return what a request asks for.

    Raises:
        InvalidInput: it does not say.
    """
    operation = payload.get("operation")
    if not isinstance(operation, str):
        text = "a request names its operation" if operation is None else "operation is a text"
        raise InvalidInput(text, details={"path": "$.payload.operation"})
    return operation


def limit_us(timeout_ms: float) -> int:
    """Return the time that a request allows, in microseconds.

    Raises:
        InvalidInput: it allows none, or more than a year.
    """
    if not 0 < timeout_ms <= MOST_MS:
        raise InvalidInput(
            "timeout_ms is more than 0, and a year at most",
            details={"path": "$.payload.options.timeout_ms"},
        )
    return max(int(timeout_ms * 1000), 1)

"""Our errors as a frame's payload (specification 000 §3.4), and back."""

from __future__ import annotations

from typing import Any

import msgspec

from retinue.errors import AgentFailed, ExecutionError, InvalidInput, RetinueError, error_from
from retinue.wire.payloads import Fault

_INTERNAL = "E_INTERNAL"


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

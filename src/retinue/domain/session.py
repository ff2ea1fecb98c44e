"""Sessions group executions; a session's id is the caller's own word, kept safe."""

from __future__ import annotations

import re

import msgspec

from retinue.errors import InvalidInput

SESSION_ID_PATTERN = r"[A-Za-z0-9_.:-]{1,64}"
_SESSION_ID = re.compile(SESSION_ID_PATTERN + r"\Z")


def check_session_id(session_id: str) -> str:
    """Return ``session_id`` when it is one (specification 003).

    Raises:
        InvalidInput: it does not match ``[A-Za-z0-9_.:-]{1,64}``, or is ``.`` or ``..``.
    """
    if _SESSION_ID.match(session_id) is None or session_id in {".", ".."}:
        raise InvalidInput(
            f"session_id must match {SESSION_ID_PATTERN} and not be '.' or '..'",
            details={"path": "$.session_id"},
        )
    return session_id


class Session(msgspec.Struct, kw_only=True):
    """A session's row: the head of its chain and the count of its contracts by status.

    ``completed``, ``failed`` and ``cancelled`` count RESPONSEs; what is left of ``n`` after twice
    their sum are REQUESTs still open.
    """

    owner: str
    session_id: str
    created_at: int
    updated_at: int
    n: int
    head: bytes
    completed: int
    failed: int
    cancelled: int

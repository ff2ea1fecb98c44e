"""The audit chain: who did what, in one hash-chained list per store.

It also anchors the heads of the session chains (``action`` = ``ledger.anchor``), so that a chain
whose tail was cut off together with its head shows.
"""

from __future__ import annotations

import hashlib

import msgspec

ANCHOR = "ledger.anchor"


class AuditDraft(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, before it has a place. ``detail`` is a JSON object as bytes."""

    owner: str
    actor: str
    action: str
    target: str
    outcome: str = "ok"
    detail: bytes = b"{}"


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the audit chain."""

    n: int
    at: int
    owner: str
    actor: str
    action: str
    target: str
    outcome: str
    detail: bytes
    hash: bytes


_encode = msgspec.json.Encoder().encode


def audit_hash(previous: bytes, row: AuditRow) -> bytes:
    """Return the hash of ``row`` when it follows ``previous``."""
    header = _encode((row.n, row.at, row.owner, row.actor, row.action, row.target, row.outcome))
    return hashlib.sha256(previous + header + row.detail).digest()

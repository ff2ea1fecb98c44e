"""Contracts: the provenance record of an exchange, hash-chained per owner and session.

``n`` is the place in the chain, given under the session head's lock; it is the order, never the
ULID or the time. ``hash = H(previous hash, n, header, H(body))``: the header is rebuilt from the
row, the body is kept as exact bytes and may be erased later without breaking the chain.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec

from retinue.domain.execution import State

GENESIS = bytes(32)


class ContractType(StrEnum):
    """Which side of the exchange a contract records."""

    REQUEST = "REQUEST"
    RESPONSE = "RESPONSE"


class ContractStatus(StrEnum):
    """Specification 003's words for how an exchange stands."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


def status_of(state: State) -> ContractStatus:
    """Return specification 003's view of an execution's state."""
    match state:
        case State.SCHEDULED | State.QUEUED:
            return ContractStatus.PENDING
        case State.RUNNING | State.INPUT_REQUIRED:
            return ContractStatus.IN_PROGRESS
        case State.COMPLETED:
            return ContractStatus.COMPLETED
        case State.CANCELLED:
            return ContractStatus.CANCELLED
        case _:
            return ContractStatus.FAILED


class Contract(msgspec.Struct, kw_only=True):
    """One row of the chain. ``status`` is a RESPONSE's; a REQUEST's is derived from it.

    ``digest`` is the chained digest of the execution's events (RESPONSE only). ``body`` is None
    once erased; ``body_hash`` stays.
    """

    owner: str
    session_id: str
    n: int
    id: str
    type: ContractType
    from_agent: str
    to_agent: str | None
    capability: str | None
    status: ContractStatus | None
    execution_id: str | None
    at: int
    body: bytes | None
    body_hash: bytes
    digest: bytes | None
    hash: bytes


class Draft(msgspec.Struct, kw_only=True):
    """A contract before it has a place in its chain."""

    id: str
    type: ContractType
    from_agent: str
    to_agent: str | None
    capability: str | None
    status: ContractStatus | None
    execution_id: str | None
    body: bytes


class Head(msgspec.Struct):
    """The end of a chain: the last place given and its hash."""

    n: int = 0
    hash: bytes = GENESIS


_header = msgspec.json.Encoder().encode


def body_hash(body: bytes) -> bytes:
    """Return the hash that stands for ``body`` in the chain."""
    return hashlib.sha256(body).digest()


def chain_hash(previous: bytes, row: Contract) -> bytes:
    """Return the hash of ``row`` when it follows ``previous``; its body need not be there."""
    header = _header(
        (
            row.n,
            row.id,
            row.owner,
            row.session_id,
            row.type,
            row.from_agent,
            row.to_agent,
            row.capability,
            row.status,
            row.execution_id,
            row.at,
            row.digest.hex() if row.digest else None,
        )
    )
    return hashlib.sha256(previous + header + row.body_hash).digest()


def append(
    head: Head, draft: Draft, *, owner: str, session_id: str, at: int, digest: bytes | None = None
) -> Contract:
    """Give ``draft`` the next place of the chain and move ``head`` onto it."""
    row = Contract(
        owner=owner,
        session_id=session_id,
        n=head.n + 1,
        id=draft.id,
        type=draft.type,
        from_agent=draft.from_agent,
        to_agent=draft.to_agent,
        capability=draft.capability,
        status=draft.status,
        execution_id=draft.execution_id,
        at=at,
        body=draft.body,
        body_hash=body_hash(draft.body),
        digest=digest,
        hash=GENESIS,
    )
    row.hash = chain_hash(head.hash, row)
    head.n = row.n
    head.hash = row.hash
    return row

"""The ledger's own checks: the audit chain, and the verification of every chain."""

from __future__ import annotations

import msgspec

from retinue.domain.audit import AuditRow
from retinue.domain.ids import iso
from retinue.server.records import Hash, Query, Time, raw
from retinue.server.routing import Call, Operation, encode


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what; `hash` links the row to the one before."""

    n: int
    at: Time
    owner: str
    actor: str
    action: str
    target: str
    outcome: str
    detail: msgspec.Raw
    hash: Hash


class AuditList(msgspec.Struct, frozen=True, kw_only=True):
    """The audit chain, oldest first."""

    audit: list[AuditRecord]
    total: int
    next_cursor: str | None


class AuditQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which rows."""


class FaultRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The first row that does not fit: which chain, its place in it, and what is wrong."""

    chain: str
    n: int
    reason: str
    id: str | None


class VerifyReply(msgspec.Struct, frozen=True, kw_only=True):
    """What was verified, and the first fault, if any."""

    ok: bool
    sessions: int
    contracts: int
    events: int
    audits: int
    fault: FaultRecord | None


def audit_record(row: AuditRow) -> AuditRecord:
    """Return an audit row as it is shown."""
    return AuditRecord(
        n=row.n,
        at=iso(row.at),
        owner=row.owner,
        actor=row.actor,
        action=row.action,
        target=row.target,
        outcome=row.outcome,
        detail=raw(row.detail),
        hash=bytes(row.hash).hex(),
    )


async def list_audit(call: Call) -> bytes:
    """List the audit chain. For admins."""
    query = call.query(AuditQuery)
    listing = await call.orchestrator.audit(query.page, call.principal)
    return encode(
        AuditList(
            audit=[audit_record(row) for row in listing.items],
            total=listing.total,
            next_cursor=listing.next_cursor,
        )
    )


async def verify(call: Call) -> bytes:
    """Verify the ledger.

    Recomputes every chain (for callers who are no admin: of their own sessions) and names the
    first row that does not fit.
    """
    verdict = await call.orchestrator.verify(call.principal)
    fault = verdict.fault
    return encode(
        VerifyReply(
            ok=verdict.ok,
            sessions=verdict.sessions,
            contracts=verdict.contracts,
            events=verdict.events,
            audits=verdict.audits,
            fault=FaultRecord(chain=fault.chain, n=fault.n, reason=fault.reason, id=fault.id)
            if fault is not None
            else None,
        )
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/audit",
        endpoint=list_audit,
        tag="administration",
        query=AuditQuery,
        gives=AuditList,
    ),
    Operation(
        method="GET",
        path="/v1/ledger/verify",
        endpoint=verify,
        tag="record",
        gives=VerifyReply,
    ),
)

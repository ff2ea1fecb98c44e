"""The ledger's own checks: the audit chain, and the verification of every chain."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

import msgspec

from retinue.domain.audit import AuditRow
from retinue.domain.ids import iso
from retinue.errors import InvalidInput
from retinue.orchestrator import Anchor
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


ANCHOR = "^[0-9]{1,18}:[0-9a-f]{64}$"


class VerifyQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`anchor`: a row of the audit chain, noted elsewhere as N:HASH, that must still be there."""

    anchor: Annotated[str, msgspec.Meta(extra_json_schema={"pattern": ANCHOR})] | None = None


class AnchorReply(msgspec.Struct, frozen=True, kw_only=True):
    """The head of the audit chain; `anchor` is what `verify` takes."""

    anchor: str
    n: int
    hash: Hash


class PruneBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether only to say what would be removed."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"dry_run": True}

    dry_run: bool = False


class PruneReply(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed: the events of so many executions, so many contracts of so many sessions.

    Of a dry run: executions whose events would go, and sessions that begin with what is old.
    `retention` is how long what is kept; all null: for ever.
    """

    dry_run: bool
    executions: int
    events: int
    sessions: int
    contracts: int
    retention: dict[str, float | None]


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
    first row that does not fit. With `anchor`, as `POST /v1/ledger/anchor` gave it once, also
    that the audit chain still has that row.
    """
    query = call.query(VerifyQuery)
    anchor = None
    if query.anchor is not None:
        if re.fullmatch(ANCHOR, query.anchor) is None:
            raise InvalidInput(
                "anchor: it must be N:HASH, as `retinue ledger anchor` prints it: a number, a colon"
                " and 64 hexadecimal digits",
                details={"path": "anchor"},
            )
        n, _, digest = query.anchor.partition(":")
        anchor = Anchor(int(n), bytes.fromhex(digest))
    verdict = await call.orchestrator.verify(call.principal, anchor)
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


async def anchor(call: Call) -> bytes:
    """Anchor the heads of all sessions in the audit chain, and return that chain's head.

    For admins. Kept outside the store, it shows later whether the whole record was rewritten.
    """
    head = await call.orchestrator.anchor(call.principal)
    return encode(AnchorReply(anchor=str(head), n=head.n, hash=head.hash.hex()))


async def prune(call: Call) -> bytes:
    """Remove now what retention is to remove. For admins.

    What the settings say is old: events of ended executions, and contracts as a prefix of their
    session's chain.
    """
    wanted = await call.record(PruneBody)
    policy, done = await call.orchestrator.prune(dry_run=wanted.dry_run, principal=call.principal)
    return encode(
        PruneReply(
            dry_run=wanted.dry_run,
            **msgspec.structs.asdict(done),
            retention=msgspec.structs.asdict(policy),
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
        query=VerifyQuery,
        gives=VerifyReply,
    ),
    Operation(
        method="POST",
        path="/v1/ledger/anchor",
        endpoint=anchor,
        tag="administration",
        gives=AnchorReply,
        errors=(507,),
    ),
    Operation(
        method="POST",
        path="/v1/ledger/prune",
        endpoint=prune,
        tag="administration",
        body=PruneBody,
        gives=PruneReply,
        errors=(507,),
    ),
)

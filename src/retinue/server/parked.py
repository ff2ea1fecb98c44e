"""What other services would not take: shown, and delivered once more when asked."""

from __future__ import annotations

import msgspec

from retinue.domain.ids import iso
from retinue.domain.outbox import Parked
from retinue.server.records import Query, Time, Ulid
from retinue.server.routing import Call, Operation, encode


class ParkedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A contract that a service (`sink`) would not take, `tries` times, and what it said."""

    sink: str
    session_id: str
    contract_id: Ulid
    n: int
    tries: int
    error: str
    parked_at: Time


class ParkedList(msgspec.Struct, frozen=True, kw_only=True):
    """Parked contracts by service, session and place."""

    parked: list[ParkedRecord]
    total: int
    next_cursor: str | None


class ParkedQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which parked contracts."""


class RetryReply(msgspec.Struct, frozen=True, kw_only=True):
    """How many were taken now, and how many were refused again and stay parked."""

    delivered: int
    refused: int


def parked_record(parked: Parked) -> ParkedRecord:
    """Return a parked contract as it is shown."""
    return ParkedRecord(
        sink=parked.sink,
        session_id=parked.session_id,
        contract_id=parked.contract_id,
        n=parked.n,
        tries=parked.tries,
        error=parked.error,
        parked_at=iso(parked.at),
    )


async def list_parked(call: Call) -> bytes:
    """List the contracts that a service would not take; their sessions went on without them."""
    query = call.query(ParkedQuery)
    listing = await call.orchestrator.parked(query.page, call.principal)
    return encode(
        ParkedList(
            parked=[parked_record(parked) for parked in listing.items],
            total=listing.total,
            next_cursor=listing.next_cursor,
        )
    )


async def retry_parked(call: Call) -> bytes:
    """Deliver once more what is parked. It arrives out of its session's order.

    Answers 503 when a service does not answer; what it took until then is not parked any more.
    """
    delivered, refused = await call.orchestrator.retry_parked(call.principal)
    return encode(RetryReply(delivered=delivered, refused=refused))


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/parked",
        endpoint=list_parked,
        tag="record",
        query=ParkedQuery,
        gives=ParkedList,
    ),
    Operation(
        method="POST",
        path="/v1/parked/retry",
        endpoint=retry_parked,
        tag="record",
        gives=RetryReply,
        errors=(507,),
    ),
)

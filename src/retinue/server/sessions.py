"""Sessions: their counts, the heads of their chains, and their memory blocks."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from retinue.domain.ids import iso
from retinue.domain.session import Session, check_session_id
from retinue.server.executions import ErasedReply
from retinue.server.records import Hash, Query, SessionId, Time
from retinue.server.routing import Call, Operation, encode


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A session: its exchanges by how they stand, and the end of its contracts' chain."""

    session_id: str
    owner: str
    created_at: Time
    updated_at: Time
    contracts: int
    completed: int
    failed: int
    cancelled: int
    open: int
    head: Hash


class SessionList(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions by id."""

    sessions: list[SessionRecord]
    total: int
    next_cursor: str | None


class SessionQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which sessions."""


class CompressBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which session to compress, and to what end."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"session_id": "session_001"}

    session_id: SessionId
    intent: str | None = None


class CompressReply(msgspec.Struct, frozen=True, kw_only=True):
    """The memory block, or why there is none."""

    status: str
    session_id: str
    compressed: bool
    memory_block: dict[str, Any] | None
    error: str | None


def session_record(session: Session) -> SessionRecord:
    """Return a session as it is shown."""
    ended = session.completed + session.failed + session.cancelled
    return SessionRecord(
        session_id=session.session_id,
        owner=session.owner,
        created_at=iso(session.created_at),
        updated_at=iso(session.updated_at),
        contracts=session.n,
        completed=session.completed,
        failed=session.failed,
        cancelled=session.cancelled,
        open=session.n - 2 * ended,
        head=bytes(session.head).hex(),
    )


async def list_sessions(call: Call) -> bytes:
    """List the sessions."""
    query = call.query(SessionQuery)
    listing = await call.orchestrator.sessions(query.page, call.principal)
    return encode(
        SessionList(
            sessions=[session_record(session) for session in listing.items],
            total=listing.total,
            next_cursor=listing.next_cursor,
        )
    )


async def get_session(call: Call) -> bytes:
    """Get one session."""
    session_id = check_session_id(call.path_params["session_id"])
    return encode(session_record(await call.orchestrator.session(session_id, call.principal)))


async def erase_session(call: Call) -> bytes:
    """Erase every exchange of a session that has ended. For admins.

    Its contracts stay in their chain without bodies, its events without content; the audit says
    who erased them. The logs of its processes on this server's machine go; a coding CLI does not go
    on with it. `open` counts what was left alone because its execution has not ended.
    """
    session_id = check_session_id(call.path_params["session_id"])
    done = await call.orchestrator.erase_session(session_id, call.principal)
    return encode(ErasedReply(contracts=done.contracts, open=done.open))


async def compress(call: Call) -> bytes:
    """Compress a session into a memory block made from its contracts.

    The block's `source` says who wrote its summary: MemAgent when it is set, else `local`; where
    MemAgent could not be had, `fallback` says why. `compressed` is false, and `error` says why,
    when there is nothing to compress.
    """
    wanted = await call.record(CompressBody)
    check_session_id(wanted.session_id)
    block = await call.orchestrator.compress_session(
        wanted.session_id, wanted.intent, call.principal
    )
    return encode(msgspec.convert(block, CompressReply))


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/sessions",
        endpoint=list_sessions,
        tag="record",
        query=SessionQuery,
        gives=SessionList,
    ),
    Operation(
        method="GET",
        path="/v1/sessions/{session_id}",
        endpoint=get_session,
        tag="record",
        gives=SessionRecord,
    ),
    Operation(
        method="DELETE",
        path="/v1/sessions/{session_id}/body",
        endpoint=erase_session,
        tag="administration",
        gives=ErasedReply,
        errors=(507,),
    ),
    Operation(
        method="POST",
        path="/v1/compress",
        endpoint=compress,
        tag="record",
        body=CompressBody,
        gives=CompressReply,
    ),
)

"""Executions: submitted without waiting, listed, looked at, cancelled, followed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from starlette.responses import Response

from retinue.domain.execution import DEAD_LETTER, Execution, Hold, State
from retinue.domain.ids import iso
from retinue.domain.policy import MOST_PRIORITY, BusyPolicy, Delivery
from retinue.domain.session import check_session_id
from retinue.domain.strictjson import dumps
from retinue.errors import InvalidInput
from retinue.interfaces import ExecutionFilter
from retinue.orchestrator import Accepted as Taken
from retinue.server.admission import share_of
from retinue.server.errors import ErrorBody
from retinue.server.orchestrate import IDEMPOTENCY, TaskBody, idempotency_key, task_of
from retinue.server.records import NULL, Query, SessionId, Time, Ulid, raw, when
from retinue.server.routing import Call, Operation, encode
from retinue.server.streams import EventStream

MOST_EVENTS = 1000
MOST_SEQUENCE = (1 << 63) - 1
_MOST_DIGITS = len(str(MOST_SEQUENCE))
RESUME = {
    "Last-Event-ID": (
        "The last event the reader has; it wins over `after`.",
        {"type": "integer", "minimum": 0},
    )
}


STREAMED = {
    "type": "object",
    "description": (
        "One server-sent event: `id` is the event's number; `data` is JSON with `executionId`,"
        " `eventType`, `sequence`, `timestamp` and what the kind of event carries."
    ),
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["id", "data"],
}

Digest = Annotated[str, msgspec.Meta(pattern="^(02)?[0-9a-f]{64}$")]


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The task is accepted. `joined`: its idempotency key led to an earlier execution."""

    execution_id: Ulid
    contract_id: Ulid
    state: State
    joined: bool


class ExecutionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An execution. `contract_id` is its REQUEST's, `response_id` its RESPONSE's.

    `rank` is its place among those that wait for the same queue key: the least goes first. `hold`
    says why it may not go yet though it waits: for its `time`, or its turn in the `session`.
    `reason` is `dead_letter` when its attempts were used up. `retry_of` is what it does again.
    `interrupted` attempts were ended by an orderly stop of the server, and do not count.
    """

    execution_id: Ulid
    owner: str
    created_by: str
    session_id: str
    from_agent: str
    agent_id: str | None
    capability: str | None
    queue_key: str
    state: State
    priority: int
    attempt: int
    max_attempts: int
    delivery: Delivery
    worker: str | None
    last_seq: int
    digest: Digest
    created_at: Time
    run_at: Time
    deadline_at: Time | None
    started_at: Time | None
    finished_at: Time | None
    cancel_requested_at: Time | None
    outcome: str | None
    error_code: str | None
    contract_id: Ulid
    request_n: int
    response_id: Ulid | None
    response_n: int | None
    parent_id: Ulid | None
    depth: int
    rank: int
    hold: Hold
    on_busy: BusyPolicy
    retry_of: Ulid | None
    reason: str | None
    interrupted: int


class ExecutionDetail(ExecutionRecord, frozen=True, kw_only=True):
    """An execution with what it was given and, once it has ended, what came of it.

    While it is queued, `place` is how many stand before it and `waits_for` what keeps the first of
    them here: slots, memory, a circuit; null when nothing does. `erased` says that input, result
    and the content of its events were erased, `removed` that retention has removed its events (and,
    where `input` is null, its contracts).
    """

    input: msgspec.Raw
    result: msgspec.Raw
    error: ErrorBody | None
    place: int | msgspec.UnsetType = msgspec.UNSET
    waits_for: str | msgspec.UnsetType | None = msgspec.UNSET
    erased: bool | msgspec.UnsetType = msgspec.UNSET
    removed: bool | msgspec.UnsetType = msgspec.UNSET


class EventList(msgspec.Struct, frozen=True, kw_only=True):
    """Events as they are streamed; `last` is the number of the last one there is."""

    execution_id: Ulid
    events: list[msgspec.Raw]
    last: int
    ended: bool


class ErasedReply(msgspec.Struct, frozen=True, kw_only=True):
    """How many contracts were erased now; `open` are of executions that have not ended."""

    contracts: int
    open: int


class ExecutionList(msgspec.Struct, frozen=True, kw_only=True):
    """Executions, newest first."""

    executions: list[ExecutionRecord]
    total: int
    next_cursor: str | None


_STATES = "|".join(state.value for state in State)


class ExecutionQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which executions."""

    session_id: SessionId | None = None
    agent_id: str | None = None
    capability: str | None = None
    state: (
        Annotated[
            str,
            msgspec.Meta(
                pattern=f"^({_STATES})(,({_STATES}))*$",
                description="One state, or several separated by commas.",
                examples=["queued,scheduled"],
            ),
        ]
        | None
    ) = None
    dead_letter: Annotated[
        bool, msgspec.Meta(description="Only those whose attempts were used up.")
    ] = False


class PriorityBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another priority for an execution that waits."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"priority": 5}

    priority: Annotated[int, msgspec.Meta(ge=-MOST_PRIORITY, le=MOST_PRIORITY)]


class EventQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From where: the events after number `after`."""

    after: Annotated[int, msgspec.Meta(ge=0, le=MOST_SEQUENCE)] = 0


def _fields(execution: Execution) -> dict[str, object]:
    shown = {name: getattr(execution, name, None) for name in ExecutionRecord.__struct_fields__}
    return {
        **shown,
        "execution_id": execution.id,
        "contract_id": execution.request_id,
        "digest": bytes(execution.digest).hex(),
        "created_at": iso(execution.created_at),
        "run_at": iso(execution.run_at),
        "deadline_at": when(execution.deadline_at),
        "started_at": when(execution.started_at),
        "finished_at": when(execution.finished_at),
        "cancel_requested_at": when(execution.cancel_requested_at),
    }


async def _detail(call: Call, execution: Execution) -> bytes:
    asked, reply = await call.orchestrator.task_of(execution)
    error = reply.error if reply is not None else None
    gone = await call.orchestrator.gone(execution) if execution.terminal else ()
    what: dict[str, object] = {name: True for name in ("erased", "removed") if name in gone}
    if execution.state is State.QUEUED and execution.hold is Hold.NONE:
        what["place"], what["waits_for"] = await call.orchestrator.line(execution)
    return encode(
        msgspec.convert(
            {
                **_fields(execution),
                "input": raw(dumps(asked)) if asked is not None else NULL,
                "result": raw(reply.data) if reply is not None else NULL,
                "error": error,
                **what,
            },
            ExecutionDetail,
        )
    )


async def submit(call: Call) -> Response:
    """Submit a task without waiting for it.

    202 once it is accepted, which is when it is durable; `Location` is the execution's.
    """
    task, _ = await task_of(call, TaskBody)
    return _accepted(await call.orchestrator.submit(task, call.principal))


def _accepted(accepted: Taken) -> Response:
    body = Accepted(
        execution_id=accepted.execution_id,
        contract_id=accepted.contract_id,
        state=accepted.state,
        joined=accepted.joined,
    )
    location = {"location": f"/v1/executions/{accepted.execution_id}"}
    return Response(encode(body), 202, media_type="application/json", headers=location)


async def list_executions(call: Call) -> bytes:
    """List executions, newest first: of a session, an agent, a capability, in some states."""
    query = call.query(ExecutionQuery)
    if query.session_id is not None:
        check_session_id(query.session_id)
    where = ExecutionFilter(
        session_id=query.session_id,
        agent_id=query.agent_id,
        capability=query.capability,
        states=tuple(State(word) for word in query.state.split(",")) if query.state else (),
        reason=DEAD_LETTER if query.dead_letter else None,
    )
    listing = await call.orchestrator.executions(where, query.page, call.principal)
    return encode(
        ExecutionList(
            executions=[
                msgspec.convert(_fields(execution), ExecutionRecord) for execution in listing.items
            ],
            total=listing.total,
            next_cursor=listing.next_cursor,
        )
    )


async def get_execution(call: Call) -> bytes:
    """Get one execution: where it stands, its input, its result or its error."""
    execution_id = call.ulid("execution_id", "execution")
    return await _detail(call, await call.orchestrator.execution(execution_id, call.principal))


async def cancel(call: Call) -> bytes:
    """Cancel an execution; one that has ended stays as it is."""
    execution_id = call.ulid("execution_id", "execution")
    return await _detail(call, await call.orchestrator.cancel(execution_id, call.principal))


async def prioritize(call: Call) -> bytes:
    """Give an execution that waits another priority.

    It goes where it would stand, had it been accepted with it. 409 when it does not wait any more.
    """
    execution_id = call.ulid("execution_id", "execution")
    body = await call.record(PriorityBody)
    execution = await call.orchestrator.prioritize(execution_id, body.priority, call.principal)
    return await _detail(call, execution)


async def retry(call: Call) -> Response:
    """Submit again what ended without success.

    A new execution with the same session, agent and input; its `retry_of` names the old one. 409
    when that one succeeded or has not ended.
    """
    execution_id = call.ulid("execution_id", "execution")
    key = idempotency_key(call)
    return _accepted(await call.orchestrator.retry(execution_id, call.principal, key))


async def events(call: Call) -> bytes | Response:
    """Stream an execution's events, as they are journaled, until the last one.

    Server-sent events: `id` is the event's number, `data` the event. A reader that comes back
    with `Last-Event-ID` (or `after`) gets what it has not seen, without gap or repeat; 204 when
    the execution has ended and there is nothing more. In place of events that retention has
    removed comes one `truncated`, with the number of the last of them: it says how the execution
    ended, as far as that is known, and is the last. A reader that accepts only `application/json`
    gets the events that are there now, at most 1000.
    """
    execution_id = call.ulid("execution_id", "execution")
    after, path = _after(call)
    execution = await call.orchestrator.execution(execution_id, call.principal)
    if after > execution.last_seq:
        raise InvalidInput(
            f"there is no event {after}; the last one is {execution.last_seq}",
            details={"path": path, "last": execution.last_seq},
        )
    accepted = call.header(b"accept") or ""
    if "application/json" in accepted and "text/event-stream" not in accepted:
        found = await call.orchestrator.events(execution_id, after, MOST_EVENTS, call.principal)
        listing = EventList(
            execution_id=execution_id,
            events=[msgspec.Raw(event.wire) for event in found],
            last=execution.last_seq,
            ended=execution.terminal,
        )
        return encode(listing)
    if execution.terminal and after == execution.last_seq:
        return Response(status_code=204)
    share_of(call.scope).become_stream()
    patience = call.door.patience
    batches = call.orchestrator.stream(
        execution_id, after=after, heartbeat=patience.heartbeat, principal=call.principal
    )
    return EventStream(batches)


async def erase_execution(call: Call) -> bytes:
    """Erase what an execution was given, did and answered. For admins.

    Its contracts stay in their chain without bodies, its events without content; the audit says
    who erased them. The logs of its processes on this server's machine go; a coding CLI does not go
    on with the session it was in. 409 when it has not ended.
    """
    execution_id = call.ulid("execution_id", "execution")
    done = await call.orchestrator.erase(execution_id, call.principal)
    return encode(ErasedReply(contracts=done.contracts, open=done.open))


def _after(call: Call) -> tuple[int, str]:
    """Return the last event the reader has, and which parameter says so."""
    query = call.query(EventQuery)
    said = call.header(b"last-event-id")
    if said is None:
        return query.after, "after"
    if not (
        said.isascii()
        and said.isdigit()
        and len(said) <= _MOST_DIGITS
        and int(said) <= MOST_SEQUENCE
    ):
        raise InvalidInput(
            "Last-Event-ID must be the number of an event", details={"path": "Last-Event-ID"}
        )
    return int(said), "Last-Event-ID"


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/executions",
        endpoint=submit,
        tag="tasks",
        body=TaskBody,
        gives=Accepted,
        status=202,
        errors=(404, 409, 429, 507),
        headers=IDEMPOTENCY,
    ),
    Operation(
        method="GET",
        path="/v1/executions",
        endpoint=list_executions,
        tag="tasks",
        query=ExecutionQuery,
        gives=ExecutionList,
    ),
    Operation(
        method="GET",
        path="/v1/executions/{execution_id}",
        endpoint=get_execution,
        tag="tasks",
        gives=ExecutionDetail,
    ),
    Operation(
        method="POST",
        path="/v1/executions/{execution_id}/cancel",
        endpoint=cancel,
        tag="tasks",
        gives=ExecutionDetail,
        errors=(507,),
    ),
    Operation(
        method="POST",
        path="/v1/executions/{execution_id}/priority",
        endpoint=prioritize,
        tag="tasks",
        body=PriorityBody,
        gives=ExecutionDetail,
        errors=(409, 507),
    ),
    Operation(
        method="POST",
        path="/v1/executions/{execution_id}/retry",
        endpoint=retry,
        tag="tasks",
        gives=Accepted,
        status=202,
        errors=(409, 429, 507),
        headers=IDEMPOTENCY,
    ),
    Operation(
        method="GET",
        path="/v1/executions/{execution_id}/events",
        endpoint=events,
        tag="tasks",
        query=EventQuery,
        gives=EventList,
        gives_text="text/event-stream",
        text=STREAMED,
        also={204: None},
        headers=RESUME,
    ),
    Operation(
        method="DELETE",
        path="/v1/executions/{execution_id}/body",
        endpoint=erase_execution,
        tag="administration",
        gives=ErasedReply,
        errors=(409, 507),
    ),
)

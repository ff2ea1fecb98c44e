"""Invocations: the operations of the worker protocol over HTTP, field by field (specification 000).

What a request's payload has is the body here, what the answer's payload has is the answer, and an
error has its HTTP status beside the fields that it has there. A stream is the protocol's frames as
server-sent events. Every invocation is an execution like any other; ``invoke_id`` is its id.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from starlette.responses import Response

from retinue.domain.event import Piece
from retinue.domain.ids import ulid
from retinue.domain.policy import MOST_PRIORITY
from retinue.domain.strictjson import decode
from retinue.errors import RetinueError
from retinue.orchestrator.invoking import begun, pending, provide, task_of
from retinue.server.admission import share_of
from retinue.server.orchestrate import MOST_TIMEOUT_MS
from retinue.server.records import Ulid, Word
from retinue.server.routing import Call, Operation, encode, record
from retinue.server.streams import EventStream
from retinue.server.telling import Telling
from retinue.wire import envelope
from retinue.wire.faults import fault_of, payload_as
from retinue.wire.payloads import Invoke, Provide, Scalar

WHOLE = 1 << 62
"""How long an answer may be that is no line."""

_Ms = Annotated[float, msgspec.Meta(gt=0, le=MOST_TIMEOUT_MS)]
STREAMED = {
    "type": "object",
    "description": (
        "One server-sent event: `id` counts them, `data` is a frame of the worker protocol: an"
        " object with `type` (`stream`, `control`, and last `response` or `error`) and `payload`."
    ),
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["id", "data"],
}


class InvokeChoices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an agent is invoked; see `options` in docs/protocol.md."""

    timeout_ms: Annotated[_Ms, msgspec.Meta(description="After that long: E_TIMEOUT.")] = 30_000
    stream: Annotated[
        bool, msgspec.Meta(description="Answer with the frames as server-sent events.")
    ] = False
    stream_node: (
        Annotated[str, msgspec.Meta(description="Only the chunks of this node.")] | None
    ) = None
    accumulated: bool = True
    capability: (
        Annotated[Word, msgspec.Meta(description="Needed where the agent has several.")] | None
    ) = None
    human_input: Annotated[
        Literal["wait", "error"],
        msgspec.Meta(
            description="When the agent asks a person: `wait` for the answer, or answer"
            " E_HUMAN_INPUT_REQUIRED at once; the agent goes on waiting."
        ),
    ] = "wait"
    run_async: Annotated[
        bool, msgspec.Meta(description="Answer with the `invoke_id` once it is accepted (202).")
    ] = msgspec.field(default=False, name="async")
    priority: Annotated[int, msgspec.Meta(ge=-MOST_PRIORITY, le=MOST_PRIORITY)] = 0
    idempotency_key: Annotated[str, msgspec.Meta(pattern="^[\\x20-\\x7e]{1,255}$")] | None = None


class InvokeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent shall do: the payload of `agent.invoke`."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "agent_name": "agent_example_001",
        "input": {"text": "Hello, world!"},
        "metadata": {"user_id": "user-123", "session_id": "session_001"},
        "options": {"timeout_ms": 30_000, "capability": "echo"},
    }

    operation: Literal["agent.invoke"] = "agent.invoke"
    agent_name: Annotated[
        str,
        msgspec.Meta(description="Its id or name. Without one: any that has options.capability."),
    ] = ""
    input: Annotated[
        Any, msgspec.Meta(description="Any JSON value; one that is no object is its one parameter.")
    ] = msgspec.UNSET
    metadata: (
        Annotated[
            dict[str, Scalar],
            msgspec.Meta(description="Kept with it; session_id puts it into that session."),
        ]
        | None
    ) = None
    options: InvokeChoices | None = None
    context: Any = None
    intent: str | None = None


class InvokeReply(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; with `async`, where to ask for it.

    `metadata` has `invoke_id` and, once it has ended, `duration_ms` and `tokens_used`. With
    `status` `human_input_required` there is no result yet: `human_input` is what the agent asks.
    """

    status: Literal["success", "human_input_required"]
    result: Any = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    invoke_id: Ulid | msgspec.UnsetType = msgspec.UNSET
    human_input: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class HumanInputReply(msgspec.Struct, frozen=True, kw_only=True):
    """What is being asked: `invoke_id`, `input_id`, `prompt` and what else a question has."""

    status: Literal["success"]
    result: list[dict[str, Any]]


class ProvideBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer: the payload of `human_input.provide`."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "invoke_id": "01M7Z52TC9D707EQ5VVH1R86EK",
        "input_id": "01M7Z52TC9D707EQ5VVH1R86EM",
        "value": "Proceed with the plan",
    }

    operation: Literal["human_input.provide"] = "human_input.provide"
    invoke_id: str
    input_id: str
    value: Any


class ProvideReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is taken; the agent goes on."""

    status: Literal["success"]
    result: dict[str, str]


class WaitQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long to wait, in milliseconds (unset: as long as it takes); then E_TIMEOUT."""

    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=MOST_TIMEOUT_MS)] | None = None


class PendingQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of which invocation; unset: of all of the caller's."""

    invoke_id: Ulid | None = None


class _Line(msgspec.Struct):
    payload: msgspec.Raw


_line = msgspec.json.Decoder(_Line).decode


class _Asked:
    """One request: what its telling sends is kept here until it is taken."""

    def __init__(self, call: Call, line_bytes: int) -> None:
        self.orchestrator = call.orchestrator
        self.principal = call.principal
        self.line_bytes = line_bytes
        self.to = envelope.new_id()
        self.lines: list[bytes] = []
        self._sent = 0

    def send(self, line: bytes, /) -> None:
        """Keep a frame."""
        self.lines.append(line)

    async def room(self) -> None:
        """Return: what is kept is taken after every step."""

    @property
    def answer(self) -> bytes:
        """The payload of the last frame; nothing where its reader has left."""
        return bytes(_line(self.lines[-1]).payload) if self.lines else b""

    def pieces(self) -> list[Piece]:
        """Return what was sent since the last time, as server-sent events."""
        lines, self.lines = self.lines, []
        found = [Piece(self._sent + n, line.rstrip(b"\n")) for n, line in enumerate(lines, 1)]
        self._sent += len(found)
        return found


async def invoke(call: Call) -> bytes | Response:
    """Invoke an agent: wait for its result, stream what it says, or be told where to find it.

    The fields are those of the worker protocol's `agent.invoke`. A failure has the HTTP status of
    its code, also after the agent has begun: `outcome` says what is known of the work. With
    `options.stream` the status is 200 and the last event says how it ended; with `options.async`
    it is 202, and `GET /v1/invocations/{invoke_id}/result` waits for the end. Who leaves while it
    waits ends nothing.
    """
    value = decode(await call.read())
    record(value, InvokeBody)
    asked: Invoke = payload_as(value, Invoke)
    options = asked.options
    task = task_of(call.orchestrator, asked, f"http-{ulid()}")
    node = call.orchestrator.definition(task.agent_id).agent_id if task.agent_id else ""
    streams = options is not None and options.stream
    waits = not (options is not None and options.run_async)
    if streams and waits:
        share_of(call.scope).become_stream()  # before it is accepted: it may be refused
    here = _Asked(call, envelope.LINE_BYTES if streams else WHOLE)
    telling = Telling(here, here.to, asked, node=node)
    accepted = await call.orchestrator.submit(task, call.principal)
    if not waits:
        where = {"location": f"/v1/invocations/{accepted.execution_id}/result"}
        body = encode(begun(accepted.execution_id))
        return Response(body, 202, media_type="application/json", headers=where)
    if streams:
        return EventStream(_frames(call, here, telling, accepted.execution_id))
    await call.while_there(telling.follow(accepted.execution_id))
    return here.answer


async def _frames(
    call: Call, here: _Asked, telling: Telling, execution_id: str
) -> AsyncGenerator[list[Piece], None]:
    steps = telling.steps(execution_id, heartbeat=call.door.patience.heartbeat)
    try:
        async with aclosing(steps):
            async for _ in steps:
                yield here.pieces()
    except RetinueError as error:
        here.send(envelope.encode_checked(envelope.error(here.to, fault_of(error))))
    yield here.pieces()


async def invocation_result(call: Call) -> bytes:
    """Wait for the end of an earlier invocation, and answer as it would have been answered."""
    here = _Asked(call, WHOLE)
    limit = call.query(WaitQuery).timeout_ms
    telling = Telling(here, here.to, None)
    await call.while_there(telling.end_of(_id(call), limit))
    return here.answer


async def invocation_next_step(call: Call) -> bytes:
    """Wait for the end of an earlier invocation, or for what its agent asks a person."""
    here = _Asked(call, WHOLE)
    limit = call.query(WaitQuery).timeout_ms
    telling = Telling(here, here.to, None, stop_at_questions=True)
    await call.while_there(telling.step_of(_id(call), limit))
    return here.answer


async def pending_human_input(call: Call) -> bytes:
    """List what agents ask of a person: those of one invocation, or all."""
    invoke_id = call.query(PendingQuery).invoke_id
    found = await pending(call.orchestrator, invoke_id, call.principal)
    return encode(HumanInputReply(status="success", result=found))


async def provide_human_input(call: Call) -> bytes:
    """Answer what an agent asks of a person, once. 422 when it is answered already."""
    value = decode(await call.read())
    record(value, ProvideBody)
    ids = await provide(call.orchestrator, payload_as(value, Provide), call.principal)
    return encode(ProvideReply(status="success", result=ids))


def _id(call: Call) -> str:
    return call.ulid("invoke_id", "execution")


_ENDS = (409, 410, 500, 502, 504, 507)
"""How an invocation may fail once it has begun."""
OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/invocations",
        endpoint=invoke,
        tag="invocations",
        body=InvokeBody,
        gives=InvokeReply,
        gives_text="text/event-stream",
        text=STREAMED,
        also={202: InvokeReply},
        errors=(*_ENDS, 404, 429),
        faults=True,
    ),
    Operation(
        method="GET",
        path="/v1/invocations/{invoke_id}/result",
        endpoint=invocation_result,
        tag="invocations",
        query=WaitQuery,
        gives=InvokeReply,
        errors=(*_ENDS, 429),
        faults=True,
    ),
    Operation(
        method="GET",
        path="/v1/invocations/{invoke_id}/next_step",
        endpoint=invocation_next_step,
        tag="invocations",
        query=WaitQuery,
        gives=InvokeReply,
        errors=(*_ENDS, 429),
        faults=True,
    ),
    Operation(
        method="GET",
        path="/v1/human_input",
        endpoint=pending_human_input,
        tag="invocations",
        query=PendingQuery,
        gives=HumanInputReply,
        errors=(404,),
        faults=True,
    ),
    Operation(
        method="POST",
        path="/v1/human_input",
        endpoint=provide_human_input,
        tag="invocations",
        body=ProvideBody,
        gives=ProvideReply,
        errors=(507,),
        faults=True,
    ),
)

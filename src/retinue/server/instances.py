"""Instances: the processes that agents are."""

from __future__ import annotations

import codecs
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar

import msgspec
from starlette.responses import Response

from retinue.domain.event import Piece
from retinue.domain.instance import InstanceState
from retinue.interfaces import InstanceFilter
from retinue.orchestrator.instance_views import InstanceView
from retinue.orchestrator.instances import LogTail
from retinue.server.admission import share_of
from retinue.server.records import Query, Ulid
from retinue.server.routing import Call, Operation, encode
from retinue.server.streams import EventStream

MOST_TAIL = 1 << 20
MOST_TEXT = 128 << 10
_STATES = "|".join(state.value for state in InstanceState)
_SIGNALS = {
    **{name: signal.Signals[f"SIG{name}"] for name in ("INT", "TERM", "HUP", "QUIT", "KILL")},
    **{name: signal.Signals[f"SIG{name}"] for name in ("USR1", "USR2", "STOP", "CONT")},
    "Interrupt": signal.SIGINT,
    "Terminate": signal.SIGTERM,
    "Kill": signal.SIGKILL,
}

STREAMED = {
    "type": "object",
    "description": "One server-sent event: `data` is JSON with `stream` and `text`.",
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["id", "data"],
}


class InstanceList(msgspec.Struct, frozen=True, kw_only=True):
    """Instances, newest first."""

    instances: list[InstanceView]
    total: int
    next_cursor: str | None


class InstanceQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which instances."""

    agent_id: str | None = None
    execution_id: str | None = None
    state: (
        Annotated[
            str,
            msgspec.Meta(
                pattern=f"^({_STATES})(,({_STATES}))*$",
                description="One state, or several separated by commas.",
                examples=["ready,busy"],
            ),
        ]
        | None
    ) = None
    live: Annotated[bool, msgspec.Meta(description="Only those that have not ended.")] = False


class LogQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of what it wrote before: the last `tail` bytes of each stream."""

    tail: Annotated[int, msgspec.Meta(ge=0, le=MOST_TAIL)] = 64 * 1024


class InstanceLog(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of what an instance wrote; bytes that are no UTF-8 are replaced.

    Before what is shown it wrote `skipped` bytes that are kept (a larger `tail` shows them), and
    before those `dropped` ones that are not. The two streams' order among each other is not kept:
    who follows sees them as they come.
    """

    instance_id: Ulid
    stdout: str
    stderr: str
    stdout_skipped: int
    stderr_skipped: int
    stdout_dropped: int
    stderr_dropped: int


class SignalBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signal, by its name; `tree` sends it to everything that the process started, too."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"signal": "TERM"}

    signal: Annotated[
        str,
        msgspec.Meta(pattern=f"^({'|'.join(_SIGNALS)})$", examples=["TERM"]),
    ]
    tree: bool = False


class SignalReply(msgspec.Struct, frozen=True, kw_only=True):
    """How many processes got the signal; 0: it has ended."""

    instance_id: Ulid
    delivered: int


class StdinBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is written to the instance's stdin; `close`: nothing more will be."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"text": "go on\n"}

    # Escaped as JSON it may be six times as long, and a body has a bound of its own.
    text: Annotated[str, msgspec.Meta(max_length=MOST_TEXT)] = ""
    close: bool = False


async def list_instances(call: Call) -> bytes:
    """List the processes that agents are, newest first, also those that have ended.

    Agents that are objects of the server, or somebody else's service, have none.
    """
    query = call.query(InstanceQuery)
    states = tuple(InstanceState(word) for word in query.state.split(",")) if query.state else ()
    where = InstanceFilter(
        agent_id=query.agent_id, execution_id=query.execution_id, states=states, live=query.live
    )
    found = await call.orchestrator.instances(where, query.page, call.principal)
    return encode(
        InstanceList(instances=found.items, total=found.total, next_cursor=found.next_cursor)
    )


async def get_instance(call: Call) -> bytes:
    """Get one instance, with what its whole tree uses; its last values once it has ended."""
    return encode(await call.orchestrator.instance(_id(call), call.principal))


async def pause_instance(call: Call) -> bytes:
    """Stop an instance's whole tree where it is (SIGSTOP). 409 when it has ended.

    Until it goes on, the deadline of what it works on stands still, as it does for a question.
    """
    return encode(await call.orchestrator.pause_instance(_id(call), call.principal))


async def resume_instance(call: Call) -> bytes:
    """Let an instance go on (SIGCONT) that was paused, or that a signal had stand still.

    409 when it has ended.
    """
    return encode(await call.orchestrator.resume_instance(_id(call), call.principal))


async def stop_instance(call: Call) -> bytes:
    """Stop an instance, step by step, and all that it started; what it works on is cancelled."""
    return encode(await call.orchestrator.stop_instance(_id(call), call.principal))


async def signal_instance(call: Call) -> bytes:
    """Signal an instance. One that has ended gets none: `delivered` is 0."""
    instance_id = _id(call)
    body = await call.record(SignalBody)
    delivered = await call.orchestrator.signal_instance(
        instance_id, _SIGNALS[body.signal], tree=body.tree, principal=call.principal
    )
    return encode(SignalReply(instance_id=instance_id, delivered=delivered))


async def tell_instance(call: Call) -> Response:
    """Write to an instance's stdin. 409 when it has none that is open."""
    instance_id = _id(call)
    body = await call.record(StdinBody)
    await call.orchestrator.tell_instance(
        instance_id, body.text.encode(), last=body.close, principal=call.principal
    )
    return Response(status_code=204)


async def instance_log(call: Call) -> bytes | Response:
    """Read or follow what an instance writes to stdout and stderr; also after its end.

    A reader that accepts `text/event-stream` gets server-sent events until the instance has ended;
    others get what is kept now. The log is capped: it begins where the oldest was dropped.
    """
    instance_id = _id(call)
    query = call.query(LogQuery)
    if "text/event-stream" in (call.header(b"accept") or ""):
        await call.orchestrator.instance(instance_id, call.principal)
        share_of(call.scope).become_stream()
        found = call.orchestrator.follow_log(
            instance_id,
            query.tail,
            heartbeat=call.door.patience.heartbeat,
            principal=call.principal,
        )
        return EventStream(_pieces(found))
    log = await call.orchestrator.log_tails(instance_id, query.tail, call.principal)
    out, err = log.get("stdout", LogTail()), log.get("stderr", LogTail())
    return encode(
        InstanceLog(
            instance_id=instance_id,
            stdout=out.text,
            stderr=err.text,
            stdout_skipped=out.skipped,
            stderr_skipped=err.skipped,
            stdout_dropped=out.dropped,
            stderr_dropped=err.dropped,
        )
    )


class Texts:
    """Streams of bytes as text: a character that comes in two pieces is one all the same."""

    def __init__(self) -> None:
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}

    def of(self, batch: list[tuple[str, bytes]]) -> Iterator[tuple[str, str]]:
        """Yield what can be shown by now of what came."""
        for stream, data in batch:
            decoder = self._decoders.get(stream)
            if decoder is None:
                decoder = self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
            if text := decoder.decode(data):
                yield stream, text

    def rest(self) -> Iterator[tuple[str, str]]:
        """Yield what is left at the end: what began as a character and was none."""
        for stream, decoder in self._decoders.items():
            if text := decoder.decode(b"", True):
                yield stream, text


async def _pieces(
    found: AsyncGenerator[list[tuple[str, bytes]], None],
) -> AsyncGenerator[list[Piece], None]:
    number = 0
    texts = Texts()
    async with aclosing(found) as batches:
        async for batch in batches:
            pieces = []
            for stream, text in texts.of(batch):
                number += 1
                pieces.append(Piece(number, encode({"stream": stream, "text": text})))
            yield pieces
    if left := [Piece(number + 1, encode({"stream": s, "text": text})) for s, text in texts.rest()]:
        yield left


def _id(call: Call) -> str:
    return call.ulid("instance_id", "instance")


_PATH = "/v1/instances/{instance_id}"
OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/instances",
        endpoint=list_instances,
        tag="instances",
        query=InstanceQuery,
        gives=InstanceList,
    ),
    Operation(method="GET", path=_PATH, endpoint=get_instance, tag="instances", gives=InstanceView),
    Operation(
        method="GET",
        path=f"{_PATH}/log",
        endpoint=instance_log,
        tag="instances",
        query=LogQuery,
        gives=InstanceLog,
        gives_text="text/event-stream",
        text=STREAMED,
    ),
    *(
        Operation(
            method="POST",
            path=f"{_PATH}/{word}",
            endpoint=endpoint,
            tag="instances",
            gives=InstanceView,
            errors=(409, 507),
        )
        for word, endpoint in (
            ("pause", pause_instance),
            ("resume", resume_instance),
            ("stop", stop_instance),
        )
    ),
    Operation(
        method="POST",
        path=f"{_PATH}/signal",
        endpoint=signal_instance,
        tag="instances",
        body=SignalBody,
        gives=SignalReply,
        errors=(409, 507),
    ),
    Operation(
        method="POST",
        path=f"{_PATH}/stdin",
        endpoint=tell_instance,
        tag="instances",
        body=StdinBody,
        status=204,
        errors=(409, 502, 507),
    ),
)

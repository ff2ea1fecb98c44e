"""The queue: how much waits, for whom, and since when."""

from __future__ import annotations

import msgspec

from retinue.domain.ids import at_of, iso
from retinue.interfaces import QueueDepth
from retinue.server.records import Time
from retinue.server.routing import Call, Operation, encode


class QueueLine(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for one agent (`agent:ID`), or for any that has a capability (`cap:NAME`).

    `ready` could go if a slot were free, `in_turn` waits for earlier tasks of its session,
    `scheduled` for its time. `oldest_at` is when the oldest that is not scheduled was accepted.
    """

    queue_key: str
    ready: int
    in_turn: int
    scheduled: int
    oldest_at: Time | None


class QueueView(msgspec.Struct, frozen=True, kw_only=True):
    """All that waits, whoever asked for it; `bound` is how much may wait for one queue key."""

    queues: list[QueueLine]
    ready: int
    in_turn: int
    scheduled: int
    bound: int


def _line(depth: QueueDepth) -> QueueLine:
    oldest = min((i for i in (depth.oldest_ready, depth.oldest_in_turn) if i), default=None)
    return QueueLine(
        queue_key=depth.key,
        ready=depth.ready,
        in_turn=depth.in_turn,
        scheduled=depth.scheduled,
        oldest_at=iso(at_of(oldest)) if oldest is not None else None,
    )


async def show_queue(call: Call) -> bytes:
    """Show how much waits, by queue key."""
    depths = await call.orchestrator.queue()
    return encode(
        QueueView(
            queues=[_line(depth) for depth in depths],
            ready=sum(depth.ready for depth in depths),
            in_turn=sum(depth.in_turn for depth in depths),
            scheduled=sum(depth.scheduled for depth in depths),
            bound=call.door.settings.queue_bound,
        )
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/queue",
        endpoint=show_queue,
        tag="tasks",
        gives=QueueView,
    ),
)

"""Events: numbered, immutable facts about an execution; exactly one of them is terminal.

``EventData`` is what a driver yields. The engine gives it a sequence number and a time, journals
it, and only then publishes the resulting ``Event``. Names on the wire are specification 004's.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any

import msgspec

from retinue.domain.ids import iso


class EventType(StrEnum):
    """The kinds of event; the value is the ``eventType`` on the wire."""

    ATTEMPT_STARTED = "attempt_started"
    CONTENT_CHUNK = "content_chunk"
    THINKING = "thinking"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    PROGRESS = "progress"
    LOG = "log"
    USAGE = "usage"
    INPUT_REQUIRED = "input_required"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_EVENTS = frozenset({EventType.COMPLETED, EventType.FAILED, EventType.CANCELLED})


class EventData(msgspec.Struct, frozen=True):
    """What happened, before it has a number. ``data`` is a JSON object.

    ``cursor`` is where in the instance's output this event ended, when there is such a place: it
    commits with the event, so that a re-attached reader neither loses nor repeats anything.
    """

    type: EventType
    data: dict[str, Any]
    cursor: str | None = None


class Event(msgspec.Struct, frozen=True):
    """A journaled event: ``seq`` counts from 1 within its execution, ``data`` is JSON bytes."""

    execution_id: str
    seq: int
    type: EventType
    at: int
    data: bytes

    @property
    def terminal(self) -> bool:
        """Whether it is the last event of its execution."""
        return self.type in TERMINAL_EVENTS

    def as_wire(self) -> bytes:
        """Return the JSON object that every streaming door sends for this event."""
        return self.wire_head() + self.wire_tail()

    def wire_head(self) -> bytes:
        """Return the object's beginning, up to where its data go."""
        return b'{"executionId":"%s","eventType":"%s","sequence":%d,"timestamp":"%s"' % (
            self.execution_id.encode(),
            self.type.encode(),
            self.seq,
            iso(self.at).encode(),
        )

    def wire_tail(self) -> bytes:
        """Return the object's end: its data."""
        return b"}" if self.data == b"{}" else b"," + self.data[1:]


class Piece(msgspec.Struct, frozen=True):
    """A part of an event as it is sent: ``wire`` is part of its JSON object."""

    seq: int
    wire: bytes
    first: bool = True
    last: bool = True


def chain_event(digest: bytes, seq: int, kind: str, data: bytes) -> bytes:
    """Return the digest over an execution's events after one more of them.

    Its RESPONSE contract carries the last one, so that a changed, missing or moved event shows.
    """
    return hashlib.sha256(b"%b|%d|%b|%b" % (digest, seq, kind.encode(), data)).digest()

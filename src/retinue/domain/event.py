"""Events: numbered, immutable facts about an execution; exactly one of them is terminal.

``EventData`` is what a driver yields. The engine gives it a sequence number and a time, journals
it, and only then publishes the resulting ``Event``. Names on the wire are specification 004's.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from functools import cached_property
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


class Event(msgspec.Struct, frozen=True, dict=True):
    """A journaled event: ``seq`` counts from 1 within its execution, ``data`` is JSON bytes.

    (``dict`` only for what is cached: readers of one execution share its events.)
    """

    execution_id: str
    seq: int
    type: EventType
    at: int
    data: bytes

    @property
    def terminal(self) -> bool:
        """Whether it is the last event of its execution."""
        return self.type in TERMINAL_EVENTS

    @cached_property
    def wire(self) -> bytes:
        """The JSON object that every streaming door sends for this event."""
        head = b'{"executionId":"%s","eventType":"%s","sequence":%d,"timestamp":"%s"' % (
            self.execution_id.encode(),
            self.type.encode(),
            self.seq,
            iso(self.at).encode(),
        )
        if self.data == b"{}":
            return head + b"}"
        return head + b"," + self.data[1:]


def chain_event(digest: bytes, seq: int, kind: str, data: bytes) -> bytes:
    """Return the digest over an execution's events after one more of them.

    Its RESPONSE contract carries the last one, so that a changed, missing or moved event shows.
    """
    return hashlib.sha256(b"%b|%d|%b|%b" % (digest, seq, kind.encode(), data)).digest()

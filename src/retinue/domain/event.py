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
    TRUNCATED = "truncated"
    """Never stored: what a late reader gets in place of events that retention has removed."""


TERMINAL_EVENTS = frozenset(
    {EventType.COMPLETED, EventType.FAILED, EventType.CANCELLED, EventType.TRUNCATED}
)
ERASED = b'{"erased":true}'
"""The data of an event whose content was erased."""
SECOND_KIND = b"\x02"
"""What a digest of the second kind begins with; those of the first are a bare hash."""
_FIRST_KIND = 32


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
        return self.wire_head() + self.wire_tail()

    @cached_property
    def piece(self) -> Piece:
        """The whole event as one piece, made once for all readers."""
        return Piece(self.seq, self.wire)

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


class Piece(msgspec.Struct, frozen=True, dict=True):
    """A part of an event as it is sent: ``wire`` is part of its JSON object.

    (``dict`` only for what is cached: readers share the pieces of small events.)
    """

    seq: int
    wire: bytes
    first: bool = True
    last: bool = True

    @cached_property
    def sse(self) -> bytes:
        """The piece as server-sent events carry it."""
        begin = b"id: %d\ndata: " % self.seq if self.first else b""
        return begin + self.wire + (b"\n\n" if self.last else b"")


def hash_data(data: bytes) -> bytes:
    """Return the hash that stands for an event's data in the digest, once that is erased too."""
    return hashlib.sha256(data).digest()


def is_sealed(digest: bytes) -> bool:
    """Say whether a digest is of the second kind: one that can bear erasure."""
    return len(digest) > _FIRST_KIND


def chain_event(
    digest: bytes, event: Event, hashed: bytes | None = None, *, first_kind: bool = False
) -> bytes:
    """Return the digest over an execution's events after one more of them.

    Its RESPONSE contract vouches for the last one, so that a changed, missing or moved event
    shows. ``hashed`` is the hash of data that was erased. A digest that an earlier version began
    (32 bytes: it covers neither times nor survives an erasure) goes on as it began;
    ``first_kind`` says so of its first event.
    """
    seq, kind = event.seq, event.type.encode()
    if first_kind or (seq > 1 and not is_sealed(digest)):
        return hashlib.sha256(b"%b|%d|%b|%b" % (digest, seq, kind, event.data)).digest()
    hashed = hashed or hash_data(event.data)
    link = b"%b|%d|%b|%d|%b" % (digest, seq, kind, event.at, hashed)
    return SECOND_KIND + hashlib.sha256(link).digest()


def chain_answer(
    digest: bytes, question_id: str, state: str, by: str | None, hashed: bytes | None
) -> bytes:
    """Return the digest after a question of the execution was answered, or expired.

    ``hashed`` is the hash of the answer. The question itself is an event.
    """
    if not is_sealed(digest):
        return digest
    said = "|".join((question_id, state, by or "")).encode()
    link = b"%b|?|%b|%b" % (digest, hashlib.sha256(said).digest(), hashed or b"")
    return SECOND_KIND + hashlib.sha256(link).digest()

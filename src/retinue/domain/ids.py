"""ULIDs and time.

Ids are ULIDs (26 Crockford base-32 characters): they sort by creation time and are strictly
increasing within a process. Stored times are integer microseconds since the epoch, UTC.

Stored times are compared with one another: a deadline with now, a retry with now. So now must go
as time goes, also when somebody sets the system's clock. The clock here is read once, when the
process starts; from then on a clock that nobody can set tells how long ago that was. What the two
differ by is made up for slowly (``follow_clock``).
"""

from __future__ import annotations

import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta

from retinue.errors import InvalidInput

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two characters a lookup: a ULID is made for every execution and contract.
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_PATTERN = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\Z")
_LOW_BITS = 50


_STEP_NS = 5_000_000


def _steady() -> int:
    """Return nanoseconds that pass as time does, also while the machine is asleep."""
    return time.clock_gettime_ns(_STEADY)


class _Clock:
    """How far the epoch is from the steady clock's beginning, in nanoseconds."""

    def __init__(self) -> None:
        self.offset = time.time_ns() - _steady()


_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_clock = _Clock()


class _Ulids:
    """A strictly increasing source of ULIDs, safe for use by several threads.

    A ULID is 48 bits of milliseconds and 80 random bits. Within one millisecond the lower 50
    bits count on from their random start, so that only they are encoded anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at = 0
        self._head = ""
        self._low = 0
        self._random: list[bytes] = []

    def next(self) -> str:
        at = now_us() // 1_000
        with self._lock:
            if at > self._at or self._low + 1 >> _LOW_BITS:
                self._renew(max(at, self._at + (at <= self._at)))
            else:
                # The same millisecond, or a clock that went back.
                self._low += 1
            low, head = self._low, self._head
        pairs = _PAIRS
        return (
            head
            + pairs[low >> 40]
            + pairs[low >> 30 & 1023]
            + pairs[low >> 20 & 1023]
            + pairs[low >> 10 & 1023]
            + pairs[low & 1023]
        )

    def _renew(self, at: int) -> None:
        """Begin a new millisecond with fresh random bits."""
        self._at = at
        if not self._random:
            pool = os.urandom(10 * 256)
            self._random = [pool[i : i + 10] for i in range(0, len(pool), 10)]
        value = at << 80 | int.from_bytes(self._random.pop(), "big")
        # The topmost counting bit stays 0: room to count.
        self._low = value & ((1 << _LOW_BITS - 1) - 1)
        self._head = "".join([_PAIRS[value >> shift & 1023] for shift in range(120, 49, -10)])


_ulids = _Ulids()


def _forget() -> None:
    """Begin anew in a forked child: it must not go on with its parent's random bits."""
    global _ulids  # noqa: PLW0603 one source per process
    _ulids = _Ulids()


os.register_at_fork(after_in_child=_forget)


def ulid() -> str:
    """Return a new ULID, greater than every one this process returned before."""
    return _ulids.next()


def is_ulid(text: str) -> bool:
    """Say whether ``text`` is a well-formed ULID."""
    return _PATTERN.match(text) is not None


def at_of(made: str) -> int:
    """Return when a ULID was made, in microseconds since the epoch (to the millisecond)."""
    at = 0
    for character in made[:10]:
        at = at << 5 | _ALPHABET.index(character)
    return at * 1_000


def now_us() -> int:
    """Return the time in integer microseconds since the epoch, UTC; it never jumps."""
    return (_clock.offset + _steady()) // 1_000


def follow_clock() -> float:
    """Come a little nearer to the system's clock; return by how many seconds that is ahead.

    To be called about once a second: that makes up for a second in a few minutes, and time never
    goes back. What is hours off stays so until the process starts anew.
    """
    ahead = time.time_ns() - (_clock.offset + _steady())
    _clock.offset += max(-_STEP_NS, min(_STEP_NS, ahead))
    return ahead / 1_000_000_000


_latest: tuple[int, str] = (0, "1970-01-01T00:00:00")


def iso(at: int) -> str:
    """Return ``at`` (microseconds) as ISO 8601 in UTC, ending in ``Z``."""
    global _latest  # noqa: PLW0603 most calls are for the second of the last one
    second, rest = divmod(at, 1_000_000)
    known, text = _latest
    if second != known:
        text = datetime.fromtimestamp(second, UTC).isoformat()[:-6]
        _latest = second, text
    return f"{text}.{rest:06}Z" if rest else f"{text}Z"


def ulid_after(at: int) -> str:
    """Return an id that follows every ULID made up to ``at`` (microseconds UTC)."""
    left, head = max(at, 0) // 1000 + 1, ""
    for _ in range(10):
        head = _ALPHABET[left & 31] + head
        left >>= 5
    return head + "0" * 16


def microseconds(moment: datetime) -> int:
    """Return a moment that knows its time zone in microseconds since the epoch.

    Raises:
        InvalidInput: it does not know it.
    """
    if moment.tzinfo is None:
        raise InvalidInput(f"{moment.isoformat()} does not say in which time zone it is")
    return (moment - _EPOCH) // timedelta(microseconds=1)

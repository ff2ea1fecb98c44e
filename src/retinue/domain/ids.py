"""ULIDs and time.

Ids are ULIDs (26 Crockford base-32 characters): they sort by creation time and are strictly
increasing within a process. Stored times are integer microseconds since the epoch, UTC.
"""

from __future__ import annotations

import os
import re
import threading
import time
from datetime import UTC, datetime

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two characters a lookup: a ULID is made for every execution and contract.
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_PATTERN = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\Z")
_RANDOM_BITS = 80


class _Ulids:
    """A strictly increasing source of ULIDs, safe for use by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> str:
        value = (time.time_ns() // 1_000_000 << _RANDOM_BITS) | int.from_bytes(os.urandom(10), "big")
        with self._lock:
            if value >> _RANDOM_BITS <= self._last >> _RANDOM_BITS:
                # Same millisecond, or a clock that went back: count on from the last one.
                value = self._last + 1
            self._last = value
        pairs = _PAIRS
        return "".join([pairs[value >> shift & 1023] for shift in range(120, -1, -10)])


_ulids = _Ulids()


def ulid() -> str:
    """Return a new ULID, greater than every one this process returned before."""
    return _ulids.next()


def is_ulid(text: str) -> bool:
    """Say whether ``text`` is a well-formed ULID."""
    return _PATTERN.match(text) is not None


def now_us() -> int:
    """Return the time in integer microseconds since the epoch, UTC."""
    return time.time_ns() // 1_000


def iso(at: int) -> str:
    """Return ``at`` (microseconds) as ISO 8601 in UTC, ending in ``Z``."""
    return datetime.fromtimestamp(at / 1_000_000, UTC).isoformat().replace("+00:00", "Z")

"""Answers kept for a while: the same agent, asked the same by the same owner, need not run again.

Only what an agent allows is kept, never a failure, never across owners or versions. Bounded by
bytes; what was used least recently goes first. Times are monotonic seconds, given by the caller.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import msgspec

_sorted = msgspec.json.Encoder(order="sorted").encode
_OVERHEAD = 256


def cache_key(owner: str, agent_id: str, version: str, asked: Any) -> bytes:
    """Return what stands for one question to one version of an agent. ``asked`` is JSON."""
    return hashlib.sha256(_sorted((owner, agent_id, version, asked))).digest()


class Cache:
    """Results as JSON bytes, by key."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self.size = 0

    def get(self, key: bytes, now: float) -> bytes | None:
        """Return what is kept for ``key`` and still fresh."""
        found = self._kept.get(key)
        if found is None:
            return None
        until, result = found
        if until <= now:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return result

    def put(self, key: bytes, result: bytes, now: float, seconds: float) -> None:
        """Keep a result for ``seconds``; one that is larger than all there is room for is not."""
        self._drop(key)
        size = len(result) + _OVERHEAD
        if size > self._most:
            return
        self._kept[key] = (now + seconds, result)
        self.size += size
        while self.size > self._most:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: bytes) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self.size -= len(found[1]) + _OVERHEAD

"""The latency budget of specification 000 (§8.1): what each operation aims at, and its most.

What took longer than its most is a breach, and counted. Pure but for the clock, which is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

import msgspec


class Operation(StrEnum):
    """What is measured; the value is its name for people."""

    STARTUP = "startup"
    INVOKE = "simple_invoke"
    LLM_INVOKE = "llm_invoke"
    CHUNK = "stream_chunk"
    DATASET_ADD = "dataset_add"
    HEALTH = "health_check"


class Allowed(msgspec.Struct, frozen=True):
    """What an operation aims at, and what it may take at most, in milliseconds."""

    target_ms: float
    most_ms: float


BUDGET: dict[Operation, Allowed] = {
    Operation.STARTUP: Allowed(5_000, 10_000),
    Operation.INVOKE: Allowed(2_000, 30_000),
    Operation.LLM_INVOKE: Allowed(10_000, 60_000),
    Operation.CHUNK: Allowed(100, 500),
    Operation.DATASET_ADD: Allowed(50, 1_000),
    Operation.HEALTH: Allowed(100, 1_000),
}


class LatencyView(msgspec.Struct, frozen=True, kw_only=True):
    """How long one operation takes: what it should, what it may, and what it took.

    `count` and `breaches` (longer than `most_ms`) are since the start of the server.
    """

    operation: Operation
    target_ms: float
    most_ms: float
    count: int
    average_ms: float
    longest_ms: float
    breaches: int


class _Sum:
    __slots__ = ("breaches", "count", "longest", "total")

    def __init__(self) -> None:
        self.count = 0
        self.breaches = 0
        self.total = 0.0
        self.longest = 0.0


class Meter:
    """What a worker's operations took. ``clock`` is in seconds, and steady."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._sums: dict[Operation, _Sum] = {}

    def since(self, operation: Operation, begun: float) -> float:
        """Count an operation that began at ``begun`` and ends now; return its seconds."""
        seconds = self.clock() - begun
        self.add(operation, seconds)
        return seconds

    def add(self, operation: Operation, seconds: float) -> None:
        """Count an operation that took ``seconds``."""
        known = self._sums.get(operation)
        if known is None:
            known = self._sums[operation] = _Sum()
        known.count += 1
        known.total += seconds
        known.longest = max(known.longest, seconds)
        known.breaches += seconds * 1000 > BUDGET[operation].most_ms

    @property
    def breaches(self) -> int:
        """How many took too long, of all kinds."""
        return sum(known.breaches for known in self._sums.values())

    def views(self) -> list[LatencyView]:
        """Return what was measured so far, in the order of the budget."""
        return [
            LatencyView(
                operation=operation,
                target_ms=allowed.target_ms,
                most_ms=allowed.most_ms,
                count=known.count,
                average_ms=round(known.total / known.count * 1000, 3),
                longest_ms=round(known.longest * 1000, 3),
                breaches=known.breaches,
            )
            for operation, allowed in BUDGET.items()
            if (known := self._sums.get(operation)) is not None
        ]

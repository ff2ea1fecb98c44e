"""What may be repeated, when, and how often: data, and the pure decisions on it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from retinue.errors import Outcome


class Delivery(StrEnum):
    """What an execution may do after an outcome that is not known.

    ``AT_MOST_ONCE`` never repeats work that may have had effects. ``AT_LEAST_ONCE`` and
    ``IDEMPOTENT`` say that the agent bears repeats; the latter that they change nothing.
    """

    AT_MOST_ONCE = "at_most_once"
    AT_LEAST_ONCE = "at_least_once"
    IDEMPOTENT = "idempotent"


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a failed attempt is followed by another (specification 000 §7.1).

    ``max_attempts`` counts all attempts, the first included; crashes and failures share it.
    ``waits_ms`` are the pauses before the second, third … attempt; the last one repeats.
    ``kinds`` are the error kinds that are retried.
    """

    max_attempts: int = 3
    waits_ms: tuple[int, ...] = (1000, 2000, 5000)
    kinds: frozenset[str] = frozenset({"timeout", "stream", "internal"})

    def wait_us(self, attempt: int) -> int:
        """Return the pause, in microseconds, after ``attempt`` (counted from 1) failed."""
        if not self.waits_ms:
            return 0
        return self.waits_ms[min(attempt, len(self.waits_ms)) - 1] * 1_000


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When calls to an agent are refused at once (specification 000 §7.2)."""

    failure_threshold: int = 5
    reset_timeout_ms: int = 60_000


class RatePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most ``per_minute`` calls a minute, ``burst`` of them (None: all) at once."""

    per_minute: int
    burst: int | None = None


def may_repeat(
    delivery: Delivery, retry: RetryPolicy, *, attempt: int, kind: str, outcome: Outcome
) -> bool:
    """Say whether an attempt that ended so may be followed by another one.

    An ``at_most_once`` execution repeats only what never started: once the agent ran, a second
    run could double its effects.
    """
    if attempt >= retry.max_attempts or kind not in retry.kinds:
        return False
    return outcome == "not_started" or delivery is not Delivery.AT_MOST_ONCE

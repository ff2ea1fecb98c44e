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


class BusyPolicy(StrEnum):
    """What a task does when its session is busy: when an earlier task of it has not ended yet.

    ``PARALLEL`` runs beside it. ``REJECT`` is refused. ``ENQUEUE`` waits until all of the session
    that came before have ended: one at a time, in the order they were accepted. ``INTERRUPT``
    cancels them, and then goes. A task that waits for its time is decided about when that has
    come. What an agent has others do belongs to its own task, and is never in its own way.
    """

    PARALLEL = "parallel"
    REJECT = "reject"
    ENQUEUE = "enqueue"
    INTERRUPT = "interrupt"


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


MOST_PRIORITY = 1000
MOST_DELAY_US = 3660 * 24 * 3600 * 1_000_000
"""How urgent, and how far ahead (ten years), a task may be."""


def rank_of(due_at: int, priority: int, step_us: int) -> int:
    """Return a place in the queue: the least one goes first.

    It is the moment from which a task waits, put forward by ``step_us`` for every step of its
    priority. So a task is overtaken only by what came less than that much later: waiting makes up
    for a low priority, and nobody waits for ever. The number never changes while time passes (two
    tasks age alike), so an index can keep the order, and a lease is one probe of it.
    """
    return due_at - priority * step_us


def repeatable(delivery: Delivery, retry: RetryPolicy, *, kind: str, outcome: Outcome) -> bool:
    """Say whether an attempt that ended so is to be followed by another one, while any are left.

    An ``at_most_once`` execution repeats only what never started: once the agent ran, a second
    run could double its effects.
    """
    if kind not in retry.kinds:
        return False
    return outcome == "not_started" or delivery is not Delivery.AT_MOST_ONCE

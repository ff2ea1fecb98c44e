"""The circuit breaker, as a pure decision (specification 000 §7.2).

::

    closed ── failure_threshold failures in a row ──► open
    open ── reset_timeout_ms later ──► half_open: exactly one probe may pass
    half_open ── the probe succeeds ──► closed      ── it fails ──► open

Times are monotonic seconds, given by the caller.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from retinue.domain.policy import BreakerPolicy


class Circuit(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker(msgspec.Struct):
    """One agent's breaker: ``admit`` before a call, then one of the other three.

    Those get what ``admit`` returned: only the probe itself decides about a half-open circuit, and
    a call from before the circuit opened says nothing about it any more.
    """

    policy: BreakerPolicy
    circuit: Circuit = Circuit.CLOSED
    failures: int = 0
    last_failure: float | None = None
    probe: int = 0

    def wait(self, now: float) -> float:
        """Return how many seconds it still refuses; 0 when a call may pass now."""
        if self.circuit is Circuit.CLOSED:
            return 0.0
        assert self.last_failure is not None
        left = self.last_failure + self.policy.reset_timeout_ms / 1000 - now
        if self.circuit is Circuit.HALF_OPEN:
            # The one probe is out; whoever comes now waits for its answer.
            return max(left, 0.001)
        return max(left, 0.0)

    def admit(self) -> int:
        """Let one call pass; ``wait`` must be 0. The first after the reset is the probe."""
        if self.circuit is Circuit.CLOSED:
            return 0
        self.circuit = Circuit.HALF_OPEN
        self.probe += 1
        return self.probe

    def _speaks(self, call: int) -> bool:
        """Say whether ``call`` tells something about the circuit as it is now."""
        if self.circuit is Circuit.CLOSED:
            return True
        return self.circuit is Circuit.HALF_OPEN and call == self.probe

    def succeeded(self, call: int) -> None:
        """Close, and forget earlier failures."""
        if self._speaks(call):
            self.circuit = Circuit.CLOSED
            self.failures = 0

    def failed(self, call: int, now: float) -> None:
        """Count a failure; open at the threshold, or when it was the probe."""
        if not self._speaks(call):
            return
        self.failures += 1
        self.last_failure = now
        if self.circuit is Circuit.HALF_OPEN or self.failures >= self.policy.failure_threshold:
            self.circuit = Circuit.OPEN

    def abandoned(self, call: int) -> None:
        """Take back a call that said nothing about the agent (cancelled, refused)."""
        if self.circuit is Circuit.HALF_OPEN and call == self.probe:
            self.circuit = Circuit.OPEN

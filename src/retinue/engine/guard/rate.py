"""The token bucket: at most so many calls a minute, some of them at once.

Times are monotonic seconds, given by the caller.
"""

from __future__ import annotations

import msgspec

from retinue.domain.policy import RatePolicy


class Bucket(msgspec.Struct):
    """One bucket: ``wait`` says when a call may pass, ``take`` lets it."""

    policy: RatePolicy
    tokens: float = -1.0
    filled_at: float = 0.0

    def _fill(self, now: float) -> None:
        most = float(self.policy.burst or self.policy.per_minute)
        if self.tokens < 0:
            self.tokens = most
        elif now > self.filled_at:
            gained = (now - self.filled_at) * self.policy.per_minute / 60
            self.tokens = min(self.tokens + gained, most)
        self.filled_at = max(self.filled_at, now)

    def free(self, now: float) -> int:
        """Return how many calls may pass now."""
        self._fill(now)
        return int(self.tokens + 1e-9)

    def wait(self, now: float) -> float:
        """Return how many seconds until a call may pass; 0 when one may now."""
        if self.free(now):
            return 0.0
        return (1 - self.tokens) * 60 / self.policy.per_minute

    def take(self, now: float, count: int = 1) -> None:
        """Let ``count`` calls pass; ``free`` must be as many."""
        self._fill(now)
        self.tokens = max(self.tokens - count, 0.0)

    def give(self, count: int = 1) -> None:
        """Take back calls that were not made."""
        self.tokens = min(self.tokens + count, float(self.policy.burst or self.policy.per_minute))


class Callers:
    """One bucket for each caller. Of those, the ones that are full again are forgotten first."""

    def __init__(self, policy: RatePolicy | None, most: int = 10_000) -> None:
        self._policy = policy
        self._most = most
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def admit(self, owner: str, name: str, now: float) -> float:
        """Let a call of that caller pass, or return how many seconds it has to wait."""
        if self._policy is None:
            return 0.0
        bucket = self._buckets.get((owner, name))
        if bucket is None:
            if len(self._buckets) >= self._most:
                self._forget(now)
            bucket = self._buckets[owner, name] = Bucket(self._policy)
        wait = bucket.wait(now)
        if wait == 0:
            bucket.take(now)
        return wait

    def _forget(self, now: float) -> None:
        assert self._policy is not None
        full = self._policy.burst or self._policy.per_minute
        for caller in [c for c, bucket in self._buckets.items() if bucket.free(now) >= full]:
            del self._buckets[caller]

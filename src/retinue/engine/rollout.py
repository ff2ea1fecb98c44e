"""A new version of what a pool's instances are, on its way in.

Instances of the new definition are started before those of the old one are drained, one by one.
While that goes on both work: later work goes to new ones where they have room, what runs ends
where it is. If one of the new ones does not become ready, or ends unasked before all have been
replaced, everything goes back: the old ones that are left stay, those of the new version are
replaced in their turn.
"""

from __future__ import annotations

from msgspec.structs import replace

from retinue.domain.agent import AgentDefinition
from retinue.domain.supervision import Phase, PoolPolicy
from retinue.engine.pool import Member, Pool
from retinue.engine.views import RolloutView
from retinue.errors import Conflict


class Rollout:
    """The versions of one pool: which is being brought in, and which was there before."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._last = pool.version
        self._before: tuple[AgentDefinition, PoolPolicy, int, str | None] | None = None
        self._after = pool.policy

    @property
    def running(self) -> bool:
        """Whether one is under way."""
        return self._before is not None

    def begin(self, definition: AgentDefinition, drain_seconds: float | None) -> None:
        """Have instances of ``definition`` take the place of those there are.

        Raises:
            Conflict: one is under way.
        """
        pool = self._pool
        if self._before is not None:
            raise Conflict(f"version {pool.version} of {pool.definition.agent_id} is on its way in")
        self._before = (pool.definition, pool.policy, pool.version, pool.failed)
        self._last += 1
        pool.become(definition, self._last)
        # Not fewer than before until the new version has shown that it works.
        self._after, old = pool.policy, self._before[1]
        pool.policy = replace(
            pool.policy,
            least=max(old.least, pool.policy.least),
            most=max(old.most, pool.policy.most),
            in_flight=min(old.in_flight, pool.policy.in_flight),
        )
        for member in pool.members.values():
            member.stale = True
            member.drain_seconds = drain_seconds
        pool.rollout = RolloutView(version=self._last, state="running")

    def scaled(self, least: int, most: int) -> None:
        """Take in that the pool has other bounds from now on, whichever version it ends with."""
        self._after = self._after.scaled(least, most)
        if self._before is not None:
            definition, policy, version, failed = self._before
            self._before = (definition, policy.scaled(least, most), version, failed)

    def breaks(self, member: Member) -> bool:
        """Say whether the unasked end of an instance is the new version's failure."""
        return self.running and member.version == self._pool.version

    def back(self, reason: str) -> list[Member]:
        """Go back to the version before; return the instances of it that are at work."""
        assert self._before is not None
        pool = self._pool
        definition, policy, version, failed = self._before
        self._before = None
        pool.rollout = RolloutView(version=pool.version, state="rolled_back", reason=reason)
        pool.become(definition, version, policy)
        pool.failed = failed if not pool.ready else None
        for member in pool.members.values():
            member.stale = member.version != version
        return [m for m in pool.members.values() if not m.stale and m.phase is Phase.READY]

    def arrived(self) -> bool:
        """Say whether the new version has taken the place of the old one, just now."""
        pool = self._pool
        if self._before is None or pool.ready < min(pool.policy.least, pool.policy.most):
            return False
        if any(member.version != pool.version for member in pool.members.values()):
            return False
        self._before = None
        pool.policy = self._after
        pool.rollout = RolloutView(version=pool.version, state="done")
        return True

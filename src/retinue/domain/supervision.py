"""When an instance is started again, and how many there are to be: data, and pure decisions on it.

``judge`` says what follows from the end of an instance, ``plan`` what a pool has to do now. Both
are given the time (monotonic seconds) and whatever is random, so each can be asked about any
moment; the loop that acts on them is ``engine.supervisor``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec


class Restart(StrEnum):
    """After which ends nobody asked for an instance is replaced.

    ``PERMANENT``: after any. ``TRANSIENT``: unless it ended well. ``TEMPORARY``: never.
    """

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an instance that ended is replaced.

    ``most`` restarts within ``within_seconds`` are allowed; the next one in that time is not made:
    what keeps dying is failed, and a person has to look. Before each the pause doubles, from
    ``first_wait_ms`` to ``most_wait_ms``, less up to the part ``jitter`` of it by chance.
    """

    restart: Restart = Restart.PERMANENT
    most: int = 5
    within_seconds: float = 60.0
    first_wait_ms: int = 100
    most_wait_ms: int = 10_000
    jitter: float = 0.2

    def wait(self, recent: int, draw: float) -> float:
        """Return the pause in seconds after ``recent`` restarts; ``draw`` is from [0, 1)."""
        longest = min(self.first_wait_ms * 2.0 ** min(recent, 64), self.most_wait_ms)
        return longest * (1.0 - self.jitter * draw) / 1000


class Departure(msgspec.Struct, frozen=True):
    """How an instance ended: ``clean`` says that it ended well, ``reason`` is for people.

    ``asked`` says that somebody wanted that: it is replaced, and counts as no failure.
    """

    clean: bool
    reason: str
    asked: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """What follows from an end that nobody asked for.

    ``restart`` says whether another one takes its place, not before ``start_at``; ``failed`` why
    nothing is started any more. ``restarts`` are the times that count from now on.
    """

    restart: bool
    restarts: tuple[float, ...]
    start_at: float = 0.0
    failed: str | None = None


def judge(
    policy: RestartPolicy,
    restarts: tuple[float, ...],
    departure: Departure,
    now: float,
    draw: float,
) -> Verdict:
    """Say what follows from an end at ``now``; ``restarts`` is what the last verdict gave."""
    recent = tuple(at for at in restarts if now - at < policy.within_seconds)
    if policy.restart is Restart.TEMPORARY:
        return Verdict(False, recent)
    if policy.restart is Restart.TRANSIENT and departure.clean:
        return Verdict(False, recent)
    if len(recent) >= policy.most:
        why = (
            f"it ended {len(recent) + 1} times within {policy.within_seconds:g} s, "
            f"the last time: {departure.reason}"
        )
        return Verdict(False, recent, failed=why)
    return Verdict(True, (*recent, now), start_at=now + policy.wait(len(recent), draw))


class PoolPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many instances an agent has, and how they are looked after.

    ``least`` are kept warm, ``most`` run under load; what is idle for ``idle_seconds`` beyond
    ``least`` goes. Each performs ``in_flight`` executions at one time. One that is older than
    ``lifetime_seconds`` (None: any age) is replaced, then drained for at most ``drain_seconds``.
    A start may take ``start_seconds``. Every ``ping_seconds`` it is asked whether it is well and
    has ``answer_seconds`` for that. Work that has brought nothing for ``stall_seconds`` is called
    stalled: what answers pings may do so while its work hangs.
    """

    least: int = 1
    most: int = 1
    in_flight: int = 1
    idle_seconds: float = 60.0
    lifetime_seconds: float | None = 24 * 3600.0
    drain_seconds: float = 30.0
    start_seconds: float = 10.0
    ping_seconds: float = 10.0
    answer_seconds: float = 5.0
    stall_seconds: float = 120.0
    restart: RestartPolicy = RestartPolicy()

    def scaled(self, least: int, most: int) -> PoolPolicy:
        """Return it with other bounds."""
        return msgspec.structs.replace(self, least=least, most=most)

    @property
    def capacity(self) -> int:
        """How many executions the whole pool may perform at one time."""
        return self.most * self.in_flight


class Phase(StrEnum):
    """Where an instance of a pool stands; one that is busy is ready, too."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Stand(msgspec.Struct, frozen=True):
    """What a plan needs to know of one instance.

    ``since`` is when it was started, ``idle_since`` when its last work ended. ``stale`` says that
    it is to be replaced, whatever its age. ``lent`` of those ``in_flight`` wait for others and take
    no place.
    """

    name: str
    phase: Phase
    in_flight: int
    since: float
    idle_since: float
    stale: bool = False
    lent: int = 0


class Plan(msgspec.Struct, frozen=True):
    """What to do now, and in how many seconds to ask again unless something happens before."""

    start: int = 0
    drain: tuple[str, ...] = ()
    look_in: float | None = None


def plan(
    policy: PoolPolicy,
    stands: Sequence[Stand],
    now: float,
    *,
    waiting: int = 0,
    start_at: float = 0.0,
    lost: int = 0,
    failed: bool = False,
    bound: bool = False,
) -> Plan:
    """Say what a pool has to do.

    ``waiting`` executions found no instance; ``lost`` instances are not replaced by policy, and
    nothing is started before ``start_at`` or once the pool has ``failed``. ``bound`` says that an
    instance serves one session only: none of those that are ready serves what waits.
    """
    least, most = max(policy.least - lost, 0), max(policy.most - lost, 0)
    live = [s for s in stands if s.phase is not Phase.DRAINING]
    ready = [s for s in live if s.phase is Phase.READY]
    wanted = _wanted(policy, live, ready, waiting, least=least, most=most, bound=bound)
    old = sorted((s for s in ready if s.stale or _age_left(policy, s, now) <= 0), key=_by_age)
    start = max(wanted - len(live), 0)
    drain: list[str] = []
    if len(live) > most + bool(old):
        over = len(live) - most
        drain = [s.name for s in sorted(ready, key=_by_use)[:over]]
    elif bound and waiting and not start and len(live) == len(ready) >= most:
        drain = [s.name for s in sorted(ready, key=lambda s: s.idle_since) if not s.in_flight][:1]
    elif old:
        # One at a time: the next is started first, and goes on when the last has gone.
        if len(ready) > wanted:
            drain = [old[0].name] if len(live) == len(stands) else []
        elif len(live) == len(ready) == len(stands) and not start:
            start = 1
    elif not waiting:
        drain = _idle(policy, ready, now)[: max(len(live) - wanted, 0)]
    blocked = failed or now < start_at
    return Plan(
        start=0 if blocked else start,
        drain=tuple(drain),
        look_in=_look_in(policy, ready, now, start_at if start and not failed else 0.0, wanted),
    )


def _wanted(
    policy: PoolPolicy,
    live: Sequence[Stand],
    ready: Sequence[Stand],
    waiting: int,
    *,
    least: int,
    most: int,
    bound: bool,
) -> int:
    if bound:
        needed = len(ready) + waiting if waiting else sum(1 for s in live if s.in_flight)
    else:
        needed = math.ceil((sum(s.in_flight - s.lent for s in live) + waiting) / policy.in_flight)
    return min(max(least, needed), most)


def _age_left(policy: PoolPolicy, stand: Stand, now: float) -> float:
    if policy.lifetime_seconds is None:
        return math.inf
    return stand.since + policy.lifetime_seconds - now


def _by_age(stand: Stand) -> tuple[bool, float]:
    return not stand.stale, stand.since


def _by_use(stand: Stand) -> tuple[bool, int, float]:
    return not stand.stale, stand.in_flight, -stand.since


def _idle(policy: PoolPolicy, ready: Sequence[Stand], now: float) -> list[str]:
    idle = [s for s in ready if not s.in_flight and now - s.idle_since >= policy.idle_seconds]
    return [s.name for s in sorted(idle, key=lambda s: s.idle_since)]


def _look_in(
    policy: PoolPolicy, ready: Sequence[Stand], now: float, start_at: float, wanted: int
) -> float | None:
    """Return when the next decision falls that only time brings."""
    times = [left for s in ready if 0 < (left := _age_left(policy, s, now)) < math.inf]
    if len(ready) > wanted:
        times += [
            left
            for s in ready
            if not s.in_flight and (left := s.idle_since + policy.idle_seconds - now) > 0
        ]
    if start_at > now:
        times.append(start_at - now)
    return min(times, default=None)


class Count(msgspec.Struct):
    """What a pool has done since it exists: the seed's metrics, in microseconds."""

    requests: int = 0
    errors: int = 0
    total_us: int = 0

    def add(self, seconds: float, *, failed: bool) -> None:
        """Count one request that has ended."""
        self.requests += 1
        self.errors += failed
        self.total_us += int(seconds * 1_000_000)

    @property
    def average_ms(self) -> float:
        """How long a request took, on average."""
        return self.total_us / self.requests / 1000 if self.requests else 0.0

"""The live instances of one agent (or of several that one program performs), and who gets which.

The least loaded one that has room is taken, who finds none waits in order. What a pool is to become
is decided in ``domain.supervision`` and done by ``engine.supervisor``; here is only who holds what,
so taking and giving back need no lock and no wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from retinue.domain.agent import AgentDefinition
from retinue.domain.ids import ulid
from retinue.domain.latency import Meter
from retinue.domain.supervision import Count, Phase, PoolPolicy, Stand
from retinue.engine.views import MemberView, PoolView, RolloutView
from retinue.errors import AgentUnavailable
from retinue.interfaces import Health, LiveInstance

if TYPE_CHECKING:
    from retinue.engine.door import Turn

Key = tuple[str, str]
"""Owner and session, where an instance serves one session only."""
_Place = tuple["asyncio.Future[Member]", Key | None, str | None]
"""Who waits, for which session, with work for which agent."""


class Member:
    """One place in a pool: an instance that is being started, that works, or that is drained.

    ``broken`` says that it took nothing any more; its end will be heard of. ``key`` is the session
    it serves, ``stalled`` says that its work brings nothing, ``reason`` why
    it was ended, where we did that. ``lent`` of those ``in_flight`` wait for what they have
    others do, and those in ``regaining`` want to go on. ``agents`` are those it performs (None: the
    pool's one), ``version`` which of the pool's versions it is.
    """

    __slots__ = (
        "agents",
        "broken",
        "changed_at",
        "drain_seconds",
        "in_flight",
        "instance",
        "key",
        "latency_ms",
        "lent",
        "name",
        "phase",
        "reason",
        "regaining",
        "since",
        "stale",
        "stalled",
        "turns",
        "version",
    )

    def __init__(self, now: float, version: int = 1) -> None:
        self.name = ulid()
        self.version = version
        self.agents: frozenset[str] | None = None
        self.phase = Phase.STARTING
        self.instance: LiveInstance | None = None
        self.in_flight = 0
        self.lent = 0
        self.regaining: deque[tuple[Turn, asyncio.Future[None]]] = deque()
        self.since = now
        self.changed_at = now  # when it last became busy, or idle
        self.turns = 0
        self.key: Key | None = None
        self.stale = False
        self.broken = False
        self.drain_seconds: float | None = None
        self.stalled = False
        self.reason: str | None = None
        self.latency_ms: float | None = None

    @property
    def stand(self) -> Stand:
        """What a plan needs to know of it."""
        return Stand(
            *(self.name, self.phase, self.in_flight, self.since, self.changed_at, self.stale),
            lent=self.lent,
        )

    @property
    def load(self) -> int:
        """How many executions it works on: those that wait for others are not counted."""
        return self.in_flight - self.lent

    @property
    def state(self) -> str:
        """The word for where it stands, for people."""
        if self.phase is Phase.READY and self.in_flight:
            return "stalled" if self.stalled else "busy"
        return self.phase.value

    @property
    def instance_id(self) -> str:
        """The id of its process on record, once it has one."""
        return self.instance.handle.instance_id if self.instance is not None else self.name

    @property
    def stage(self) -> str | None:
        """Its own protocol's word for that."""
        return self.instance.stage if self.instance is not None else "initializing"


class Pool:
    """Who is there, who waits. ``bell`` is rung when the supervisor may have something to do."""

    def __init__(
        self, definition: AgentDefinition, *, bound: bool = False, bell: Callable[[], None]
    ) -> None:
        self.definition = definition
        self.policy = definition.pool or PoolPolicy(in_flight=definition.concurrency)
        self.bound = bound
        self.members: dict[str, Member] = {}
        self.count = Count()
        self.started = 0
        self.restarts = 0
        self.lost = 0
        self.failed: str | None = None
        self.closed = False
        self.version = 1
        self.rollout: RolloutView | None = None
        self.meter = Meter()
        self._bell = bell
        self._waiting: deque[_Place] = deque()
        self._turns: dict[str, Turn] = {}

    # -- who takes and gives back --------------------------------------------------------------

    def become(
        self, definition: AgentDefinition, version: int, policy: PoolPolicy | None = None
    ) -> None:
        """Start instances of another definition from now on."""
        self.definition = definition
        self.version = version
        self.policy = policy or definition.pool or PoolPolicy(in_flight=definition.concurrency)

    def take(self, key: Key | None = None, agent: str | None = None) -> Member | None:
        """Occupy the least loaded instance that has room for ``key`` and performs ``agent``."""
        best: Member | None = None
        limit = self.policy.in_flight
        for member in self.members.values():
            if member.load >= limit or member.phase is not Phase.READY or member.broken:
                continue
            if key is not None and member.key is not None and member.key != key:
                continue
            if agent is not None and member.agents is not None and agent not in member.agents:
                continue
            if best is None or self._before(member, best, key):
                best = member
        if best is not None:
            if not best.in_flight:
                best.changed_at = time.monotonic()
            best.in_flight += 1
            best.turns += 1
            best.key = key
        return best

    @staticmethod
    def _before(one: Member, other: Member, key: Key | None) -> bool:
        if key is not None and (one.key == key) != (other.key == key):
            return one.key == key
        if one.stale != other.stale:
            return other.stale
        # Among equals the one that had less to do so far: they wear alike.
        return (one.load, one.turns) < (other.load, other.turns)

    async def acquire(self, key: Key | None = None, agent: str | None = None) -> Member:
        """Occupy an instance, waiting in order for one.

        Raises:
            AgentUnavailable: there is none, and there will be none.
        """
        if not self._waiting or self.bound:
            member = self.take(key, agent)
            if member is not None:
                return member
        self._check()
        future: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        place = (future, key, agent)
        self._waiting.append(place)
        self._bell()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())  # it was handed over in the same turn
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def release(self, member: Member) -> None:
        """Give an instance back; the first who waits gets its place."""
        member.in_flight -= 1
        self._let_on(member)
        if not member.in_flight:
            member.changed_at = time.monotonic()
            member.stalled = False
        if self._waiting:
            self.serve()
            self._bell()
        elif member.phase is not Phase.READY or (
            not member.in_flight and len(self.members) > self.policy.least
        ):
            self._bell()

    # -- who waits for what others do ----------------------------------------------------------

    def begun(self, execution_id: str, turn: Turn) -> None:
        """Note whose turn it is."""
        self._turns[execution_id] = turn

    def ended(self, execution_id: str, turn: Turn) -> None:
        """Forget that."""
        if self._turns.get(execution_id) is turn:
            del self._turns[execution_id]

    def lend(self, execution_id: str) -> None:
        """Let others have the place of an execution that waits for what it has others do.

        Who waits may wait for one that needs this very place: without that, a pool full of parents
        never ends.
        """
        turn = self._turns.get(execution_id)
        member = turn.member if turn is not None else None
        if turn is None or member is None or turn.lent:
            return
        turn.lent = True
        member.lent += 1
        self._let_on(member)
        self.serve()
        self._bell()

    async def regain(self, execution_id: str) -> None:
        """Take its place again, in its own instance and before any new work gets it."""
        turn = self._turns.get(execution_id)
        member = turn.member if turn is not None else None
        if turn is None or member is None or not turn.lent:
            return
        if member.load < self.policy.in_flight and not member.regaining:
            turn.back()
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        member.regaining.append((turn, future))
        try:
            await future
        except asyncio.CancelledError:
            turn.back()  # who called goes on, or ends, without an answer: it counts
            raise

    def _let_on(self, member: Member) -> None:
        """Let those go on that were waiting for others, as far as there is room."""
        while member.regaining and member.load < self.policy.in_flight:
            turn, future = member.regaining.popleft()
            if not future.done() and turn.lent:
                turn.back()
            if not future.done():
                future.set_result(None)

    # -- who waits for an instance -------------------------------------------------------------

    def serve(self) -> None:
        """Give those who wait what there is."""
        for member in self.members.values():
            if member.regaining:
                self._let_on(member)
        if self.bound or len({member.version for member in self.members.values()}) > 1:
            for place in list(self._waiting):  # who comes first may want what others do not
                self._serve(place)
            return
        while self._waiting and self._serve(self._waiting[0]):
            pass

    def _serve(self, place: _Place) -> bool:
        future, key, agent = place
        if not future.done():
            member = self.take(key, agent)
            if member is None:
                return False
            future.set_result(member)
        self._waiting.remove(place)
        return True

    def _check(self) -> None:
        if self.closed or (self.hopeless and not self.members):
            raise AgentUnavailable(f"no instance of {self.definition.agent_id}: {self.reason}")

    def refuse(self) -> None:
        """Tell those who wait that nothing will come, where that is so."""
        try:
            self._check()
        except AgentUnavailable as error:
            self._refuse(list(self._waiting), error.message)

    def forget(self, agents: set[str]) -> None:
        """Tell those who wait for one of ``agents``, which nobody performs any more."""
        gone = [place for place in self._waiting if place[2] in agents]
        name = self.definition.agent_id
        self._refuse(gone, f"version {self.version} of {name} does not have that agent")

    def _refuse(self, places: list[_Place], why: str) -> None:
        for place in places:
            self._waiting.remove(place)
            if not place[0].done():
                place[0].set_exception(AgentUnavailable(why))

    # -- how it stands -------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many wait for an instance."""
        return len(self._waiting)

    @property
    def hopeless(self) -> bool:
        """Whether nothing is started any more."""
        return self.failed is not None or self.lost >= self.policy.most

    @property
    def refusing(self) -> bool:
        """Whether it refuses what it is given: nothing is there, and nothing is started."""
        return self.hopeless and not self.members and not self.closed

    @property
    def ready(self) -> int:
        """How many instances can be given work, were they free."""
        return sum(member.phase is Phase.READY for member in self.members.values())

    @property
    def reason(self) -> str | None:
        """Why nothing is started any more, if that is so."""
        if self.failed is not None:
            return self.failed
        if self.closed:
            return "it was stopped"
        if self.policy.most == 0:
            return "it was scaled to 0"
        return "it ended, and its policy is not to start it again" if self.hopeless else None

    @property
    def state(self) -> str:
        """The word for how it stands: see ``PoolView``."""
        if self.failed is not None:
            return "failed"
        if self.closed or (self.hopeless and not self.members):
            return "stopped"
        if self.ready >= self.policy.least:
            return "ready"
        return "short" if self.ready else "starting"

    def health(self) -> Health:
        """Say whether it can take work."""
        if self.ready:
            return Health(True)
        return Health(False, self.reason or "no instance is ready")

    def stands(self) -> list[Stand]:
        """Return what a plan needs to know of its instances."""
        return [member.stand for member in self.members.values()]

    def view(self, now: float) -> PoolView:
        """Return it as it is shown."""
        members = list(self.members.values())
        return PoolView(
            name=self.definition.agent_id,
            state=self.state,
            reason=self.reason,
            least=self.policy.least,
            most=self.policy.most,
            in_flight_limit=self.policy.in_flight,
            in_flight=sum(member.in_flight for member in members),
            waiting=self.waiting,
            requests=self.count.requests,
            errors=self.count.errors,
            average_ms=round(self.count.average_ms, 3),
            started=self.started,
            restarts=self.restarts,
            version=self.version,
            rollout=self.rollout,
            breaches=self.meter.breaches,
            latency=self.meter.views(),
            instances=[
                MemberView(
                    instance_id=member.instance_id,
                    pid=member.instance.pid if member.instance is not None else None,
                    state=member.state,
                    stage=member.stage,
                    in_flight=member.in_flight,
                    served=member.turns,
                    age_seconds=round(now - member.since, 3),
                    session_id=member.key[1] if member.key is not None else None,
                    latency_ms=member.latency_ms,
                    version=member.version,
                    bad_frames=dict(member.instance.faults) if member.instance is not None else {},
                )
                for member in members
            ],
        )

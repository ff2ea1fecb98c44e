"""Keeps one pool as its policy says: starts, asks, drains and replaces its instances.

One loop per pool acts on ``domain.supervision.plan`` whenever something happened, and each
instance has one task for its life. An end that nobody asked for is judged by the restart policy;
when that gives up the pool is failed, and ``alert`` is called once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, cast

from msgspec.structs import replace

from retinue.domain.agent import AgentDefinition
from retinue.domain.latency import Operation
from retinue.domain.supervision import Departure, Phase, judge, plan
from retinue.engine.pool import Member, Pool
from retinue.engine.rollout import Rollout
from retinue.errors import RetinueError, SpawnFailed, said
from retinue.interfaces import Driver, DriverContext, LiveInstance

log = logging.getLogger(__name__)
STOP_SECONDS = 5.0


class Supervisor:
    """The keeper of one pool.

    ``on_ready`` is told what an instance that became ready offers, ``on_change`` that the pool may
    take work now, or no longer, ``on_version`` that a new version is all there is, or that it was
    taken back. ``alert`` is called when it has failed, with what and why.
    """

    def __init__(
        self,
        definition: AgentDefinition,
        driver: Driver,
        context: DriverContext,
        *,
        on_ready: Callable[[Supervisor, Sequence[AgentDefinition]], None],
        on_change: Callable[[Supervisor], None],
        on_version: Callable[[Supervisor], None],
        alert: Callable[[Supervisor, str, str], Coroutine[Any, Any, None]],
    ) -> None:
        self.pool = Pool(definition, bound=driver.features.session_bound, bell=self.ring)
        self.last_error: str | None = None
        self.failure: SpawnFailed | None = None
        """Why the last one that was started did not become ready; None: it did."""
        self._driver = driver
        self._context = replace(context, meter=self.pool.meter)
        self._rollout = Rollout(self.pool)
        self._on_ready = on_ready
        self._on_change = on_change
        self._on_version = on_version
        self._alert = alert
        self._bell = asyncio.Event()
        self._first = asyncio.Event()
        self._restarts: tuple[float, ...] = ()
        self._start_at = 0.0
        self._loops: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping: set[str] = set()

    @property
    def name(self) -> str:
        """Whose instances these are."""
        return self.pool.definition.agent_id

    # -- from outside --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; the instances that are to be warm are started at once."""
        if not self.pool.policy.least:
            self._first.set()
        if not self._loops:
            self._loops = [
                asyncio.create_task(self._run()),
                asyncio.create_task(self._ask_again_and_again()),
            ]

    async def first(self) -> None:
        """Return once what is to be warm is ready, or one could not be started."""
        await self._first.wait()

    def ring(self) -> None:
        """Look at the pool again: something happened."""
        self._bell.set()

    def scale(self, least: int, most: int, drain_seconds: float | None = None) -> None:
        """Have other bounds from now on; what is too many is drained (None: as the policy says)."""
        self.pool.policy = self.pool.policy.scaled(least, most)
        self._rollout.scaled(least, most)
        for member in self.pool.members.values():
            member.drain_seconds = drain_seconds
        self.pool.lost = 0
        self.ring()

    def renew(self, drain_seconds: float | None = None) -> None:
        """Replace every instance, one by one, each started before another one is drained.

        What they are doing has ``drain_seconds`` (None: as the policy says). A pool that has failed
        begins anew.
        """
        for member in self.pool.members.values():
            member.stale = True
            member.drain_seconds = drain_seconds
        self._anew()

    def _anew(self) -> None:
        self.pool.failed = None
        self.pool.lost = 0
        self._restarts = ()
        self._start_at = 0.0
        self.ring()

    def deploy(self, definition: AgentDefinition, drain_seconds: float | None = None) -> None:
        """Replace every instance by one of ``definition``, as ``renew`` does; or go back.

        Raises:
            Conflict: such a thing is under way.
        """
        self._rollout.begin(definition, drain_seconds)
        self._anew()

    async def stop(self, grace: float) -> None:
        """Stop all instances within about ``grace`` seconds."""
        self.pool.closed = True
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops)
        self.pool.refuse()
        self._first.set()
        for member in list(self.pool.members.values()):
            member.phase = Phase.DRAINING
            if member.instance is not None:
                self._end(member, grace)
        starting = [t for t in self._tasks if t.get_name() in self.pool.members]
        for task in starting:
            member = self.pool.members[task.get_name()]
            if member.instance is None:
                task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    # -- the loop ------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            # Before the look: what rings during it may not be seen by it.
            self._bell.clear()
            look_in: float | None = 1.0
            try:
                look_in = self._act()
            except Exception:
                log.exception("the pool of %s could not be looked after", self.name)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._bell.wait(), look_in)

    def _act(self) -> float | None:
        """Do what the plan says; return when to look again."""
        pool = self.pool
        todo = plan(
            pool.policy,
            pool.stands(),
            time.monotonic(),
            waiting=pool.waiting,
            start_at=self._start_at,
            lost=pool.lost,
            failed=pool.failed is not None,
            bound=pool.bound,
        )
        for _ in range(todo.start):
            self._begin()
        for name in todo.drain:
            self._drain(pool.members[name])
        for member in list(pool.members.values()):
            if member.phase is Phase.DRAINING and not member.in_flight:
                self._end(member, STOP_SECONDS)
        if self._rollout.arrived():
            log.info("%s: version %d is at work", self.name, pool.version)
            self._on_version(self)
            self.ring()
        return todo.look_in

    def _begin(self) -> None:
        member = Member(time.monotonic(), self.pool.version)
        self.pool.members[member.name] = member
        self.pool.started += 1
        self._aside(self._life(member), member.name)

    def _drain(self, member: Member) -> None:
        """Give it nothing more; it ends when its work has, or when that takes too long."""
        member.phase = Phase.DRAINING
        seconds = member.drain_seconds
        if seconds is None:
            seconds = self.pool.policy.drain_seconds
        asyncio.get_running_loop().call_later(seconds, self._late, member)

    def _late(self, member: Member) -> None:
        if member.name in self.pool.members:
            fields = {"agent_id": self.name, "instance_id": member.instance_id}
            log.warning(
                "%s is stopped with work in progress: it was not done in time",
                self.name,
                extra=fields,
            )
            self._end(member, 0.0)

    def _end(self, member: Member, grace: float) -> None:
        """Stop an instance; ``_life`` hears of it."""
        if member.instance is not None and (member.name not in self._stopping or not grace):
            self._stopping.add(member.name)
            self._aside(self._stopped(member.instance, grace))

    async def _stopped(self, instance: LiveInstance, grace: float) -> None:
        try:
            await instance.stop(grace)
        except Exception:
            log.exception("an instance of %s could not be stopped", self.name)

    def _aside(self, work: Coroutine[Any, Any, None], name: str | None = None) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- one instance --------------------------------------------------------------------------

    async def _life(self, member: Member) -> None:
        """Start an instance, and see to what its end asks for."""
        pool = self.pool
        try:
            departure = await self._lived(member)
        finally:
            del pool.members[member.name]
            self._stopping.discard(member.name)
            self._first.set()
        asked = departure.asked and member.reason is None
        if pool.closed or member.phase is Phase.DRAINING or asked:
            log.info("%s: an instance was stopped", self.name, extra=self._fields(member))
        elif self._rollout.breaks(member):
            self._back(member.reason or departure.reason)
        else:
            self._judge(member, departure)
        pool.refuse()
        self._on_change(self)
        self.ring()

    def _back(self, reason: str) -> None:
        """Have the version before again: the new one does not work."""
        self.last_error = reason
        version = self.pool.version
        log.error("%s: version %d is taken back: %s", self.name, version, reason)
        for member in self._rollout.back(reason):
            if member.instance is not None:
                self._on_ready(self, member.instance.offers)
        self._on_version(self)
        self._aside(self._alert(self, "rolled_back", reason))

    async def _lived(self, member: Member) -> Departure:
        seconds = self.pool.policy.start_seconds
        meter = self.pool.meter
        begun = meter.clock()
        try:
            async with asyncio.timeout(seconds):
                instance = await self._driver.start(self.pool.definition, self._context)
        except TimeoutError:
            return self._not_ready(SpawnFailed(f"it was not ready within {seconds:g} s"))
        except asyncio.CancelledError:
            return Departure(True, "it was stopped while it started")
        except SpawnFailed as error:
            return self._not_ready(error)
        except RetinueError as error:
            return self._not_ready(SpawnFailed(error.message, details=error.details))
        except Exception as error:
            return self._not_ready(SpawnFailed(said(error)))
        self.failure = None
        member.instance = live = cast(LiveInstance, instance)  # as ``pooled`` says
        if self.pool.closed:
            self._end(member, 0.0)
        elif (odd := self._odd(live)) is not None:
            member.reason = odd
            live.because(odd)
            self._end(member, 0.0)
        elif member.phase is Phase.STARTING:
            took = meter.since(Operation.STARTUP, begun) * 1000
            log.info(
                "%s: an instance is ready after %.0f ms",
                self.name,
                took,
                extra=self._fields(member),
            )
            member.phase = Phase.READY
            member.changed_at = time.monotonic()
            if live.offers:
                member.agents = frozenset(offer.agent_id for offer in live.offers)
            self._on_ready(self, live.offers)
            self._on_change(self)
            if self.pool.ready >= self.pool.policy.least:
                self._first.set()
            self.pool.serve()
            self.ring()
        return await live.ended()

    def _not_ready(self, error: SpawnFailed) -> Departure:
        self.failure = error
        return Departure(False, error.message)

    def _odd(self, live: LiveInstance) -> str | None:
        """Return why an instance cannot stand beside the others of its pool, if so.

        What is given to a pool may go to any of them, so all perform the same agents. Those that
        are on their way out do not count.
        """
        names = frozenset(offer.agent_id for offer in live.offers)
        for other in self.pool.members.values():
            same = other.phase is Phase.READY and not other.stale and other.agents is not None
            if same and other.version == self.pool.version and other.agents != names:
                return (
                    f"it announced the agents {', '.join(sorted(names)) or '(none)'}, and another"
                    f" process of this worker has {', '.join(sorted(other.agents or ()))}"
                )
        return None

    def _judge(self, member: Member, departure: Departure) -> None:
        """Decide by policy what follows from an end that nobody asked for."""
        pool = self.pool
        if member.reason is not None:
            departure = Departure(False, member.reason)
        self.last_error = departure.reason
        fields = self._fields(member)
        if pool.failed is not None:
            log.warning("%s: an instance ended: %s", self.name, departure.reason, extra=fields)
            return
        verdict = judge(
            pool.policy.restart, self._restarts, departure, time.monotonic(), random.random()
        )
        self._restarts = verdict.restarts
        if verdict.failed is not None:
            pool.failed = verdict.failed
            log.error(
                "%s has failed and is not started again: %s",
                *(self.name, verdict.failed),
                extra=fields,
            )
            self._aside(self._alert(self, "failed", verdict.failed))
        elif verdict.restart:
            pool.restarts += 1
            self._start_at = verdict.start_at
            log.warning(
                "%s: an instance ended and is replaced: %s",
                *(self.name, departure.reason),
                extra=fields,
            )
        else:
            pool.lost += 1
            log.info("%s: an instance ended: %s", self.name, departure.reason, extra=fields)

    def _fields(self, member: Member) -> dict[str, str]:
        return {"agent_id": self.name, "instance_id": member.instance_id}

    # -- health --------------------------------------------------------------------------------

    async def _ask_again_and_again(self) -> None:
        """Ask every instance at an interval; none of them is waited for."""
        while True:
            await asyncio.sleep(self.pool.policy.ping_seconds)
            for member in list(self.pool.members.values()):
                if member.phase is not Phase.READY or member.instance is None:
                    continue
                if self._driver.features.pings:
                    self._aside(self._ask(member, member.instance))
                else:
                    heard = max(member.instance.last_event, member.changed_at)
                    quiet = time.monotonic() - heard > self.pool.policy.stall_seconds
                    member.stalled = bool(member.in_flight) and quiet

    async def _ask(self, member: Member, instance: LiveInstance) -> None:
        """Ask one; what does not answer in time is ended and replaced, whatever else it says."""
        asked = time.monotonic()
        meter = self.pool.meter
        begun = meter.clock()
        seconds = self.pool.policy.answer_seconds
        reason: str | None
        try:
            async with asyncio.timeout(seconds):
                health = await instance.ping()
            member.latency_ms = meter.since(Operation.HEALTH, begun) * 1000
            reason = None if health.healthy else health.reason or "it says that it is not healthy"
        except TimeoutError:
            meter.since(Operation.HEALTH, begun)
            reason = f"no answer to a ping within {seconds:g} s"
            late = time.monotonic() - asked > seconds * 1.1 + 0.1
            if late or instance.excused(asked):
                reason = None  # it was we who stood still
        except Exception as error:
            reason = said(error)
        if reason is None or member.phase is not Phase.READY or member.instance is None:
            return
        if member.name in self.pool.members and member.reason is None:
            member.reason = reason
            instance.because(reason)
            log.warning(
                "%s: an instance is ended: %s", self.name, reason, extra=self._fields(member)
            )
            self._end(member, 0.0)

"""Agents that are started before they are needed: each serves one user, and ends.

::

    async with AgentPool(runner, config, min_agents=2, max_agents=8, ready=first_line) as pool:
        async with pool.take() as handle:
            ...

    starting ─► warm ─► taken ─► ending        a warm one that dies, or surplus: ─► ending

What an agent was told stays in it, so nobody gets one that somebody had: it is ended, its whole
tree, and a new one is warmed. ``min_agents`` wait warm beside those that are taken, as long as
``max_agents`` processes (those that are ending included) allow it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from types import TracebackType
from typing import Any

import msgspec

from retinue.domain.supervision import Departure, Restart, RestartPolicy, judge
from retinue.errors import InvalidInput, RetinueError, ShuttingDown, SpawnFailed
from retinue.process.capacity import MEMORY_EACH, Host, refusal
from retinue.process.config import AgentConfig
from retinue.process.handle import AgentHandle
from retinue.process.ladder import Ladder
from retinue.process.runner import LocalProcessRunner

Ready = Callable[[AgentHandle], Awaitable[object]]
"""Returns once an agent is warm; raises when it will not be."""


async def first_line(handle: AgentHandle) -> None:
    """Take an agent as warm once it has written a line, which is read.

    Raises:
        SpawnFailed: its output ended before.
    """
    if await handle.next_stdout() is None:
        raise SpawnFailed(await handle.account("before its first line"))


class Demand:
    """How many are wanted at one time: the most that were within the last ``hold`` seconds. Pure.

    Without it every gap between two bursts would cost the next one its warm agents.
    """

    def __init__(self, hold: float) -> None:
        self.hold = hold
        self.most = 0
        self.now = 0
        self._at = 0.0

    def note(self, wanted: int, now: float) -> None:
        """Note that from ``now`` on so many are wanted."""
        if self.now >= self.most:
            self._at = now  # until now so many were
        if wanted >= self.most or now - self._at >= self.hold:
            self.most, self._at = wanted, now
        self.now = wanted

    @property
    def falls_at(self) -> float | None:
        """When it falls if nothing more is wanted; None: it does not."""
        return self._at + self.hold if self.most > self.now else None


class _Phase(Enum):
    STARTING = auto()
    WARM = auto()
    TAKEN = auto()
    ENDING = auto()


class _Member:
    """One process of a pool."""

    def __init__(self) -> None:
        self.phase = _Phase.STARTING
        self.handle: AgentHandle | None = None
        self.life: asyncio.Task[None] | None = None


class AgentPool:
    """Warm agents of one configuration.

    ``ready`` says when one is warm (``first_line``: once it has written a line; without it: once
    it is the program that was asked for), for which it has ``start_seconds``. What a burst made
    the pool grow to it keeps for ``idle_seconds``. A warm one that dies, or cannot be started, is
    replaced after a pause that ``restart`` says; once that is too often callers are refused, with
    the reason, until ``restart.within_seconds`` have passed. ``ladder`` says how one is ended.
    """

    def __init__(
        self,
        runner: LocalProcessRunner,
        warmup_config: AgentConfig,
        *,
        min_agents: int = 1,
        max_agents: int = 4,
        ready: Ready | None = None,
        idle_seconds: float = 60.0,
        start_seconds: float = 30.0,
        restart: RestartPolicy | None = None,
        ladder: Ladder | None = None,
    ) -> None:
        if not 0 <= min_agents <= max_agents or not max_agents:
            raise InvalidInput(f"min_agents {min_agents}, max_agents {max_agents}: 0 ≤ min ≤ max")
        _fits(runner, max_agents)
        self.min_agents = min_agents
        self.max_agents = max_agents
        self.warmup_config = warmup_config
        self._runner = runner
        self._ready = ready
        self._start_seconds = start_seconds
        # Whatever became of a warm one, and whyever: it is to be there.
        self._policy = msgspec.structs.replace(
            restart or RestartPolicy(), restart=Restart.PERMANENT
        )
        self._ladder = ladder or Ladder()
        self._members: list[_Member] = []
        self._waiting: deque[asyncio.Future[_Member]] = deque()
        self._demand = Demand(idle_seconds)
        self._restarts: tuple[float, ...] = ()
        self._start_at = 0.0
        self._failed: str | None = None
        self._refused: Exception | None = None
        self._moved = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._open = False

    async def __aenter__(self) -> AgentPool:
        """Start ``min_agents``; return once they are warm.

        Raises:
            SpawnFailed: one could not be started, or was not ready in time; none is left. What
                ``ready`` raises comes as it is.
        """
        self._open = True
        try:
            self._settle()
            while self.warm < self.min_agents:
                if self._refused is not None:
                    raise self._refused
                self._moved.clear()
                await self._moved.wait()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every process of the pool, also those that are taken; callers that wait are told."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            _tell(self._waiting.popleft(), ShuttingDown("the pool is closed"))
        for member in self._members:
            if member.phase is _Phase.STARTING and member.life is not None:
                member.life.cancel()  # and ends what it has started
            elif member.phase is not _Phase.ENDING:
                self._end(member)
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._members.clear()  # one that was cancelled before its first step is left

    # -- what is there -------------------------------------------------------------------------

    @property
    def warm(self) -> int:
        """How many are warm and nobody's."""
        return self._count(_Phase.WARM)

    @property
    def taken(self) -> int:
        """How many have a user."""
        return self._count(_Phase.TAKEN)

    @property
    def size(self) -> int:
        """How many processes there are, those that start or end included."""
        return len(self._members)

    def _count(self, phase: _Phase) -> int:
        return sum(member.phase is phase for member in self._members)

    # -- its users -----------------------------------------------------------------------------

    @asynccontextmanager
    async def take(self) -> AsyncIterator[AgentHandle]:
        """Have a warm agent of one's own; at the end of the block it is ended.

        When none is warm, callers wait in order.

        Raises:
            SpawnFailed: no agent can be started; the message says why.
            ShuttingDown: the pool is closed.
        """
        member = await self._acquire()
        assert member.handle is not None
        try:
            yield member.handle
        finally:
            if member.phase is _Phase.TAKEN:
                self._end(member)

    async def _acquire(self) -> _Member:
        if not self._open:
            raise ShuttingDown("the pool is not open")
        waiter: asyncio.Future[_Member] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._settle()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                self._not_used(waiter.result())
            self._settle()
            raise

    def _not_used(self, member: _Member) -> None:
        """Have back what its user was given and never saw."""
        assert member.handle is not None
        if member.phase is _Phase.TAKEN:
            member.phase = _Phase.WARM
            if member.handle.status().final:
                self._end(member)

    # -- one process ---------------------------------------------------------------------------

    async def _live(self, member: _Member) -> None:
        """Start one and warm it, and see to it if it dies before anybody takes it."""
        try:
            member.handle = handle = await self._runner.spawn(self.warmup_config)
            await self._warmed(handle)
        except asyncio.CancelledError:
            self._end(member)
            raise
        except Exception as error:  # ``ready`` is the user's: whatever it raises, it is not warm
            self._departed(error)
            self._end(member)
            return
        member.phase = _Phase.WARM
        self._settle()
        await handle.wait()
        if member.phase is _Phase.WARM:
            self._departed(SpawnFailed(await handle.account("while it waited to be taken")))
            self._end(member)

    async def _warmed(self, handle: AgentHandle) -> None:
        if self._ready is None:
            return
        warm = asyncio.ensure_future(self._ready(handle))
        ended = asyncio.ensure_future(handle.wait())
        try:
            done, _ = await asyncio.wait(
                {warm, ended}, timeout=self._start_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if warm in done:
                await warm
            elif ended in done:
                raise SpawnFailed(await handle.account("before it was ready"))
            else:
                raise SpawnFailed(f"{handle.command} was not ready after {self._start_seconds:g} s")
        finally:
            warm.cancel()
            ended.cancel()

    def _departed(self, error: Exception) -> None:
        """Decide when the next one may start; what fails during a pause is the same trouble."""
        now = asyncio.get_running_loop().time()
        self._refused = self._refused or error
        if now < self._start_at:
            return
        why = str(error) or type(error).__name__
        verdict = judge(self._policy, self._restarts, Departure(False, why), now, random.random())
        self._restarts, self._start_at = verdict.restarts, verdict.start_at
        if verdict.failed is not None:
            self._failed = verdict.failed
            self._restarts, self._start_at = (), now + self._policy.within_seconds

    def _end(self, member: _Member) -> None:
        """End one; nobody waits for it but who closes the pool."""
        member.phase = _Phase.ENDING
        self._spawn(self._ended(member))
        self._settle()

    async def _ended(self, member: _Member) -> None:
        if member.handle is not None:
            with suppress(RetinueError):  # its keeper is gone, and it with it
                await member.handle.stop(self._ladder)
        self._members.remove(member)
        self._settle()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- how many ------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Do what is to be done now: hand over, start, end, and look again when time decides."""
        self._moved.set()
        if not self._open:
            return
        now = asyncio.get_running_loop().time()
        if now >= self._start_at:
            self._failed = None
        self._serve()
        self._demand.note(self.taken + len(self._waiting), now)
        target = min(max(self._demand.now + self.min_agents, self._demand.most), self.max_agents)
        live = self.size - self._count(_Phase.ENDING)
        wanted = min(target - live, self.max_agents - self.size)
        if now >= self._start_at:
            for _ in range(wanted):
                member = _Member()
                self._members.append(member)
                member.life = self._spawn(self._live(member))
        surplus = [m for m in self._members if m.phase is _Phase.WARM][: max(live - target, 0)]
        times = [self._demand.falls_at, self._start_at if now < self._start_at else None]
        self._look_at(min((at for at in times if at is not None), default=None))
        for member in surplus:
            member.phase = _Phase.ENDING
            self._spawn(self._ended(member))

    def _serve(self) -> None:
        """Give the warm ones, oldest first, to those who wait, first come first."""
        warm = deque(m for m in self._members if m.phase is _Phase.WARM)
        while self._waiting and (warm or self._failed is not None):
            waiter = self._waiting.popleft()
            if waiter.done():
                continue  # it was cancelled, and is about to notice
            if warm:
                member = warm.popleft()
                member.phase = _Phase.TAKEN
                waiter.set_result(member)
            else:
                waiter.set_exception(SpawnFailed(self._failed))

    def _look_at(self, at: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(at, self._settle) if at is not None else None


def _fits(runner: LocalProcessRunner, wanted: int) -> None:
    """Refuse a pool that could never be full.

    Raises:
        SpawnFailed: the runner, or this machine, bears fewer.
    """
    most = runner.config.max_concurrent_agents
    if most is not None and wanted > most:
        raise SpawnFailed(f"max_agents: {wanted} are more than max_concurrent_agents = {most}")
    memory = runner.config.limits.max_memory_mb
    each = int(memory * (1 << 20)) if memory is not None else MEMORY_EACH
    if (why := refusal(wanted, Host.here(), each)) is not None:
        raise SpawnFailed(f"max_agents: {why}")


def _tell(waiter: asyncio.Future[_Member], error: Exception) -> None:
    if not waiter.done():
        waiter.set_exception(error)

"""Which agents this process can run, how loaded each is, and which one a task goes to.

Per capability the agents with a free slot stand in buckets by load, so that choosing the least
loaded one costs the same among ten agents as among ten thousand.

A slot is one of an agent's own, and, where the process has a limit, one of the process's too. A
parent gives up both while it waits for what it has others do, and takes both again before any new
task gets them. With a slot goes the memory that an execution of the agent may use, where the
process bounds what all of them may use together.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from msgspec.structs import replace

from retinue.domain.agent import AgentDefinition, Capability, StoredAgent
from retinue.domain.principal import LOCAL
from retinue.engine.guard import Breaker, Bucket
from retinue.engine.pulse import Pulse
from retinue.engine.schema import Validator
from retinue.errors import (
    AgentNotFound,
    AgentUnavailable,
    CircuitOpen,
    Conflict,
    SettingsError,
)
from retinue.interfaces import Instance


def agent_key(agent_id: str) -> str:
    """Return the queue key of tasks bound to one agent."""
    return f"agent:{agent_id}"


def capability_key(capability: str) -> str:
    """Return the queue key of tasks that any agent with the capability may take."""
    return f"cap:{capability}"


Start = Callable[[], Awaitable[Instance]]
"""How an agent's instance is started."""


class Entry:
    """One agent: its definition, its instance, its slots, its breaker and its pulse.

    ``stored`` is its registration, where the store holds one.
    """

    def __init__(
        self, definition: AgentDefinition, start: Start, stored: StoredAgent | None = None
    ) -> None:
        self.definition = definition
        self.stored = stored
        self.pulse = Pulse()
        self.instance: Instance | None = None
        self._start = start
        self._starting: asyncio.Lock | None = None
        self.breaker = Breaker(definition.breaker)
        self.rate = Bucket(definition.rate) if definition.rate is not None else None
        self.running = 0
        self.unhealthy: str | None = None
        self.removed = False
        self.capabilities = {c.name: c for c in definition.capabilities}
        self.validators = {c.name: Validator(c) for c in definition.capabilities}
        self.keys = (
            agent_key(definition.agent_id),
            *(capability_key(c.name) for c in definition.capabilities),
        )
        self.regaining: deque[asyncio.Future[None]] = deque()

    async def ready(self) -> Instance:
        """Return the instance, started by the first one who asks.

        Raises:
            SpawnFailed: it cannot be started; the next one who asks tries again.
        """
        if self.instance is None:
            self._starting = self._starting or asyncio.Lock()
            async with self._starting:
                if self.instance is None:
                    self.instance = await self._start()
        return self.instance

    async def stop(self, grace: float) -> None:
        """Stop the instance, if one was started."""
        instance, self.instance = self.instance, None
        if instance is not None:
            await instance.stop(grace)

    @property
    def agent_id(self) -> str:
        """The agent's id."""
        return self.definition.agent_id

    @property
    def owner(self) -> str:
        """Whose agent it is; those of code and configuration are the local user's."""
        return self.stored.owner if self.stored is not None else LOCAL

    @property
    def free(self) -> int:
        """How many more executions it may run now."""
        if self.unhealthy is not None or self.removed:
            return 0
        return max(self.definition.concurrency - self.running, 0)

    def wait(self, now: float) -> float:
        """Return how many seconds it may not be called, by its breaker or its rate."""
        wait = self.breaker.wait(now)
        return wait if self.rate is None else max(wait, self.rate.wait(now))

    def admit(self, now: float, count: int = 1) -> int:
        """Let ``count`` calls pass; return what the breaker wants to hear of them by."""
        if self.rate is not None:
            self.rate.take(now, count)
        return self.breaker.admit()

    def unused(self, call: int, count: int = 1, *, all_of_them: bool = True) -> None:
        """Take back ``count`` calls that were let pass and not made."""
        if self.rate is not None:
            self.rate.give(count)
        if all_of_them:
            self.breaker.abandoned(call)

    def at_once(self, now: float) -> int:
        """Return how many executions it may begin now."""
        return self.free if self.rate is None else min(self.free, self.rate.free(now))

    @property
    def status(self) -> str:
        """Specification 003's word: available, busy, offline or error."""
        if self.unhealthy is not None or self.removed:
            return "offline"
        if self.breaker.wait(time.monotonic()) > 0:
            return "error"
        return "available" if self.free else "busy"


class _Pool:
    """The agents of one capability that have a free slot, by load.

    One that may not be called (its breaker, its rate) rests apart until its time has come, so that
    many of them cost the choice nothing.
    """

    def __init__(self) -> None:
        self.agents: dict[str, Entry] = {}
        self._buckets: list[dict[str, Entry]] = []
        self._at: dict[str, int] = {}
        self._lowest = 0
        self._resting: list[tuple[float, str]] = []

    def place(self, entry: Entry) -> None:
        """Put ``entry`` where its load says, or nowhere when it has no free slot."""
        agent_id = entry.agent_id
        self._take_out(agent_id)
        if entry.free:
            load = entry.running
            while len(self._buckets) <= load:
                self._buckets.append({})
            self._buckets[load][agent_id] = entry
            self._at[agent_id] = load
            self._lowest = min(self._lowest, load)

    def drop(self, agent_id: str) -> None:
        """Forget an agent."""
        self.agents.pop(agent_id, None)
        self._take_out(agent_id)

    def _take_out(self, agent_id: str) -> None:
        load = self._at.pop(agent_id, None)
        if load is not None:
            del self._buckets[load][agent_id]

    def least_loaded(self, now: float) -> Entry | None:
        """Return the least loaded agent that may be called now."""
        self._wake(now)
        buckets = self._buckets
        load = self._lowest
        while load < len(buckets):
            while buckets[load]:
                agent_id, entry = next(iter(buckets[load].items()))
                wait = entry.wait(now)
                if wait == 0:
                    self._lowest = load
                    return entry
                self._take_out(agent_id)
                heapq.heappush(self._resting, (now + wait, agent_id))
            load += 1
        self._lowest = load
        return None

    def _wake(self, now: float) -> None:
        """Put those back whose time has come."""
        while self._resting and self._resting[0][0] <= now:
            _, agent_id = heapq.heappop(self._resting)
            entry = self.agents.get(agent_id)
            if entry is not None:
                self.place(entry)


class Route:
    """Where a task goes: its queue key, and the agent that is free for it now, if any."""

    __slots__ = ("bound", "entry", "key", "template")

    def __init__(self, key: str, entry: Entry | None, template: Entry, bound: bool) -> None:
        self.key = key
        self.entry = entry
        self.template = template
        self.bound = bound


class Registry:
    """The agents of this process.

    ``limit`` bounds what all of them run together, ``memory`` the bytes that this may use.
    """

    def __init__(self, limit: int | None = None, memory: int | None = None) -> None:
        self._limit = limit
        self._memory = memory
        self._running = 0
        self._reserved = 0
        self._held_up: deque[tuple[Entry, asyncio.Future[None]]] = deque()
        self._agents: dict[str, Entry] = {}
        self._names: dict[str, list[str]] = {}
        self._pools: dict[str, _Pool] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._agents.values()))

    def __len__(self) -> int:
        return len(self._agents)

    def add(
        self, definition: AgentDefinition, start: Start, stored: StoredAgent | None = None
    ) -> Entry:
        """Register an agent; its capabilities are routable at once.

        Raises:
            Conflict: the id is taken.
            InvalidInput: a capability's parameters are no JSON Schema.
            SettingsError: it may use more memory than all agents together.
        """
        if definition.agent_id in self._agents:
            raise Conflict(f"an agent with the id {definition.agent_id} is registered already")
        if self._memory is not None and definition.memory > self._memory:
            raise SettingsError(
                f"agent {definition.agent_id} may use {megabytes(definition.memory)}, all agents"
                f" together only {megabytes(self._memory)} (max_agents_memory_mb)"
            )
        entry = Entry(definition, start, stored)
        self._agents[entry.agent_id] = entry
        self._names.setdefault(definition.name, []).append(entry.agent_id)
        for name in entry.capabilities:
            pool = self._pools.setdefault(name, _Pool())
            pool.agents[entry.agent_id] = entry
            pool.place(entry)
        return entry

    def remove(self, agent_id: str) -> Entry:
        """Take an agent out of routing; what it runs goes on.

        Raises:
            AgentNotFound: there is none.
        """
        entry = self._agents.pop(agent_id, None)
        if entry is None:
            raise AgentNotFound(f"no agent with the id {agent_id}")
        entry.removed = True
        self._names[entry.definition.name].remove(agent_id)
        for name in entry.capabilities:
            pool = self._pools[name]
            pool.drop(agent_id)
            if not pool.agents:
                del self._pools[name]
        return entry

    def find(self, word: str) -> Entry:
        """Return the agent with that id, else the only one of that name.

        Raises:
            AgentNotFound: there is none, or the name is ambiguous.
        """
        entry = self._agents.get(word)
        if entry is not None:
            return entry
        ids = self._names.get(word, [])
        if len(ids) == 1:
            return self._agents[ids[0]]
        if ids:
            raise AgentNotFound(
                f"{word} is the name of several agents: {', '.join(sorted(ids))}; give the id"
            )
        raise AgentNotFound(f"no agent with the id or name {word}", details={"agent": word})

    def by_id(self, agent_id: str | None) -> Entry | None:
        """Return the agent with that id."""
        return self._agents.get(agent_id) if agent_id is not None else None

    def capability(self, name: str) -> Capability | None:
        """Return what a capability is, by the first agent that has it."""
        pool = self._pools.get(name)
        if pool is None:
            return None
        return next(iter(pool.agents.values())).capabilities[name]

    def having(self, name: str) -> list[Entry]:
        """Return the agents that have the capability."""
        pool = self._pools.get(name)
        return list(pool.agents.values()) if pool is not None else []

    def route(self, capability: str | None, agent: str | None) -> Route:
        """Decide where a task goes.

        Raises:
            AgentNotFound: no such agent, or no agent has the capability.
            AgentUnavailable: it is known, but nothing that could do it is healthy.
            CircuitOpen: every agent that could do it is refused by its breaker.
        """
        now = time.monotonic()
        if agent is not None:
            entry = self.find(agent)
            if capability is not None and capability not in entry.capabilities:
                raise AgentNotFound(
                    f"agent {entry.agent_id} has no capability {capability}",
                    details={"capabilities": sorted(entry.capabilities)},
                )
            self._refuse_unhealthy([entry], now, capability or entry.agent_id)
            ready = entry if entry.free and entry.wait(now) == 0 and self.room_for(entry) else None
            return Route(agent_key(entry.agent_id), ready, entry, bound=True)
        pool = self._pools.get(capability or "")
        if pool is None or capability is None:
            raise AgentNotFound(
                f"No agent available for capability: {capability}",
                details={"capability": capability},
            )
        entry_free = pool.least_loaded(now)
        if entry_free is not None:
            ready = self._fitting(pool, entry_free, now)
            return Route(capability_key(capability), ready, ready or entry_free, bound=False)
        self._refuse_unhealthy(pool.agents.values(), now, capability)
        template = next(iter(pool.agents.values()))
        return Route(capability_key(capability), None, template, bound=False)

    def free_for(self, key: str, now: float) -> Entry | None:
        """Return an agent that can take a task queued under ``key`` now."""
        if not self.room:
            return None
        kind, _, name = key.partition(":")
        if kind == "cap":
            pool = self._pools.get(name)
            free = pool.least_loaded(now) if pool is not None else None
            return self._fitting(pool, free, now) if pool is not None and free else None
        entry = self._agents.get(name)
        if entry is None or not entry.free or entry.wait(now) > 0 or not self.room_for(entry):
            return None
        return entry

    def _fitting(self, pool: _Pool, first: Entry, now: float) -> Entry | None:
        """Return ``first``, or the least loaded of the agents that there is memory for."""
        if self.room_for(first):
            return first
        if not self.room:
            return None
        others = [e for e in pool.agents.values() if e.free and self.room_for(e)]
        return min((e for e in others if e.wait(now) == 0), key=lambda e: e.running, default=None)

    def why(self, key: str) -> str | None:
        """Return what keeps the first of those that wait under ``key``; None: nothing does."""
        now = time.monotonic()
        kind, _, name = key.partition(":")
        pool = self._pools.get(name) if kind == "cap" else None
        found = self._agents.get(name) if kind != "cap" else None
        entries = list(pool.agents.values()) if pool is not None else [found] if found else []
        if not entries:
            return "no agent here can do it"
        if self.free_for(key, now) is not None:
            return None
        if not self.room:
            return (
                f"{self._running} executions run, which is all that may (max_concurrent_executions)"
            )
        healthy = [entry for entry in entries if entry.unhealthy is None]
        if not healthy:
            return f"no agent for it is healthy: {entries[0].agent_id}: {entries[0].unhealthy}"
        free = [entry for entry in healthy if entry.free]
        if not free:
            slots = sum(entry.definition.concurrency for entry in healthy)
            return f"{slots} executions of its agents run, which is all that may (concurrency)"
        ready = [entry for entry in free if entry.wait(now) == 0]
        if not ready:
            wait = min(entry.wait(now) for entry in free)
            return f"its agents may be called again in {wait:.1f} s (circuit or rate)"
        least = min(entry.definition.memory for entry in ready)
        return (
            f"it needs {megabytes(least)} and {megabytes((self._memory or 0) - self._reserved)} of"
            f" {megabytes(self._memory or 0)} are left (max_agents_memory_mb)"
        )

    def rest_of(self, key: str, now: float) -> float | None:
        """Return in how many seconds an agent with a free slot may be called for ``key`` again.

        None when no agent is only waiting for its time.
        """
        kind, _, name = key.partition(":")
        pool = self._pools.get(name) if kind == "cap" else None
        found = self._agents.get(name) if kind != "cap" else None
        entries = pool.agents.values() if pool is not None else [found] if found else []
        rests = [entry.wait(now) for entry in entries if entry.free and entry.rate is not None]
        return min(rests, default=None)

    @staticmethod
    def _refuse_unhealthy(entries: Iterable[Entry], now: float, what: str) -> None:
        shortest: float | None = None
        healthy = False
        for entry in entries:
            if entry.unhealthy is not None:
                continue
            healthy = True
            wait = entry.breaker.wait(now)
            if wait == 0:
                return
            shortest = wait if shortest is None else min(shortest, wait)
        if not healthy:
            raise AgentUnavailable(f"no healthy agent for {what} right now; try again")
        assert shortest is not None
        raise CircuitOpen(
            f"the circuit of every agent for {what} is open; try again in {shortest:.1f} s",
            details={"retry_after_ms": int(shortest * 1000)},
        )

    # -- slots ---------------------------------------------------------------------------------

    @property
    def bounded(self) -> bool:
        """Whether the process has a limit of its own."""
        return self._limit is not None or self._memory is not None

    @property
    def room(self) -> int:
        """How many more executions the process may run now, whatever the agents take."""
        if self._limit is None:
            return sys.maxsize
        return 0 if self._held_up else max(self._limit - self._running, 0)

    def room_for(self, entry: Entry) -> int:
        """How many more executions of an agent the process may run now."""
        memory = entry.definition.memory
        if self._memory is None or not memory:
            return self.room
        return min(self.room, max(self._memory - self._reserved, 0) // memory)

    def take(self, entry: Entry, count: int = 1) -> None:
        """Occupy slots."""
        entry.running += count
        self._running += count
        self._reserved += count * entry.definition.memory
        self._moved(entry)

    def give(self, entry: Entry, count: int = 1) -> None:
        """Free slots; a parent that waits to go on gets one before any new task."""
        while count and entry.regaining:
            waiter = entry.regaining.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1
        entry.running -= count
        self._running -= count
        self._reserved -= count * entry.definition.memory
        self._moved(entry)
        self._let_on()

    def _let_on(self) -> None:
        """Hand slots to parents that only the process's limit keeps from going on."""
        while self._held_up and self._limit is not None and self._running < self._limit:
            entry, waiter = self._held_up.popleft()
            if waiter.done():
                continue
            if entry.running < entry.definition.concurrency:
                self.take(entry)
                waiter.set_result(None)
            else:
                entry.regaining.append(waiter)

    async def regain(self, entry: Entry) -> None:
        """Occupy a slot again, waiting for one in turn."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if entry.running >= entry.definition.concurrency or entry.regaining:
            entry.regaining.append(waiter)
        elif not self.room:
            self._held_up.append((entry, waiter))
        else:
            self.take(entry)
            return
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.give(entry)  # it was handed over in the same turn
            # The attempt's end gives a slot back, whatever happened here.
            self.take(entry)
            raise

    def resize(self, entry: Entry, concurrency: int) -> None:
        """Let an agent run that many executions from now on; what runs goes on."""
        entry.definition = replace(entry.definition, concurrency=concurrency)
        self._moved(entry)

    def set_health(self, entry: Entry, reason: str | None) -> None:
        """Mark an agent unhealthy (with the reason) or healthy again (None)."""
        entry.unhealthy = reason
        self._moved(entry)

    def _moved(self, entry: Entry) -> None:
        if entry.removed:
            return
        for name in entry.capabilities:
            self._pools[name].place(entry)


def megabytes(size: int) -> str:
    """Return a size as people read it."""
    return f"{size / (1 << 20):,.0f} MB"


def describe(entry: Entry) -> dict[str, Any]:
    """Return the breaker's state as it is shown."""
    breaker = entry.breaker
    return {
        "state": breaker.circuit.value,
        "failures": breaker.failures,
        "retry_after_ms": int(breaker.wait(time.monotonic()) * 1000),
    }

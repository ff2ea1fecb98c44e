"""Which agents this process can run, and which one a task goes to.

Per capability the agents with a free slot stand in buckets by load, so that choosing the least
loaded one costs the same among ten agents as among ten thousand.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from retinue.domain.agent import AgentDefinition, Capability, StoredAgent
from retinue.engine.entry import Entry, Start, agent_key, capability_key
from retinue.engine.slots import Slots
from retinue.errors import (
    AgentNotFound,
    AgentUnavailable,
    CircuitOpen,
    Conflict,
    SettingsError,
)


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
        self.slots = Slots(limit, memory, self._moved)
        self.leasing: Counter[str] = Counter()
        """How many under each key are being leased just now, at most: they wait no longer."""
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
        if (too_large := self.slots.never(definition)) is not None:
            raise SettingsError(too_large)
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
            ready = (
                entry
                if entry.free and entry.wait(now) == 0 and self.slots.room_for(entry)
                else None
            )
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
        if not self.slots.room:
            return None
        kind, _, name = key.partition(":")
        if kind == "cap":
            pool = self._pools.get(name)
            free = pool.least_loaded(now) if pool is not None else None
            return self._fitting(pool, free, now) if pool is not None and free else None
        entry = self._agents.get(name)
        if entry is None or not entry.free or entry.wait(now) > 0 or not self.slots.room_for(entry):
            return None
        return entry

    def _fitting(self, pool: _Pool, first: Entry, now: float) -> Entry | None:
        """Return ``first``, or the least loaded of the agents that there is memory for."""
        if self.slots.room_for(first):
            return first
        if not self.slots.room:
            return None
        others = [e for e in pool.agents.values() if e.free and self.slots.room_for(e)]
        return min((e for e in others if e.wait(now) == 0), key=lambda e: e.running, default=None)

    def _entries(self, key: str) -> list[Entry]:
        """Return the agents that can do what is queued under ``key``."""
        kind, _, name = key.partition(":")
        if kind == "cap":
            pool = self._pools.get(name)
            return list(pool.agents.values()) if pool is not None else []
        found = self._agents.get(name)
        return [found] if found is not None else []

    def refusing(self, key: str) -> Entry | None:
        """Return an agent that refuses at once what is queued under ``key``, if all do.

        Their pools start nothing any more, until a person has looked: what waits would wait for
        ever.
        """
        entries = self._entries(key)
        if entries and all(e.pool is not None and e.pool.refusing for e in entries):
            return entries[0]
        return None

    def why(self, key: str) -> str | None:
        """Return what keeps the first of those that wait under ``key``; None: nothing does."""
        now = time.monotonic()
        entries = self._entries(key)
        if not entries:
            return "no agent here can do it"
        if self.free_for(key, now) is not None:
            return None
        if not self.slots.room:
            return self.slots.full()
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
        return self.slots.short_of(min(entry.definition.memory for entry in ready))

    def rest_of(self, key: str, now: float) -> float | None:
        """Return in how many seconds an agent with a free slot may be called for ``key`` again.

        None when no agent is only waiting for its time.
        """
        entries = self._entries(key)
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

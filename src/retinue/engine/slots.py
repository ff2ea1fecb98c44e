"""What this process may run at once, and who occupies how much of it.

A slot is one of an agent's own, and, where the process has a limit, one of the process's too. A
parent gives up both while it waits for what it has others do, and takes both again before any new
task gets them. With a slot goes the memory that an execution of the agent may use, where the
process bounds what all of them may use together.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable

from retinue.domain.agent import AgentDefinition
from retinue.engine.entry import Entry


class Slots:
    """The slots of a process.

    ``limit`` bounds what all agents run together, ``memory`` the bytes that this may use; ``moved``
    hears of each agent whose load is another.
    """

    def __init__(
        self, limit: int | None, memory: int | None, moved: Callable[[Entry], None]
    ) -> None:
        self._limit = limit
        self._memory = memory
        self._moved = moved
        self._running = 0
        self._reserved = 0
        self._held_up: deque[tuple[Entry, asyncio.Future[None]]] = deque()

    def never(self, definition: AgentDefinition) -> str | None:
        """Return why an agent could never run here, if so."""
        if self._memory is None or definition.memory <= self._memory:
            return None
        return (
            f"agent {definition.agent_id} may use {megabytes(definition.memory)}, all agents"
            f" together only {megabytes(self._memory)} (max_agents_memory_mb)"
        )

    def full(self) -> str:
        """Return, for people, that all run that may."""
        return f"{self._running} executions run, which is all that may (max_concurrent_executions)"

    def short_of(self, memory: int) -> str:
        """Return, for people, how much of the ``memory`` that something needs is left."""
        whole = self._memory or 0
        return (
            f"it needs {megabytes(memory)} and {megabytes(whole - self._reserved)} of"
            f" {megabytes(whole)} are left (max_agents_memory_mb)"
        )

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


def megabytes(size: int) -> str:
    """Return a size as people read it."""
    return f"{size / (1 << 20):,.0f} MB"

"""One agent of this process: its definition, its instance, its slots, its breaker and its pulse."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from retinue.domain.agent import AgentDefinition, StoredAgent
from retinue.domain.principal import LOCAL
from retinue.engine.guard import Breaker, Bucket
from retinue.engine.pool import Pool
from retinue.engine.pulse import Pulse
from retinue.engine.schema import Validator
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
    """An agent that this process can run; ``stored`` is its registration, where there is one.

    ``pool`` is who performs it, where that is a pool.
    """

    def __init__(
        self, definition: AgentDefinition, start: Start, stored: StoredAgent | None = None
    ) -> None:
        self.definition = definition
        self.stored = stored
        self.pulse = Pulse()
        self.instance: Instance | None = None
        self.pool: Pool | None = None
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


def describe(entry: Entry) -> dict[str, Any]:
    """Return the breaker's state as it is shown."""
    breaker = entry.breaker
    return {
        "state": breaker.circuit.value,
        "failures": breaker.failures,
        "retry_after_ms": int(breaker.wait(time.monotonic()) * 1000),
    }

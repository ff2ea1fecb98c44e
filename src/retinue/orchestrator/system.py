"""The system itself: how it does, and the services around it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from retinue.domain.outbox import Parked
from retinue.domain.principal import Principal, Role
from retinue.interfaces import (
    Backlog,
    Listing,
    Page,
)
from retinue.orchestrator.agents import Agents
from retinue.orchestrator.base import LOCAL_ADMIN


class Integration(msgspec.Struct, frozen=True):
    """How a service around us does. A sink has failed deliveries, and a backlog."""

    healthy: bool
    failures: int = 0
    backlog: Backlog | None = None


class System(Agents):
    """How the whole does."""

    async def health(self) -> None:
        """Return when the store answers.

        Raises:
            StoreUnavailable: it does not.
        """
        await self._store.ping()

    @property
    def worker(self) -> str:
        """This process's identity in the store, new at every start."""
        return self._store.worker

    @property
    def draining(self) -> bool:
        """Whether new tasks are refused because the process is about to stop."""
        return self._engine.intake.closed

    async def drain(self, grace: float) -> bool:
        """Take no new tasks and let what runs end, for at most ``grace`` seconds.

        Returns whether everything ended by itself.
        """
        return await self._engine.drain(grace)

    def close_streams(self) -> None:
        """End every ``follow``; its reader comes back with its cursor after the restart."""
        self._engine.journal.close()

    async def status(self, principal: Principal = LOCAL_ADMIN) -> dict[str, Any]:
        """Return the counts of specification 003's ``/v1/status``."""
        agents = await self.agents()
        by_status: dict[str, int] = {}
        for agent in agents:
            by_status[agent.status] = by_status.get(agent.status, 0) + 1
        counts = await self._store.counts(principal.owner)
        return {
            "agents": {
                "total": len(agents),
                "by_status": by_status,
                "registered": [agent.agent_id for agent in agents],
            },
            "contracts": {
                "total_sessions": counts.sessions,
                "total_contracts": counts.contracts,
                "by_status": counts.by_status,
            },
        }

    async def integrations(self) -> dict[str, Integration]:
        """Return how the services around us do: those that are set, by name."""
        watch, outbox = self._engine.memory_watch, self._engine.outbox
        found: dict[str, Integration] = {}

        async def memory() -> None:
            if watch is not None:
                found[watch.peer.name] = Integration((await watch.known()).healthy)

        async def sink(name: str) -> None:
            report = await outbox.report(name)
            found[name] = Integration(report.healthy, report.failures, report.backlog)

        await asyncio.gather(memory(), *map(sink, outbox.feeds))
        return found

    async def parked(self, page: Page, principal: Principal = LOCAL_ADMIN) -> Listing[Parked]:
        """List the contracts that a sink would not take."""
        return await self._store.parked(None, principal.owner, page)

    async def retry_parked(self, principal: Principal = LOCAL_ADMIN) -> tuple[int, int]:
        """Deliver once more what is parked; return how many were taken, and how many were not.

        Raises:
            PeerUnavailable: a sink is away.
            Forbidden: the caller is only a viewer.
        """
        await self.require(principal, Role.OPERATOR, "outbox.retry")
        taken = refused = 0
        for feed in self._engine.outbox.feeds.values():
            more, less = await feed.retry(principal.owner)
            taken, refused = taken + more, refused + less
        await self._audit(principal, "outbox.retry", "")
        return taken, refused

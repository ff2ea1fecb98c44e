"""Agents: registered, listed, removed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from retinue.agent import Agent
from retinue.domain.agent import (
    AgentDefinition,
    Capability,
    HttpConfig,
    Registration,
    StoredAgent,
)
from retinue.domain.ids import iso, now_us
from retinue.domain.principal import Principal, Role
from retinue.engine.core import Engine
from retinue.engine.definition import definition_of
from retinue.engine.entry import Entry, describe
from retinue.errors import Forbidden
from retinue.orchestrator.base import LOCAL_ADMIN, Desk, T


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as it is listed (specification 003).

    `reason` says why it is offline; `last_heartbeat` is when a health check last went well.
    `endpoint` is where an agent over HTTP is, `registered_by` who registered it through the API
    (null: it is part of the server's code or configuration). `pool` is the name of the pool of
    long-lived instances that performs it, and that one's state.
    """

    agent_id: str
    name: str
    description: str
    status: str
    capabilities: list[dict[str, Any]]
    version: str
    driver: str
    registered_at: str
    tasks_completed: int
    tasks_failed: int
    running: int
    concurrency: int
    breaker: dict[str, Any]
    last_heartbeat: str | None
    reason: str | None
    endpoint: str | None
    registered_by: str | None
    pool: dict[str, str] | None = None


class Agents(Desk):
    """Who can do what."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._registered: dict[str, int] = {}

    def register_agent(self, agent: Agent) -> None:
        """Register a Python agent; its capabilities are routable at once.

        Raises:
            Conflict: its id is taken.
            InvalidInput: its id, options or a capability's parameters are not valid.
        """
        self.register_definition(definition_of(agent))

    def register_definition(self, definition: AgentDefinition) -> None:
        """Register an agent of any driver, as the configuration names it.

        Raises:
            Conflict: its id is taken.
            InvalidInput: its id or a capability's parameters are not valid.
        """
        self._engine.add_agent(definition)
        self._registered[definition.agent_id] = now_us()

    async def register_remote(
        self, wanted: Registration, principal: Principal = LOCAL_ADMIN
    ) -> tuple[StoredAgent, str]:
        """Register an agent that answers over HTTP, for good; also return its secret, this once.

        Raises:
            Forbidden: the caller is only a viewer, or would take tasks from another owner's agent.
            Conflict: its id is taken.
            InvalidInput: something is not valid; EgressDenied: its endpoint may not be called.
        """
        return await self._as_operator(
            principal,
            "agent.register",
            wanted.agent_id,
            lambda: self._engine.roster.register(wanted, by=principal),
        )

    async def remove_remote(self, agent_id: str, principal: Principal = LOCAL_ADMIN) -> None:
        """End the registration of such an agent; what it runs goes on.

        Raises:
            Forbidden: the caller is only a viewer, or it is another owner's.
            AgentNotFound: there is none.
            Conflict: it was not registered so.
        """
        await self._as_operator(
            principal,
            "agent.remove",
            agent_id,
            lambda: self._engine.roster.remove(agent_id, by=principal),
        )

    async def _as_operator(
        self, principal: Principal, action: str, target: str, work: Callable[[], Awaitable[T]]
    ) -> T:
        if not principal.role.covers(Role.OPERATOR):
            await self._forbid(principal, action, target)
        try:
            return await work()
        except Forbidden:
            await self._audit(principal, action, target, outcome="forbidden")
            raise

    async def remove_agent(self, agent_id: str) -> None:
        """Take an agent out of routing; what it runs ends first.

        Raises:
            AgentNotFound: there is none.
        """
        await self._engine.remove_agent(agent_id)

    def names(self) -> list[str]:
        """Return the agents' ids."""
        return [entry.agent_id for entry in self._engine.registry]

    def definition(self, word: str) -> AgentDefinition:
        """Return how the agent with that id or name is defined.

        Raises:
            AgentNotFound: there is none, or the name is ambiguous.
        """
        return self._engine.registry.find(word).definition

    def capability(self, name: str) -> Capability | None:
        """Return what a capability is, if any agent has it."""
        return self._engine.registry.capability(name)

    async def agents(self) -> list[AgentView]:
        """List the agents."""
        tallies = await self._store.tallies()
        return [self._view(entry, tallies.get(entry.agent_id)) for entry in self._engine.registry]

    async def agent(self, word: str) -> AgentView:
        """Return the agent with that id or name.

        Raises:
            AgentNotFound: there is none, or the name is ambiguous.
        """
        entry = self._engine.registry.find(word)
        return self._view(entry, (await self._store.tallies()).get(entry.agent_id))

    def _view(self, entry: Entry, tally: Any) -> AgentView:
        definition, stored = entry.definition, entry.stored
        registered = stored.created_at if stored is not None else None
        last_good, config = entry.pulse.last_good, definition.config
        return AgentView(
            agent_id=entry.agent_id,
            name=definition.name,
            description=definition.description,
            status=entry.status,
            capabilities=[
                {"name": c.name, "description": c.description, "parameters": c.parameters}
                for c in definition.capabilities
            ],
            version=definition.version,
            driver=definition.driver,
            registered_at=iso(registered or self._registered.get(entry.agent_id, self.started_at)),
            tasks_completed=tally.completed if tally is not None else 0,
            tasks_failed=tally.failed if tally is not None else 0,
            running=entry.running,
            concurrency=definition.concurrency,
            breaker=describe(entry),
            last_heartbeat=iso(last_good) if last_good is not None else None,
            reason=entry.unhealthy,
            endpoint=config.endpoint if isinstance(config, HttpConfig) else None,
            registered_by=stored.created_by if stored is not None else None,
            pool=self._engine.pools.state(entry.agent_id),
        )

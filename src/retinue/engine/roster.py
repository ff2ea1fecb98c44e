"""The agents that the store holds: registered by an API caller, run by every process.

A registration is durable before its agent is routable; other processes of the database see it at
their next poll. An agent of the same id that code or the configuration brings goes before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from retinue.domain.agent import (
    AgentDefinition,
    HttpConfig,
    Registration,
    StoredAgent,
    check_agent_id,
    definition_of_remote,
)
from retinue.domain.audit import AuditDraft
from retinue.domain.ids import now_us, ulid
from retinue.domain.intent import PutAgent, RemoveAgent
from retinue.domain.principal import Principal, Role
from retinue.domain.result import Conflict as Conflicted
from retinue.domain.result import Rejected
from retinue.domain.signing import derive, fingerprint
from retinue.domain.strictjson import dumps
from retinue.engine.entry import Entry
from retinue.engine.registry import Registry
from retinue.engine.schema import Validator, parameters_schema
from retinue.engine.witness import AGENT_REGISTER, AGENT_REMOVE, agent_detail
from retinue.errors import (
    AgentNotFound,
    Conflict,
    Forbidden,
    InvalidInput,
    RetinueError,
    SettingsError,
)
from retinue.interfaces import Store

log = logging.getLogger(__name__)
_WRONG_KEY = (
    "the signing key of this process is not the one the agent was registered with: set signing_key"
    " to that one, or register the agent anew"
)


class Roster:
    """The registered agents of one store, as one process runs them."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        *,
        add: Callable[[AgentDefinition, StoredAgent], Entry],
        drop: Callable[[Entry], None],
        check: Callable[[AgentDefinition], Awaitable[None]],
        signing_key: Callable[[], bytes],
    ) -> None:
        self._store = store
        self._registry = registry
        self._add = add
        self._drop = drop
        self._check = check
        self._signing_key = signing_key
        self._seen = 0
        self._following = asyncio.Lock()

    async def register(self, wanted: Registration, *, by: Principal) -> tuple[StoredAgent, str]:
        """Register an agent; the secret is returned this once and not stored.

        Raises:
            InvalidInput: something about it is not valid; EgressDenied: its endpoint is not.
            Conflict: its id is taken.
            Forbidden: it would take tasks from another owner's agents.
        """
        wanted = checked(wanted)
        if self._registry.by_id(wanted.agent_id) is not None:
            raise _taken(wanted.agent_id)
        self._refuse_to_share(wanted, by)
        await self._check(
            definition_of_remote(wanted, HttpConfig(endpoint=wanted.endpoint, secret=None))
        )
        registration = ulid()
        secret = derive(self._signing_key(), wanted.agent_id, registration)
        agent = StoredAgent(
            id=registration,
            agent_id=wanted.agent_id,
            revision=0,
            owner=by.owner,
            created_by=by.name,
            driver="http",
            definition=dumps(wanted),
            fingerprint=fingerprint(secret),
            created_at=now_us(),
        )
        draft = AuditDraft(
            owner=by.owner,
            actor=by.name,
            action=AGENT_REGISTER,
            target=agent.agent_id,
            detail=dumps(agent_detail(agent, wanted.endpoint)),
        )
        if isinstance(await self._store.write(PutAgent(agent, draft)), Conflicted):
            raise _taken(agent.agent_id)
        await self._follow_now()
        return agent, secret

    async def remove(self, agent_id: str, *, by: Principal) -> None:
        """End a registration; what the agent runs goes on.

        Raises:
            AgentNotFound: there is no such agent.
            Conflict: it was not registered, but is part of the server.
            Forbidden: it is another owner's.
        """
        stored = {agent.agent_id: agent for agent in await self._store.agents()}.get(agent_id)
        if stored is None:
            if self._registry.by_id(agent_id) is None:
                raise AgentNotFound(f"no agent with the id {agent_id}")
            raise Conflict(
                f"agent {agent_id} is part of this server's own code or configuration;"
                " only registered agents can be removed"
            )
        if by.owner != stored.owner and by.role is not Role.ADMIN:
            raise Forbidden(f"agent {agent_id} was registered by another owner")
        draft = AuditDraft(owner=by.owner, actor=by.name, action=AGENT_REMOVE, target=agent_id)
        result = await self._store.write(RemoveAgent(agent_id, by.name, now_us(), draft))
        if isinstance(result, Rejected):
            raise AgentNotFound(f"no agent with the id {agent_id}")
        await self._follow_now()

    def _refuse_to_share(self, wanted: Registration, by: Principal) -> None:
        """Keep an owner from having another one's tasks routed to an agent of its own."""
        if by.role is Role.ADMIN:
            return
        for capability in wanted.capabilities:
            for entry in self._registry.having(capability.name):
                if entry.owner != by.owner:
                    raise Forbidden(
                        f"capability {capability.name} is offered by an agent of another owner;"
                        " only an admin can register one beside it",
                        details={"capability": capability.name},
                    )

    async def _follow_now(self) -> None:
        try:
            await self.follow()
        except RetinueError as error:
            # What was asked for is done; the next poll makes it so here.
            log.warning("registered agents not read again: %s", error.message)

    async def follow(self) -> None:
        """Run what is registered now, if anything changed since the last time.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        if await self._store.agent_changes() == self._seen:
            return
        async with self._following:
            changes = await self._store.agent_changes()
            wanted = {agent.agent_id: agent for agent in await self._store.agents()}
            for entry in self._registry:
                if entry.stored is not None and wanted.get(entry.agent_id) != entry.stored:
                    self._drop(entry)
            for agent in wanted.values():
                self._take(agent)
            self._seen = changes

    def _take(self, agent: StoredAgent) -> None:
        """Make a registered agent routable, if it is not already."""
        entry = self._registry.by_id(agent.agent_id)
        if entry is not None:
            if entry.stored is None:
                log.warning(
                    "registered agent %s is left out: an agent of this process has that id",
                    agent.agent_id,
                )
            return
        try:
            given = msgspec.json.decode(agent.definition, type=Registration)
            secret, fault = self._secret(agent)
            config = HttpConfig(endpoint=given.endpoint, secret=secret, fault=fault)
            entry = self._add(definition_of_remote(given, config), agent)
        except (msgspec.MsgspecError, UnicodeDecodeError, RetinueError) as error:
            log.warning("registered agent %s cannot be run: %s", agent.agent_id, error)
            return
        if config.fault is not None:
            log.warning("agent %s is offline: %s", agent.agent_id, config.fault)
            self._registry.set_health(entry, config.fault)

    def _secret(self, agent: StoredAgent) -> tuple[str | None, str | None]:
        """Return a registered agent's secret, or None and why this process does not have it."""
        try:
            secret = derive(self._signing_key(), agent.agent_id, agent.id)
        except SettingsError as error:
            return None, error.message
        return (secret, None) if fingerprint(secret) == agent.fingerprint else (None, _WRONG_KEY)


def checked(wanted: Registration) -> Registration:
    """Return a registration whose capabilities' parameters are JSON Schemas.

    Raises:
        InvalidInput: the id, or a capability, is not valid.
    """
    check_agent_id(wanted.agent_id)
    names = [capability.name for capability in wanted.capabilities]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InvalidInput(
            f"capabilities given twice: {', '.join(twice)}", details={"path": "$.capabilities"}
        )
    capabilities = tuple(
        msgspec.structs.replace(c, parameters=parameters_schema(c.parameters))
        for c in wanted.capabilities
    )
    for capability in capabilities:
        Validator(capability)
    return msgspec.structs.replace(wanted, capabilities=capabilities)


def _taken(agent_id: str) -> Conflict:
    return Conflict(f"an agent with the id {agent_id} is registered already")

"""The pools of this process, and the agents behind each.

An agent whose driver has long-lived instances gets a ``Door`` in the place of an instance, so that
an attempt takes both in the same way. A program may perform several agents and say which only when
it runs: those are registered when its first instance is ready, and again when a later one offers
something else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from msgspec.structs import replace

from retinue.domain.agent import AgentDefinition, StoredAgent, check_agent_id
from retinue.domain.audit import AuditDraft
from retinue.domain.ids import now_us
from retinue.domain.intent import Audit
from retinue.domain.principal import LOCAL
from retinue.domain.strictjson import dumps
from retinue.engine.door import Door
from retinue.engine.entry import Entry
from retinue.engine.pulse import MOST_FAILURES
from retinue.engine.registry import Registry
from retinue.engine.schema import parameters_schema
from retinue.engine.supervisor import Supervisor
from retinue.engine.views import PoolView
from retinue.errors import Conflict, InvalidInput, NotFound, RetinueError, SpawnFailed
from retinue.interfaces import Driver, DriverContext, Instance, Store

log = logging.getLogger(__name__)


class Pools:
    """All pools: by the name of what their instances are started for."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        *,
        on_free: Callable[[Entry], None],
        drop: Callable[[Entry], None],
    ) -> None:
        self._store = store
        self._registry = registry
        self._on_free = on_free
        self._drop = drop
        self._supervisors: dict[str, Supervisor] = {}
        self._entries: dict[str, dict[str, Entry]] = {}
        self._running = False
        self.current: Callable[[str], Awaitable[AgentDefinition]] | None = None
        """Tells what the operator says now of a program; None: what was said at the start."""

    # -- what there is -------------------------------------------------------------------------

    def add(self, definition: AgentDefinition, driver: Driver, context: DriverContext) -> None:
        """Have a program whose instances say which agents they perform.

        Raises:
            Conflict: there is one of that name.
            InvalidInput: that is no name.
        """
        check_agent_id(definition.agent_id)
        self._add(definition, driver, context)

    def add_agent(
        self,
        definition: AgentDefinition,
        driver: Driver,
        context: DriverContext,
        stored: StoredAgent | None = None,
    ) -> Entry:
        """Register an agent with instances of its own.

        Raises:
            Conflict: its id is taken.
            InvalidInput: a capability's parameters are no JSON Schema.
        """
        supervisor = self._add(definition, driver, context)

        async def end(grace: float) -> None:
            self._supervisors.pop(definition.agent_id, None)
            self._entries.pop(definition.agent_id, None)
            await supervisor.stop(grace)

        try:
            return self._register(supervisor, definition, stored, end)
        except RetinueError:
            del self._supervisors[definition.agent_id], self._entries[definition.agent_id]
            raise

    def _add(
        self, definition: AgentDefinition, driver: Driver, context: DriverContext
    ) -> Supervisor:
        name = definition.agent_id
        if name in self._supervisors:
            raise Conflict(f"there are instances for {name} already")
        supervisor = Supervisor(
            definition,
            driver,
            context,
            on_ready=self._offered,
            on_change=self._changed,
            on_version=self._versioned,
            alert=self._alert,
        )
        self._supervisors[name] = supervisor
        self._entries[name] = {}
        if self._running:
            supervisor.start()
        return supervisor

    def _register(
        self,
        supervisor: Supervisor,
        definition: AgentDefinition,
        stored: StoredAgent | None = None,
        end: Callable[[float], Awaitable[None]] | None = None,
    ) -> Entry:
        door = Door(supervisor.pool, definition.agent_id, end)

        async def start() -> Instance:
            return door

        capacity = max(supervisor.pool.policy.capacity, 1)
        entry = self._registry.add(replace(definition, concurrency=capacity), start, stored)
        entry.instance = door
        entry.pool = supervisor.pool
        self._entries[supervisor.name][definition.agent_id] = entry
        return entry

    # -- starting and stopping -----------------------------------------------------------------

    async def start(self) -> None:
        """Start what is to be warm; return once it is, or could not be started."""
        self._running = True
        for supervisor in self._supervisors.values():
            supervisor.start()
        await asyncio.gather(*(s.first() for s in self._supervisors.values()))

    def unready(self) -> dict[str, SpawnFailed]:
        """Return why pools that are to have instances have none, by name."""
        return {
            name: supervisor.failure
            for name, supervisor in self._supervisors.items()
            if supervisor.failure is not None and not supervisor.pool.ready
        }

    async def stop(self, grace: float) -> None:
        """Stop all instances."""
        self._running = False
        await asyncio.gather(*(s.stop(grace) for s in self._supervisors.values()))

    # -- what people ask for -------------------------------------------------------------------

    def views(self) -> list[PoolView]:
        """Return the pools as they are shown."""
        now = time.monotonic()
        return [supervisor.pool.view(now) for supervisor in self._supervisors.values()]

    def view(self, name: str) -> PoolView:
        """Return one pool as it is shown.

        Raises:
            NotFound: there is none.
        """
        return self._known(name).pool.view(time.monotonic())

    def state(self, agent_id: str) -> dict[str, str] | None:
        """Return name and state of the pool behind an agent; None: it has none."""
        for name, entries in self._entries.items():
            if agent_id in entries:
                return {name: self._supervisors[name].pool.state}
        return None

    def scale(self, name: str, least: int, most: int, drain_seconds: float | None = None) -> None:
        """Have at least and at most so many instances from now on.

        The work of one that is too many has ``drain_seconds`` (None: the policy's).

        Raises:
            NotFound: there is no such pool.
            InvalidInput: these are no bounds.
        """
        if not 0 <= least <= most:
            raise InvalidInput(f"a pool cannot have from {least} to {most} instances")
        supervisor = self._known(name)
        supervisor.scale(least, most, drain_seconds)
        self._resize(supervisor)
        self._changed(supervisor, again=True)

    def renew(self, name: str, drain_seconds: float | None = None) -> None:
        """Replace every instance, one by one; its work has ``drain_seconds`` (None: the policy's).

        Raises:
            NotFound: there is no such pool.
        """
        supervisor = self._known(name)
        supervisor.renew(drain_seconds)
        self._changed(supervisor, again=True)

    async def deploy(self, name: str, drain_seconds: float | None = None) -> None:
        """Replace every instance of a program by one of what is said of it now, as ``renew`` does.

        If the first of them does not become ready, the version before stays.

        Raises:
            NotFound: there is no such program, or nothing is said of it any more.
            Conflict: such a thing is under way.
            SettingsError: what is said of it is not valid.
        """
        supervisor = self._known(name)
        definition = await self.current(name) if self.current is not None else None
        supervisor.deploy(definition or supervisor.pool.definition, drain_seconds)
        self._changed(supervisor, again=True)

    def _known(self, name: str) -> Supervisor:
        supervisor = self._supervisors.get(name)
        if supervisor is None:
            raise NotFound(f"no pool {name}")
        return supervisor

    # -- what supervisors tell -----------------------------------------------------------------

    def _offered(self, supervisor: Supervisor, offers: Sequence[AgentDefinition]) -> None:
        """Register what an instance says it performs, where that is news."""
        entries = self._entries[supervisor.name]
        capacity = max(supervisor.pool.policy.capacity, 1)
        for said in offers:
            try:
                offer = _plain(said, capacity)
                known = entries.get(offer.agent_id)
                if known is not None and known.definition == offer:
                    continue
                if known is not None:
                    del entries[offer.agent_id]
                    self._drop(known)
                entry = self._register(supervisor, offer)
            except RetinueError as error:
                log.error(
                    "%s offers the agent %s, which is not taken: %s",
                    *(supervisor.name, said.agent_id, error.message),
                )
            else:
                self._on_free(entry)

    def _changed(self, supervisor: Supervisor, *, again: bool = False) -> None:
        """Have the registry know at once when nothing can be given to a pool, or again can.

        ``again`` says that a person wants it to begin anew: what comes waits for that.
        """
        pool = supervisor.pool
        for entry in self._entries.get(supervisor.name, {}).values():
            if pool.ready or (again and not pool.hopeless):
                if entry.unhealthy is not None:
                    entry.pulse.good(now_us())
                    self._registry.set_health(entry, None)
                    self._on_free(entry)
            elif pool.hopeless and entry.unhealthy is None and not entry.removed:
                reason = pool.reason or "no instance is ready"
                entry.pulse.failures = MOST_FAILURES
                entry.pulse.reason = reason
                self._registry.set_health(entry, reason)
            if pool.refusing:
                self._on_free(entry)  # what waits for it is to hear that

    def _versioned(self, supervisor: Supervisor) -> None:
        """Take agents out of routing that the version which is at work does not perform."""
        pool = supervisor.pool
        performed = {a for m in pool.members.values() if not m.stale for a in m.agents or ()}
        entries = self._entries[supervisor.name]
        gone = entries.keys() - performed if performed else set()
        for agent_id in gone:
            log.warning("%s: version %d has no agent %s", supervisor.name, pool.version, agent_id)
            self._drop(entries.pop(agent_id))
        pool.forget(gone)
        self._resize(supervisor)

    def _resize(self, supervisor: Supervisor) -> None:
        capacity = max(supervisor.pool.policy.capacity, 1)
        for entry in self._entries[supervisor.name].values():
            self._registry.resize(entry, capacity)
            self._on_free(entry)

    async def _alert(self, supervisor: Supervisor, what: str, reason: str) -> None:
        """Leave the one mark in the record that a pool has failed, or a version was taken back."""
        draft = AuditDraft(
            owner=LOCAL,
            actor="retinue",
            action=f"pool.{what}",
            target=supervisor.name,
            outcome="failed",
            detail=dumps({"worker": self._store.worker, "reason": reason}),
        )
        with suppress(RetinueError):  # a store that is away has been logged about enough
            await self._store.write(Audit(draft, now_us()))


def _plain(offer: AgentDefinition, capacity: int) -> AgentDefinition:
    """Return what an instance offers as the registry keeps it.

    Raises:
        InvalidInput: its id, or a capability's parameters, are not valid.
    """
    check_agent_id(offer.agent_id)
    capabilities = tuple(
        replace(c, parameters=parameters_schema(c.parameters)) for c in offer.capabilities
    )
    return replace(offer, capabilities=capabilities, concurrency=capacity)

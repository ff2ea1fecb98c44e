"""A started system. Started in order, stopped in reverse: store, engine, agents, orchestrator."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterable
from types import TracebackType

from retinue.agent import Agent
from retinue.domain.agent import AgentDefinition
from retinue.domain.egress import Policy as Egress
from retinue.domain.policy import RatePolicy
from retinue.drivers.coding import AcpDriver, ClaudeDriver, CodexDriver
from retinue.drivers.coding.look import Look as Look  # noqa: PLC0414 doctor shows it
from retinue.drivers.command import CommandDriver
from retinue.drivers.http import HttpDriver
from retinue.drivers.python import PythonDriver
from retinue.drivers.stdio import StdioDriver
from retinue.engine.core import Engine
from retinue.engine.journal import Journal
from retinue.engine.retention import Policy as Keeping
from retinue.errors import NotFound, StoreBroken
from retinue.interfaces import Driver, Memory, Sink, Store
from retinue.orchestrator import Orchestrator
from retinue.process.environment import inherited
from retinue.process.link import KeeperLink
from retinue.process.quarters import Ground
from retinue.process.sandbox import Sandbox, private
from retinue.runtime.agents import (
    check_capacity,
    coding_agent,
    command_agent,
    load_agent,
    remote_agent,
    size_of,
    worker,
)
from retinue.runtime.stores import open_store, store_file
from retinue.settings import (
    AgentReference,
    CodingReference,
    CommandReference,
    HttpReference,
    Settings,
    WorkerReference,
    environment,
    without_password,
)
from retinue.storage.keyfile import FILE as KEY_FILE
from retinue.storage.keyfile import signing_key

log = logging.getLogger(__name__)
ENTRY_POINTS = "retinue.agents"
_ON_THIS_MACHINE = CommandReference | CodingReference | WorkerReference


def _sinks(settings: Settings) -> list[Sink]:
    if not settings.trace_enabled:
        return []
    from retinue.integrations.trace import Trace  # noqa: PLC0415 only when it is wanted

    return [Trace(settings.trace_url)]


def _memory(settings: Settings) -> Memory | None:
    if not settings.memagent_enabled:
        return None
    from retinue.integrations.memory import MemAgent  # noqa: PLC0415 only when it is wanted

    return MemAgent(settings.memagent_url)


def _signing_key(settings: Settings) -> Callable[[], bytes] | None:
    """Return what reads the signing key when it is first wanted; None: a store in memory."""
    given = settings.signing_key
    if given is not None:
        return given.encode
    file = store_file(settings)
    if file is None and (settings.database_url or "").startswith("sqlite:"):
        return None
    path = (file.parent if file is not None else settings.data_dir) / KEY_FILE
    return functools.cache(lambda: signing_key(path))


def _scope(settings: Settings) -> str | None:
    """Return what marks the processes of this store's agents; None: a store of this process."""
    file = store_file(settings)
    address = f"sqlite:{file.absolute()}" if file is not None else settings.database_url
    if address is None or address == "sqlite://":
        return None
    return hashlib.sha256(without_password(address).encode()).hexdigest()[:16]


def _hidden(settings: Settings) -> Sandbox:
    """Return what no agent in a sandbox is to see.

    Credentials of our user. And nobody may replace the store, the key beside it, and the files
    that the settings come from: the next start would believe it.
    """
    file = store_file(settings)
    beside = [file.with_name(file.name + end) for end in ("", "-wal", "-shm")] if file else []
    keys = [file.parent / KEY_FILE] if file else []
    guard = (settings.data_dir, *beside, *keys, *settings.files)
    return Sandbox(hide=environment(private), guard=tuple(str(path.absolute()) for path in guard))


class Runtime:
    """A system in this process: ``async with Runtime(settings) as orchestrator``.

    With no settings it is embedded: an in-memory store, no example fleet, nothing read from the
    environment. ``store``, ``journal`` and ``drivers`` (by name) take the place of our own: who
    tests us wraps them. ``reread`` returns the settings as they are now: a worker that is deployed
    is started as these say. With ``own_only`` it performs what is submitted to it, and leaves what
    else waits in the store to others.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        url: str | None = None,
        store: Store | None = None,
        journal: Callable[[Store], Journal] = Journal,
        drivers: Iterable[Driver] = (),
        own_only: bool = False,
        reread: Callable[[], Settings] | None = None,
    ) -> None:
        self.settings = settings or Settings(database_url="sqlite://", examples=False)
        self._failure: StoreBroken | None = None
        self._failed = asyncio.Event()
        self.store = store or open_store(
            self.settings, url=url, on_lost=self.lost, on_broken=self._broken
        )
        self.keeper = KeeperLink(_scope(self.settings))
        processes = self._processes = self.settings.data_dir / "processes"
        ground = Ground(self.keeper, processes, environment(inherited), _hidden(self.settings))
        own: tuple[Driver, ...] = (
            PythonDriver(),
            HttpDriver(Egress.of(self.settings.egress_allow)),
            CommandDriver(ground),
            *(kind(ground) for kind in (ClaudeDriver, CodexDriver, AcpDriver)),
            StdioDriver(ground),
        )
        rate = self.settings.rate_limit_per_minute
        self.engine = Engine(
            self.store,
            {driver.name: driver for driver in (*own, *drivers)},
            journal=journal(self.store),
            queue_bound=self.settings.queue_bound,
            caller_rate=RatePolicy(per_minute=rate) if rate is not None else None,
            max_result_bytes=self.settings.max_result_bytes,
            sinks=_sinks(self.settings),
            memory=_memory(self.settings),
            health_seconds=(
                self.settings.health_interval_seconds,
                self.settings.health_timeout_seconds,
            ),
            signing_key=_signing_key(self.settings),
            policy=Keeping(
                days=self.settings.retention_days,
                executions=self.settings.retention_executions,
                event_days=self.settings.retention_event_days,
            ),
            cleanup_interval=self.settings.cleanup_interval,
            max_running=self.settings.max_concurrent_executions,
            max_memory=size_of(self.settings.max_agents_memory_mb),
            step_us=int(self.settings.priority_step_seconds * 1_000_000),
            own_only=own_only,
            leavings=ground,
        )
        self._reread = reread
        self.engine.pools.current = self._worker
        self.orchestrator = Orchestrator(self.engine)

    async def _worker(self, name: str) -> AgentDefinition:
        """Return what the settings say of a worker now.

        Raises:
            NotFound: nothing.
            SettingsError: they are not valid.
        """
        settings = self.settings
        if self._reread is not None:
            settings = await asyncio.to_thread(self._reread)
        for given in settings.agents:
            if isinstance(given, WorkerReference) and given.name == name:
                return worker(given)
        raise NotFound(f"the configuration names no worker {name}")

    def lost(self) -> None:
        """Stop what runs: the store's ``on_lost``."""
        self.engine.lost()

    def _broken(self, failure: StoreBroken) -> None:
        self._failure = failure
        self._failed.set()
        # Nothing that runs can be recorded any more; the next start says what became of it.
        self.engine.lost("the store has failed")

    async def failed(self) -> StoreBroken:
        """Return once the store has failed for good: the process should end."""
        await self._failed.wait()
        assert self._failure is not None
        return self._failure

    async def start(self) -> Orchestrator:
        """Open the store, load the agents, take over what earlier processes left.

        Raises:
            StoreLocked, StoreUnavailable: the store cannot be opened.
            SettingsError: an agent cannot be loaded.
        """
        await self.open()
        try:
            if self._may_have_left_some():
                # At once: what an earlier keeper left behind is not to work beside us.
                await self.keeper.start()
            await self.engine.start()
        except BaseException:
            await self.keeper.close()
            await self.store.close()
            raise
        return self.orchestrator

    def _may_have_left_some(self) -> bool:
        """Whether agents run on this machine, or did: their keeper may have died."""
        if any(isinstance(given, _ON_THIS_MACHINE) for given in self.settings.agents):
            return True
        return _scope(self.settings) is not None and self._processes.is_dir()

    async def open(self) -> Orchestrator:
        """Open the store and register the agents, but work on nothing: ``close`` ends this.

        Enough to read and to administer. Raises what ``start`` raises.
        """
        agents = self._agents()
        check_capacity(self.settings)
        await self.store.open()
        try:
            for agent in agents:
                self.orchestrator.register_agent(agent)
            for given in self.settings.agents:
                if isinstance(given, HttpReference):
                    self.orchestrator.register_definition(remote_agent(given))
                elif isinstance(given, CommandReference):
                    self.orchestrator.register_definition(command_agent(given))
                elif isinstance(given, CodingReference):
                    self.orchestrator.register_definition(coding_agent(given))
                elif isinstance(given, WorkerReference):
                    self.engine.add_worker(worker(given))
            await self.engine.roster.follow()
        except BaseException:
            await self.store.close()
            raise
        return self.orchestrator

    async def close(self) -> None:
        """Close what was opened only."""
        await self.engine.close()
        await self.keeper.close()
        await self.store.close()

    def _agents(self) -> list[Agent]:
        agents: list[Agent] = []
        if self.settings.examples:
            from retinue.examples import fleet  # noqa: PLC0415 only when it is wanted

            agents.extend(fleet(self.settings.survey_root))
        agents.extend(
            load_agent(given.agent, given.arguments)
            for given in self.settings.agents
            if isinstance(given, AgentReference)
        )
        if self.settings.entry_points:
            found = importlib.metadata.entry_points(group=ENTRY_POINTS)
            agents.extend(load_agent(point.value) for point in found)
        return agents

    async def stop(self, grace: float | None = None) -> bool:
        """Drain for ``grace`` seconds (default: the settings') and stop everything.

        Returns whether all that ran ended by itself.
        """
        clean = await self.engine.drain(self.settings.grace_seconds if grace is None else grace)
        await self.engine.stop()
        await self.keeper.close()
        await self.engine.instances.close()  # how the last ones ended
        await self.store.close()
        return clean

    async def __aenter__(self) -> Orchestrator:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

"""The composition root: settings become a started system. Only this module names implementations.

Started in order, stopped in reverse: store, engine, agents, orchestrator.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib
import importlib.metadata
import logging
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from retinue.agent import Agent, FunctionAgent
from retinue.domain.agent import (
    AgentDefinition,
    Capability,
    HttpConfig,
    Registration,
    definition_of_remote,
)
from retinue.domain.egress import Policy as Egress
from retinue.domain.holder import Holder
from retinue.domain.policy import RatePolicy, RetryPolicy
from retinue.domain.supervision import PoolPolicy, Restart, RestartPolicy
from retinue.drivers.coding import AcpDriver, ClaudeDriver, CodexDriver, CodingConfig
from retinue.drivers.coding.look import Look as Look  # noqa: PLC0414 doctor shows it
from retinue.drivers.coding.look import look
from retinue.drivers.command import CommandConfig, CommandDriver
from retinue.drivers.http import HttpDriver
from retinue.drivers.python import PythonDriver
from retinue.drivers.stdio import StdioDriver, WorkerConfig
from retinue.engine.core import Engine
from retinue.engine.journal import Journal
from retinue.engine.retention import Policy as Keeping
from retinue.engine.roster import checked
from retinue.engine.schema import parameters_schema
from retinue.errors import InvalidInput, SettingsError, StoreBroken
from retinue.interfaces import Driver, Memory, Sink, Store
from retinue.orchestrator import Orchestrator
from retinue.process.capacity import MEMORY_EACH, Host, refusal
from retinue.process.environment import inherited
from retinue.process.link import KeeperLink
from retinue.process.sandbox import PLAIN, Sandbox
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
from retinue.storage.lockfile import read_holder
from retinue.storage.sqlite import SqliteStore

log = logging.getLogger(__name__)
ENTRY_POINTS = "retinue.agents"
_ON_THIS_MACHINE = CommandReference | CodingReference | WorkerReference
_DRIVERS = {"claude": ClaudeDriver, "codex": CodexDriver}
CODING_KINDS = ("claude", "codex", "gemini", "opencode")
_PROMPT = {
    "type": "object",
    "properties": {"prompt": {"type": "string", "description": "what it is to do"}},
    "required": ["prompt"],
}


def open_store(
    settings: Settings,
    *,
    url: str | None = None,
    on_lost: Callable[[], None] | None = None,
    on_broken: Callable[[StoreBroken], None] | None = None,
) -> Store:
    """Return the store that the settings name, not opened yet.

    ``database_url`` is ``sqlite:///path``, ``sqlite://`` (in memory) or ``postgresql://…``; unset
    it is ``retinue.db`` in the data directory. ``url`` is where this process will serve;
    ``on_lost`` is called when others may take over what it runs (PostgreSQL only), ``on_broken``
    when the disk failed and the store cannot go on (SQLite only).
    """
    address = settings.database_url
    if address is None or address.startswith("sqlite:"):
        return SqliteStore(store_file(settings), url=url, on_broken=on_broken)
    from retinue.storage.postgres import PostgresStore  # noqa: PLC0415 asyncpg only when used

    return PostgresStore(address, lease_seconds=settings.lease_seconds, url=url, on_lost=on_lost)


def store_file(settings: Settings) -> Path | None:
    """Return the file of the SQLite store; None when it is in memory, or PostgreSQL."""
    address = settings.database_url
    if address is None:
        return settings.data_dir / "retinue.db"
    path = address.removeprefix("sqlite:///")
    return Path(path) if path != address else None


def is_shared(settings: Settings) -> bool:
    """Say whether other processes may have the store open at the same time: PostgreSQL."""
    return not (settings.database_url or "sqlite:").startswith("sqlite:")


async def holders_of(settings: Settings) -> list[Holder]:
    """Return which processes have the store open, and where they serve; the youngest first.

    Raises:
        StoreUnavailable: PostgreSQL does not answer.
    """
    path = store_file(settings)
    if path is not None:
        holder = read_holder(path.with_suffix(".lock"))
        return [holder] if holder is not None else []
    if not is_shared(settings):
        return []
    from retinue.storage.holders import read_workers  # noqa: PLC0415 asyncpg only when used

    return await read_workers(settings.database_url or "")


def load_agent(reference: str, arguments: dict[str, Any] | None = None) -> Agent:
    """Return the agent that ``module:Name`` names: an ``Agent`` class, object or function.

    Raises:
        SettingsError: it cannot be imported, or is none of these.
    """
    module_name, _, name = reference.partition(":")
    if not name:
        raise SettingsError(f"agent {reference!r}: write it as module:Class")
    try:
        target: Any = importlib.import_module(module_name)
        for part in name.split("."):
            target = getattr(target, part)
        if isinstance(target, type) and issubclass(target, Agent):
            target = target(**(arguments or {}))
    except Exception as error:
        raise SettingsError(
            f"agent {reference!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(target, Agent | FunctionAgent):
        raise SettingsError(f"agent {reference!r} is {type(target).__name__}, not an Agent")
    return target


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


def remote_agent(given: HttpReference) -> AgentDefinition:
    """Return the definition of an agent over HTTP that the configuration names.

    Raises:
        SettingsError: a capability's parameters are not valid.
    """
    try:
        registration = checked(
            Registration(
                agent_id=given.agent_id,
                name=given.name or given.agent_id,
                description=given.description,
                version=given.version,
                endpoint=given.endpoint,
                capabilities=tuple(Capability(**dict(c)) for c in given.capabilities),
                concurrency=given.concurrency,
                timeout_us=int(given.timeout * 1_000_000),
                delivery=given.delivery,
                max_attempts=given.max_attempts,
            )
        )
    except InvalidInput as error:
        raise SettingsError(f"agent {given.agent_id}: {error.message}") from None
    config = HttpConfig(endpoint=given.endpoint, secret=given.secret, trusted=True)
    return definition_of_remote(registration, config)


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


def command_agent(given: CommandReference) -> AgentDefinition:
    """Return the definition of an agent that is a command line.

    Raises:
        SettingsError: a capability's parameters are not valid.
    """
    limits = {
        "memory_bytes": _bytes(given.max_memory_mb),
        "cpu_percent": given.max_cpu_percent,
        "runtime_seconds": given.max_runtime_seconds,
        "processes": given.max_processes,
        "open_files": given.max_open_files,
        "files": given.max_open_files and given.max_open_files + 1,
        "file_bytes": _bytes(given.max_file_mb),
    }
    return AgentDefinition(
        agent_id=given.agent_id,
        name=given.name or given.agent_id,
        description=given.description,
        version=given.version,
        driver=CommandDriver.name,
        config=CommandConfig(
            command=given.command,
            prompt=given.prompt,
            output=given.output,
            environment=given.environment,
            work_dir=str(given.work_dir) if given.work_dir is not None else None,
            interrupt=signal.Signals[f"SIG{given.interrupt}"],
            stop_seconds=given.stop_seconds,
            stdin_open=given.stdin_open,
            keep_running=given.keep_running,
            limits={name: limit for name, limit in limits.items() if limit is not None},
            sandbox=PLAIN[box]
            if isinstance(box := given.sandbox, bool)
            else msgspec.convert(box.model_dump(mode="json"), Sandbox),
        ),
        capabilities=_capabilities(given),
        concurrency=given.concurrency,
        memory=_bytes(given.max_memory_mb) or 0,
        timeout_us=int(given.timeout * 1_000_000),
        delivery=given.delivery,
        retry=RetryPolicy(max_attempts=given.max_attempts),
    )


def worker(given: WorkerReference) -> AgentDefinition:
    """Return the definition of a worker: what its processes are started for."""
    limits = {
        "memory_bytes": given.max_memory_mb * (1 << 20),
        "cpu_percent": given.max_cpu_percent,
        "processes": given.max_processes,
        "open_files": given.max_open_files,
        "files": given.max_open_files and given.max_open_files + 1,
    }
    most = given.process_pool_size
    return AgentDefinition(
        agent_id=given.name,
        name=given.name,
        driver=StdioDriver.name,
        config=WorkerConfig(
            command=given.command,
            agents=given.agents,
            environment=given.environment,
            work_dir=str(given.work_dir) if given.work_dir is not None else None,
            timeout=given.timeout,
            delivery=given.delivery,
            max_attempts=given.max_attempts,
            limits={name: limit for name, limit in limits.items() if limit is not None},
            line_bytes=given.line_bytes,
            frame_log=given.frame_log,
        ),
        pool=PoolPolicy(
            least=most if given.min_processes is None else given.min_processes,
            most=most,
            in_flight=given.max_concurrent_requests,
            idle_seconds=given.idle_seconds,
            lifetime_seconds=given.max_subprocess_lifetime_hours * 3600,
            drain_seconds=given.drain_timeout,
            start_seconds=given.startup_timeout,
            ping_seconds=given.health_interval,
            answer_seconds=given.health_timeout,
            restart=RestartPolicy(
                restart=Restart(given.restart),
                most=given.max_restarts,
                within_seconds=given.restart_window,
            ),
        ),
        queue=given.request_queue_size,
    )


def check_capacity(settings: Settings, host: Host | None = None) -> None:
    """Check that the processes which agents may be at one time fit this machine.

    Raises:
        SettingsError: they do not; it says how many would.
    """
    commands = [
        given for given in settings.agents if isinstance(given, CommandReference | CodingReference)
    ]
    wanted = sum(given.concurrency for given in commands)
    bound = settings.max_concurrent_executions
    if bound is not None:
        wanted = min(wanted, bound)
    if not wanted:
        return
    memory = sum(
        given.concurrency * int((given.max_memory_mb or 0) * (1 << 20) or MEMORY_EACH)
        for given in commands
    ) // sum(given.concurrency for given in commands)
    why = refusal(wanted, host or Host.here(), memory)
    if why is not None:
        raise SettingsError(
            f"{why}: lower the agents' concurrency, or set max_concurrent_executions"
        )


def coding_agent(given: CodingReference) -> AgentDefinition:
    """Return the definition of an agent that is a coding CLI.

    Raises:
        SettingsError: a capability's parameters are not valid.
    """
    limits = {"memory_bytes": _bytes(given.max_memory_mb), "cpu_percent": given.max_cpu_percent}
    same = (
        *("command", "form", "model", "system_prompt", "environment", "approvals", "allow"),
        *("deny", "question_seconds", "sandbox", "max_turns", "max_cost_usd"),
        *("silence_seconds", "stop_seconds"),
    )
    driver = _DRIVERS.get(given.driver, AcpDriver)
    return AgentDefinition(
        agent_id=given.agent_id,
        name=given.name or given.agent_id,
        description=given.description,
        version=given.version,
        driver=driver.name,
        config=CodingConfig(
            kind=given.driver,
            work_dir=str(given.work_dir) if given.work_dir is not None else None,
            home=str(given.home) if given.home is not None else None,
            limits={name: limit for name, limit in limits.items() if limit is not None},
            **{name: getattr(given, name) for name in same},
        ),
        capabilities=_capabilities(given),
        concurrency=given.concurrency,
        memory=_bytes(given.max_memory_mb) or 0,
        timeout_us=int(given.timeout * 1_000_000),
        delivery=given.delivery,
        retry=RetryPolicy(max_attempts=given.max_attempts),
        on_busy=given.on_busy,
    )


def look_at(given: CodingReference | str, settings: Settings) -> Look:
    """Look at the CLI of an agent, or at one that no agent names; runs its ``--version``."""
    seen = environment(dict)
    if isinstance(given, str):
        found = CodingReference.model_validate({"driver": given, "home": seen.get("HOME", "/")})
        config = coding_agent(found).config
        return look(config, settings.data_dir, given, environment(inherited), seen)
    config = coding_agent(given).config
    processes = (settings.data_dir / "processes").absolute()
    return look(config, processes, given.agent_id, environment(inherited), config.environment)


def _capabilities(given: CommandReference | CodingReference) -> tuple[Capability, ...]:
    """Return what an agent can be asked; one that takes a prompt unless it says otherwise."""
    try:
        capabilities = tuple(
            Capability(
                name=c.name, description=c.description, parameters=parameters_schema(c.parameters)
            )
            for c in given.capabilities
        )
    except InvalidInput as error:
        raise SettingsError(f"agent {given.agent_id}: {error.message}") from None
    prompted = Capability(name=given.agent_id, description=given.description, parameters=_PROMPT)
    return capabilities or (prompted,)


def _scope(settings: Settings) -> str | None:
    """Return what marks the processes of this store's agents; None: a store of this process."""
    file = store_file(settings)
    address = f"sqlite:{file.absolute()}" if file is not None else settings.database_url
    if address is None or address == "sqlite://":
        return None
    return hashlib.sha256(without_password(address).encode()).hexdigest()[:16]


def _bytes(megabytes: float | None) -> int | None:
    return int(megabytes * (1 << 20)) if megabytes is not None else None


def _hidden(settings: Settings) -> tuple[str, ...]:
    """Return what no agent in a sandbox is to see: the store, and the key beside it."""
    file = store_file(settings)
    beside = (file, file.with_name(f"{file.name}-wal"), file.parent / KEY_FILE) if file else ()
    return tuple(map(str, (settings.data_dir, *beside)))


class Runtime:
    """A system in this process: ``async with Runtime(settings) as orchestrator``.

    With no settings it is embedded: an in-memory store, no example fleet, nothing read from the
    environment. ``store``, ``journal`` and ``drivers`` (by name) take the place of our own: who
    tests us wraps them. With ``own_only`` it performs what is submitted to it, and leaves what
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
    ) -> None:
        self.settings = settings or Settings(database_url="sqlite://", examples=False)
        self._failure: StoreBroken | None = None
        self._failed = asyncio.Event()
        self.store = store or open_store(
            self.settings, url=url, on_lost=self.lost, on_broken=self._broken
        )
        self.keeper = KeeperLink(_scope(self.settings))
        processes = self.settings.data_dir / "processes"
        own: tuple[Driver, ...] = (
            PythonDriver(),
            HttpDriver(Egress.of(self.settings.egress_allow)),
            CommandDriver(self.keeper, processes, environment(inherited), _hidden(self.settings)),
            *(
                kind(self.keeper, processes, environment(inherited))
                for kind in (ClaudeDriver, CodexDriver, AcpDriver)
            ),
            StdioDriver(self.keeper, processes, environment(inherited)),
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
            max_memory=_bytes(self.settings.max_agents_memory_mb),
            step_us=int(self.settings.priority_step_seconds * 1_000_000),
            own_only=own_only,
        )
        self.orchestrator = Orchestrator(self.engine)

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
            if any(isinstance(given, _ON_THIS_MACHINE) for given in self.settings.agents):
                # At once: what an earlier keeper left behind is not to work beside us.
                await self.keeper.start()
            await self.engine.start()
        except BaseException:
            await self.keeper.close()
            await self.store.close()
            raise
        return self.orchestrator

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

"""The composition root: settings become a started system. Only this module names implementations.

Started in order, stopped in reverse: store, engine, agents, orchestrator.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from retinue.agent import Agent, FunctionAgent
from retinue.domain.policy import RatePolicy
from retinue.drivers.python import PythonDriver
from retinue.engine.core import Engine
from retinue.errors import SettingsError, StoreBroken
from retinue.interfaces import Store
from retinue.orchestrator import Orchestrator
from retinue.settings import Settings
from retinue.storage.lockfile import Holder, read_holder
from retinue.storage.sqlite import SqliteStore

log = logging.getLogger(__name__)
ENTRY_POINTS = "retinue.agents"


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

    return PostgresStore(address, lease_seconds=settings.lease_seconds, on_lost=on_lost)


def store_file(settings: Settings) -> Path | None:
    """Return the file of the SQLite store; None when it is in memory, or PostgreSQL."""
    address = settings.database_url
    if address is None:
        return settings.data_dir / "retinue.db"
    path = address.removeprefix("sqlite:///")
    return Path(path) if path != address else None


def holder_of(settings: Settings) -> Holder | None:
    """Return which process has the SQLite store open, and where it serves; None: nobody."""
    path = store_file(settings)
    return read_holder(path.with_suffix(".lock")) if path is not None else None


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


class Runtime:
    """A system in this process: ``async with Runtime(settings) as orchestrator``.

    With no settings it is embedded: an in-memory store, no example fleet, nothing read from the
    environment.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        url: str | None = None,
        store: Store | None = None,
    ) -> None:
        self.settings = settings or Settings(database_url="sqlite://", examples=False)
        self._failure: StoreBroken | None = None
        self._failed = asyncio.Event()
        self.store = store or open_store(
            self.settings, url=url, on_lost=self._lost, on_broken=self._broken
        )
        rate = self.settings.rate_limit_per_minute
        self.engine = Engine(
            self.store,
            {PythonDriver.name: PythonDriver()},
            queue_bound=self.settings.queue_bound,
            caller_rate=RatePolicy(per_minute=rate) if rate is not None else None,
            max_result_bytes=self.settings.max_result_bytes,
        )
        self.orchestrator = Orchestrator(self.engine)

    def _lost(self) -> None:
        self.engine.lost()

    def _broken(self, failure: StoreBroken) -> None:
        self._failure = failure
        self._failed.set()
        # Nothing that runs can be recorded any more; the next start says what became of it.
        self.engine.lost()

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
            await self.engine.start()
        except BaseException:
            await self.store.close()
            raise
        return self.orchestrator

    async def open(self) -> Orchestrator:
        """Open the store and register the agents, but work on nothing: ``close`` ends this.

        Enough to read and to administer. Raises what ``start`` raises.
        """
        agents = self._agents()
        await self.store.open()
        try:
            for agent in agents:
                self.orchestrator.register_agent(agent)
        except BaseException:
            await self.store.close()
            raise
        return self.orchestrator

    async def close(self) -> None:
        """Close what was opened only."""
        await self.store.close()

    def _agents(self) -> list[Agent]:
        agents: list[Agent] = []
        if self.settings.examples:
            from retinue.examples import fleet  # noqa: PLC0415 only when it is wanted

            agents.extend(fleet(self.settings.survey_root))
        agents.extend(load_agent(given.agent, given.arguments) for given in self.settings.agents)
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

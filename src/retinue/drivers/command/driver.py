"""The ``command`` driver: an agent is a command line, an execution is one process of it.

The command line comes from the operator's file; a task is only ever its stdin, or the one text
after ``--``. Each agent has a HOME and a working directory of its own, each execution a TMPDIR
that goes with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar

from retinue.domain.agent import AgentDefinition
from retinue.domain.ids import ulid
from retinue.domain.instance import InstanceRecord
from retinue.drivers.command.config import CommandConfig
from retinue.drivers.command.dialect import DIALECTS
from retinue.drivers.command.kept import Place, streams_of
from retinue.drivers.command.performance import Performance
from retinue.errors import NotSupported, SpawnFailed
from retinue.interfaces import (
    DriverContext,
    Features,
    Health,
    InstanceHandle,
    Job,
    Process,
    Supervised,
)
from retinue.process.child import Child
from retinue.process.kept import Kept
from retinue.process.quarters import Ground, Quarters
from retinue.process.traces import settle


class CommandDriver:
    """Runs CLIs; ``config`` of the definition is a ``CommandConfig``."""

    name: ClassVar[str] = "command"
    features: ClassVar[Features] = Features(streams=True, keeps=True)

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.kept = Kept(ground.link)

    async def start(self, agent: AgentDefinition, context: DriverContext, /) -> CommandInstance:
        """Return an instance; its processes come with its executions.

        Raises:
            SpawnFailed: the program is not there, its directories cannot be made, or it is to run
                in a sandbox and this host has none.
        """
        if not isinstance(agent.config, CommandConfig):
            raise SpawnFailed(f"{agent.agent_id} has no command")
        instance = CommandInstance(self, agent, agent.config, context)
        await instance.place.ready()
        return instance

    async def recover(
        self, agent: AgentDefinition | None, record: InstanceRecord, cursor: str | None, /
    ) -> Child | None:
        """Find a process that an earlier server left; None: there is none."""
        handle = record.found()
        directory = handle.get("kept")
        if directory is None:
            return None
        config = agent.config if agent is not None else None
        known = config if isinstance(config, CommandConfig) else CommandConfig(command=())
        at = Place.read(cursor, record.instance_id)
        streams = streams_of(
            Path(directory),
            lines=DIALECTS[known.output].lines,
            line_bytes=known.line_bytes,
            seam=at.offset,
        )
        try:
            if record.ended:
                return self.kept.ended(record.instance_id, streams)
            return await self.kept.find(handle["keeper"], record.instance_id, streams)
        except OSError:
            return None  # its files are gone

    def end_unwanted(self) -> None:
        """End what was found and nobody has asked for."""
        self.kept.end_unwanted()

    async def check(self, agent: AgentDefinition, /) -> None:
        """Refuse: what is run on this machine comes from the operator's file."""
        raise NotSupported("a command line comes from the configuration file only")


class CommandInstance:
    """One agent's command line, and where its processes live."""

    def __init__(
        self,
        driver: CommandDriver,
        definition: AgentDefinition,
        config: CommandConfig,
        context: DriverContext,
    ) -> None:
        self.handle = InstanceHandle(definition.agent_id, ulid())
        self.config = config
        self.lent = context
        # An id may be ".."; with the prefix it is a plain name.
        self.place = Quarters(driver.ground, f"agent-{definition.agent_id}", config)
        self.running: set[Performance] = set()
        self.read: dict[str, Path] = {}
        """By execution, the logs of those that are kept, were read to their end and stopped."""
        self._ending: set[asyncio.Task[None]] = set()

    def execute(self, job: Job, /) -> Performance:
        """Perform ``job``; see ``Instance``."""
        return Performance(self, job)

    def resume(self, job: Job, record: Supervised, process: Process, /) -> Performance:
        """Go on with what ``process`` does; see ``Keeping``."""
        assert isinstance(process, Child)
        return Performance(self, job, (record, process))

    def let_go(self, execution_id: str, /) -> bool:
        """Let what performs an execution go on without us, if it can; say whether it does."""
        return any(p.let_go() for p in tuple(self.running) if p.execution_id == execution_id)

    def over(self, execution_id: str, /) -> None:
        """Keep of an execution's output what a log keeps; see ``Keeping``."""
        logs = self.read.pop(execution_id, None)
        if logs is not None:
            self.aside(asyncio.to_thread(settle, logs, self.config.log_bytes))

    async def answer(self, question_id: str, answer: Any, /) -> None:
        """Refuse: a command asks nothing."""
        raise NotSupported("a command does not ask questions")

    async def ping(self) -> Health:
        """Say whether the program is still there."""
        try:
            await asyncio.to_thread(self.place.find)
        except SpawnFailed as error:
            return Health(False, error.message)
        return Health(True)

    async def stop(self, grace: float, /) -> None:
        """End every process of this agent."""
        for performance in tuple(self.running):
            self.aside(performance.end(min(grace, self.config.stop_seconds)))
        if self._ending:
            await asyncio.wait(self._ending)

    def aside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something to its end, whoever stops waiting for it."""
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    def begin(self, execution_id: str, attempt: int) -> tuple[Path, Path]:
        """Make an execution's TMPDIR; return it and where its log goes."""
        return self.place.begin(f"{execution_id}-{attempt}")

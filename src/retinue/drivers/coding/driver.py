"""The drivers of coding CLIs: ``claude``, ``codex``, and ``acp`` for all that speak it.

An agent is a CLI of the operator's file with a HOME of its own; an execution is one turn of it. The
CLI's own session goes on with ours: it is found again for a follow-up and after a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, ClassVar

from retinue.domain.agent import AgentDefinition
from retinue.domain.ids import ulid
from retinue.drivers.coding.config import CodingConfig
from retinue.drivers.coding.natives import Natives
from retinue.drivers.coding.place import Place
from retinue.drivers.coding.spoken import Begun, spawn
from retinue.drivers.coding.told import Told
from retinue.drivers.coding.turn import Turn
from retinue.drivers.coding.versions import version_in
from retinue.errors import NotSupported, SpawnFailed
from retinue.interfaces import DriverContext, Features, Health, InstanceHandle, Job
from retinue.process.ladder import Ladder, stop
from retinue.process.quarters import Ground

FINGERPRINT_SECONDS = 20.0


class CodingDriver:
    """What the drivers have in common; ``config`` of a definition is a ``CodingConfig``."""

    name: ClassVar[str]
    features: ClassVar[Features] = Features(streams=True, asks=True)
    config_model: ClassVar[type] = CodingConfig

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    async def start(self, agent: AgentDefinition, context: DriverContext, /) -> CodingInstance:
        """Return an instance; its processes come with its executions.

        Raises:
            SpawnFailed: the program is not there (says what to install), its directories cannot
                be made, or it is to run in a sandbox and this host has none.
        """
        if not isinstance(agent.config, CodingConfig):
            raise SpawnFailed(f"{agent.agent_id} names no coding CLI")
        instance = self.instance(agent, agent.config, context)
        await instance.ready()
        return instance

    def instance(
        self, agent: AgentDefinition, config: CodingConfig, context: DriverContext
    ) -> CodingInstance:
        """Return an instance, not prepared yet."""
        raise NotImplementedError

    async def check(self, agent: AgentDefinition, /) -> None:
        """Refuse: what is run on this machine comes from the operator's file."""
        raise NotSupported("a coding CLI comes from the configuration file only")


class CodingInstance:
    """One agent's CLI: where it lives, its sessions, and the turns that run."""

    def __init__(
        self,
        driver: CodingDriver,
        definition: AgentDefinition,
        config: CodingConfig,
        context: DriverContext,
    ) -> None:
        self.handle = InstanceHandle(definition.agent_id, ulid())
        self.config = config
        self.driver = driver.name
        self.lent = context
        self.place = Place(driver.ground, definition.agent_id, config)
        self.natives = Natives(self.place.sessions)
        self.running: set[Turn] = set()
        self.questions: dict[str, Told] = {}
        self.version: str | None = None
        self._aside: set[asyncio.Future[Any]] = set()

    async def ready(self) -> None:
        """Make what the CLI needs to run. Raises ``SpawnFailed``."""
        await self.place.ready()
        await asyncio.to_thread(self.prepare)

    def prepare(self) -> None:
        """Make what this kind of CLI needs in its HOME; blocks."""

    def execute(self, job: Job, /) -> Turn:
        """Perform ``job``; see ``Instance``."""
        raise NotImplementedError

    async def fingerprint(self) -> str | None:
        """Return the version that the program says it is, asked once."""
        if self.version is None:
            begun = await spawn(self, f"version-{ulid()}", ["--version"], {}, stdin=False)
            try:
                async with asyncio.timeout(FINGERPRINT_SECONDS):
                    line = await begun.child.stdout.next()
                self.version = version_in((line or b"").decode("utf-8", "replace"))
            except TimeoutError:
                pass
            finally:
                await asyncio.shield(self.aside(self._discard(begun)))
        return self.version

    async def answer(self, question_id: str, answer: Any, /) -> None:
        """Hand a person's answer to the turn that asked."""
        turn = self.questions.pop(question_id, None)
        if turn is not None:
            turn.decided(question_id, answer)

    async def ping(self) -> Health:
        """Say whether the program is still there."""
        try:
            await asyncio.to_thread(self.place.find)
        except SpawnFailed as error:
            return Health(False, error.message)
        return Health(True)

    async def stop(self, grace: float, /) -> None:
        """End every turn, and every process of this agent."""
        for turn in tuple(self.running):
            turn.finish(min(grace, self.config.stop_seconds))
        while self._aside:
            await asyncio.wait(self._aside)

    def aside(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do something to its end, whoever stops waiting for it."""
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)
        return task

    async def _discard(self, begun: Begun) -> None:
        if begun.child.exit is None:
            begun.record.draining()
        await stop(begun.child, Ladder(grace=1.0))
        await self.place.leave(begun.tmp)

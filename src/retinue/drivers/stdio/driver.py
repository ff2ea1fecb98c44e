"""The ``stdio`` driver: starts workers, programs of the operator's file that live long.

Each worker has a HOME and a working directory of its own, each of its processes a TMPDIR that goes
with it. A process is on record before it runs, and counts as started with its ready frame.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from retinue.domain.agent import AgentDefinition
from retinue.domain.ids import ulid
from retinue.domain.principal import LOCAL
from retinue.drivers.stdio.config import WorkerConfig, offers_of
from retinue.drivers.stdio.instance import StdioInstance
from retinue.errors import NotSupported, SpawnFailed
from retinue.interfaces import Birth, DriverContext, Features
from retinue.process.child import Streams
from retinue.process.executable import directory, find, refused
from retinue.process.link import Command, KeeperLink
from retinue.process.log import InstanceLog
from retinue.process.reading import Bounds

log = logging.getLogger("retinue.worker")
MOST_LOGS = 100
PRINTED_PER_SECOND = 50
LINE_BYTES_VARIABLE = "RETINUE_LINE_BYTES"


class StdioDriver:
    """Starts workers; ``config`` of the definition is a ``WorkerConfig``."""

    name: ClassVar[str] = "stdio"
    features: ClassVar[Features] = Features(
        streams=True, asks=True, park="replay", pooled=True, pings=True
    )

    def __init__(self, link: KeeperLink, root: Path, environment: Mapping[str, str]) -> None:
        self.link = link
        self.root = root
        self.environment = environment

    async def start(self, agent: AgentDefinition, context: DriverContext, /) -> StdioInstance:
        """Start a process of a worker; return once it is ready.

        Raises:
            SpawnFailed: it cannot be started, ends before it is ready, or lacks an agent.
        """
        config = agent.config
        if not isinstance(config, WorkerConfig):
            raise SpawnFailed(f"{agent.agent_id} has no command")
        name = ulid()
        place = _Place(self, agent.agent_id, config, name)
        path = await asyncio.to_thread(place.ready)
        kept = InstanceLog(self.link.logs, place.log, config.log_bytes)
        handle: dict[str, Any] = {"scope": self.link.scope, "log": str(place.log)}
        stopping: list[StdioInstance] = []

        async def end(grace: float) -> None:
            for one in stopping:
                await one.stop(grace)

        birth = Birth(
            agent_id=agent.agent_id, owner=LOCAL, driver=self.name, handle=handle, instance_id=name
        )
        record = await context.instances.begin(birth, end)
        command = Command(
            path=path,
            argv=config.command,
            env=place.environment(),
            cwd=str(place.work_dir),
            limits=config.limits,
        )
        streams = Streams(
            stdout=Bounds(lines=False, most=64),
            stderr=Bounds(lines=False, most=0, when_full="drop"),
            log=kept,
            log_stdout=False,
        )
        try:
            child = await self.link.spawn(command, streams, record.id)
        except BaseException as error:
            record.failed("it was not started")
            await asyncio.to_thread(place.leave)
            if isinstance(error, OSError):
                raise refused(config.command[0], error) from error
            raise
        child.stderr.on_item = Printer(agent.agent_id, place.masked)
        record.started(child)
        instance = StdioInstance(
            agent,
            context,
            record,
            child,
            tmp=place.tmp,
            log=kept.stream("stdout"),
            masked=place.masked,
        )
        stopping.append(instance)
        try:
            instance.offers = offers_of(agent, config, await instance.ready())
        except BaseException:
            await asyncio.shield(asyncio.create_task(_given_up(instance)))
            raise
        return instance

    async def check(self, agent: AgentDefinition, /) -> None:
        """Refuse: what is run on this machine comes from the operator's file."""
        raise NotSupported("a worker's command line comes from the configuration file only")


async def _given_up(instance: StdioInstance) -> None:
    await instance.stop(0.0)
    await instance.ended()


class _Place:
    """Where a process of a worker lives, and what it sees of the world."""

    def __init__(self, driver: StdioDriver, worker: str, config: WorkerConfig, name: str) -> None:
        # An id may be ".."; with the prefix it is a plain name.
        root = driver.root / f"worker-{worker}"
        self._config = config
        self._inherited = driver.environment
        self._logs = root / "logs"
        self.home = root / "home"
        self.work_dir = Path(config.work_dir) if config.work_dir else root / "work"
        self.tmp = root / "tmp" / name
        self.log = self._logs / name

    def ready(self) -> str:
        """Make its directories; return the file of its program.

        Raises:
            SpawnFailed: one of them is not to be had.
        """
        try:
            return self._prepare()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Remove what is the process's own."""
        shutil.rmtree(self.tmp, ignore_errors=True)

    def _prepare(self) -> str:
        own = [self.home, self._logs, self.tmp]
        if not self._config.work_dir:
            own.append(self.work_dir)
        try:
            for made in own:
                made.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SpawnFailed(f"{error.filename} cannot be made: {error.strerror}") from error
        for old in sorted(os.listdir(self._logs))[: -(MOST_LOGS - 1)]:
            shutil.rmtree(self._logs / old, ignore_errors=True)
        cwd = directory(str(self.work_dir))
        return find(self._config.command[0], self.environment().get("PATH"), cwd)

    def environment(self) -> dict[str, str]:
        """Return what the process sees: the allow-list, and what its settings name."""
        own = {
            "HOME": str(self.home),
            "TMPDIR": str(self.tmp),
            LINE_BYTES_VARIABLE: str(self._config.line_bytes),
        }
        return {**self._inherited, **own, **self._config.environment}

    def masked(self, text: str) -> str:
        """Return ``text`` without the values that the operator gave this worker."""
        for value in self._config.environment.values():
            if len(value) >= 4:  # noqa: PLR2004 a shorter one is no secret, and would mask words
                text = text.replace(value, "***")
        return text


class Printer:
    """Prints what a worker says on stderr, behind its name; so much in a second and no more.

    All of it is in its log; here it must never keep the frames waiting.
    """

    def __init__(self, name: str, masked: Any) -> None:
        self._name = name
        self._masked = masked
        self._second = 0
        self._left = PRINTED_PER_SECOND
        self._rest = b""

    def __call__(self, piece: bytes) -> None:
        """Take in a piece of stderr."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._left = second, PRINTED_PER_SECOND
        if not self._left:
            self._rest = b""
            return
        *lines, self._rest = (self._rest + piece).split(b"\n", self._left)
        self._left = max(self._left - len(lines), 0)
        for line in lines:
            text = self._masked(line[:1000].decode("utf-8", "replace").rstrip("\r"))
            log.info("[%s] %s", self._name, text, extra={"agent_id": self._name})
        if not self._left:
            log.info("[%s] says more on stderr than is shown here; its log has it", self._name)
            self._rest = b""
        elif len(self._rest) > 1000:  # noqa: PLR2004 as much of a line as is shown
            self._rest = self._rest[:1000]

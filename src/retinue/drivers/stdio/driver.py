"""The ``stdio`` driver: starts workers, programs of the operator's file that live long.

Each worker has a HOME and a working directory of its own, each of its processes a TMPDIR that goes
with it. A process is on record before it runs, and counts as started with its ready frame.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, ClassVar

from retinue.domain.agent import AgentDefinition
from retinue.domain.ids import ulid
from retinue.domain.principal import LOCAL
from retinue.drivers.stdio.config import WorkerConfig, offers_of
from retinue.drivers.stdio.instance import StdioInstance
from retinue.errors import NotSupported, SpawnFailed
from retinue.interfaces import STALL_SECONDS, Birth, DriverContext, Features
from retinue.process.child import Streams
from retinue.process.quarters import Ground, Quarters
from retinue.process.reading import Bounds

log = logging.getLogger("retinue.worker")
PRINTED_PER_SECOND = 50
LINE_BYTES_VARIABLE = "RETINUE_LINE_BYTES"


class StdioDriver:
    """Starts workers; ``config`` of the definition is a ``WorkerConfig``."""

    name: ClassVar[str] = "stdio"
    features: ClassVar[Features] = Features(
        streams=True, asks=True, park="replay", pooled=True, pings=True
    )

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    async def start(self, agent: AgentDefinition, context: DriverContext, /) -> StdioInstance:
        """Start a process of a worker; return once it is ready.

        Raises:
            SpawnFailed: it cannot be started, ends before it is ready, lacks an agent, or is to
                run in a sandbox and this host has none.
        """
        config = agent.config
        if not isinstance(config, WorkerConfig):
            raise SpawnFailed(f"{agent.agent_id} has no command")
        name = ulid()
        # An id may be ".."; with the prefix it is a plain name.
        place = Quarters(self.ground, f"worker-{agent.agent_id}", config)
        await place.ready()
        tmp, directory = await asyncio.to_thread(place.begin, name)
        kept = place.log(directory)
        handle: dict[str, Any] = {"scope": self.ground.link.scope, "log": str(directory)}
        stopping: list[StdioInstance] = []

        async def end(grace: float) -> None:
            for one in stopping:
                await one.stop(grace)

        birth = Birth(
            agent_id=agent.agent_id,
            owner=LOCAL,
            driver=self.name,
            handle=handle,
            instance_id=name,
            stall_seconds=agent.pool.stall_seconds if agent.pool is not None else STALL_SECONDS,
            pings=True,
        )
        record = await context.instances.begin(birth, end)
        streams = Streams(
            stdout=Bounds(lines=False, most=64),
            stderr=Bounds(lines=False, most=0, when_full="drop"),
            log=kept,
            log_stdout=False,
        )
        try:
            more = {LINE_BYTES_VARIABLE: str(config.line_bytes)}
            command = await place.command(config.command[1:], tmp, more=more)
            child = await place.spawn(command, streams, record.id)
        except BaseException:
            record.failed("it was not started")
            await place.leave(tmp)
            raise
        child.stderr.on_item = Printer(agent.agent_id, place.masked)
        record.started(child)
        instance = StdioInstance(
            agent,
            context,
            record,
            child,
            place=place,
            tmp=tmp,
            log=kept.stream("stdout"),
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

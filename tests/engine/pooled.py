"""A driver of long-lived processes for the tests of pools: one JSON line per request and answer.

The program does what a request says: ``echo``; ``hold`` until a file is there; ``exit`` with a
code; ``mute``, after which it never answers anything, pings included.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from retinue.domain.agent import AgentDefinition, Capability
from retinue.domain.event import EventData, EventType
from retinue.domain.ids import ulid
from retinue.domain.supervision import Departure
from retinue.errors import CommunicationError, NotSupported, SpawnFailed
from retinue.interfaces import DriverContext, Features, Health, InstanceHandle, Job
from retinue.process.child import Child, Streams
from retinue.process.ladder import Ladder, stop
from retinue.process.link import Command, KeeperLink

PROGRAM = r"""
import json, os, sys, threading, time
muted = threading.Event()
lock = threading.Lock()
def say(value):
    if not muted.is_set():
        with lock:
            sys.stdout.write(json.dumps(value) + "\n")
            sys.stdout.flush()
def do(asked):
    what = asked["do"]
    if what == "exit":
        os._exit(asked["code"])
    if what == "mute":
        muted.set()
    if what == "hold":
        while not os.path.exists(asked["file"]):
            time.sleep(0.005)
    say({"n": asked["n"], "pid": os.getpid()})
if os.path.exists(sys.argv[1]):
    sys.exit(open(sys.argv[1]).read())
say({"ready": True})
for line in sys.stdin:
    threading.Thread(target=do, args=(json.loads(line),), daemon=True).start()
"""


class Lines(msgspec.Struct, frozen=True):
    """``config`` of the definitions: the file that keeps the program from starting."""

    stopper: str
    offers: tuple[AgentDefinition, ...] = ()


class LinesDriver:
    """Runs the program."""

    name: ClassVar[str] = "lines"
    features: ClassVar[Features] = Features(pooled=True, pings=True)

    def __init__(self, link: KeeperLink) -> None:
        self.link = link
        self.pids: list[int] = []
        self.offers: tuple[AgentDefinition, ...] | None = None

    async def start(self, agent: AgentDefinition, context: DriverContext, /) -> "LinesInstance":
        program = (sys.executable, "-I", "-S", "-u", "-c", PROGRAM, agent.config.stopper)
        command = Command(path=sys.executable, argv=program, env=dict(os.environ), cwd="/")
        child = await self.link.spawn(command, Streams())
        offers = agent.config.offers if self.offers is None else self.offers
        instance = LinesInstance(agent.agent_id, child, offers)
        try:
            line = await child.stdout.next()
        except BaseException:
            child.kill()
            raise
        if line is None:
            await child.wait_gone()
            raise SpawnFailed(f"it {child.exit}: {child.stderr.tail.decode().strip()}")
        self.pids.append(child.pid)
        instance.reading = asyncio.create_task(instance.read())
        return instance

    async def check(self, agent: AgentDefinition, /) -> None:
        raise NotSupported("not here")


class SilentDriver(LinesDriver):
    """Its instances cannot be asked how they are."""

    features: ClassVar[Features] = Features(pooled=True)


class SessionDriver(LinesDriver):
    """Its instances serve one session each."""

    features: ClassVar[Features] = Features(pooled=True, pings=True, session_bound=True)


class LinesInstance:
    """One process of it."""

    def __init__(self, agent_id: str, child: Child, offers: Sequence[AgentDefinition]) -> None:
        self.handle = InstanceHandle(agent_id, ulid())
        self.offers = offers
        self.last_event = time.monotonic()
        self.stage: str | None = None
        self.child = child
        self.pid = child.pid
        self.faults: dict[str, int] = {}
        self.reading: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}

    async def read(self) -> None:
        async for line in self.child.stdout:
            self.last_event = time.monotonic()
            said = json.loads(line)
            future = self._asked.pop(said["n"], None)
            if future is not None and not future.done():
                future.set_result(said)
        for future in self._asked.values():
            if not future.done():
                future.set_exception(CommunicationError("the program ended"))

    async def ask(self, asked: dict[str, Any]) -> "asyncio.Future[Any]":
        """Send a request; return what will be its answer."""
        number = len(self._asked) + time.monotonic_ns()
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        assert self.child.stdin is not None
        try:
            await self.child.stdin.write(json.dumps({**asked, "n": number}).encode() + b"\n")
        except CommunicationError as error:
            error.outcome = "not_started"
            raise
        return future

    def execute(self, job: Job, /) -> "Asked":
        return Asked(self, job)

    async def answer(self, question_id: str, answer: Any, /) -> None:
        raise NotSupported("it does not ask")

    async def ping(self) -> Health:
        await (await self.ask({"do": "ping"}))
        return Health(True)

    def excused(self, since: float) -> bool:
        return False

    def because(self, why: str, /) -> None:
        pass

    async def ended(self) -> Departure:
        status = await self.child.wait()
        await self.child.wait_gone()
        assert self.reading is not None
        await self.reading
        return Departure(status.code == 0, f"the program {status}")

    async def stop(self, grace: float, /) -> None:
        await stop(self.child, Ladder(stdin=grace or None, grace=None))


class Asked:
    """One execution."""

    def __init__(self, instance: LinesInstance, job: Job) -> None:
        self._instance = instance
        self._job = job
        self._answer: asyncio.Future[Any] | None = None

    async def __aenter__(self) -> AsyncIterator[EventData]:
        self._answer = await self._instance.ask(self._job.parameters)
        return self

    def __aiter__(self) -> AsyncIterator[EventData]:
        return self

    async def __anext__(self) -> EventData:
        assert self._answer is not None
        answer = await self._answer
        answer["agent"] = self._job.execution.agent_id
        return EventData(EventType.COMPLETED, {"result": answer})

    async def __aexit__(self, *_: object) -> None:
        pass


def agent(tmp: Path, name: str = "it", **more: Any) -> AgentDefinition:
    """Return the definition of an agent that performs ``do``."""
    config = Lines(str(tmp / "stopper"), more.pop("offers", ()))
    capabilities = more.pop("capabilities", (Capability(name="do"),))
    return AgentDefinition(
        agent_id=name,
        name=name,
        driver="lines",
        config=config,
        capabilities=capabilities,
        **more,
    )

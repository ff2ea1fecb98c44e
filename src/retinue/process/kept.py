"""Find agents again that were kept: their first owner is gone, their keeper is not.

Whoever joins a keeper that lost its owner becomes its owner and is told what it keeps. What nobody
asks for is ended: an agent never works unowned. Nor does one whose keeper is there and silent: that
one is killed before anybody says of its agents that they are gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time

from retinue.errors import SpawnFailed
from retinue.keeper.door import peer, read_exit
from retinue.keeper.frames import Frame, Wire
from retinue.keeper.seal import stopped
from retinue.keeper.tree import lives
from retinue.process.child import Child, Exit, Streams
from retinue.process.link import KeeperLink
from retinue.process.watch import LOOK_SECONDS, Patience

log = logging.getLogger(__name__)

JOIN_SECONDS = 2.0
"""How long an owner that is just ending may take to leave its keeper."""
KILLED_LOOKS = 250
_TRY_SECONDS = 0.02


class JoinedLink(KeeperLink):
    """The owner's end of a keeper that somebody else started."""

    def __init__(self, link: KeeperLink) -> None:
        super().__init__(link.scope)
        self.here: dict[str, Frame] | None = None
        self._main = link
        self._incarnate = ""
        self._told = asyncio.Event()

    async def join(self, where: str) -> None:
        """Become its owner; its last one may just be ending.

        Raises:
            SpawnFailed: it is gone, too, or has another owner, or is silent: then it was killed.
        """
        self._incarnate = where.rpartition("-")[2]
        self.pid = int(self._incarnate.partition(".")[0])
        self._loop, self._starting = asyncio.get_running_loop(), asyncio.Lock()
        try:
            await self._join(where, self.pid)
        except BaseException:
            self._drop()
            raise

    async def _join(self, where: str, pid: int) -> None:
        until = time.monotonic() + JOIN_SECONDS
        patience = Patience()
        while lives(self._incarnate):
            knocked = self._connect(where)
            why = None
            if knocked is None:  # those who wait at its door fill it: does nobody open?
                await asyncio.sleep(LOOK_SECONDS)
                why = patience.judge(heard=False, waits=True, still=stopped(pid))
            elif knocked:
                why = await self._answer(pid, patience)
                if self.here:
                    return
                self._drop()
                if self.here is not None:
                    raise SpawnFailed(f"keeper {self._incarnate} keeps nothing any more")
            elif time.monotonic() > until and stopped(pid):
                why = "it was stopped"
            if why is not None:
                await self._end_it(pid, why)
                raise SpawnFailed(f"keeper {self._incarnate} was killed: {why}")
            if knocked is not None and time.monotonic() > until:
                raise SpawnFailed(f"keeper {self._incarnate} has another owner")
            await asyncio.sleep(_TRY_SECONDS)
        raise SpawnFailed(f"keeper {self._incarnate} is not there")

    def _connect(self, where: str) -> bool | None:
        """Knock at its door; False: there is none, None: too many wait there already.

        Raises:
            SpawnFailed: somebody else is there.
        """
        assert self._loop is not None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(where)
            there = peer(sock)[0]
        except OSError as error:
            sock.close()
            return None if isinstance(error, BlockingIOError) else False
        if there != self.pid:
            sock.close()
            raise SpawnFailed(f"another process has the name of keeper {self._incarnate}")
        self._told.clear()
        self._wire = Wire(sock)
        self._loop.add_reader(sock.fileno(), self._readable)
        return True

    async def _answer(self, pid: int, patience: Patience) -> str | None:
        """Wait until it says something; return why it counts as gone when it does not."""
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._told.wait()
                return None
            except TimeoutError:
                why = patience.judge(heard=self._told.is_set(), waits=True, still=stopped(pid))
            if why is not None:
                return why

    async def _end_it(self, pid: int, why: str) -> None:
        """Kill it, and have our own keeper end what it leaves."""
        log.error("keeper %s of an earlier server was killed: %s", self._incarnate, why)
        self._kill(pid)
        await self._swept()

    def _kill(self, pid: int) -> None:
        if lives(self._incarnate):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass  # it has just ended

    async def _swept(self) -> None:
        for _ in range(KILLED_LOOKS):
            if not lives(self._incarnate):
                break
            await asyncio.sleep(_TRY_SECONDS)
        await self._main.sweep()

    def _hear(self, frame: Frame, fds: list[int]) -> None:
        if frame["op"] == "kept":
            self.here = {agent["id"]: agent for agent in frame["agents"]}
        if frame["op"] in {"kept", "owned"}:
            self._told.set()
            return
        if frame["op"] == "exit" and self.here is not None:
            self.here.pop(frame["id"], None)  # who asks for it reads how it ended
        super()._hear(frame, fds)
        if not self.children and not self.here and not self._waits():
            self._drop()  # it has nothing more to keep, and nobody waits for its answer

    def _silent(self, why: str) -> None:
        assert self.pid is not None
        self._kill(self.pid)
        self._lost(f"its keeper was killed: {why}")

    def _lost(self, why: str = "its keeper died") -> None:
        self._told.set()
        had = self.here is not None and bool(self.here or self.children)
        if had:
            self._say_lost(why)
        self._drop(why)
        if had:
            self._main.sweep_when(self._swept)

    def child(self, name: str, streams: Streams) -> Child | None:
        """Return an agent that is kept there; the first one who asks gets it."""
        found = (self.here or {}).pop(name, None)
        if found is None or self._wire is None:
            return None
        child = self.children[name] = Child(self, name, found["pid"], [], streams)
        child.start = found["start"]
        if self._loop is not None and self.pid is not None:
            self._watch.begin(self._loop, self.pid)
        return child

    def end_unwanted(self) -> None:
        """End what nobody has asked for."""
        for name in list(self.here or {}):
            self.kill(name)
        self.here = {}
        if not self.children:
            self._drop()


class Kept:
    """The agents that earlier owners of a scope left running. ``link`` is ours."""

    def __init__(self, link: KeeperLink) -> None:
        self._link = link
        self._joining: dict[str, asyncio.Task[JoinedLink]] = {}

    async def find(self, where: str, name: str, streams: Streams) -> Child | None:
        """Return an agent by the address of its keeper and its name.

        One that ended meanwhile has exited already, if its keeper wrote down how. None: nothing is
        known of it.
        """
        assert streams.spool is not None
        return await self._alive(where, name, streams) or self.ended(name, streams)

    async def _alive(self, where: str, name: str, streams: Streams) -> Child | None:
        joining = self._joining.get(where)
        if joining is None:
            joining = self._joining[where] = asyncio.create_task(self._join(where))
        try:
            return (await asyncio.shield(joining)).child(name, streams)
        except SpawnFailed:
            return None

    async def _join(self, where: str) -> JoinedLink:
        link = JoinedLink(self._link)
        await link.join(where)
        self._link.joined.append(link)
        return link

    def ended(self, name: str, streams: Streams) -> Child | None:
        """Return an agent that has ended, if its keeper wrote down how."""
        assert streams.spool is not None
        status = read_exit(str(streams.spool))
        if status is None:
            return None
        child = Child(self._link, name, 0, [], streams)
        child.exited(Exit.of(status))
        child.vanished()
        return child

    def end_unwanted(self) -> None:
        """End what keepers that were joined keep, and nobody has asked for; forget those gone."""
        for joining in self._joining.values():
            if joining.done() and not joining.cancelled() and joining.exception() is None:
                joining.result().end_unwanted()
        self._joining.clear()

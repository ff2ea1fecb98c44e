"""Find agents again that were kept: their first owner is gone, their keeper is not.

A keeper that lost its owner listens; whoever joins it becomes its owner and is told what it keeps.
What nobody asks for is ended: an agent never works unowned.
"""

from __future__ import annotations

import asyncio
import socket
import time

from retinue.errors import SpawnFailed
from retinue.keeper.door import peer, read_exit
from retinue.keeper.frames import Frame, Wire
from retinue.keeper.tree import incarnation
from retinue.process.child import Child, Exit, Streams
from retinue.process.link import KeeperLink

JOIN_SECONDS = 2.0


class JoinedLink(KeeperLink):
    """The owner's end of a keeper that somebody else started."""

    def __init__(self, link: KeeperLink) -> None:
        super().__init__(link.scope)
        self.here: dict[str, Frame] | None = None
        self._told = asyncio.Event()

    async def join(self, where: str) -> None:
        """Become its owner; its last one may just be ending.

        Raises:
            SpawnFailed: it is gone, too, or has another owner.
        """
        incarnate = where.rpartition("-")[2]
        pid = int(incarnate.partition(".")[0])
        self._loop, self._starting = asyncio.get_running_loop(), asyncio.Lock()
        until = time.monotonic() + JOIN_SECONDS
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            while True:
                try:
                    sock.connect(where)
                    break
                except OSError:
                    if incarnation(pid) != incarnate or time.monotonic() > until:
                        raise SpawnFailed(f"keeper {incarnate} is not there") from None
                    await asyncio.sleep(0.01)
            if peer(sock)[0] != pid:
                raise SpawnFailed(f"another process has the name of keeper {incarnate}")
        except BaseException:
            sock.close()
            raise
        self.pid, self._wire = pid, Wire(sock)
        self._loop.add_reader(sock.fileno(), self._readable)
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                await self._told.wait()
        except TimeoutError:
            pass
        if self.here is None:
            self._drop()
            raise SpawnFailed(f"keeper {incarnate} does not answer")

    def _hear(self, frame: Frame, fds: list[int]) -> None:
        if frame["op"] == "kept":
            self.here = {agent["id"]: agent for agent in frame["agents"]}
            self._told.set()
            return
        if frame["op"] == "exit" and self.here is not None:
            self.here.pop(frame["id"], None)  # who asks for it reads how it ended
        super()._hear(frame, fds)
        asked = any(not answer.done() for answer in self._answers.values())
        if not self.children and not self.here and not asked:
            self._drop()  # it has nothing more to keep, and nobody waits for its answer

    def _lost(self) -> None:
        self._told.set()
        self._drop()

    def child(self, name: str, streams: Streams) -> Child | None:
        """Return an agent that is kept there; the first one who asks gets it."""
        found = (self.here or {}).pop(name, None)
        if found is None or self._wire is None:
            return None
        child = self.children[name] = Child(self, name, found["pid"], [], streams)
        child.start = found["start"]
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

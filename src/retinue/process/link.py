"""A keeper, as its owner holds it: started when first needed, ended with the owner.

One socket and no thread, whatever the number of processes. The keeper is told what to start and
answers with the process's descriptors; from then on their data goes between this process and the
agent directly. When the keeper itself is killed its agents die with it, their handles say that
their exit is not known, and another keeper is started, which first ends what the dead one left. One
that does not answer (``watch``) is killed for that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from retinue.domain.ids import ulid
from retinue.errors import SpawnFailed
from retinue.keeper.door import address
from retinue.keeper.frames import Closed, Frame, Wire
from retinue.keeper.seal import stopped
from retinue.keeper.tree import incarnation
from retinue.process.child import Child, Exit, Streams
from retinue.process.log import LogWriter
from retinue.process.watch import LOOK_SECONDS, Watch

log = logging.getLogger(__name__)
START_SECONDS = 10.0
CLOSE_SECONDS = 12.0
STANDING_LOOKS = 4
"""How many looks on end must find a keeper stopped that is to end, until it is killed."""
MOST_NAMED = 10
_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from retinue.keeper.main import main; main()"
)


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What to start: ``path`` is executed with ``argv``, ``env`` and ``cwd``, nothing else.

    ``limits`` are the keeper's: ``memory_bytes``, ``cpu_percent``, ``runtime_seconds`` and
    ``processes`` for the tree; ``open_files``, ``files``, ``file_bytes`` and ``address_space`` for
    each process. ``linger`` is how long what the process leaves behind may live after it. ``box``
    is the network of the sandbox that ``path`` makes, if it is one; see ``process.sandbox``.
    ``kept`` is the directory of its stdin, stdout and stderr, files then: it outlives its owner.
    """

    path: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    stdin: bool = True
    limits: Mapping[str, float] = {}
    linger: float = 0.5
    box: Literal["host", "loopback", "none"] | None = None
    kept: str | None = None


class KeeperLink:
    """The owner's end. ``scope`` names whose agents they are: sweeps touch no others."""

    def __init__(self, scope: str | None = None) -> None:
        self.scope = scope or ulid()
        self.logs = LogWriter()
        self.children: dict[str, Child] = {}
        self.pid: int | None = None
        self._owner = os.getpid()
        self._wire: Wire | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starting: asyncio.Lock | None = None
        self._spawning: dict[str, tuple[asyncio.Future[Child], Streams]] = {}
        self._answers: dict[int, asyncio.Future[Frame]] = {}
        self._questions = 0
        self._probes: set[int] = set()
        self._watch = Watch(self._waits, lambda: bool(self.children), self._probe, self._silent)
        self._writing = False
        self._sweeping: asyncio.Task[None] | None = None
        self.joined: list[KeeperLink] = []
        self._leaves_some = False

    # -- the keeper itself ---------------------------------------------------------------------

    async def start(self) -> None:
        """Start the keeper, unless it runs; end what an earlier one of this scope left.

        Raises:
            SpawnFailed: it cannot be started.
        """
        if self._owner != os.getpid():
            raise SpawnFailed("this keeper belongs to the process that forked this one")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # The loop of an earlier asyncio.run() is gone, and all that waited in it.
            self._drop()
            self._loop, self._starting, self._sweeping = loop, asyncio.Lock(), None
        assert self._starting is not None
        async with self._starting:
            if self._wire is None and self._process is not None:
                process, self._process = self._process, None
                await _ended(process)
            if self._wire is None:
                self._open(loop)
                try:
                    async with asyncio.timeout(START_SECONDS):
                        await self._swept_all()
                except TimeoutError:
                    self._silent("it was started, and did not answer")
                    raise SpawnFailed("the keeper was started and does not answer") from None

    async def sweep(self) -> None:
        """End what earlier keepers of this scope left that are no more.

        Raises:
            SpawnFailed: there is no keeper to do it.
        """
        await self.start()
        await self._swept_all()

    async def _swept_all(self) -> None:
        answer = await self._ask({"op": "sweep"})
        for pid in answer["keepers"]:
            log.error("keeper %s of an earlier owner was killed: it was stopped", pid)
        if answer["count"]:
            log.warning("ended what a keeper left that is gone: %s processes", answer["count"])

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        owner = os.pidfd_open(os.getpid())
        try:
            # vfork and exec: it costs the same whatever this process's size.
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", "-c", _PROGRAM),
                    *(str(_ROOT), str(theirs.fileno()), str(owner), self.scope),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
                cwd="/",
                pass_fds=(theirs.fileno(), owner),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise SpawnFailed(f"the keeper cannot be started: {error}") from error
        finally:
            theirs.close()
            os.close(owner)
        self.pid = self._process.pid
        self._wire = Wire(ours)
        loop.add_reader(ours.fileno(), self._readable)

    def sweep_when(self, swept: Callable[[], Awaitable[None]]) -> None:
        """Have ``swept`` done, after what is on its way; ``close`` waits for it."""
        earlier = self._sweeping

        async def sweep() -> None:
            if earlier is not None:
                await earlier
            try:
                await swept()
            except SpawnFailed:
                pass  # the next keeper does it when it starts

        if self._loop is not None:
            self._sweeping = self._loop.create_task(sweep())

    async def close(self) -> None:
        """End every process, and the keeper; return when they are gone."""
        if self._sweeping is not None:
            await self._sweeping
        for link in self.joined:
            link._drop()
        self.joined.clear()
        process, self._process = self._process, None
        self._drop()
        self.logs.close()
        self.logs = LogWriter()
        if process is not None and self._leaves_some:
            process.returncode = 0  # it lives on, and is not ours to wait for
        elif process is not None and not await _ended(process):
            await self._tidy()

    async def _tidy(self) -> None:
        """Have another keeper end what one left that did not end by itself."""
        try:
            await self.start()
        except SpawnFailed:
            pass  # then the next one of this scope does it
        process, self._process = self._process, None
        self._drop()
        if process is not None:
            await _ended(process)

    def _drop(self, why: str | None = None) -> None:
        """Let go of the keeper: that it sees the socket closed is what ends it."""
        self._watch.end()
        self._probes.clear()
        wire, self._wire = self._wire, None
        if wire is not None:
            loop = self._loop
            if loop is not None and not loop.is_closed():
                loop.remove_reader(wire.socket.fileno())
                loop.remove_writer(wire.socket.fileno())
            wire.close()
        self._writing = False
        for future, _ in self._spawning.values():
            _fail(future, f"{why or 'the keeper ended'} before the process was started")
        for answer in self._answers.values():
            _fail(answer, why or "the keeper ended")
        self._spawning.clear()
        self._answers.clear()
        for child in list(self.children.values()):
            child.exited(Exit(reason="lost", detail=why))
            child.vanished()
        self.children.clear()

    def _silent(self, why: str) -> None:
        """End a keeper that does not answer: its leaders die with it (PDEATHSIG)."""
        if self._process is not None:
            self._process.kill()
        self._lost(f"its keeper was killed: {why}")

    def _say_lost(self, why: str) -> None:
        names = sorted(self.children)
        named = ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
        took = f"{len(names)} processes: {named}" if names else "no process"
        log.error("keeper %s is gone (%s) and took along %s", self.pid, why, took)

    def _lost(self, why: str = "its keeper died") -> None:
        """Note that the keeper is gone, and have another one end what is left of its agents."""
        had = bool(self.children)
        process, self._process = self._process, None
        if process is not None:
            self._say_lost(why)
        self._drop(why)
        if self._loop is not None and process is not None:
            self._sweeping = self._loop.create_task(self._replace(process, had))

    async def _replace(self, process: subprocess.Popen[bytes], had: bool) -> None:
        await _ended(process)
        if had:
            try:
                await self.start()
            except SpawnFailed:
                pass  # the next spawn says so

    # -- frames --------------------------------------------------------------------------------

    def _put(self, frame: Frame) -> None:
        if self._wire is None:
            raise SpawnFailed("the keeper is not running")
        self._wire.put(frame)
        self._flush()
        if self._loop is not None and self.pid is not None:
            self._watch.begin(self._loop, self.pid)

    def _flush(self) -> None:
        wire, loop = self._wire, self._loop
        if wire is None or loop is None:
            return
        try:
            flushed = wire.flush()
        except Closed:
            return  # the reader notices, too
        if flushed == self._writing:
            self._writing = not flushed
            if flushed:
                loop.remove_writer(wire.socket.fileno())
            else:
                loop.add_writer(wire.socket.fileno(), self._flush)

    def _waits(self) -> bool:
        """Whether the keeper has something to answer."""
        return bool(self._answers or self._spawning or self._probes)

    def _probe(self) -> None:
        """Ask it something, to see that it is there: of an agent that nobody has."""
        self._questions += 1
        self._probes.add(self._questions)
        self._put({"op": "usage", "id": "", "n": self._questions})

    async def _ask(self, frame: Frame) -> Frame:
        self._questions += 1
        number = self._questions
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        try:
            self._put({**frame, "n": number})
            return await future
        finally:
            self._answers.pop(number, None)

    def _readable(self) -> None:
        wire = self._wire
        if wire is None:
            return
        try:
            for frame, fds in wire.receive():
                self._watch.heard()
                self._hear(frame, fds)
        except Closed:
            self._lost()

    def _hear(self, frame: Frame, fds: list[int]) -> None:
        child = self.children.get(frame.get("id", ""))
        match frame["op"]:
            case "answer":
                self._probes.discard(frame["re"])
                future = self._answers.get(frame["re"])
                if future is not None and not future.done():
                    future.set_result(frame)
            case "started":
                self._started(frame, fds)
            case "refused":
                waiting = self._spawning.pop(frame["id"], None)
                if waiting is not None and not waiting[0].done():
                    error = OSError(frame["errno"], frame["why"], frame.get("file"))
                    waiting[0].set_exception(error)
            case "exit" if child is not None:
                child.exited(Exit.of(frame))
            case "gone" if child is not None:
                del self.children[frame["id"]]
                child.vanished()

    def _started(self, frame: Frame, fds: list[int]) -> None:
        name = frame["id"]
        waiting = self._spawning.pop(name, None)
        complete = len(fds) == frame.get("fds", 0)
        if waiting is None or waiting[0].done() or not complete:
            for fd in fds:
                os.close(fd)
            self._put({"op": "kill", "id": name})
            if waiting is not None and not complete:
                _fail(waiting[0], "this process has too many open files (ulimit -n)")
            return
        future, streams = waiting
        child = Child(self, name, frame["pid"], fds, streams)
        child.start = frame["start"]
        self.children[name] = child
        future.set_result(child)

    # -- agents that are kept ------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Where this keeper will be found when its owner is gone; it must have been started."""
        assert self.pid is not None
        return address(self.scope, incarnation(self.pid))

    def let_go(self, name: str) -> None:
        """Forget an agent that is kept: it goes on when this link is closed."""
        if self.children.pop(name, None) is not None:
            self._leaves_some = True

    # -- processes -----------------------------------------------------------------------------

    async def spawn(self, command: Command, streams: Streams, name: str | None = None) -> Child:
        """Start a process; ``streams`` says what becomes of its output.

        Raises:
            SpawnFailed: the keeper cannot be started, or this process is out of descriptors.
            OSError: the process cannot be started.
        """
        await self.start()
        name = name or ulid()
        future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._spawning[name] = (future, streams)
        try:
            self._put({"op": "spawn", "id": name, **msgspec.to_builtins(command)})
            return await future
        except ValueError as error:
            raise SpawnFailed(str(error)) from None
        except asyncio.CancelledError:
            self.kill(name)
            raise
        finally:
            self._spawning.pop(name, None)

    async def signal(self, name: str, number: int, *, tree: bool = False) -> int:
        """Signal a process, or its whole tree; return how many got it (0: it has ended)."""
        if name not in self.children:
            return 0
        answer = await self._ask({"op": "signal", "id": name, "signal": number, "tree": tree})
        return int(answer["count"])

    def kill(self, name: str) -> None:
        """Have a process's whole tree killed; harmless when it is gone."""
        if self._wire is not None:
            self._put({"op": "kill", "id": name})
            self._probe()

    async def usage(self, name: str) -> Frame:
        """Return what a process's tree uses now; empty when it has ended."""
        if name not in self.children:
            return {}
        answer = await self._ask({"op": "usage", "id": name})
        return answer if "cpu" in answer else {}  # it ended in between


async def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Reap a keeper that is about to end; one that does not, or stands stopped, is killed.

    Returns whether it ended by itself, so that nothing is left of what it had.
    """
    until = time.monotonic() + CLOSE_SECONDS
    look, standing = 0.0, 0
    while process.poll() is None:
        now = time.monotonic()
        if now > look:
            look, standing = now + LOOK_SECONDS, standing + 1 if stopped(process.pid) else 0
        if now > until or standing > STANDING_LOOKS:
            process.kill()
        await asyncio.sleep(0.005)
    return process.returncode == 0


def _fail(future: asyncio.Future[Any], why: str) -> None:
    if not future.done() and not future.get_loop().is_closed():
        future.set_exception(SpawnFailed(why))

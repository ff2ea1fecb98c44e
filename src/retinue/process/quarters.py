"""Where the processes of an agent live, and how they are started: the one way for all drivers.

An agent has a HOME, a working directory and logs of its own, each of its processes a TMPDIR that
goes with it. Of our environment they see a short list, and what the operator gave. In a sandbox
they write these directories, and what that names; where it cannot be made, nothing is started.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from retinue.domain.ids import is_ulid
from retinue.errors import SpawnFailed
from retinue.process.child import Child, Streams
from retinue.process.executable import directory, find, refused
from retinue.process.link import Command, KeeperLink
from retinue.process.log import InstanceLog, forms, last_said, masked
from retinue.process.sandbox import Bubblewrap, Sandbox, boxed
from retinue.process.traces import clear, mark_over


class ProcessConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What every agent that is a process is told. It comes from the operator's file only.

    ``limits`` are the keeper's. In a ``sandbox`` it may write its own directories and what that
    names. ``home`` and ``work_dir`` are its own unless given.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = {}
    work_dir: str | None = None
    home: str | None = None
    limits: Mapping[str, float] = {}
    sandbox: Sandbox | None = None
    log_bytes: int = 1 << 20


class Ground:
    """What the agents of one system share: a keeper, and a directory below which they live.

    ``environment`` is what they inherit. ``common`` is what every sandbox of theirs hides, guards.
    """

    def __init__(
        self,
        link: KeeperLink,
        root: Path,
        environment: Mapping[str, str],
        common: Sandbox | None = None,
    ) -> None:
        self.link = link
        self.root = root.absolute()  # the keeper, which starts programs, is somewhere else
        self.environment = environment
        self.common = common or Sandbox()
        self.bubblewrap = Bubblewrap(link)
        self.working: set[Path] = set()
        """The TMPDIRs of the processes that run."""

    def executions(self) -> set[str]:
        """Return the executions that have a log of their own here; blocks."""
        return {id_ for log in self._logs() if (id_ := _execution_of(log)) is not None}

    def forget(self, executions: Collection[str], owner: str, session_id: str, /) -> None:
        """Remove the logs of these, and which session of its own an agent had; blocks."""
        self.link.logs.settle()
        for log in self._logs():
            if _execution_of(log) in executions:
                shutil.rmtree(log, ignore_errors=True)
        for file in self.root.glob(f"*/sessions/{session_file(owner, session_id)}"):
            file.unlink(missing_ok=True)

    def _logs(self) -> list[Path]:
        return list(self.root.glob("*/logs/*"))


def _execution_of(log: Path) -> str | None:
    """Return whose log it is alone: that of an attempt is named by it."""
    name, _, attempt = log.name.partition("-")
    return name if attempt and is_ulid(name) else None


def session_file(owner: str, session_id: str) -> str:
    """Return the name of the file that says which session of its own an agent has for one."""
    return hashlib.sha256(f"{owner}\0{session_id}".encode()).hexdigest()[:32] + ".json"


class Quarters:
    """One agent's directories and program, and what its processes see of the world."""

    def __init__(self, ground: Ground, name: str, config: ProcessConfig) -> None:
        self.ground = ground
        self.config = config
        self.root = ground.root / name
        self.home = Path(config.home).absolute() if config.home else self.root / "home"
        given = Path(config.work_dir).absolute() if config.work_dir else None
        self.work_dir = given or self.root / "work"
        self.logs = self.root / "logs"
        self.sessions = self.root / "sessions"
        self.path = ""
        self._secrets = forms(config.environment.values())

    # -- before anything is started ------------------------------------------------------------

    async def ready(self) -> None:
        """Make the directories, find the program, and see that its sandbox can be made.

        Raises:
            SpawnFailed: one of these is not to be had.
        """
        await asyncio.to_thread(self.prepare)
        if self.config.sandbox is not None:
            await self.ground.bubblewrap.ready(self.config.sandbox, self.ground.environment)

    def prepare(self) -> None:
        """Make the directories and find the program; blocks.

        Raises:
            SpawnFailed: one of them is not to be had.
        """
        own = [self.logs, self.root / "tmp"]
        own += [] if self.config.home else [self.home]
        own += [] if self.config.work_dir else [self.work_dir]
        for made in own:
            _make(made)
        directory(str(self.home))
        directory(str(self.work_dir))
        for path in self.config.sandbox.write if self.config.sandbox is not None else ():
            if not os.path.exists(path):
                raise SpawnFailed(f"the sandbox may write {path}, which does not exist")
        self.path = self.find()

    def find(self) -> str:
        """Return the program's file.

        Raises:
            SpawnFailed: it is not there; says where it was sought.
        """
        search = self.environment(self.root).get("PATH")
        return find(self.config.command[0], search, str(self.work_dir))

    def environment(self, tmp: Path) -> dict[str, str]:
        """Return what a process sees: the allow-list, its directories, and what it was given."""
        own = {"HOME": str(self.home), "TMPDIR": str(tmp)}
        return {**self.ground.environment, **own, **self.config.environment}

    def masked(self, text: str) -> str:
        """Return ``text`` without the values that the operator gave this agent."""
        return masked(text, self._secrets)

    def last_said(self, tail: bytes, most: int) -> str:
        """Return the end of a stream as an error may quote it: masked first, then cut."""
        return last_said(tail, self._secrets, most)

    # -- one process ---------------------------------------------------------------------------

    def begin(self, name: str) -> tuple[Path, Path]:
        """Make a process's TMPDIR; return it and where its log goes. Blocks.

        What earlier ones left is cleared; see ``process.traces``.

        Raises:
            SpawnFailed: it cannot be made.
        """
        tmp = self.root / "tmp" / name
        _make(tmp)
        self.ground.working.add(tmp)
        # Other threads do this, too: a copy is made in one step.
        there = tuple(self.ground.working)
        working = {one.name for one in there if one.parent == tmp.parent}
        clear(self.logs, tmp.parent, self.config.log_bytes, working)
        return tmp, self.logs / name

    def log(self, directory: Path) -> InstanceLog:
        """Return what keeps a process's output, without what the operator gave it."""
        secrets = self.config.environment.values()
        return InstanceLog(self.ground.link.logs, directory, self.config.log_bytes, secrets)

    async def command(
        self,
        argv: Sequence[str],
        tmp: Path,
        *,
        more: Mapping[str, str] | None = None,
        stdin: bool = True,
    ) -> Command:
        """Return what runs the program: in its sandbox, if it has one.

        ``more`` are variables that it gets where the operator does not set them.

        Raises:
            SpawnFailed: this host has no sandbox.
        """
        command = Command(
            path=self.path,
            argv=(self.config.command[0], *argv),
            env={**(more or {}), **self.environment(tmp)},
            cwd=str(self.work_dir),
            stdin=stdin,
            limits=self.config.limits,
        )
        box, ground = self.config.sandbox, self.ground
        if box is None:
            return command
        bwrap = await ground.bubblewrap.ready(box, ground.environment)
        own = (str(self.work_dir), str(self.home), str(tmp))
        return await asyncio.to_thread(boxed, command, box.within(ground.common), bwrap, own)

    async def spawn(self, command: Command, streams: Streams, name: str | None = None) -> Child:
        """Start a process; ``name`` marks it.

        Raises:
            SpawnFailed: the system refuses.
        """
        try:
            return await self.ground.link.spawn(command, streams, name)
        except OSError as error:
            raise refused(self.config.command[0], error) from error

    async def leave(self, tmp: Path, *, read: bool = True) -> None:
        """Remove what was a process's own; ``read``: nobody reads its log for its meaning."""
        await asyncio.to_thread(shutil.rmtree, tmp, ignore_errors=True)
        if read:
            await asyncio.to_thread(mark_over, self.logs / tmp.name)
        self.ground.working.discard(tmp)


def _make(made: Path) -> None:
    try:
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SpawnFailed(f"{error.filename} cannot be made: {error.strerror}") from error

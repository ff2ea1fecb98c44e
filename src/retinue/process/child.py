"""One process of a keeper: its streams, its exit, its end.

Exit and end of output are two things: a process may close its output and live on, and something it
started may hold the output open after it. *Exited* means that the process itself was reaped, *gone*
that nothing of its tree is left.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from retinue.errors import CommunicationError
from retinue.interfaces import Heard
from retinue.keeper.frames import Frame
from retinue.process.log import InstanceLog
from retinue.process.reading import Bounds, Reader
from retinue.process.spool import SpoolReader
from retinue.process.writing import Writer

if TYPE_CHECKING:
    from retinue.process.link import KeeperLink


class Exit(msgspec.Struct, frozen=True):
    """How a process ended: ``code``, or the ``signal`` that ended it; neither: that is not known.

    ``reason`` is ``killed``, ``unowned`` or a limit (``limit_memory``, …) when we ended it,
    ``lost`` when its keeper died; ``detail`` says more: what was measured, of how much, or what
    became of the keeper. ``cpu`` counts the CPU seconds of it and of what it waited for,
    ``peak`` the most bytes of memory that were seen.
    """

    code: int | None = None
    signal: int | None = None
    reason: str | None = None
    cpu: float = 0.0
    peak: int = 0
    detail: str | None = None

    @classmethod
    def of(cls, frame: Frame) -> Exit:
        """Return what a keeper's frame says."""
        code = int(frame["code"])
        return cls(
            code if code >= 0 else None,
            -code if code < 0 else None,
            frame["reason"],
            frame["cpu"],
            frame["peak"],
            frame.get("detail"),
        )

    def __str__(self) -> str:
        if self.reason == "unowned":
            return "was ended because no server came for it"
        if self.reason == "lost" and self.detail is not None:
            return f"was lost: {self.detail}"
        if self.reason not in {None, "killed", "lost"}:
            return f"was ended by its {self.reason}" + (f": {self.detail}" if self.detail else "")
        if self.signal is not None:
            try:
                return f"was ended by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"was ended by signal {self.signal}"
        return "ended in a way that is not known" if self.code is None else f"exited {self.code}"


class Streams(msgspec.Struct, frozen=True):
    """What becomes of a process's output.

    ``on_stdout`` sees every line as it comes, from the first on; ``log`` keeps a capped copy, of
    stderr only where ``log_stdout`` is False. ``spool`` is the directory of the files that a
    process writes to which is to outlive us; ``seam`` is an offset in its stdout that no piece
    reaches across.
    """

    stdout: Bounds = Bounds()
    stderr: Bounds = Bounds(when_full="drop")
    log: InstanceLog | None = None
    on_stdout: Callable[[bytes], None] | None = None
    spool: Path | None = None
    seam: int = 0
    log_stdout: bool = True


class Child:
    """A process that a keeper started. Only ``KeeperLink`` makes one."""

    def __init__(
        self, link: KeeperLink, name: str, pid: int, fds: list[int], streams: Streams
    ) -> None:
        self.name = name
        self.pid = pid
        self.start = 0
        """When it started, as the kernel counts; with the pid it names no other process."""
        self.started_at = time.monotonic()
        self.ended_at: float | None = None
        self.given = 0  # messages that it was started with, as a file
        self.exit: Exit | None = None
        self._link = link
        self._listeners: list[Callable[[Exit], None]] = []
        self._has_exited = asyncio.Event()
        self._is_gone = asyncio.Event()
        self.stdin = Writer(fds[0]) if len(fds) > 2 else None  # noqa: PLR2004
        self.stdout: Reader | SpoolReader
        self.stderr: Reader | SpoolReader
        log, spool = streams.log, streams.spool
        self._log = log
        if spool is not None:
            self.stdout = SpoolReader(spool / "stdout", streams.stdout, streams.seam)
            self.stderr = SpoolReader(spool / "stderr", streams.stderr)
        else:
            kept = log if streams.log_stdout else None
            self.stdout = Reader(
                fds[-2], streams.stdout, kept.stream("stdout") if kept is not None else None
            )
            self.stderr = Reader(
                fds[-1], streams.stderr, log.stream("stderr") if log is not None else None
            )
        self.stdout.on_item = streams.on_stdout

    # -- what the link tells -------------------------------------------------------------------

    def when_exited(self, call: Callable[[Exit], None]) -> None:
        """Have ``call`` told how it ended, before those who wait are; at once when it has."""
        if self.exit is None:
            self._listeners.append(call)
        else:
            call(self.exit)

    def exited(self, status: Exit) -> None:
        """Note how it ended."""
        if self.exit is None:
            self.exit = status
            self.ended_at = time.monotonic()
            if self.stdin is not None:
                self.stdin.close()
            for call in self._listeners:
                call(status)
            self._has_exited.set()

    def vanished(self) -> None:
        """Note that nothing of it is left: what it wrote is taken from the pipes."""
        self.stdout.finish()
        self.stderr.finish()
        self._is_gone.set()

    def let_go(self) -> None:
        """Hear and read nothing more of it: it goes on without us."""
        self._listeners.clear()
        self._link.let_go(self.name)
        self.close()

    def close(self) -> None:
        """Read nothing more of the files that it writes to."""
        for reader in (self.stdout, self.stderr):
            if isinstance(reader, SpoolReader):
                reader.close()

    # -- waiting and ending --------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """Whether no process of its tree exists."""
        return self._is_gone.is_set()

    async def wait(self) -> Exit:
        """Return how it ended, once it has; to everybody who asks, at any time."""
        await self._has_exited.wait()
        assert self.exit is not None
        return self.exit

    async def wait_gone(self) -> None:
        """Return once no process of its tree exists."""
        await self._is_gone.wait()

    async def signal(self, number: int, *, tree: bool = False) -> int:
        """Signal it, or its whole tree; return how many processes got it (0: it has ended)."""
        return 0 if self.exit is not None else await self._link.signal(self.name, number, tree=tree)

    async def pause(self) -> int:
        """Stop its whole tree (SIGSTOP), where it is."""
        return await self.signal(signal.SIGSTOP, tree=True)

    async def resume(self) -> int:
        """Let its tree go on."""
        return await self.signal(signal.SIGCONT, tree=True)

    def kill(self) -> None:
        """Have its whole tree killed."""
        if not self.gone:
            self._link.kill(self.name)

    @property
    def messages(self) -> tuple[int, int]:
        """How many writes it was sent, and how many lines (or pieces) came from it."""
        sent = self.stdin.calls if self.stdin is not None else self.given
        return sent, self.stdout.counts.lines

    @property
    def heard(self) -> Heard:
        """What came from it: what is said of lines is said of stdout, stderr is for its log."""
        counts = self.stdout.counts
        return Heard(
            at=max(self.stdout.last_at, self.stderr.last_at),
            dropped=(counts.dropped_lines, counts.dropped_bytes),
            refused=(counts.oversize_lines, counts.oversize_bytes),
            log_lost=self._log.lost if self._log is not None else 0,
        )

    @property
    def hears(self) -> bool:
        """Whether it has a stdin that is open."""
        return self.stdin is not None and not self.stdin.closed

    async def say(self, data: bytes, /, *, last: bool = False) -> None:
        """Write to its stdin; ``last``: and close it.

        Raises:
            CommunicationError: it has none, or does not read any more.
        """
        if self.stdin is None:
            raise CommunicationError("the agent has no stdin")
        if data:
            await self.stdin.write(data)
        if last:
            self.stdin.close()

    async def usage(self) -> Frame:
        """Return what its tree uses now; empty when it has ended."""
        return {} if self.exit is not None else await self._link.usage(self.name)

"""One agent as its keeper sees it: what it may use, whether it is ending, when to look at it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from retinue.keeper.tree import Usage, size

SAMPLE_SECONDS = 0.5
FORK_SECONDS = 0.1
GROWING_SECONDS = 0.01
"""How often one is looked at whose processes are limited, and while they multiply."""
GROWTH = 8
"""How many more of them from look to look say that they do."""
SHARE_EFFORT = 10
"""Memory with what is shared counted once takes long to measure: this many times that is waited."""
CPU_SECONDS = 10.0
LINGER_SECONDS = 0.5
BOX_PROCESSES = 2
"""What a sandbox adds to a tree: bubblewrap, and the first process of its pid namespace."""
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.25


class Agent:
    """A leader and its tree.

    ``due`` is when the loop looks at it next (None: when something happens). ``ending`` says that
    its tree is to be killed, ``ended`` that its leader was reaped; what the leader left may live
    until ``patience``.
    """

    def __init__(
        self, name: str, pid: int, started: int, frame: dict[str, Any], now: float
    ) -> None:
        self.name = name
        self.pid = pid
        self.started = started
        self.linger = float(frame.get("linger", LINGER_SECONDS))
        self.boxed = bool(frame.get("box"))
        self.kept: str | None = frame.get("kept")
        self.groups: list[str] = frame.get("groups", [])
        limits = frame.get("limits") or {}
        self._memory: int | None = limits.get("memory_bytes")
        self._percent: float | None = limits.get("cpu_percent")
        self._processes: int | None = limits.get("processes")
        self._files: int | None = limits.get("open_files")
        self._spool: int | None = limits.get("spool_bytes")
        seconds: float | None = limits.get("runtime_seconds")
        self._begun = now
        self._runtime = now + seconds if seconds is not None else None
        self._cpu = 0.0
        self._over_since: float | None = None
        self._sampled = now
        self._count = 0
        self._often = GROWING_SECONDS
        self._share_at = now
        self.peak = 0
        self.reason: str | None = None
        self.detail: str | None = None
        self.ending = False
        self.ended = False
        self.strikes = 0
        self.patience = now
        self.due: float | None = None
        self._pause = _FIRST_PAUSE
        self._next(now)

    def _next(self, now: float) -> None:
        """Plan the next look at a running agent."""
        times = [self._runtime] if self._runtime is not None else []
        if self._processes is not None:
            times.append(now + self._often)
            self._often = min(self._often * 2, FORK_SECONDS)
        elif {self._memory, self._percent, self._files, self._spool} != {None}:
            times.append(now + SAMPLE_SECONDS)
        self.due = min(times, default=None)

    @property
    def files_count(self) -> bool:
        """Whether its open files are to be counted."""
        return self._files is not None

    @property
    def box_processes(self) -> int:
        """How many processes of its tree are its sandbox's."""
        return BOX_PROCESSES if self.boxed else 0

    @property
    def most_counted(self) -> int | None:
        """How many of its processes are worth counting."""
        return (
            None if self._processes is None else self._processes * 5 // 4 + 1 + self.box_processes
        )

    def spooled(self) -> int:
        """Return how many bytes it has written into the files of one that is kept."""
        if self.kept is None:
            return 0
        return sum(size(os.path.join(self.kept, name)) for name in ("stdout", "stderr"))

    def judge(self, used: Usage, now: float, share: Callable[[], int] | None = None) -> None:
        """Compare what it uses with what it may; one that goes too far is to end.

        ``share`` measures its memory with what is shared counted once: that is what ends it.
        """
        self.peak = max(self.peak, used.memory)
        if used.processes > self._count + GROWTH:
            self._often = GROWING_SECONDS
        self._count = used.processes
        breach = self._breach(used, now) or self._too_large(used, now, share)
        if breach is None:
            self._next(now)
        else:
            self.end(breach[0], now, breach[1])

    def _breach(self, used: Usage, now: float) -> tuple[str, str] | None:
        """Return the limit that is passed, and what was measured of how much."""
        if self._runtime is not None and now >= self._runtime:
            allowed = self._runtime - self._begun
            return "limit_runtime", f"{now - self._begun:.4g} s of {allowed:g} s"
        count = used.processes - self.box_processes
        if self._processes is not None and count > self._processes:
            most = "at least " if used.processes > (self.most_counted or 0) else ""
            return "limit_processes", f"{most}{count} of {self._processes} processes"
        if self._files is not None and used.files > self._files:
            return "limit_open_files", f"{used.files} of {self._files} files in one process"
        if self._spool is not None and (written := self.spooled()) > self._spool:
            return "limit_output", f"{_mb(written)} of {_mb(self._spool)}"
        if (percent := self._too_busy(used, now)) is not None:
            for_long = f"for {CPU_SECONDS:g} s"
            return "limit_cpu", f"{percent:.0f} % of {self._percent:g} % {for_long}"
        return None

    def _too_large(
        self, used: Usage, now: float, share: Callable[[], int] | None
    ) -> tuple[str, str] | None:
        """Judge its memory. The sum counts shared pages several times: it only raises suspicion."""
        if self._memory is None or used.memory <= self._memory or now < self._share_at:
            return None
        memory = used.memory
        if share is not None:
            begun = time.monotonic()
            memory = min(share(), memory)
            self._share_at = now + SHARE_EFFORT * (time.monotonic() - begun)
        if memory <= self._memory:
            return None
        return "limit_memory", f"{_mb(memory)} of {_mb(self._memory)}"

    def _too_busy(self, used: Usage, now: float) -> float | None:
        """Return its CPU in percent when that was more than it may for ``CPU_SECONDS`` on end."""
        if self._percent is None or now - self._sampled < SAMPLE_SECONDS * 0.9:
            return None
        percent = (used.cpu - self._cpu) / (now - self._sampled) * 100
        self._cpu, self._sampled = used.cpu, now
        if percent <= self._percent:
            self._over_since = None
            return None
        if self._over_since is None:
            self._over_since = now
        return percent if now - self._over_since >= CPU_SECONDS else None

    def end(self, reason: str, now: float, detail: str | None = None) -> None:
        """Have its whole tree killed, now; the first reason counts."""
        if not self.ended and self.reason is None:
            self.reason, self.detail = reason, detail
        if not self.ending:
            self.ending = True
            self._pause = _FIRST_PAUSE
            self.due = now

    def exited(self, now: float) -> None:
        """Note that its leader was reaped."""
        self.ended = True
        self.strikes = 0
        self._pause = _FIRST_PAUSE
        self.patience = now + self.linger
        self.due = now

    def struck(self, now: float) -> None:
        """Note that its tree was killed; see soon whether that was all."""
        self.strikes += 1
        self.look_again(now)

    def look_again(self, now: float) -> None:
        """Look again, less often each time."""
        self.due = now + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)


def _mb(count: int) -> str:
    return f"{count / (1 << 20):.1f}".removesuffix(".0") + " MB"

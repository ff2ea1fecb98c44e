"""One agent as its keeper sees it: what it may use, whether it is ending, when to look at it."""

from __future__ import annotations

import os
from typing import Any

from retinue.keeper.tree import Usage, size

SAMPLE_SECONDS = 0.5
FORK_SECONDS = 0.1
"""How often one is looked at whose processes are limited: they multiply quickly."""
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
        self.group: str | None = frame.get("group")
        limits = frame.get("limits") or {}
        self._memory: int | None = limits.get("memory_bytes")
        self._percent: float | None = limits.get("cpu_percent")
        self._processes: int | None = limits.get("processes")
        self._files: int | None = limits.get("open_files")
        self._spool: int | None = limits.get("spool_bytes")
        seconds: float | None = limits.get("runtime_seconds")
        self._runtime = now + seconds if seconds is not None else None
        self._cpu = 0.0
        self._over_since: float | None = None
        self._sampled = now
        self.peak = 0
        self.reason: str | None = None
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
            times.append(now + FORK_SECONDS)
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

    def spooled(self) -> int:
        """Return how many bytes it has written into the files of one that is kept."""
        if self.kept is None:
            return 0
        return sum(size(os.path.join(self.kept, name)) for name in ("stdout", "stderr"))

    def judge(self, used: Usage, now: float) -> None:
        """Compare what it uses with what it may; one that goes too far is to end."""
        self.peak = max(self.peak, used.memory)
        if self._runtime is not None and now >= self._runtime:
            self.end("limit_runtime", now)
        elif self._memory is not None and used.memory > self._memory:
            self.end("limit_memory", now)
        elif self._processes is not None and used.processes - self.box_processes > self._processes:
            self.end("limit_processes", now)
        elif self._files is not None and used.files > self._files:
            self.end("limit_open_files", now)
        elif self._spool is not None and self.spooled() > self._spool:
            self.end("limit_output", now)
        elif self._too_busy(used, now):
            self.end("limit_cpu", now)
        else:
            self._next(now)

    def _too_busy(self, used: Usage, now: float) -> bool:
        """Whether it has used more CPU than it may for ``CPU_SECONDS`` on end."""
        if self._percent is None or now - self._sampled < SAMPLE_SECONDS * 0.9:
            return False
        percent = (used.cpu - self._cpu) / (now - self._sampled) * 100
        self._cpu, self._sampled = used.cpu, now
        if percent <= self._percent:
            self._over_since = None
            return False
        if self._over_since is None:
            self._over_since = now
        return now - self._over_since >= CPU_SECONDS

    def end(self, reason: str, now: float) -> None:
        """Have its whole tree killed, now; the first reason counts."""
        if not self.ended:
            self.reason = self.reason or reason
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

"""What /proc says of processes: children, marks, start times, usage. Nothing here changes any."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

MARK = "RETINUE_MARK"
"""The variable that every agent process and what it starts carries: see ``mark_of``."""

TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LISTS_CHILDREN = os.path.exists("/proc/thread-self/children")


class Stat(NamedTuple):
    """Some fields of /proc/PID/stat; ticks and pages as the kernel counts them."""

    state: str
    parent: int
    group: int
    session: int
    ticks: int
    reaped_ticks: int
    started: int
    pages: int
    threads: int

    @property
    def dead(self) -> bool:
        """Whether it has ended and is only not waited for; its first thread alone may have."""
        return self.state in {"Z", "X"} and self.threads <= 1


def read(path: str) -> bytes | None:
    """Return a file of /proc; None when its process is gone, or somebody else's."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return None


def size(path: str) -> int:
    """Return how large a file is; 0 when there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def stat(pid: int) -> Stat | None:
    """Return what the kernel says of a process; None when there is none."""
    found = read(f"/proc/{pid}/stat")
    if not found:
        return None
    # The name in parentheses may hold anything; the fields follow the last one.
    f = found[found.rindex(b")") + 2 :].split()
    return Stat(
        f[0].decode(),
        int(f[1]),
        int(f[2]),
        int(f[3]),
        int(f[11]) + int(f[12]),
        int(f[13]) + int(f[14]),
        int(f[19]),
        int(f[21]),
        int(f[17]),
    )


def pids() -> list[int]:
    """Return every process there is."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def children(pid: int) -> list[int]:
    """Return a process's children, ended ones that nobody has waited for included."""
    if not _LISTS_CHILDREN:
        return [p for p in pids() if (s := stat(p)) is not None and s.parent == pid]
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found: list[int] = []
    for task in tasks:
        found += map(int, (read(f"/proc/{pid}/task/{task}/children") or b"").split())
    return found


def tree(roots: Iterable[int]) -> list[int]:
    """Return processes and all that descend from them."""
    found = list(roots)
    for pid in found:  # it grows while we go
        found += children(pid)
    return found


def mark_of(pid: int) -> str | None:
    """Return the mark a process carries: ``scope:keeper pid.keeper start:agent process``."""
    name = MARK.encode() + b"="
    for entry in (read(f"/proc/{pid}/environ") or b"").split(b"\0"):
        if entry.startswith(name):
            return entry[len(name) :].decode("utf-8", "replace")
    return None


def incarnation(pid: int) -> str:
    """Return what no other process of this machine ever is: the pid and when it started."""
    found = stat(pid)
    return f"{pid}.{found.started if found is not None else 0}"


def lives(incarnate: str) -> bool:
    """Say whether the process of this ``incarnation`` runs; one that nobody waited for does not."""
    pid = incarnate.partition(".")[0]
    found = stat(int(pid)) if pid.isdecimal() else None
    return found is not None and not found.dead and f"{pid}.{found.started}" == incarnate


class Usage(NamedTuple):
    """What a tree of processes uses: CPU seconds since it began, memory and processes now.

    Memory is the sum of what each has in memory: what they share counts for each of them. One that
    has ended and is not waited for counts as no process. ``files`` are the open files of the one
    that has most, where they were counted.
    """

    cpu: float
    memory: int
    processes: int
    files: int = 0


def usage(roots: Iterable[int], *, files: bool = False, most: int | None = None) -> Usage:
    """Return what the trees below ``roots`` use; open files only when they are asked for.

    Where there are more than ``most`` processes the walk ends there: it must not take the longer
    the faster they multiply.
    """
    ticks = pages = processes = open_most = 0
    walk = list(roots)
    for pid in walk:  # it grows while we go
        found = stat(pid)
        if found is not None:
            ticks += found.ticks + found.reaped_ticks
            if not found.dead:
                pages += found.pages
                processes += 1
                open_most = max(open_most, open_files(pid) if files else 0)
            if most is not None and processes > most:
                break
            walk += children(pid)
    return Usage(ticks / TICKS, pages * _PAGE, processes, open_most)


def share(roots: Iterable[int]) -> int:
    """Return the memory of trees, with what processes share counted once (PSS).

    Slow, for the kernel looks at every page; where it does not say, all of a process counts.
    """
    total = 0
    for pid in tree(roots):
        lines = (read(f"/proc/{pid}/smaps_rollup") or b"").splitlines()
        own = next((int(line.split()[1]) << 10 for line in lines if line.startswith(b"Pss:")), None)
        if own is None:
            found = stat(pid)
            own = found.pages * _PAGE if found is not None else 0
        total += own
    return total


def open_files(pid: int) -> int:
    """Return how many files a process has open; 0 when it does not let us see them."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0

"""Throttle the CPU of a tree, and bound its tasks: control groups for each agent with such limits.

Only where the kernel's file system lets one be made below the keeper's own group (or below its
parent, where systemd delegated that one): an agent never leaves what bounds its server. Version 2
needs the cpu controller enabled there, version 1 a writable ``cpu`` hierarchy. Elsewhere ``make``
returns None, and the keeper measures instead.

Tasks are processes and threads. Their bound is far above what an agent may have in processes, for
threads are not limited: it only keeps one that multiplies from taking all that the machine has,
until it is ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from retinue.keeper.tree import incarnation, read

PERIOD = 100_000
_LEAST = 1_000
_PREFIX = "retinue-"


def bases(controller: str = "cpu") -> list[str]:
    """Return the directories where groups may be made that a controller works on."""
    own: dict[str, str] = {}
    for line in (read("/proc/self/cgroup") or b"").decode().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            own["cgroup" if controllers else "cgroup2"] = path
    found = []
    for line in (read("/proc/self/mountinfo") or b"").decode().splitlines():
        before, _, after = line.partition(" - ")
        root, at = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        if kind not in own or (kind == "cgroup" and controller not in options.split(",")):
            continue
        inside = os.path.relpath(own[kind], root)
        if inside.startswith(".."):
            continue
        here = os.path.normpath(os.path.join(at, inside))
        found.append(here)
        if kind == "cgroup2" and _delegated(os.path.dirname(here)):
            found.append(os.path.dirname(here))
    return found


def _delegated(directory: str) -> bool:
    try:
        return os.getxattr(directory, "user.delegate") == b"1"
    except OSError:
        return False


class Groups:
    """The groups of one keeper."""

    def __init__(self, where: Callable[[], list[str]] = bases, *, tasks: bool = False) -> None:
        self._where = where
        self._tasks = tasks
        self._name = f"{_PREFIX}{incarnation(os.getpid())}-"
        self._base: str | None = None
        self._sought = False
        self._made = 0

    def make(self, most: float) -> str | None:
        """Return a new group that gets ``most`` percent of one CPU; None: there can be none here.

        Where these are groups for tasks, it may have that many.
        """
        if not self._sought:
            self._sought = True
            self._base = next((base for base in self._where() if self._make(base, 100.0)), None)
        return self._make(self._base, most) if self._base is not None else None

    def _make(self, base: str, most: float) -> str | None:
        group = os.path.join(base, f"{self._name}{self._made}")
        if not os.access(os.path.join(base, "cgroup.procs"), os.W_OK):
            return None
        try:
            os.mkdir(group)
        except OSError:
            return None
        self._made += 1
        if bound(group, int(most)) if self._tasks else _throttle(group, most):
            return group
        drop(group)
        return None

    def sweep(self) -> None:
        """Remove the groups of keepers that are no more, and those of this one that are empty."""
        for base in self._where():
            try:
                names = os.listdir(base)
            except OSError:
                continue
            for name in names:
                keeper = name.removeprefix(_PREFIX).rpartition("-")[0]
                pid = keeper.partition(".")[0]
                if name.startswith(_PREFIX) and pid.isdecimal():
                    if name.startswith(self._name) or incarnation(int(pid)) != keeper:
                        drop(os.path.join(base, name))


def _throttle(group: str, percent: float) -> bool:
    quota = max(int(percent / 100 * PERIOD), _LEAST)
    return _write(group, "cpu.max", f"{quota} {PERIOD}") or _write(
        group, "cpu.cfs_quota_us", str(quota)
    )


def bound(group: str, tasks: int) -> bool:
    """Bound the tasks of a group; False: its controllers do not know how."""
    return _write(group, "pids.max", str(tasks))


def _write(group: str, name: str, text: str) -> bool:
    if not os.path.exists(os.path.join(group, name)):
        return False
    with open(os.path.join(group, name), "w", encoding="ascii") as file:
        file.write(text)
    return True


def one_for_all(group: str) -> bool:
    """Say whether who is in ``group`` can be in no other: version 2 has one hierarchy."""
    return os.path.exists(os.path.join(group, "cgroup.controllers"))


def join(group: str) -> None:
    """Enter a group, with all that this process will start."""
    with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as file:
        file.write("0")


def drop(group: str) -> None:
    """Remove a group; one that still holds processes stays."""
    try:
        os.rmdir(group)
    except OSError:
        pass

"""Kill trees that do not want to end, on a machine that they leave no time on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from retinue.keeper.tree import children, tree

ROUNDS = 5


def kill(pid: int, number: int) -> int:
    """Signal a process; return how many got it."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return 0
    return 1


def kill_group(leader: int, number: int) -> None:
    """Signal all that is still in the group of an agent's leader, at once.

    One call, whatever their number, and none of them forks away from it: the kernel restarts a fork
    that a signal overtakes. The leader must not be reaped: its number is the group's.
    """
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        pass


def strike(roots: list[int], leaders: Iterable[int] = (), *, again: bool) -> None:
    """Kill trees; ``leaders`` are those of them that lead a group.

    Groups go first: of processes that multiply most are in one. What survives one strike is
    stopped before it is killed, so that it cannot fork away.
    """
    for leader in leaders:
        kill_group(leader, signal.SIGKILL)
    if again:
        seen: set[int] = set()
        for _ in range(ROUNDS):
            before = len(seen)
            _stop(roots, seen)
            if len(seen) == before:
                break
    for pid in tree(roots):  # from the top: no parent is left to start anew what was killed
        kill(pid, signal.SIGKILL)


def _stop(roots: Iterable[int], seen: set[int]) -> None:
    """Stop trees: each before its children are listed, for then they grow no more."""
    walk = list(roots)
    for pid in walk:  # it grows while we go
        if pid not in seen:
            seen.add(pid)
            kill(pid, signal.SIGSTOP)
        walk += children(pid)

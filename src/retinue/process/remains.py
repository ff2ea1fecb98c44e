"""What the server of an instance left running on this machine: found, and ended.

Its keeper ends it as a rule, long before anybody looks. Not so where that server is only not heard
of: it was stopped, or cut off from the store, and its keeper waits with it. Then whoever takes over
its work must end what does that work now, or it would be done twice at once.

A process is known by its mark, which names the instance; the first one also by its pid, its start
and its parent, a keeper, should it have emptied its environment. What is below one of them goes,
too. All is stopped before it is killed, so that nothing forks away.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from retinue.keeper.tree import mark_of, pids, read, stat, tree

END_SECONDS = 3.0
_PAUSE = 0.01
_KEEPER = b"retinue-keeper\n"


class Remains(NamedTuple):
    """What was found of one instance: how many processes ended, which could not be ended."""

    ended: int = 0
    left: tuple[int, ...] = ()


async def end(instances: Mapping[str, Mapping[str, Any]]) -> dict[str, Remains]:
    """End what runs of instances, given by their handles; return what was found of each."""
    return await asyncio.to_thread(_end, instances)


def _end(instances: Mapping[str, Mapping[str, Any]]) -> dict[str, Remains]:
    found: dict[str, set[tuple[int, int]]] = {name: set() for name in instances}
    until = time.monotonic() + END_SECONDS
    while True:
        roots = _find(instances)
        for name, those in roots.items():
            found[name] |= _stopped(those)
        for pid, started in _alive({one for those in found.values() for one in those}):
            _signal(pid, started, signal.SIGKILL)
        left = {name: tuple(sorted(p for p, _ in _alive(those))) for name, those in found.items()}
        # Once more when something was found: what was forked while we looked is seen then.
        if not any(roots.values()) and not any(left.values()):
            break
        if time.monotonic() > until:
            break
        time.sleep(_PAUSE)
    return {n: Remains(len(those) - len(left[n]), left[n]) for n, those in found.items()}


def _find(instances: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return, by instance, the processes that show whose they are."""
    found: dict[str, list[int]] = {name: [] for name in instances}
    for pid in pids():
        name = (mark_of(pid) or "").rpartition(":")[2]
        if name in found and _lives(pid):
            found[name].append(pid)
    for name, handle in instances.items():
        first = int(handle.get("pid") or 0)
        here = stat(first) if first and _lives(first) else None
        if here is not None and here.started == handle.get("start"):
            if read(f"/proc/{here.parent}/comm") == _KEEPER:
                found[name].append(first)
    return found


def _stopped(roots: list[int]) -> set[tuple[int, int]]:
    """Stop trees where they are; return their processes, each with its start."""
    seen: set[tuple[int, int]] = set()
    while roots:
        now = {(pid, s.started) for pid in tree(roots) if (s := stat(pid)) is not None}
        new = now - seen
        if not new:
            break
        for pid, started in new:
            _signal(pid, started, signal.SIGSTOP)
        seen |= new
    return {one for one in seen if _lives(one[0])}


def _alive(those: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return those that are still the process that was meant, and not just waited for."""
    return [
        (p, at) for p, at in those if _lives(p) and (s := stat(p)) is not None and s.started == at
    ]


def _lives(pid: int) -> bool:
    found = stat(pid)
    return found is not None and found.state not in {"Z", "X"}


def _signal(pid: int, started: int, number: int) -> None:
    """Signal that very process: a pidfd is no other's, whatever becomes of the number."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        found = stat(pid)
        if found is not None and found.started == started:
            signal.pidfd_send_signal(fd, number)
    except OSError:
        pass  # it has ended, or is another user's: then it is left, and said to be
    finally:
        os.close(fd)

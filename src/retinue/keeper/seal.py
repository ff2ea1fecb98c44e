"""The second mark: a limit that means nothing, and that every process inherits.

The first one, ``tree.MARK``, is in the environment, which programs empty. This one is the hard
limit of the time that a process may use a CPU in real-time scheduling without sleeping
(RLIMIT_RTTIME, in microseconds). It is unlimited by default and has no effect for anybody else;
ours is longer than 146,000 years, so it has none at all. ``fork``, ``exec``, ``setsid``, a changed
environment and a sandbox leave it, and nobody can raise it without privilege::

    1 << 62  |  scope, 30 bits  |  keeper, 32 bits at random

A keeper carries its own, so all that it starts does, and *whose* a process is shows without asking
what became of its parents: of a keeper that is no more, when no living keeper has that seal. Pids
play no part, so it holds across pid namespaces. Of n scopes on one machine two have the same 30
bits with odds of n²/2³¹; even then only what has outlived its keeper is ended.
"""

from __future__ import annotations

import binascii
import os
import resource
import signal
import time

from retinue.keeper.tree import lives, mark_of, pids, read, stat

KEEPER = "retinue-keeper"
"""What a keeper is called (/proc/PID/comm)."""
STOPPED_SECONDS = 2.0
"""How long a keeper may stand stopped (SIGSTOP) before it counts as gone."""
SWEEP_SECONDS = 2.0
_RTTIME = 15  # Python has no name for it
_FIRST = 1 << 62
_LINE = b"Max realtime timeout"


def _scope_bits(scope: str) -> int:
    return (binascii.crc32(scope.encode()) & 0x3FFF_FFFF) << 32


def take(scope: str) -> bool:
    """Put a new seal on this process; False: it is below another keeper, without privilege."""
    value = _FIRST | _scope_bits(scope) | int.from_bytes(os.urandom(4))
    try:
        resource.setrlimit(_RTTIME, (value, value))
    except (ValueError, OSError):
        return False
    return True


def seal_of(pid: int) -> int | None:
    """Return the seal of a process; None: it has none."""
    for line in (read(f"/proc/{pid}/limits") or b"").splitlines():
        if line.startswith(_LINE):
            hard = line.split()[-2]
            value = int(hard) if hard.isdigit() else 0
            return value if _FIRST <= value < _FIRST << 1 else None
    return None


def keepers() -> list[int]:
    """Return the keepers that live, of whatever scope."""
    name = KEEPER.encode() + b"\n"
    found = [pid for pid in pids() if read(f"/proc/{pid}/comm") == name]
    return [pid for pid in found if (s := stat(pid)) is not None and not s.dead]


def strays(scope: str) -> list[int]:
    """Return the processes that keepers of ``scope`` started and that outlived their keeper."""
    sealed: list[tuple[int, int]] = []
    found = []
    alive: dict[str, bool] = {}
    for pid in pids():
        seal = seal_of(pid)
        if seal is not None and seal & ~0xFFFF_FFFF == _FIRST | _scope_bits(scope):
            sealed.append((pid, seal))
            continue
        theirs, _, rest = (mark_of(pid) or "").partition(":")
        keeper = rest.partition(":")[0]
        if theirs != scope or not keeper.partition(".")[0].isdecimal():
            continue
        if keeper not in alive:
            alive[keeper] = lives(keeper)
        if not alive[keeper]:
            found.append(pid)
    # Only now: a keeper is there before what it starts, so one that began meanwhile is seen.
    living = {_own_seal(pid) for pid in keepers()} if sealed else set()
    found += [pid for pid, seal in sealed if seal not in living]
    return [pid for pid in found if (s := stat(pid)) is not None and not s.dead]


def sweep(scope: str) -> tuple[int, list[int]]:
    """End what keepers of ``scope`` left behind that are gone, or stand still.

    Returns how many processes that were, and which keepers stood.
    """
    stood = end_stopped(scope)
    until = time.monotonic() + SWEEP_SECONDS
    ended: set[int] = set()
    refused: set[int] = set()
    while found := [pid for pid in strays(scope) if pid not in refused]:
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: it cannot fork away
            for pid in found:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
                except PermissionError:
                    refused.add(pid)
        ended |= set(found) - refused
        if time.monotonic() > until:
            break
        time.sleep(0.005)
    return len(ended), stood


def end_stopped(scope: str) -> list[int]:
    """End keepers of ``scope`` that somebody stopped, and return them: they end nothing any more.

    Whose owner lives does the same; whose owner is gone has nobody else who would.
    """
    until = time.monotonic() + STOPPED_SECONDS
    killed: list[int] = []
    while standing := [pid for pid in keepers() if stopped(pid) and _scope_of(pid) == scope]:
        over = time.monotonic() - until
        for pid in standing if over > 0 else ():
            try:
                os.kill(pid, signal.SIGKILL)
                killed += [pid] if pid not in killed else []
            except OSError:
                pass  # it has just ended, or is another user's
        if over > STOPPED_SECONDS:
            break
        time.sleep(0.02)
    return killed


def stopped(pid: int) -> bool:
    """Say whether a process stands where it is, by a signal or a debugger."""
    found = stat(pid)
    return found is not None and found.state in {"T", "t"}


def _own_seal(keeper: int) -> int | None:
    """Return the seal that a keeper took; None: it is below another one, and has that one's."""
    seal = seal_of(keeper)
    own = _FIRST | _scope_bits(_scope_of(keeper))
    return seal if seal is not None and seal & ~0xFFFF_FFFF == own else None


def _scope_of(keeper: int) -> str:
    words = (read(f"/proc/{keeper}/cmdline") or b"").split(b"\0")
    return words[-2].decode("utf-8", "replace") if len(words) > 1 else ""

"""Open files: as many as the system lets this process have, and connections for most of them.

A connection costs one. What is left after those that are open at the start and a reserve may be
connections: so files, the store and agents never find all of them taken, and who comes when there
are too many gets an answer rather than silence.
"""

from __future__ import annotations

import contextlib
import os
import resource

WANTED = 65_536
_LEAST_RESERVE = 12
_RESERVE_SHARE = 8
_UNLIMITED = 1 << 20


def raise_limit() -> None:
    """Let this process open as many files as it may; its own limit is often a historical 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections() -> int:
    """Return how many connections there may be, with the files that are open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = _UNLIMITED
    reserve = max(soft // _RESERVE_SHARE, _LEAST_RESERVE)
    return max(soft - _open() - reserve, 1)


def spare() -> int:
    """Return how many more there may be, only to be told that there are too many."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 64 if soft == resource.RLIM_INFINITY else max(min(soft // 16, 64), 4)


def _open() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 64

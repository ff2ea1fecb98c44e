"""What agents' processes leave on disk: a directory of logs each, a TMPDIR while they run.

Several servers may work in one directory, and one that was killed could not clear up. So whoever
had a process marks its logs when nobody reads or writes them any more; what has no mark is left
alone until nothing was written there for two days, longer than a keeper keeps anything.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from retinue.process.log import note_dropped

MOST_LOGS = 100
"""How many processes' logs are kept per agent; the oldest are removed."""
IDLE_SECONDS = 2 * 86_400
_OVER = "over"


def mark_over(logs: Path) -> None:
    """Note that an execution's logs are complete, and read."""
    try:
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        (logs / _OVER).touch(mode=0o600)
    except OSError:
        pass  # a full disk: they are forgotten later


def settle(logs: Path, most: int) -> None:
    """Leave of the logs of one that was kept the last ``most`` bytes each; note that they are."""
    for name in ("stdout", "stderr"):
        _shorten(logs / name, most)
    mark_over(logs)


def abandon(log: Path, *, read: bool) -> None:
    """Remove the TMPDIR of a process that is gone with its server, which could not.

    ``read``: nobody reads its log for its meaning any more.
    """
    if log.parent.name == "logs":
        shutil.rmtree(log.parent.parent / "tmp" / log.name, ignore_errors=True)
        if read and log.exists():
            mark_over(log)


def clear(logs: Path, temporary: Path, most: int, working: Collection[str]) -> None:
    """Remove the oldest logs beyond ``MOST_LOGS``, and what a server that was killed left.

    Those that are ``working`` here are left alone, however long they say nothing.
    """
    names = sorted(set(os.listdir(logs)) - set(working))
    oldest = set(names[: -(MOST_LOGS - 1)])
    for name in names:
        over = (logs / name / _OVER).exists()
        if not over and _idle(logs / name):
            settle(logs / name, most)
            over = True
        if over and name in oldest:
            shutil.rmtree(logs / name, ignore_errors=True)
    for name in set(os.listdir(temporary)) - set(working):
        if (logs / name / _OVER).exists() or (_idle(temporary / name) and _idle(logs / name)):
            shutil.rmtree(temporary / name, ignore_errors=True)


def _idle(directory: Path) -> bool:
    """Whether nothing in a directory has changed for long; one that is not there has not."""
    try:
        found = [directory.stat(), *(entry.stat() for entry in os.scandir(directory))]
    except OSError:
        return not directory.exists()
    return max(entry.st_mtime for entry in found) < time.time() - IDLE_SECONDS


def _shorten(path: Path, most: int) -> None:
    try:
        size = path.stat().st_size
        if size <= most:
            return
        with path.open("rb") as file:
            file.seek(size - most)
            end = file.read(most)
        new = path.with_name(f"{path.name}.new")
        new.write_bytes(end)
        new.replace(path)
        note_dropped(path, size - most)
    except OSError:
        pass

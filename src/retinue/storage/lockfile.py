"""The lock that makes one process the only writer of a SQLite store.

Held by ``flock``, so it goes with the process however that ends; the file names the holder's pid
and URL, so that a second ``serve`` can say who is there and ``run`` can become its client.

A file can be removed from under its lock, and a new one of that name locks nothing. So the store's
own file is locked as well: that one is what must not have two writers.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import msgspec

from retinue.domain.holder import Holder
from retinue.errors import StoreLocked

_TRIES = 10
_PAUSE_SECONDS = 0.01


class LockFile:
    """An exclusive lock on ``path``, and on the store that it stands for."""

    def __init__(self, path: Path, store: Path) -> None:
        self.path = path
        self._store = store
        self._fd: int | None = None
        self._store_fd: int | None = None

    def acquire(self, url: str | None) -> None:
        """Take the lock and write who holds it.

        Raises:
            StoreLocked: another process holds it; details name its ``pid`` and ``url``.
        """
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not _locked(fd):
                os.close(fd)
                raise self._taken(read_holder(self.path))
            if _is_at(fd, self.path):
                break
            os.close(fd)  # it was removed before we had the lock
        # Made by whoever is first, and open for as long as SQLite has it open: closing a file
        # takes from this process what locks it holds on it.
        store_fd = os.open(self._store, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _locked(store_fd):
            os.close(store_fd)
            os.close(fd)
            raise self._taken(None)
        self._fd, self._store_fd = fd, store_fd
        self.describe(url)

    def _taken(self, holder: Holder | None) -> StoreLocked:
        where = f" serving {holder.url}" if holder and holder.url else ""
        who = f"process {holder.pid}{where}" if holder else "another process"
        return StoreLocked(
            f"{who} has this store open ({self.path.parent}); stop it, or use it as a client",
            details={"pid": holder.pid if holder else None, "url": holder and holder.url},
        )

    def describe(self, url: str | None) -> None:
        """Write the holder's pid and URL into the locked file."""
        assert self._fd is not None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, msgspec.json.encode(Holder(os.getpid(), url)), 0)

    def release(self) -> None:
        """Give the lock up. The file stays: removing it would race with the next holder."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None
        if self._store_fd is not None:
            os.close(self._store_fd)
            self._store_fd = None


def _is_at(fd: int, path: Path) -> bool:
    """Say whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _locked(fd: int) -> bool:
    """Take the lock; somebody who only looks (``read_holder``) has it for an instant at most."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(_PAUSE_SECONDS)
        else:
            return True
    return False


def read_holder(path: Path) -> Holder | None:
    """Return who holds the lock at ``path``, or None when nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return msgspec.json.decode(os.pread(fd, 4096, 0), type=Holder)
    except msgspec.MsgspecError:
        return None
    finally:
        os.close(fd)
    return None

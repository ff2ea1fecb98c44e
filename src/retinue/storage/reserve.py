"""The reserve: a file that holds space, to be let go of when the disk is full.

What has begun must come to its end in the record even then, and a start writes a little before it
can say anything. So the reserve is given up at the first write that finds no space, and only new
work is refused from then on; when there is room again the reserve is taken back first.
"""

from __future__ import annotations

import os
from pathlib import Path

RESERVE_BYTES = 1 << 20
_ROOM = 2  # times the reserve's size must be free for it to be taken
_BLOCK = 512


class Reserve:
    """Space beside a store. Used by the store's writer thread, and while it is being opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self) -> bool:
        """Hold the space if there is room; say whether it is held."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_blocks * _BLOCK >= RESERVE_BYTES:
                    return True
                there = os.fstatvfs(fd)
                if there.f_bavail * there.f_frsize < _ROOM * RESERVE_BYTES:
                    return False
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)
        except OSError:
            return False
        return True

    def give_up(self) -> bool:
        """Let go of the space; say whether that made room."""
        try:
            held = self._path.stat().st_blocks > 0
            os.truncate(self._path, 0)
        except OSError:
            return False
        return held

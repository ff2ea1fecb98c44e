"""The worker's own end of its pipes: nothing but frames ever goes out on stdout.

The real stdin and stdout are taken away from the program. What its code (or a library, or a child)
prints goes to stderr, and what it reads from stdin is empty.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO, cast

MOST_BUFFERED = 64 * 1024


def take_stdio() -> tuple[int, int]:
    """Return file descriptors of the real stdin and stdout, which are then out of reach."""
    sys.stdout.flush()
    source, target = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    reconfigure = getattr(cast("TextIO", sys.stdout), "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)
    return source, target


class Output:
    """Writes lines, whole and in order, from any thread.

    What the loop's own thread sends within one turn goes out in one write. When the reader does not
    read, whoever sends waits: that is what holds a fast agent back.
    """

    def __init__(self, fd: int, soon: Callable[[Callable[[], None]], object]) -> None:
        self._fd = fd
        self._soon = soon
        self._home = threading.get_ident()
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._due = False
        self._lock = threading.Lock()
        self.broken = False

    def send(self, line: bytes) -> None:
        """Send one line."""
        self._lines.append(line)
        self._size += len(line)
        if threading.get_ident() != self._home or self._size > MOST_BUFFERED:
            self.flush()
        elif not self._due:
            self._due = True
            self._soon(self.flush)

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            self._due = False
            parts = []
            while self._lines:
                parts.append(self._lines.popleft())
            self._size = 0
            if not parts or self.broken:
                return
            left = memoryview(b"".join(parts))
            while left:
                try:
                    left = left[os.write(self._fd, left) :]
                except BlockingIOError:
                    select.select([], [self._fd], [])
                except OSError:
                    # Nobody reads any more. End of input will follow, and end us.
                    self.broken = True
                    return

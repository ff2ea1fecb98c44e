"""The worker's own end of its pipes: nothing but frames ever goes out on stdout.

The real stdin and stdout are taken away from the program. What its code (or a library, or a child)
prints goes to stderr, and what it reads from stdin is empty.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO, cast

MOST_BUFFERED = 64 * 1024
GRACE_SECONDS = 5.0
LOOK_SECONDS = 0.1
"""How soon one that waits for its reader notices that the program is to end."""


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


def unblocked(fd: int) -> int:
    """Return a descriptor in place of ``fd`` whose writes never block, if it is no file.

    A pipe is opened anew: others may share what was inherited, and are not to be surprised.
    """
    kind = os.fstat(fd).st_mode
    if stat.S_ISFIFO(kind):
        try:
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            os.set_blocking(fd, False)  # no /proc here
            return fd
        os.close(fd)
        return own
    if stat.S_ISSOCK(kind):
        os.set_blocking(fd, False)
    return fd


def hung_up(fd: int) -> bool:
    """Say whether nobody can write to a pipe any more; there may be something in it yet."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


class Output:
    """Writes lines, whole and in order, from any thread.

    What the loop's own thread sends within one turn goes out in one write. When the reader does not
    read, whoever sends waits: that is what holds a fast agent back. Once this program is to end,
    nobody waits beyond ``give_up_at`` (of the monotonic clock); that is soon, too, when nobody can
    write to ``source`` any more.
    """

    give_up_at: float | None = None

    def __init__(
        self, fd: int, soon: Callable[[Callable[[], None]], object], source: int | None = None
    ) -> None:
        self._fd = unblocked(fd)
        self._source = source
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
                    if self._given_up():
                        self.broken = True
                        return
                    select.select([], [self._fd], [], LOOK_SECONDS)
                except OSError:
                    # Nobody reads any more. End of input will follow, and end us.
                    self.broken = True
                    return

    def _given_up(self) -> bool:
        now = time.monotonic()
        if self.give_up_at is None and self._source is not None and hung_up(self._source):
            self.give_up_at = now + GRACE_SECONDS
        return self.give_up_at is not None and now >= self.give_up_at

"""What an agent process wrote, kept in capped files for after its end.

A file is rotated once: ``stdout`` and ``stdout.1`` hold at most ``cap`` bytes together. One thread
writes for all processes, from a bounded queue; when the disk is too slow, the log loses pieces and
counts them, and nothing else waits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

MOST_QUEUED = 16 << 20


class LogWriter:
    """The thread that writes, started by the first piece."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._queue: deque[tuple[_File, bytes]] = deque()
        self._size = 0
        self._thread: threading.Thread | None = None
        self._closed = False
        self._busy = False

    def put(self, file: _File, data: bytes) -> bool:
        """Queue a piece; say whether it was taken."""
        with self._ready:
            if self._size + len(data) > MOST_QUEUED or self._closed:
                return False
            self._queue.append((file, data))
            self._size += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="agent-logs", daemon=True)
                self._thread.start()
            self._ready.notify_all()
        return True

    def _work(self) -> None:
        while True:
            with self._ready:
                self._busy = False
                self._ready.notify_all()
                while not self._queue:
                    if self._closed:
                        return
                    self._ready.wait()
                file, data = self._queue.popleft()
                self._size -= len(data)
                self._busy = True
            file.append(data)

    def settle(self) -> None:
        """Return when everything queued is written; blocks."""
        with self._ready:
            while self._queue or self._busy:
                self._ready.wait()

    def close(self) -> None:
        """Write what is queued and end the thread; a later ``put`` is refused."""
        with self._ready:
            self._closed = True
            thread, self._thread = self._thread, None
            self._ready.notify_all()
        if thread is not None:
            thread.join()


class _File:
    """One stream's file; only the writer's thread touches the disk."""

    def __init__(self, path: Path, cap: int) -> None:
        self._path = path
        self._half = max(cap // 2, 1)
        self._size: int | None = None
        self.lost = 0

    def append(self, data: bytes) -> None:
        data = data[-self._half :]
        try:
            if self._size is None:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._size = self._path.stat().st_size if self._path.exists() else 0
            if self._size + len(data) > self._half:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._size = 0
            with self._path.open("ab") as file:
                file.write(data)
            self._size += len(data)
        except OSError:
            self.lost += len(data)


class InstanceLog:
    """The log of one process: a directory with ``stdout`` and ``stderr``."""

    def __init__(self, writer: LogWriter, directory: Path, cap: int = 1 << 20) -> None:
        self._writer = writer
        self.directory = directory
        self._files = {name: _File(directory / name, cap) for name in ("stdout", "stderr")}

    def stream(self, name: str) -> Callable[[bytes], None]:
        """Return what takes the pieces of one stream."""
        file = self._files[name]

        def copy(data: bytes) -> None:
            if not self._writer.put(file, data):
                file.lost += len(data)

        return copy

    @property
    def lost(self) -> int:
        """How many bytes could not be written."""
        return sum(file.lost for file in self._files.values())


def read_log(directory: Path, stream: str) -> bytes:
    """Return what is kept of a stream, oldest first."""
    kept = b""
    for name in (f"{stream}.1", stream):
        try:
            kept += (directory / name).read_bytes()
        except FileNotFoundError:
            continue
    return kept

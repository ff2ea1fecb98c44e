"""What an agent process wrote, kept in capped files for after its end.

A file is rotated once: ``stdout`` and ``stdout.1`` hold at most ``cap`` bytes together. One thread
writes for all processes, from a bounded queue; when the disk is too slow, the log loses pieces and
counts them, and nothing else waits.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from retinue.process.reading import TAIL_BYTES

MOST_QUEUED = 16 << 20
MOST_READ = 1 << 20
_DROPPED = ".dropped"


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


def note_dropped(path: Path, size: int) -> None:
    """Note that so many of the first bytes of a stream are not kept any more."""
    note = path.with_name(path.name + _DROPPED)
    note.write_text(str(dropped(path) + size))


def dropped(path: Path) -> int:
    """Return how many of the first bytes of a stream are not kept any more."""
    try:
        return int(path.with_name(path.name + _DROPPED).read_text())
    except (OSError, ValueError):
        return 0


class _File:
    """One stream's file; only the writer's thread touches the disk."""

    def __init__(self, path: Path, cap: int) -> None:
        self._path = path
        self._half = max(cap // 2, 1)
        self._size: int | None = None
        self.lost = 0

    def append(self, data: bytes) -> None:
        cut, data = len(data[: -self._half]), data[-self._half :]
        try:
            if self._size is None:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._size = self._path.stat().st_size if self._path.exists() else 0
            if self._size + len(data) > self._half:
                old = self._path.with_name(self._path.name + ".1")
                if cut := cut + (old.stat().st_size if old.exists() else 0):
                    note_dropped(self._path, cut)
                self._path.replace(old)
                self._size = 0
            with self._path.open("ab") as file:
                file.write(data)
            self._size += len(data)
        except OSError:
            self.lost += len(data)


LEAST_SECRET = 4
"""Shorter values are no secrets, and to mask them would mask words."""
_WRONG = re.compile(r"\b\w*(?:[Ee]rror|Exception|panic)\b")
_BREAKS = "\u2028\u2029\u0085"
"""What our frames have escaped beyond what JSON asks for."""


def forms(secrets: Iterable[str]) -> list[str]:
    """Return how secrets may stand in a text: as they are, and as JSON has them; longest first."""
    found: set[str] = set()
    for secret in secrets:
        if len(secret) >= LEAST_SECRET:
            written = msgspec.json.encode(secret).decode()[1:-1]
            for mark in _BREAKS:
                written = written.replace(mark, f"\\u{ord(mark):04x}")
            found |= {secret, written}
            found |= {json.dumps(secret, ensure_ascii=plain)[1:-1] for plain in (True, False)}
    return sorted(found, key=len, reverse=True)


def masked(text: str, secrets: Sequence[str]) -> str:
    """Return ``text`` without secrets, which are given in all their ``forms``."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def last_said(tail: bytes, secrets: Sequence[str], most: int) -> str:
    """Return the last ``most`` characters of the end of a stream, without secrets (``forms``).

    They are taken out before anything is cut, also one whose beginning was cut off already.
    """
    text = masked(whole(tail).decode("utf-8", "replace"), secrets)
    if len(tail) >= TAIL_BYTES:
        begun = max((_ends(text, secret) for secret in secrets), default=0)
        text = "***" * bool(begun) + text[begun:]
    return text.strip()[-most:]


def telling(lines: Sequence[str], most: int) -> list[str]:
    """Return the last ``most`` lines, and what went wrong if that stands before them.

    Of some programs the last lines are only where it happened, or their own version.
    """
    last = list(lines[-most:])
    if not any(map(_WRONG.search, last)):
        earlier = next((line for line in reversed(lines[:-most]) if _WRONG.search(line)), None)
        last = [*([earlier] if earlier is not None else []), *last]
    return last


def whole(data: bytes) -> bytes:
    """Return UTF-8 that was cut somewhere without what is left of its first character."""
    begin = 0
    while begin < min(len(data), 3) and data[begin] & 0xC0 == 0x80:  # noqa: PLR2004
        begin += 1
    return data[begin:]


def _ends(text: str, secret: str) -> int:
    """Return how many of the first characters may be the end of ``secret``."""
    if text in secret:
        return len(text)
    for length in range(min(len(secret) - 1, len(text)), 0, -1):
        if text.startswith(secret[-length:]):
            return length
    return 0


class Mask:
    """Takes secrets out of a stream of pieces, also one that comes in two."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = [form.encode("utf-8", "surrogateescape") for form in forms(secrets)]
        self._kept = b""

    def feed(self, data: bytes) -> bytes:
        """Return what can be shown by now; no data: the end, and all the rest."""
        if not self._secrets:
            return data
        last = not data
        data = self._kept + data
        for secret in self._secrets:
            data = data.replace(secret, b"***")
        begun = 0 if last else max(map(partial(_begun, data), self._secrets))
        self._kept = data[len(data) - begun :]
        return data[: len(data) - begun]


def _begun(data: bytes, secret: bytes) -> int:
    """Return how many of the last bytes may be the beginning of ``secret``."""
    for length in range(min(len(secret) - 1, len(data)), 0, -1):
        if data.endswith(secret[:length]):
            return length
    return 0


class InstanceLog:
    """The log of one process: a directory with ``stdout`` and ``stderr``, without ``secrets``."""

    def __init__(
        self,
        writer: LogWriter,
        directory: Path,
        cap: int = 1 << 20,
        secrets: Iterable[str] = (),
    ) -> None:
        self._writer = writer
        self._secrets = tuple(secrets)
        self.directory = directory
        self._files = {name: _File(directory / name, cap) for name in ("stdout", "stderr")}

    def stream(self, name: str) -> Callable[[bytes], None]:
        """Return what takes the pieces of one stream; the last one is empty."""
        file = self._files[name]
        mask = Mask(self._secrets)

        def copy(data: bytes) -> None:
            data = mask.feed(data)
            if data and not self._writer.put(file, data):
                file.lost += len(data)

        return copy

    @property
    def lost(self) -> int:
        """How many bytes could not be written."""
        return sum(file.lost for file in self._files.values())


class LogFollower:
    """Reads a stream's file as it grows, across its rotations; blocks for the disk only.

    It keeps the file open that it reads, so one that is rotated away is read to its end. ``tail``
    begins with that many of the last bytes there are; None begins with all that is kept.
    """

    def __init__(self, directory: Path, stream: str, tail: int | None = None) -> None:
        self._path = directory / stream
        self._old = directory / f"{stream}.1"
        self._file: BinaryIO | None = None
        self._waiting = [f for f in (_open(self._old), _open(self._path)) if f is not None]
        self.skipped = 0
        """How many bytes it does not show of those that are kept."""
        self.dropped = dropped(self._path)
        """How many are not kept."""
        self._begins = self._skip(tail) if tail is not None else False

    def _skip(self, tail: int) -> bool:
        for file in reversed(self._waiting):
            size = file.seek(0, os.SEEK_END)
            self.skipped += file.seek(max(size - tail, 0))
            tail = max(tail - size, 0)
        return self.skipped > 0

    def read(self) -> bytes:
        """Return what came since the last time, at most ``MOST_READ``."""
        data = b""
        while len(data) < MOST_READ and (self._file is not None or self._next()):
            assert self._file is not None
            more = self._file.read(MOST_READ - len(data))
            data += more
            if not more and not self._next():
                break
        if self._begins and data:
            self._begins = False
            data = whole(data)
        return data

    def _next(self) -> bool:
        """Go on to the next file, if this one was rotated away and read; say whether there is."""
        if not self._waiting:
            known = os.fstat(self._file.fileno()).st_ino if self._file is not None else None
            found = _open(self._path)
            if found is None or os.fstat(found.fileno()).st_ino == known:
                if found is not None:
                    found.close()
                return False
            older = _open(self._old)
            self._waiting = [found]
            if older is not None and known is not None:
                if os.fstat(older.fileno()).st_ino == known:
                    older.close()
                else:
                    self._waiting.insert(0, older)
            if self._file is not None and (rest := self._file.read(1)):
                # It got its last bytes after we had looked.
                self._file.seek(-len(rest), os.SEEK_CUR)
                return True
        self.close_current()
        self._file = self._waiting.pop(0)
        return True

    def close_current(self) -> None:
        """Close the file that is read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Close all files."""
        self.close_current()
        for file in self._waiting:
            file.close()
        self._waiting.clear()


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def read_log(directory: Path, stream: str) -> bytes:
    """Return what is kept of a stream, oldest first."""
    kept = b""
    for name in (f"{stream}.1", stream):
        try:
            kept += (directory / name).read_bytes()
        except FileNotFoundError:
            continue
    return kept

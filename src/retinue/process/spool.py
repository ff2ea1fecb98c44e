"""Read what a process writes into a file: for one that lives on when we do not.

The file keeps everything, so whoever comes later reads it again from the beginning, or from an
offset that was committed. It cannot tell us that it grew: it is looked at, the less often the
longer nothing came. What is read has a place: ``position`` is how far the items taken so far go.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from retinue.process.reading import BREATH, CHUNK, TAIL_BYTES, Bounds, Counts, Splitter

_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.05


class SpoolReader:
    """One output file of a process; the same to its readers as ``Reader``.

    ``seam`` is an offset that no piece reaches across. With ``Bounds(most=0)`` nothing is read but
    the tail. It is over when ``finish`` was called and all was read.
    """

    def __init__(self, path: Path, bounds: Bounds, seam: int = 0) -> None:
        self.counts = Counts()
        self.last_at = time.monotonic()
        self.on_item: Callable[[bytes], None] | None = None
        self.position = 0
        self._path = path
        self._fd: int | None = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._bounds = bounds
        self._seam = seam
        self._read_to = 0
        self._taken = 0
        self._splitter = Splitter(bounds.line_bytes, self.counts)
        self._items: Iterator[bytes] = iter(())
        self._finished = asyncio.Event()
        self._rested = False
        self._turns = 0

    def _chunk(self) -> bytes:
        """Return what comes next, if it is there."""
        if self._fd is None or not self._bounds.most:
            return b""
        most = CHUNK
        if self._read_to < self._seam:
            most = min(most, self._seam - self._read_to)
        chunk = os.pread(self._fd, most, self._read_to)
        self._read_to += len(chunk)
        if chunk:
            self.last_at = time.monotonic()
            self.counts.bytes += len(chunk)
        return chunk

    def take(self) -> bytes | None:
        """Return the next item; None when there is none now."""
        while True:
            item = next(self._items, None)
            if item is not None:
                return self._count(item)
            chunk = self._chunk()
            if chunk:
                lines = self._bounds.lines
                self._items = self._splitter.feed(chunk) if lines else iter((chunk,))
                continue
            if not self._finished.is_set() or self._rested:
                return None
            self._rested = True
            rest = self._splitter.rest()
            return None if rest is None else self._count(rest)

    def _count(self, item: bytes) -> bytes:
        self.counts.lines += 1
        self._taken += len(item)
        # Lines that were refused lie before it.
        self.position = self._taken + self.counts.oversize_bytes
        if self.on_item is not None:
            self.on_item(item)
        return item

    async def next(self) -> bytes | None:
        """Return the next item once there is one; None at the end of the output."""
        pause = _FIRST_PAUSE
        self._turns += 1
        if self._turns % BREATH == 0:
            await asyncio.sleep(0)
        while (item := self.take()) is None:
            if self.ended:
                return None
            try:
                async with asyncio.timeout(pause):
                    await self._finished.wait()
            except TimeoutError:
                pause = min(pause * 2, _LONGEST_PAUSE)
        return item

    @property
    def ended(self) -> bool:
        """Whether the output has ended and all of it was delivered."""
        return self._rested

    @property
    def tail(self) -> bytes:
        """The last bytes that came, for an error message."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - TAIL_BYTES, 0))
                return file.read(TAIL_BYTES)
        except OSError:
            return b""

    def read_ahead(self) -> None:
        """Do nothing: what was written is in the file."""

    def finish(self) -> None:
        """Note that nobody is left to write to it."""
        self._finished.set()

    def close(self) -> None:
        """Let go of the file; nothing more is read."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
        self._finished.set()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        item = await self.next()
        if item is None:
            raise StopAsyncIteration
        return item

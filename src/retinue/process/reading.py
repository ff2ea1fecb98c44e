"""Read what a process writes: in bounded pieces, as lines or as they come, never blocking.

Every buffer has a bound. Past it the reader either stops reading, so that the process waits in its
``write`` (``block``), or reads on and counts what it does not keep (``drop``). A line longer than
``line_bytes`` is refused: it is counted, and the reader is in step again at the next newline.
Bytes are never decoded here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Literal

import msgspec

CHUNK = 64 * 1024
MOST_PIPE = 1 << 20
TAIL_BYTES = 4096
BREATH = 64
"""After how many items that were there already others have their turn."""


class Bounds(msgspec.Struct, frozen=True):
    """How much undelivered output is kept, and what happens beyond; ``lines`` False: any pieces."""

    lines: bool = True
    most: int = 1_000
    most_bytes: int = 8 << 20
    line_bytes: int = 1 << 20
    when_full: Literal["block", "drop"] = "block"


class Counts(msgspec.Struct):
    """What a stream has brought, exactly; ``oversize`` lines were refused, ``dropped`` not kept.

    ``longest_refused`` is the size of the longest of them.
    """

    bytes: int = 0
    lines: int = 0
    dropped_lines: int = 0
    dropped_bytes: int = 0
    oversize_lines: int = 0
    oversize_bytes: int = 0
    longest_refused: int = 0


class Splitter:
    """Pieces in, lines out, each with its newline; a last one without any comes from ``rest``."""

    def __init__(self, limit: int, counts: Counts) -> None:
        self._limit = limit
        self._counts = counts
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that end in ``chunk``."""
        start = 0
        while (end := chunk.find(b"\n", start) + 1) > 0:
            line = self._join(chunk[start:end])
            start = end
            if line is not None:
                yield line
        if start < len(chunk):
            self._keep(chunk[start:])

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._limit:
            self._parts.clear()  # too long already: only its size is of interest
        else:
            self._parts.append(part)

    def _join(self, end: bytes) -> bytes | None:
        size = self._size + len(end)
        parts, self._parts, self._size = self._parts, [], 0
        if size > self._limit:
            self._counts.oversize_lines += 1
            self._counts.oversize_bytes += size
            self._counts.longest_refused = max(self._counts.longest_refused, size)
            return None
        return b"".join([*parts, end]) if parts else end

    def rest(self) -> bytes | None:
        """Return what came after the last newline."""
        return self._join(b"") if self._size else None


class Reader:
    """One output pipe of a process.

    ``on_item`` sees every line (or piece) as it comes, dropped ones too; ``copy`` every byte, and
    an empty piece at the end.
    """

    def __init__(
        self, fd: int, bounds: Bounds, copy: Callable[[bytes], None] | None = None
    ) -> None:
        os.set_blocking(fd, False)
        self.counts = Counts()
        self.last_at = time.monotonic()
        self.on_item: Callable[[bytes], None] | None = None
        self._fd: int | None = fd
        self._bounds = bounds
        self._copy = copy
        self._loop = asyncio.get_running_loop()
        self._splitter = Splitter(bounds.line_bytes, self.counts)
        self._chunks: deque[Iterator[bytes]] = deque()
        self._items: deque[bytes] = deque()
        self._size = 0
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._news = asyncio.Event()
        self._reading = False
        self._turns = 0
        self._left: int | None = None
        self._read_on()

    # -- from the pipe -------------------------------------------------------------------------

    def _read_on(self) -> None:
        if self._fd is not None and not self._reading and self._left is None:
            self._loop.add_reader(self._fd, self._readable)
            self._reading = True

    def _hold(self) -> None:
        if self._fd is not None and self._reading:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)
            self._reading = False

    def _readable(self) -> None:
        self._read()
        if self._chunks:
            self._hold()

    def _read(self) -> bool:
        """Take one piece from the pipe; return whether there may be more."""
        if self._fd is None:
            return False
        try:
            chunk = os.read(self._fd, CHUNK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            chunk = b""
        if chunk:
            self._arrived(chunk)
        else:
            self._close()
        return bool(chunk)

    def _arrived(self, chunk: bytes) -> None:
        self.last_at = time.monotonic()
        self.counts.bytes += len(chunk)
        if self._copy is not None:
            self._copy(chunk)
        self._remember(chunk[-TAIL_BYTES:])
        self._chunks.append(self._splitter.feed(chunk) if self._bounds.lines else iter((chunk,)))
        self._sort()

    def _remember(self, end: bytes) -> None:
        self._tail.append(end)
        self._tail_size += len(end)
        while self._tail_size - len(self._tail[0]) >= TAIL_BYTES:
            self._tail_size -= len(self._tail.popleft())

    def _sort(self) -> None:
        """Turn what was read into items, as far as there is room."""
        drop = self._bounds.when_full == "drop"
        while self._chunks:
            if self._full and not drop:
                break
            item = next(self._chunks[0], None)
            if item is None:
                self._chunks.popleft()
                continue
            self._add(item)
        self._news.set()

    def _add(self, item: bytes) -> None:
        self.counts.lines += 1
        if self.on_item is not None:
            self.on_item(item)
        if self._full:
            self.counts.dropped_lines += 1
            self.counts.dropped_bytes += len(item)
            return
        self._items.append(item)
        self._size += len(item)

    @property
    def _full(self) -> bool:
        return len(self._items) >= self._bounds.most or self._size >= self._bounds.most_bytes

    def read_ahead(self) -> None:
        """Take what the pipe holds now as far as there is room, without waiting for the loop."""
        for _ in range(MOST_PIPE // CHUNK):
            if self._chunks or not self._read():
                break

    def last_look(self) -> None:
        """Have ``next`` bring what is there, and then end.

        Who wrote it is gone, and what that left may hold the pipe open, or go on writing.
        """
        if self._left is None:
            self._left = MOST_PIPE
            self._hold()
            self._news.set()

    def _look(self) -> bool:
        """Take what is left of a last look; return whether there was something."""
        before = self.counts.bytes
        if self._left:
            self.read_ahead()
            self._left = max(self._left - (self.counts.bytes - before), 0)
        return self.counts.bytes > before

    def finish(self) -> None:
        """Take what the pipe still holds and close it: nobody is left to write to it."""
        for _ in range(MOST_PIPE // CHUNK):  # a pipe cannot hold more
            if not self._read():
                break
        self._close()

    def _close(self) -> None:
        if self._fd is None:
            return
        self._hold()
        os.close(self._fd)
        self._fd = None
        if self._copy is not None:
            self._copy(b"")
        self._chunks.append(self._last())
        self._sort()

    def _last(self) -> Iterator[bytes]:
        """Yield the last line; made when everything before it was split."""
        rest = self._splitter.rest()
        if rest is not None:
            yield rest

    # -- to whoever reads ----------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the output has ended and all of it was delivered."""
        return self._fd is None and not self._items and not self._chunks

    @property
    def tail(self) -> bytes:
        """The last bytes that came, for an error message."""
        return b"".join(self._tail)[-TAIL_BYTES:]

    def take(self) -> bytes | None:
        """Return the next item; None when there is none now."""
        if not self._items:
            return None
        item = self._items.popleft()
        self._size -= len(item)
        if self._chunks and len(self._items) <= self._bounds.most // 2:
            self._sort()
        if not self._chunks:
            self._read_on()
        return item

    async def next(self) -> bytes | None:
        """Return the next item once there is one; None at the end of the output."""
        self._turns += 1
        if self._turns % BREATH == 0:
            await asyncio.sleep(0)
        while (item := self.take()) is None:
            if self.ended:
                return None
            if self._left is not None:
                if self._look():
                    continue
                return None
            self._news.clear()
            await self._news.wait()
        return item

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        item = await self.next()
        if item is None:
            raise StopAsyncIteration
        return item

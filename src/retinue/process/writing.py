"""Write to a process's stdin: in order, whole calls at a time; only the one who writes waits.

``put`` waits for nothing: what is put in one turn of the loop goes out as one write, and what the
pipe has no room for follows. Who puts sees to it that this stays bounded.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from retinue.errors import CommunicationError


class Writer:
    """The writing end of a process's stdin. One call's bytes stay together."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd: int | None = fd
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Future[None] | None = None
        self._queue: list[bytes] = []
        self._flushing = False
        self._empty: asyncio.Event | None = None
        self.on_written: Callable[[], None] | None = None
        """Is told whenever the pipe has taken some of what was put, and when it is closed."""
        self.calls = 0
        self.bytes = 0
        self.offered = 0
        """How many bytes were given to be written; what ``bytes`` has reached is in the pipe."""

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._fd is None

    @property
    def waiting(self) -> int:
        """How many bytes were put, and are not in the pipe yet; 0 when it is closed."""
        return self.offered - self.bytes if self._fd is not None else 0

    async def write(self, data: bytes) -> None:
        """Write ``data``; return when the pipe has all of it.

        Raises:
            CommunicationError: the process does not read any more; part of it may have got there.
        """
        try:
            async with self._turn:
                await self.drained()
                self.offered += len(data)
                left = memoryview(data)
                while left:
                    try:
                        written = os.write(self._open(), left)
                    except (BlockingIOError, InterruptedError):
                        await self._room()
                    except OSError as error:
                        self.close()
                        raise CommunicationError("the agent has closed its stdin") from error
                    else:
                        left = left[written:]
                        self.bytes += written
                self._open()
                self.calls += 1
        finally:
            if self._queue and not self._flushing:
                self._flush_soon()

    def put(self, data: bytes) -> int:
        """Have ``data`` written; return what ``bytes`` will be when the pipe has it.

        Raises:
            CommunicationError: the process does not read any more.
        """
        self._open()
        self._queue.append(data)
        self.offered += len(data)
        self.calls += 1
        if not self._flushing and not self._turn.locked():
            self._flush_soon()
        return self.offered

    async def drained(self) -> None:
        """Return once all that was put is in the pipe, or nobody reads it any more."""
        while self._queue:
            self._empty = self._empty or asyncio.Event()
            await self._empty.wait()

    def _flush_soon(self) -> None:
        self._flushing = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what was put, as far as the pipe takes it."""
        fd = self._fd
        if fd is None or not self._queue:
            self._flushing = False
            return
        data = self._queue[0] if len(self._queue) == 1 else b"".join(self._queue)
        try:
            written = os.write(fd, data)
        except (BlockingIOError, InterruptedError):
            written = 0
        except OSError:
            self.close()
            return
        self.bytes += written
        if written and self.on_written is not None:
            self.on_written()
        if written < len(data):
            self._queue = [data[written:]]
            self._loop.add_writer(fd, self._flush)
            return
        self._queue = []
        self._flushing = False
        self._loop.remove_writer(fd)
        self._emptied()

    def _emptied(self) -> None:
        if self._empty is not None:
            self._empty.set()
            self._empty = None

    def _open(self) -> int:
        if self._fd is None:
            raise CommunicationError("the agent's stdin is closed")
        return self._fd

    async def _room(self) -> None:
        fd = self._open()
        self._waiting = waiting = self._loop.create_future()
        self._loop.add_writer(fd, _done, waiting)
        try:
            await waiting
        finally:
            self._waiting = None
            if self._fd is not None:
                self._loop.remove_writer(fd)

    def close(self) -> None:
        """Close it: the process reads the end of its input. Who waits in ``write`` is told."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        self._queue = []
        self._flushing = False
        if not self._loop.is_closed():
            self._loop.remove_writer(fd)
            self._emptied()
            if self._waiting is not None:
                _done(self._waiting)
            if self.on_written is not None:
                self.on_written()
        os.close(fd)


def _done(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)

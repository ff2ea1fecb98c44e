"""Write to a process's stdin: in order, whole calls at a time; only the one who writes waits."""

from __future__ import annotations

import asyncio
import os

from retinue.errors import CommunicationError


class Writer:
    """The writing end of a process's stdin. One call's bytes stay together."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd: int | None = fd
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Future[None] | None = None
        self.calls = 0
        self.bytes = 0

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._fd is None

    async def write(self, data: bytes) -> None:
        """Write ``data``; return when the pipe has all of it.

        Raises:
            CommunicationError: the process does not read any more; part of it may have got there.
        """
        async with self._turn:
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
        if self._waiting is not None and not self._loop.is_closed():
            self._loop.remove_writer(fd)
            _done(self._waiting)
        os.close(fd)


def _done(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)

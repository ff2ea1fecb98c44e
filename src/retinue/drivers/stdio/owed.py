"""What we owe a worker: answers to requests of its own that its pipe has not taken yet.

What is put waits for nothing, so somebody has to bound it. Past ``MOST_OWED`` the worker is not
read: it waits in its own write, and who only asks and never reads stands still. What we ask of it
is not counted here (it has bounds of its own): a worker that reads one line, answers it and only
then reads the next one is never kept from writing that answer.
"""

from __future__ import annotations

import asyncio
from collections import deque

from retinue.process.writing import Writer

MOST_OWED = 4 << 20


class Owed:
    """The bytes that one worker is owed."""

    def __init__(self, stdin: Writer) -> None:
        self.size = 0
        self._stdin = stdin
        self._lines: deque[tuple[int, int]] = deque()
        self._room = asyncio.Event()
        self._room.set()
        stdin.on_written = self._written

    @property
    def too_much(self) -> bool:
        """Whether nothing more should be read from it for now."""
        return self.size > MOST_OWED and not self._stdin.closed

    def add(self, place: int, size: int) -> None:
        """Count a line that is in the pipe when that has taken ``place`` bytes."""
        self._lines.append((place, size))
        self.size += size
        if self.too_much:
            self._room.clear()

    def _written(self) -> None:
        if self._stdin.closed:
            self.over()
            return
        while self._lines and self._lines[0][0] <= self._stdin.bytes:
            self.size -= self._lines.popleft()[1]
        if self.size <= MOST_OWED // 2:
            self._room.set()

    def over(self) -> None:
        """Let everybody go on: it takes nothing any more."""
        self._lines.clear()
        self.size = 0
        self._room.set()

    async def room(self) -> None:
        """Return once there is room for an answer."""
        await self._room.wait()

"""``retinue serve --stdio``: the pipes of a system that is somebody's subprocess.

A thread reads stdin; the loop does the rest. stdout carries frames and nothing else: what this
program, or an agent in it, prints goes to stderr, where the log is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retinue.server.stdio import StdioDoor
    from retinue.settings import Settings
    from retinue.wire import BadFrame, Frame

_CHUNK = 64 * 1024
_MOST_WAITING = 4 << 20
_LAST_SECONDS = 1.0


class Outlet:
    """Our stdout: what the parent does not read yet waits here, and the loop goes on.

    Whoever has much to say waits for ``room``; while there is none, nothing more is read either.
    """

    def __init__(self, fd: int) -> None:
        from retinue.process.writing import Writer
        from retinue.sdk.output import unblocked

        self._writer = Writer(unblocked(fd))

    def send(self, line: bytes) -> None:
        """Send a frame. A parent that has closed its end is gone: its input ends, too."""
        if not self._writer.closed:
            self._writer.put(line)

    async def room(self) -> None:
        """Return once less than a bound waits."""
        while self._writer.waiting > _MOST_WAITING:
            await self._writer.drained()

    async def close(self) -> None:
        """Write what waits, if it is read soon."""
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self._writer.drained()
        except TimeoutError:
            pass
        self._writer.close()


async def serve(settings: Settings, pipes: tuple[int, int]) -> None:
    """Serve until shutdown, the end of input or a signal.

    Raises:
        RetinueError: the system cannot be started.
    """
    from retinue.runtime import Runtime
    from retinue.server.stdio import StdioDoor

    source, target = pipes
    loop = asyncio.get_running_loop()
    out = Outlet(target)
    runtime = Runtime(settings)
    orchestrator = await runtime.start()
    try:
        door = StdioDoor(orchestrator, out.send, out.room)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, door.stop)
        door.ready()
        threading.Thread(
            target=_read, args=(source, door, loop), name="frames", daemon=True
        ).start()
        failing = asyncio.create_task(runtime.failed())
        stopping = asyncio.create_task(door.stopping.wait())
        await asyncio.wait({failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if failing.done():
            raise failing.result()
        failing.cancel()
        await door.drain(lambda: runtime.engine.drain(0))
    finally:
        await runtime.stop(0)
        await out.close()


def _read(source: int, door: StdioDoor, loop: asyncio.AbstractEventLoop) -> None:
    """Hand over what the parent writes, piece by piece: the next when the last one was taken."""
    from retinue.wire.reader import FrameReader

    reader = FrameReader(door.line_bytes)

    async def take(found: list[Frame | BadFrame]) -> None:
        for item in found:
            door.take(item)
        await door.room()

    while chunk := os.read(source, _CHUNK):
        taking = take(reader.feed(chunk))
        try:
            _wait(asyncio.run_coroutine_threadsafe(taking, loop), source, door, loop)
        except RuntimeError:
            taking.close()
            return  # the loop is closed: the program is ending
    try:
        for item in reader.rest():
            loop.call_soon_threadsafe(door.take, item)
        loop.call_soon_threadsafe(door.stop)
    except RuntimeError:
        pass


def _wait(
    taking: Future[None], source: int, door: StdioDoor, loop: asyncio.AbstractEventLoop
) -> None:
    """Wait until there is room; a parent that neither reads nor writes any more has gone."""
    from retinue.sdk.output import LOOK_SECONDS, hung_up

    while True:
        try:
            taking.result(LOOK_SECONDS)
            return
        except TimeoutError:
            if hung_up(source):
                loop.call_soon_threadsafe(door.stop)

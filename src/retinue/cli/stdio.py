"""``retinue serve --stdio``: the pipes of a system that is somebody's subprocess.

A thread reads stdin; the loop does the rest. stdout carries frames and nothing else: what this
program, or an agent in it, prints goes to stderr, where the log is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retinue.settings import Settings
    from retinue.wire import BadFrame, Frame

_CHUNK = 64 * 1024


async def serve(settings: Settings, pipes: tuple[int, int]) -> None:
    """Serve until shutdown, the end of input or a signal.

    Raises:
        RetinueError: the system cannot be started.
    """
    from retinue.runtime import Runtime
    from retinue.sdk.output import Output
    from retinue.server.stdio import StdioDoor
    from retinue.wire.reader import FrameReader

    source, target = pipes
    loop = asyncio.get_running_loop()
    out = Output(target, loop.call_soon)
    runtime = Runtime(settings)
    orchestrator = await runtime.start()
    try:
        door = StdioDoor(orchestrator, out.send)
        reader = FrameReader(door.line_bytes)

        def take(found: list[Frame | BadFrame]) -> None:
            for item in found:
                door.take(item)

        def read() -> None:
            while True:
                chunk = os.read(source, _CHUNK)
                found = reader.feed(chunk) if chunk else reader.rest()
                try:
                    loop.call_soon_threadsafe(take, found)
                    if not chunk:
                        loop.call_soon_threadsafe(door.stop)
                except RuntimeError:
                    return  # the loop is closed: the program is ending
                if not chunk:
                    return

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, door.stop)
        door.ready()
        threading.Thread(target=read, name="frames", daemon=True).start()
        failing = asyncio.create_task(runtime.failed())
        stopping = asyncio.create_task(door.stopping.wait())
        await asyncio.wait({failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if failing.done():
            raise failing.result()
        failing.cancel()
        await door.drain()
    finally:
        await runtime.stop(0)
        out.flush()

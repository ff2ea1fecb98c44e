"""Stop a process step by step: each step is bounded, and the last one leaves nothing.

::

    its protocol's own way ─► end of its input ─► a signal it can catch ─► SIGKILL to its whole tree

A step that works saves the ones after it. What a process leaves behind when it ends is killed with
it, so a tree that ignores everything is gone at the latest ``KILL_SECONDS`` after the last wait.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import msgspec

from retinue.errors import RetinueError
from retinue.process.child import Child, Exit

KILL_SECONDS = 5.0


class Ladder(msgspec.Struct, frozen=True):
    """How long each step may take, in seconds; None leaves the step out.

    ``grace`` is the time that ``number``, the signal, gives it.
    """

    cancel: float | None = None
    stdin: float | None = None
    grace: float | None = 5.0
    number: int = signal.SIGTERM


class Stopped(msgspec.Struct, frozen=True):
    """Which step ended a process: ``already``, ``cancel``, ``stdin``, ``signal`` or ``kill``.

    ``clean`` says that nothing of its tree is left.
    """

    step: str
    exit: Exit | None
    clean: bool


async def stop(
    child: Child, ladder: Ladder, cancel: Callable[[], Awaitable[object]] | None = None
) -> Stopped:
    """Stop ``child``; ``cancel`` is its protocol's own way, if it has one."""
    step = "already" if child.exit is not None else await _descend(child, ladder, cancel)
    child.kill()
    clean = await _within(child.wait_gone(), KILL_SECONDS)
    return Stopped(step, child.exit, clean)


async def _descend(
    child: Child, ladder: Ladder, cancel: Callable[[], Awaitable[object]] | None
) -> str:
    if cancel is not None and ladder.cancel is not None:
        if await _within(_politely(child, cancel), ladder.cancel):
            return "cancel"
    if ladder.stdin is not None and child.stdin is not None and not child.stdin.closed:
        child.stdin.close()
        if await _within(child.wait(), ladder.stdin):
            return "stdin"
    if ladder.grace is not None:
        if await _within(_signalled(child, ladder.number), ladder.grace):
            return "signal"
    return "kill"


async def _politely(child: Child, cancel: Callable[[], Awaitable[object]]) -> None:
    await cancel()
    await child.wait()


async def _signalled(child: Child, number: int) -> None:
    # Within its time, too: a keeper that was stopped passes nothing on.
    await child.signal(number)
    await child.resume()  # one that is paused gets its signal only when it goes on
    await child.wait()


async def _within(work: Awaitable[object], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await work
    except (TimeoutError, RetinueError):  # a pipe that broke: the next step follows
        return False
    return True

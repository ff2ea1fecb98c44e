"""Agents of the servers that faults are done to; a server's configuration names them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from retinue.agent import Context, Options, capability

CALM = Options(failure_threshold=1_000_000, concurrency=1000)


@capability(options=CALM)
async def large(size: int) -> str:
    """Answer with that many bytes, some of which JSON escapes."""
    return ('"\\é' * size)[:size]


@capability(options=CALM)
async def loud(size: int, count: int, context: Context) -> None:
    """Make events of that size."""
    for _ in range(count):
        context.progress(1, "x" * size)
        await asyncio.sleep(0)


@capability(options=CALM)
async def reflect(value: str = "") -> str:
    """Answer with what was sent."""
    return value


@capability(options=CALM)
async def until(path: str, context: Context) -> str:
    """Work until the file is there."""
    context.progress(0, "begun")
    while not await asyncio.to_thread(Path(path).exists):
        await asyncio.sleep(0.02)
    context.progress(100, "done")
    return path


@capability(options=Options(failure_threshold=1_000_000, concurrency=1))
async def single(path: str = "") -> str:
    """Work until the file is there, one at a time."""
    while path and not await asyncio.to_thread(Path(path).exists):
        await asyncio.sleep(0.02)
    return path


@capability(options=Options(failure_threshold=1_000_000, concurrency=8))
async def busy(milliseconds: int = 5) -> int:
    """Take a while; eight at a time."""
    await asyncio.sleep(milliseconds / 1000)
    return milliseconds

"""The agents that contenders of ours run: one answers what it was asked, one emits events."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from retinue import Context, Options, capability

_begun: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


@capability(options=Options(concurrency=256))
async def echo(text: str) -> str:
    """Answer what was asked."""
    return text


@capability(options=Options(concurrency=256))
async def used(text: str, context: Context) -> str:
    """Answer, and say what a model used for that."""
    context.spend(input_tokens=100, output_tokens=20)
    return text


@capability(options=Options(concurrency=256))
async def say(text: str, context: Context) -> str:
    """Stream the answer, word by word."""
    for word in text.split():
        context.text(word)
        await asyncio.sleep(0)
    return text


@capability()
async def emit(name: str, count: int, context: Context) -> None:
    """Emit an event, and ``count`` more once told to begin."""
    context.progress(0, "begun")
    await _begun[name].wait()
    for number in range(count):
        context.progress(1, f"step {number}")
        if number % 64 == 63:
            await asyncio.sleep(0)


@capability()
async def begin(name: str) -> None:
    """Tell the other agent to begin."""
    _begun[name].set()

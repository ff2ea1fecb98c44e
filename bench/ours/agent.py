"""The agent that every contender of ours runs: it answers what it was asked."""

from __future__ import annotations

from retinue import Options, capability


@capability(options=Options(concurrency=256))
async def echo(text: str) -> str:
    """Answer what was asked."""
    return text

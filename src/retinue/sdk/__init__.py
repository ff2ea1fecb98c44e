"""Serve agents as a worker: a program that speaks specification 000's protocol on its stdio.

::

    from retinue.sdk import serve
    from my_agents import Translator, summarize

    if __name__ == "__main__":
        serve(Translator(), summarize)

The agents are those of ``retinue.Agent``; the protocol is in ``docs/protocol.md``. Nothing here
imports more than asyncio, msgspec and what an agent's author imports: a worker is ready soon.
"""

from __future__ import annotations

import asyncio
from typing import Any

from retinue.agent import current
from retinue.sdk.catalog import Reference
from retinue.sdk.worker import serve

__all__ = ["Reference", "get_human_input", "serve"]


def get_human_input(
    prompt: str,
    schema: dict[str, Any] | None = None,
    *,
    timeout: float | None = None,
    role: str = "operator",
) -> Any:
    """Ask a person: an ``async`` agent awaits what this returns, a blocking one gets the answer.

    What ``Context.ask`` does, under specification 000's name.
    """
    context = current()
    waiting = context.ask(prompt, schema, timeout=timeout, role=role)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return context.run(waiting)
    return waiting

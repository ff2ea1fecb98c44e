"""A server in a process of its own, for tests that send it signals: ``program.py DB GRACE``.

Prints its URL when it answers, and what it logs. Its one agent works until a file appears.
"""

import asyncio
import logging
import sys
from pathlib import Path

from retinue import Context, Orchestrator, Runtime, Settings, capability
from retinue.server.serve import bind, serve


@capability()
async def until(path: str, context: Context) -> str:
    """Work until the file is there."""
    context.progress(0, "begun")
    while not await asyncio.to_thread(Path(path).exists):
        await asyncio.sleep(0.02)
    context.progress(100, "done")
    return path


def ready(_: Orchestrator, url: str) -> None:
    """Say where we serve."""
    print(url, flush=True)


async def main(url: str, grace: float) -> None:
    """Serve until a signal comes."""
    settings = Settings(
        port=0, database_url=url, examples=False, entry_points=False, grace_seconds=grace
    )
    listener = bind(settings)
    runtime = Runtime(settings)
    runtime.orchestrator.register_agent(until)
    await serve(runtime, settings, listener, ready=ready)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))

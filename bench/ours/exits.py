"""How soon the owner knows that a process has ended, with 200 others alive.

From the moment that the process is sent SIGKILL to the moment that its handle is told: its teardown
in the kernel, the keeper's reaping and the frame are all in it. ``--held`` has a grandchild hold
the process's stdout, which is what keeps others waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time

from bench.load import Load, Run, arguments, report
from retinue.process.child import Child, Exit, Streams
from retinue.process.link import Command, KeeperLink
from retinue.testing.agent import argv

BATCH = 20
OTHERS = 200


async def spawn(link: KeeperLink, *words: str) -> Child:
    """Start a process."""
    command = Command(path=words[0], argv=words, env={"PATH": os.defpath}, cwd="/")
    return await link.spawn(command, Streams())


async def noticed(child: Child) -> float:
    """Kill a process; return how long it took until its handle was told."""
    told = asyncio.get_running_loop().create_future()

    def ended(_: Exit) -> None:
        told.set_result(time.perf_counter())

    child.when_exited(ended)
    begun = time.perf_counter()
    os.kill(child.pid, signal.SIGKILL)
    at: float = await told
    return at - begun


async def measure(run: Run) -> None:
    """Start and end processes until the time is over."""
    words = argv("leave", "say=ready", "sleep") if run.options.held else argv("say=ready", "sleep")
    link = KeeperLink()
    load = Load(run.seconds)
    try:
        await asyncio.gather(*(spawn(link, "/bin/sleep", "1000") for _ in range(OTHERS)))
        begun = time.monotonic()
        while time.monotonic() - begun < run.warm + run.seconds or load.total < 5 * BATCH:
            children = await asyncio.gather(*(spawn(link, *words) for _ in range(BATCH)))
            for child in children:
                if await child.stdout.next() != b"ready\n":
                    raise SystemExit("one was not ready")
            for child in children:
                load.latencies.append(await noticed(child))
                load.total += 1
                child.kill()
            await asyncio.gather(*(child.wait_gone() for child in children))
        load.seconds = time.monotonic() - begun
    finally:
        await link.close()
    report({**load.line(), "cpu_us_per_task": None})


def options(parser: argparse.ArgumentParser) -> None:
    """Add what this contender is asked beyond the others."""
    parser.add_argument("--held", action="store_true", help="a grandchild holds the output")


if __name__ == "__main__":
    asyncio.run(measure(arguments("notice that processes end", options)))

"""Trees of processes that do all they can not to be ended: how long until nothing of them exists.

``--after stop`` stops each by the ladder (SIGTERM for a tenth of a second, then SIGKILL),
``--after kill`` ends the owner of them all with SIGKILL. They are found by a word of their command
line, which the keeper does not go by.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time

from bench.environment import CHECKOUT
from bench.load import Load, Run, arguments, report
from retinue.domain.ids import ulid
from retinue.process.child import Child, Streams
from retinue.process.ladder import Ladder, stop
from retinue.process.link import Command, KeeperLink
from retinue.process.reading import Bounds
from retinue.testing.agent import HOSTILE, argv, tagged

PATIENCE = 20.0


async def begin(link: KeeperLink, tree: str, tag: str) -> Child:
    """Start a tree; return when it says that it is ready."""
    words = argv(f"tag={tag}", *HOSTILE[tree][0])
    command = Command(path=words[0], argv=words, env={"PATH": os.defpath}, cwd="/")
    child = await link.spawn(command, Streams(stdout=Bounds(when_full="drop")))
    if await child.stdout.next() != b"ready\n":
        raise SystemExit(f"{tree} was not ready")
    return child


async def grown(tags: dict[str, str]) -> None:
    """Return when every tree has the processes that it is to have."""
    while any(len(tagged(tag)) < HOSTILE[tree][1] for tree, tag in tags.items()):
        await asyncio.sleep(0.01)


async def vanish(tag: str) -> float:
    """Return when nothing of a tree is left, and how long that took."""
    begun = time.perf_counter()
    while tagged(tag):
        if time.perf_counter() - begun > PATIENCE:
            raise SystemExit(f"{len(tagged(tag))} processes are left after {PATIENCE:.0f} s")
        await asyncio.sleep(0.005)
    return time.perf_counter() - begun


async def stopped(load: Load) -> None:
    """Stop each tree."""
    link = KeeperLink()
    try:
        for tree in HOSTILE:
            tag = ulid()
            child = await begin(link, tree, tag)
            await grown({tree: tag})
            start = time.perf_counter()
            await stop(child, Ladder(grace=0.1))
            await vanish(tag)
            load.latencies.append(time.perf_counter() - start)
    finally:
        await link.close()


async def own(tags: list[str]) -> None:
    """Be the owner of all trees, until killed."""
    link = KeeperLink()
    await asyncio.gather(*(begin(link, tree, tag) for tree, tag in zip(HOSTILE, tags, strict=True)))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


async def killed(load: Load) -> None:
    """Kill the owner of all trees."""
    tags = {tree: ulid() for tree in HOSTILE}
    words = [sys.executable, "-m", "bench.ours.hostile", "--own", *tags.values()]
    owner = await asyncio.create_subprocess_exec(*words, cwd=CHECKOUT, stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        if await owner.stdout.readline() != b"ready\n":
            raise SystemExit("the trees were not ready")
        await grown(tags)
    finally:
        owner.kill()
    load.latencies += await asyncio.gather(*map(vanish, tags.values()))
    await owner.wait()


async def measure(run: Run) -> None:
    """End all trees again and again until the time is over."""
    load = Load(run.seconds)
    begun = time.monotonic()
    while not load.latencies or time.monotonic() - begun < run.warm + run.seconds:
        await (stopped if run.options.after == "stop" else killed)(load)
    load.seconds, load.total = time.monotonic() - begun, len(load.latencies)
    line = load.line()
    report({**line, "cpu_us_per_task": None, "worst_ms": round(load.latencies[-1] * 1e3, 1)})


def options(parser: argparse.ArgumentParser) -> None:
    """Add what this contender is asked beyond the others."""
    parser.add_argument("--after", choices=("stop", "kill"), default="stop")
    parser.add_argument("--own", nargs="+", help=argparse.SUPPRESS)


if __name__ == "__main__":
    asked = arguments("end hostile trees", options)
    asyncio.run(own(asked.options.own) if asked.options.own else measure(asked))

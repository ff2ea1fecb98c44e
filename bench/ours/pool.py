"""From wanting an agent to its first answer: one that is started, or one that was kept warm.

The agent is a Python program that imports what a small one does, says that it is ready, and answers
lines. Only the way to the first answer is timed: not the end of the agent, nor the pool's warming
of the next one, which is awaited; so this is what a caller sees whose pool keeps up.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from bench.load import Load, Run, arguments, report
from retinue.process import AgentConfig, AgentHandle, AgentPool, Backend, LocalProcessRunner
from retinue.process.pool import first_line

PROGRAM = """
import argparse, asyncio, json, sys, urllib.request
print("ready", flush=True)
for line in sys.stdin:
    print(line, end="", flush=True)
"""
CONFIG = AgentConfig("answers", "answers", "")
CATALOGUE = {"answers": Backend(command=(sys.executable, "-I", "-c", PROGRAM), prompt="none")}


async def ask(handle: AgentHandle) -> None:
    """Have it answer one line."""
    await handle.write_stdin(b"hello\n")
    if await handle.next_stdout() != b"hello\n":
        raise SystemExit("that was not its answer")


async def cold(runner: LocalProcessRunner) -> float:
    """Start one, and return how long it took until it had answered."""
    begun = time.perf_counter()
    handle = await runner.spawn(CONFIG)
    await first_line(handle)
    await ask(handle)
    took = time.perf_counter() - begun
    await handle.kill()
    return took


async def warm(pool: AgentPool) -> float:
    """Take one that is warm, and return how long it took until it had answered."""
    begun = time.perf_counter()
    async with pool.take() as handle:
        await ask(handle)
        took = time.perf_counter() - begun
    while (pool.warm, pool.size) != (pool.min_agents, pool.min_agents):
        await asyncio.sleep(0.001)
    return took


async def repeat(run: Run, call: Callable[[], Awaitable[float]]) -> Load:
    """Do it one after the other until the time is over; what is measured is all that counts."""
    load = Load(0)
    begun = time.monotonic()
    while time.monotonic() - begun < run.warm + run.seconds:
        took = await call()
        load.total += 1
        if time.monotonic() - begun >= run.warm:
            load.latencies.append(took)
    load.seconds = sum(load.latencies)
    return load


async def measure(run: Run) -> None:
    """Start agents, cold or warm."""
    async with LocalProcessRunner(catalogue=CATALOGUE) as runner:
        if run.options.cold:
            load = await repeat(run, lambda: cold(runner))
        else:
            async with AgentPool(
                runner, CONFIG, min_agents=2, max_agents=4, ready=first_line, idle_seconds=0
            ) as pool:
                load = await repeat(run, lambda: warm(pool))
    report({**load.line(), "cpu_us_per_task": None})


def options(parser: argparse.ArgumentParser) -> None:
    """Add what this contender is asked beyond the others."""
    parser.add_argument("--cold", action="store_true", help="start each one when it is wanted")


if __name__ == "__main__":
    asyncio.run(measure(arguments("have an agent answer for the first time", options)))

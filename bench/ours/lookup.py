"""A runner's agents: find one by its id, among few or many.

One process stands behind all of them, but each has a handle and a history of its own, as memory has
them: 10,000 processes would measure the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time

from bench.load import Load, Run, arguments, peak_mb, report
from retinue.domain.ids import now_us
from retinue.process import AgentConfig, AgentHandle, Backend, LocalProcessRunner
from retinue.process.child import Streams
from retinue.process.link import Command
from retinue.process.standing import Standing

SLEEP = Backend(command=("/bin/sleep", "1000"), prompt="none")


async def fill(runner: LocalProcessRunner, agents: int) -> list[str]:
    """Give a runner so many agents; return their ids in no order."""
    command = Command(path=SLEEP.command[0], argv=SLEEP.command, env={}, cwd="/")
    child = await runner._link.spawn(command, Streams())
    for number in range(agents):
        config = AgentConfig(f"agent-{number}", "sleep", "")
        runner._agents[f"agent-{number:05d}"] = AgentHandle(
            child, config, Standing(now_us()), parses=True, log_dir=None
        )
    return [f"agent-{number * 7919 % agents:05d}" for number in range(agents)]


async def look_up(run: Run, runner: LocalProcessRunner, ids: list[str]) -> Load:
    """Find agents, one after the other, until the time is over."""
    load = Load(run.seconds)
    clock = time.perf_counter
    begin = clock() + run.warm
    end = begin + run.seconds
    for wanted in itertools.cycle(ids):
        start = clock()
        if start >= end:
            break
        if await runner.get_agent(wanted) is None:
            raise SystemExit(f"{wanted} was not found")
        done = clock()
        load.total += 1
        if start >= begin:
            load.latencies.append(done - start)
    return load


async def measure(run: Run) -> None:
    """Measure and report."""
    async with LocalProcessRunner(catalogue={"sleep": SLEEP}) as runner:
        ids = await fill(runner, run.options.agents)
        # Before the loop: its latencies would be most of it.
        memory = peak_mb()
        load = await look_up(run, runner, ids)
    report({**load.line(), "cpu_us_per_task": None, "rss_mb": memory})


def options(parser: argparse.ArgumentParser) -> None:
    """Add what this contender is asked beyond the others."""
    parser.add_argument("--agents", type=int, default=10_000)


if __name__ == "__main__":
    asyncio.run(measure(arguments("find agents of a runner by id", options)))

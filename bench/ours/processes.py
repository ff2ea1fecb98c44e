"""Start sleeping processes until all of them run.

A process runs when it is the program that was asked for: that it was forked is not enough. The
keeper is up before the clock starts, as the peer's arbiter is.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time

from bench.load import Run, arguments, percentile, report
from retinue.process import AgentConfig, AgentHandle, Backend, LocalProcessRunner

SLEEP = Backend(command=("/bin/sleep", "1000"), prompt="none")


def name_of(pid: int) -> str:
    """Return what a process is; empty when it is none."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


async def started(runner: LocalProcessRunner, count: int) -> float:
    """Start ``count`` processes; return how long it took until all of them ran."""
    config = AgentConfig("sleeper", "sleep", "")
    begun = time.perf_counter()
    handles = await runner.spawn_many([config] * count, batch=count)
    pids = [handle.pid for handle in handles if isinstance(handle, AgentHandle)]
    while pids := [pid for pid in pids if name_of(pid) != "sleep"]:
        await asyncio.sleep(0.001)
    if len(handles) != count or not all(isinstance(handle, AgentHandle) for handle in handles):
        raise SystemExit("not all were started")
    took = time.perf_counter() - begun
    await asyncio.gather(*(h.kill() for h in handles if isinstance(h, AgentHandle)))
    return took


async def measure(run: Run) -> None:
    """Start them again and again; report how many a second."""
    count = run.options.processes
    took: list[float] = []
    async with LocalProcessRunner(catalogue={"sleep": SLEEP}) as runner:
        await started(runner, 1)
        until = time.monotonic() + run.seconds
        while not took or time.monotonic() < until:
            took.append(await started(runner, count))
    took.sort()
    report(
        {
            "per_second": round(count * len(took) / sum(took), 1),
            "p50_ms": round(percentile(took, 0.5) * 1e3, 2),
            "p99_ms": round(percentile(took, 0.99) * 1e3, 2),
            "counted": len(took),
            "cpus": os.cpu_count(),
        }
    )


def options(parser: argparse.ArgumentParser) -> None:
    """Add what this contender is asked beyond the others."""
    parser.add_argument("--processes", type=int, default=200, help="how many at a time")


if __name__ == "__main__":
    asyncio.run(measure(arguments("start processes under a keeper", options)))

"""The operations of specification 000's latency budget (§8.1), as the worker's own meter has them.

A whole system with one process of the SDK; one caller. ``startup`` replaces that process again and
again, ``health_check`` pings it every 5 ms. The rest is a closed loop of tasks; ``stream_chunk`` is
each chunk's way from the pipe into the journal.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from bench.environment import CHECKOUT
from bench.load import TEXT, Load, Run, arguments, report, scratch
from retinue import Orchestrator, Runtime, Settings
from retinue.domain.latency import Meter, Operation
from retinue.settings import WorkerReference

MEASURED = tuple(o.value for o in Operation if o is not Operation.DATASET_ADD)
AGENTS = {"simple_invoke": "echo", "llm_invoke": "used", "stream_chunk": "say"}
COMMAND = (sys.executable, "-m", "bench.ours.stdio_child", "sdk")
_clock = time.perf_counter


def recorded(meter: Meter, operation: Operation) -> list[float]:
    """Return the list to which the meter adds what it counts of ``operation`` from now on."""
    taken: list[float] = []
    count = meter.add

    def add(what: Operation, seconds: float) -> None:
        count(what, seconds)
        if what is operation:
            taken.append(seconds)

    meter.add = add  # type: ignore[method-assign, assignment]
    return taken


def step_of(
    orchestrator: Orchestrator, run: Run, taken: list[float]
) -> Callable[[], Awaitable[None]]:
    """Return what has the operation done once."""
    what = run.options.of

    async def restart() -> None:
        seen = len(taken)
        await orchestrator.restart_pool("w")
        while len(taken) == seen or len((await orchestrator.pool("w")).instances) > 1:
            await asyncio.sleep(0.005)

    async def task() -> None:
        asked = {"agent_id": AGENTS[what], "parameters": {"text": TEXT}}
        reply = await orchestrator.orchestrate("budget", asked)
        assert reply["success"], reply

    async def wait() -> None:
        await asyncio.sleep(0.05)

    return {"startup": restart, "health_check": wait}.get(what, task)


async def measure(run: Run) -> Load:
    """Run one operation for a while."""
    with scratch(run) as root:
        worker = WorkerReference(
            driver="stdio", name="w", command=COMMAND, work_dir=CHECKOUT, process_pool_size=1,
            health_interval=0.005 if run.options.of == "health_check" else 10,
        )  # fmt: skip
        runtime = Runtime(
            Settings(data_dir=root, examples=False, entry_points=False, agents=(worker,))
        )
        orchestrator = await runtime.start()
        (supervisor,) = runtime.engine.pools._supervisors.values()
        taken = recorded(supervisor.pool.meter, Operation(run.options.of))
        step = step_of(orchestrator, run, taken)
        end = _clock() + run.warm
        while _clock() < end:
            await step()
        taken.clear()
        begun = _clock()
        while _clock() < begun + run.seconds or not taken:
            await step()
        seconds = _clock() - begun
        found = list(taken)
        await runtime.stop()
        return Load(seconds, found, len(found))


def main() -> None:
    """Measure and report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--of", choices=MEASURED, required=True)

    run = arguments("One operation of the latency budget", more)
    line = asyncio.run(measure(run)).line()
    del line["cpu_us_per_task"]  # of one operation it cannot be told
    report(line)


if __name__ == "__main__":
    main()

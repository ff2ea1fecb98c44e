"""A thousand agents under supervision, ten lines to each and their answers: none may be lost.

An agent is a process that writes back what it reads. All of them are called at once, so a call's
latency is that of the crowd; what counts is that each is answered, and what the owner needs for it.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import threading
import time

from bench.load import Load, Run, arguments, report
from retinue.process import AgentConfig, AgentHandle, Backend, LocalProcessRunner

CAT = Backend(command=("cat",), prompt="none")
CALLS = 10


async def measure(run: Run) -> None:
    """Start them, call each ten times, end them."""
    count = run.options.agents
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with LocalProcessRunner(catalogue={"cat": CAT}) as runner:
        begun = time.perf_counter()
        configs = [AgentConfig(f"agent-{n}", "cat", "") for n in range(count)]
        answers = await runner.spawn_many(configs, batch=100)
        handles = [handle for handle in answers if isinstance(handle, AgentHandle)]
        up = time.perf_counter() - begun
        load = Load(0.0)
        lost = (count - len(handles)) * CALLS

        async def call(handle: AgentHandle) -> None:
            nonlocal lost
            for n in range(CALLS):
                line = b"%s %d\n" % (handle.name.encode(), n)
                start = time.perf_counter()
                await handle.write_stdin(line)
                if await handle.next_stdout() != line:
                    lost += 1
                load.latencies.append(time.perf_counter() - start)
                load.total += 1

        begun, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*map(call, handles))
        load.seconds, load.cpu = time.perf_counter() - begun, time.process_time() - cpu
        running = sum(not agent.status.final for agent in await runner.list_agents())
        threads = threading.active_count()
    more = {"lost": lost + count - running, "threads": threads, "up_seconds": round(up, 2)}
    report({**load.line(), **more})


def options(parser: argparse.ArgumentParser) -> None:
    """Add what this contender is asked beyond the others."""
    parser.add_argument("--agents", type=int, default=1000, help="how many")


if __name__ == "__main__":
    asyncio.run(measure(arguments("call many agents", options)))

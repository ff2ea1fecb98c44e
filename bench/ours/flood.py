"""Tasks of other agents while one agent writes a gigabyte to the server.

Both are command lines of one system with its SQLite store. ``--flood errors`` writes lines to
stderr, ``--flood line`` one line without end to stdout, ``--flood text`` the same as its text,
streamed until it is more than a result may have, ``--flood lines`` short lines of text; ``none``
is the same system without it.
Each flood is a whole gigabyte, again and again until the time is over, and at least once.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from bench.load import Run, arguments, closed_loop, report, scratch
from retinue import Runtime, Settings
from retinue.domain.execution import Task
from retinue.settings import CommandReference
from retinue.testing.agent import argv

STEPS = {
    "errors": "flood-errors={size}",
    "line": "line={size}",
    "text": "line={size}",
    "lines": "flood={size}",
}
REFUSED = "output is larger than"


def command(name: str, *words: str, **more: Any) -> CommandReference:
    """Return an agent that is a command line."""
    return CommandReference(driver="command", agent_id=name, command=words, **more)


def peak(*, afresh: bool = False) -> int:
    """Return the most memory this process has had, in bytes; ``afresh``: since now."""
    if afresh:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


async def perform(system: Runtime, agent_id: str) -> None:
    """Have an agent do its task; end the run when it fails."""
    task = Task(session_id=agent_id, agent_id=agent_id, parameters={"prompt": "x"})
    answer = await system.orchestrator.perform(task)
    if answer.error is not None and REFUSED not in answer.error["message"]:
        raise SystemExit(f"{agent_id}: {answer.error['message']}")


async def measure(run: Run) -> None:
    """Run the others' tasks in a closed loop, with or without the flood."""
    kind, size = run.options.flood, run.options.size
    agents = [command("other", "/bin/cat", concurrency=run.callers)]
    if kind != "none":
        step = STEPS[kind].format(size=size)
        last = """say={"type":"result","result":1}"""
        output = "text" if kind == "text" else "json-lines"
        agents.append(command("flood", *argv(step, last), output=output, timeout=600))
    with scratch(run) as directory:
        system = Runtime(
            Settings(data_dir=directory, examples=False, entry_points=False, agents=tuple(agents))
        )
        await system.start()
        for _ in range(20):
            await perform(system, "other")
        grown = peak(afresh=True)
        floods = 0

        async def flood() -> None:
            nonlocal floods
            while kind != "none":
                await perform(system, "flood")
                floods += 1

        flooding = asyncio.create_task(flood())
        load = await closed_loop(
            lambda _: perform(system, "other"),
            callers=run.callers,
            warm=run.warm,
            seconds=run.seconds,
        )
        while kind != "none" and not floods:
            await asyncio.sleep(0.05)
        flooding.cancel()
        grown = peak() - grown
        await asyncio.wait([flooding])
        await system.stop()
    report({**load.line(), "grown_mb": round(grown / (1 << 20), 1), "floods": floods})


def options(parser: argparse.ArgumentParser) -> None:
    """Add what this contender is asked beyond the others."""
    parser.add_argument("--flood", choices=("none", *STEPS), default="none")
    parser.add_argument("--size", default="1g", help="of one flood")
    parser.set_defaults(callers=2)


if __name__ == "__main__":
    asyncio.run(measure(arguments("other agents beside a flood", options)))

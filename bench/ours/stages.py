"""The stages of one task, each timed alone: what specification 003 expects of their latencies.

One caller, so that nothing waits for a neighbour. ``routing`` is the registry's choice;
``contract`` the durable commit that accepts a task (execution and REQUEST); ``agent`` from there
until its end is handed to the store (dispatch and an echo); ``compress`` a memory block of a
session of 200 contracts, made here; ``trace`` the delivery of one contract to a Trace of the test
kit, in a thread of this process, over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path

from bench.load import TEXT, Load, Run, arguments, expect, report, scratch
from bench.ours.agent import echo
from bench.ours.echo import settings
from retinue import Orchestrator, Runtime
from retinue.domain.intent import Finish, Intent, Submit
from retinue.domain.result import Result
from retinue.integrations.trace import Trace
from retinue.storage.sqlite import SqliteStore
from retinue.testing.peers import FakeTrace

STAGES = ("routing", "contract", "agent", "trace", "compress")
EXCHANGES = 100
_clock = time.perf_counter


class Timed(SqliteStore):
    """A store that says how long accepting takes, and how long from there to the end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.contract: list[float] = []
        self.agent: list[float] = []
        self._accepted: dict[str, float] = {}

    async def write(self, intent: Intent, /) -> Result:
        began = _clock()
        if isinstance(intent, Finish):
            accepted = self._accepted.pop(intent.fence.execution_id)
            self.agent.append(began - accepted)
        result = await super().write(intent)
        if isinstance(intent, Submit):
            ended = self._accepted[intent.execution.id] = _clock()
            self.contract.append(ended - began)
        return result


async def tasks(run: Run, path: Path) -> Load:
    """Run tasks one after the other; return the durations of the stage."""
    store = Timed(path)
    runtime = Runtime(settings(path), store=store)
    orchestrator = await runtime.start()
    orchestrator.register_agent(echo)
    taken = store.contract if run.options.stage == "contract" else store.agent
    try:
        end = _clock() + run.warm
        while _clock() < end:
            await one(orchestrator)
        taken.clear()
        end = _clock() + run.seconds
        while _clock() < end:
            await one(orchestrator)
        return Load(sum(taken), list(taken), len(taken))
    finally:
        await runtime.stop()


async def one(orchestrator: Orchestrator) -> None:
    """Have one task done."""
    task = {"capability": "echo", "parameters": {"text": TEXT}}
    reply = await orchestrator.orchestrate("stages", task)
    assert reply["success"], reply


async def compress(run: Run, path: Path) -> Load:
    """Compress a session again and again."""
    runtime = Runtime(settings(path))
    orchestrator = await runtime.start()
    orchestrator.register_agent(echo)
    taken: list[float] = []
    try:
        for _ in range(EXCHANGES):
            await one(orchestrator)
        end = _clock() + run.seconds
        while _clock() < end:
            began = _clock()
            block = await orchestrator.compress_session("stages")
            taken.append(_clock() - began)
            assert block["compressed"], block
        return Load(sum(taken), taken, len(taken))
    finally:
        await runtime.stop()


async def trace(run: Run, path: Path) -> Load:
    """Deliver a session's contracts one after the other, again and again."""
    runtime = Runtime(settings(path))
    orchestrator = await runtime.start()
    orchestrator.register_agent(echo)
    taken: list[float] = []
    try:
        with FakeTrace() as service:
            sink = Trace(service.url)
            await one(orchestrator)
            contracts = itertools.cycle(await runtime.store.chain("local", "stages", 0, 2))
            end = _clock() + run.seconds
            while (began := _clock()) < end:
                await sink.deliver(next(contracts))
                taken.append(_clock() - began)
            await sink.close()
            expect("events of Trace", len(service.events("stages")), len(taken))
        return Load(sum(taken), taken, len(taken))
    finally:
        await runtime.stop()


async def routing(run: Run, path: Path) -> Load:
    """Choose an agent again and again."""
    runtime = Runtime(settings(path))
    orchestrator = await runtime.start()
    orchestrator.register_agent(echo)
    route: Callable[..., object] = runtime.engine.registry.route
    taken: list[float] = []
    try:
        end = _clock() + run.seconds
        while (began := _clock()) < end:
            route("echo", None)
            taken.append(_clock() - began)
        return Load(sum(taken), taken, len(taken))
    finally:
        await runtime.stop()


def main() -> None:
    """Measure and report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--stage", choices=STAGES, required=True)

    run = arguments("One stage of a task", more)
    stage = run.options.stage
    measure = {"routing": routing, "compress": compress, "trace": trace}.get(stage, tasks)
    with scratch(run) as directory:
        load = asyncio.run(measure(run, directory / "retinue.db"))
    line = load.line()
    del line["cpu_us_per_task"]  # of one stage it cannot be told
    report(line)


if __name__ == "__main__":
    main()

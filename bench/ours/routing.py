"""The registry alone: choose an agent among many that can all do it, or find one by its id.

No store and no agent runs. 64 slots are occupied at any time, so that loads differ and agents move
between buckets as they do under work. ``--open`` gives a share of the agents an open circuit: those
registered first, which is where a search would begin.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import deque

from bench.load import Load, Run, arguments, peak_mb, report
from retinue.domain.agent import AgentDefinition, Capability
from retinue.engine.entry import Entry
from retinue.engine.guard import Circuit
from retinue.engine.registry import Registry
from retinue.interfaces import Instance

OCCUPIED = 64
WORK = "work"


async def never() -> Instance:
    """Stand for starting an instance, which routing does not do."""
    raise NotImplementedError


def registry(agents: int, refusing: float) -> Registry:
    """Return a registry of agents that all have the same capability."""
    made = Registry()
    now = time.monotonic()
    for number in range(agents):
        name = f"agent-{number:05d}"
        entry = made.add(
            AgentDefinition(agent_id=name, name=name, capabilities=(Capability(name=WORK),)), never
        )
        if number < int(agents * refusing):
            entry.breaker.circuit = Circuit.OPEN
            entry.breaker.last_failure = now
    return made


def measure(run: Run, made: Registry) -> Load:
    """Route, occupy, and free the oldest, as fast as it goes; the freeing is not timed."""
    held: deque[Entry] = deque()
    load = Load(run.seconds)
    clock = time.perf_counter
    begin = clock() + run.warm
    end = begin + run.seconds
    cpu = 0.0
    while (start := clock()) < end:
        entry = made.route(WORK, None).entry
        assert entry is not None
        made.slots.take(entry)
        done = clock()
        held.append(entry)
        if len(held) > OCCUPIED:
            made.slots.give(held.popleft())
        load.total += 1
        if start >= begin:
            cpu = cpu or time.process_time()
            load.latencies.append(done - start)
    load.cpu = time.process_time() - cpu
    return load


def look_up(run: Run, made: Registry, agents: int) -> Load:
    """Find agents by id, one after the other."""
    ids = itertools.cycle([f"agent-{number * 7919 % agents:05d}" for number in range(agents)])
    load = Load(run.seconds)
    clock = time.perf_counter
    begin = clock() + run.warm
    end = begin + run.seconds
    cpu = 0.0
    for wanted in ids:
        start = clock()
        if start >= end:
            break
        made.find(wanted)
        done = clock()
        load.total += 1
        if start >= begin:
            cpu = cpu or time.process_time()
            load.latencies.append(done - start)
    load.cpu = time.process_time() - cpu
    return load


def main() -> None:
    """Measure and report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--agents", type=int, default=10_000)
        parser.add_argument("--open", type=float, default=0.0, help="share with an open circuit")
        parser.add_argument("--lookup", action="store_true", help="find by id instead")

    run = arguments("Routing among many agents", more)
    agents = run.options.agents
    made = registry(agents, run.options.open)
    # Before the loop: its latencies would be most of it.
    memory = peak_mb()
    load = look_up(run, made, agents) if run.options.lookup else measure(run, made)
    report({**load.line(), "rss_mb": memory})


if __name__ == "__main__":
    main()

"""The product's server, as ``retinue serve`` runs it, with ``POST /bench/echo`` beside its routes.

``/bench/echo`` goes through the same door (gate, authentication, decoding, checks, reply) and stops
there: what the durable route costs beyond it is engine and store. Prints the URL once it answers.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

import uvloop

from bench.ours.agent import begin, echo, emit
from retinue import Runtime, Settings
from retinue.orchestrator import Orchestrator
from retinue.server.serve import bind, serve


async def run(path: Path) -> None:
    """Serve on a free port until a signal comes."""
    settings = Settings.model_validate(
        {
            "port": 0,
            "database_url": f"sqlite:///{path}",
            "examples": False,
            "entry_points": False,
        }
    )

    def ready(orchestrator: Orchestrator, url: str) -> None:
        for agent in (echo, emit, begin):
            orchestrator.register_agent(agent)
        sys.stdout.write(url + "\n")
        sys.stdout.flush()

    await serve(Runtime(settings), settings, bind(settings), ready=ready, bench_echo=True)


def main() -> None:
    """Serve a store at the path given."""
    parser = argparse.ArgumentParser(description="Serve Retinue for the benchmark.")
    parser.add_argument("path", type=Path)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(given.path))


if __name__ == "__main__":
    main()

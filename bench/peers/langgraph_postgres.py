"""LangGraph: a one-node echo graph with ``AsyncPostgresSaver`` and ``durability="sync"``.

The graph of ``langgraph_sqlite``. The saver gets a pool of connections, as its documentation has it
for concurrent callers (one connection would serve them in turn): autocommit, prepared at once.
Each task is a fresh thread, for which there is no older checkpoint to load. Tracing is off.
"""

from __future__ import annotations

import argparse
import asyncio
from importlib.metadata import version
from typing import Any

import psycopg  # type: ignore[import-not-found]
from langgraph.checkpoint.postgres.aio import (  # type: ignore[import-not-found]
    AsyncPostgresSaver,
)
from psycopg.rows import dict_row  # type: ignore[import-not-found]
from psycopg_pool import AsyncConnectionPool  # type: ignore[import-not-found]

from bench.load import TEXT, Load, Run, arguments, closed_loop, expect, report
from bench.peers.langgraph_sqlite import graph


async def measure(run: Run) -> Load:
    """Run the loop."""
    how: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    size = run.options.pool
    async with AsyncConnectionPool(
        run.options.database, min_size=size, max_size=size, kwargs=how, timeout=120
    ) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        compiled = graph().compile(checkpointer=saver)
        done = 0

        async def call(_caller: int) -> None:
            nonlocal done
            done += 1
            config = {"configurable": {"thread_id": f"bench-{done}"}}
            answer = await compiled.ainvoke({"text": TEXT}, config, durability="sync")
            assert answer["text"] == TEXT

        return await closed_loop(call, callers=run.callers, warm=run.warm, seconds=run.seconds)


def main() -> None:
    """Measure, check that every acknowledged task is in the database, report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--pool", type=int, default=20, help="connections of the saver")

    run = arguments("LangGraph with AsyncPostgresSaver, durability=sync", more)
    load = asyncio.run(measure(run))
    with psycopg.connect(run.options.database) as db:
        (threads,) = db.execute("SELECT count(DISTINCT thread_id) FROM checkpoints").fetchone()
        (checkpoints,) = db.execute("SELECT count(*) FROM checkpoints").fetchone()
        (durable,) = db.execute("SHOW synchronous_commit").fetchone()
    expect("threads", threads, load.total)
    line = load.line()
    line["rows_per_task"] = {"checkpoints": round(checkpoints / load.total, 2)}
    line["settings"] = {"pool": run.options.pool, "synchronous_commit": durable}
    line["version"] = version("langgraph")
    report(line)


if __name__ == "__main__":
    main()

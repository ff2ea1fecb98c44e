"""LangGraph: a one-node echo graph with ``AsyncSqliteSaver`` and ``durability="sync"``.

``sync`` is the mode in which every step's checkpoint is written before the next one begins, so
that a task whose answer was seen is on disk. The saver sets WAL itself; SQLite's default of
``synchronous=FULL`` stays. One compiled graph and one saver (one connection) serve all callers, as
its documentation does it; each task is a fresh thread, which is what the saver is fastest at, for
there is no older checkpoint to load. Tracing is off.
"""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version
from typing import Any, TypedDict

os.environ["LANGSMITH_TRACING"] = "false"
os.environ["LANGCHAIN_TRACING_V2"] = "false"

from langgraph.checkpoint.sqlite.aio import (  # type: ignore[import-not-found]
    AsyncSqliteSaver,
)
from langgraph.graph import END, START, StateGraph  # type: ignore[import-not-found]

from bench.load import (
    TEXT,
    Load,
    Run,
    arguments,
    closed_loop,
    count_rows,
    disk_bytes,
    expect,
    report,
    scratch,
)


class State(TypedDict):
    """What the graph passes along."""

    text: str


async def echo(state: State) -> State:
    """Answer what was asked."""
    return {"text": state["text"]}


def graph() -> Any:
    """Return the graph, not yet compiled."""
    builder = StateGraph(State)
    builder.add_node("echo", echo)
    builder.add_edge(START, "echo")
    builder.add_edge("echo", END)
    return builder


async def measure(run: Run, database: str) -> tuple[Load, dict[str, Any]]:
    """Run the loop; return what it saw and the settings in force."""
    async with AsyncSqliteSaver.from_conn_string(database) as saver:
        await saver.setup()
        compiled = graph().compile(checkpointer=saver)
        done = 0

        async def call(_caller: int) -> None:
            nonlocal done
            done += 1
            config = {"configurable": {"thread_id": f"bench-{done}"}}
            answer = await compiled.ainvoke({"text": TEXT}, config, durability="sync")
            assert answer["text"] == TEXT

        load = await closed_loop(call, callers=run.callers, warm=run.warm, seconds=run.seconds)
        settings = {}
        for pragma in ("journal_mode", "synchronous"):
            async with saver.conn.execute(f"PRAGMA {pragma}") as cursor:
                settings[pragma] = (await cursor.fetchone())[0]
    return load, settings


def main() -> None:
    """Measure, check that every acknowledged task is in the database, report."""
    run = arguments("LangGraph with AsyncSqliteSaver, durability=sync")
    with scratch(run) as directory:
        database = directory / "checkpoints.db"
        load, settings = asyncio.run(measure(run, str(database)))
        rows = count_rows(
            database, "checkpoints", "writes", "(SELECT DISTINCT thread_id FROM checkpoints)"
        )
        expect("threads", rows.pop("(SELECT DISTINCT thread_id FROM checkpoints)"), load.total)
        line = load.line()
        line["rows_per_task"] = {table: round(n / load.total, 2) for table, n in rows.items()}
        line["bytes_per_task"] = round(disk_bytes(database) / load.total)
        line["settings"] = settings
        line["version"] = version("langgraph")
    report(line)


if __name__ == "__main__":
    main()

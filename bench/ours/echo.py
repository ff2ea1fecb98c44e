"""Retinue in process: ``orchestrate`` an echo agent, on a SQLite file.

What the peers and the probe are measured with, through the front door: authorisation, routing,
validation, contracts, journal and reply. With ``--contracts`` the store is not empty but holds
that many already (made once, then kept, see ``fill``). Afterwards the heads of the chains must have
moved by two for each answered task, and in a fresh store the rows are counted too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from bench.ours.agent import echo
from bench.ours.fill import filled, session_name
from retinue import Runtime, Settings


def settings(path: Path) -> Settings:
    """Return settings with the store at ``path`` and no agents but ours."""
    return Settings.model_validate(
        {"database_url": f"sqlite:///{path}", "examples": False, "entry_points": False}
    )


async def measure(run: Run, given: Settings) -> tuple[Load, dict[str, Any]]:
    """Run the loop; return what it saw, and how long starting and stopping took."""
    sessions = run.options.sessions
    runtime = Runtime(given)
    before = time.perf_counter()
    orchestrator = await runtime.start()
    started = time.perf_counter() - before
    orchestrator.register_agent(echo)
    made = 0

    async def call(caller: int) -> None:
        nonlocal made
        made += 1
        # Shared sessions are dealt out over all callers; 0 makes one for each task.
        session = session_name(made % sessions if sessions else made)
        task = {"capability": "echo", "parameters": {"text": TEXT}}
        reply = await orchestrator.orchestrate(session, task)
        assert reply["data"] == TEXT, reply

    try:
        load = await closed_loop(call, callers=run.callers, warm=run.warm, seconds=run.seconds)
    finally:
        before = time.perf_counter()
        await runtime.stop()
    stopped = time.perf_counter() - before
    return load, {"start_ms": round(started * 1e3, 1), "stop_ms": round(stopped * 1e3, 1)}


def chained(path: Path) -> int:
    """Return how many contracts the heads of the chains stand for."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        (total,) = db.execute("SELECT coalesce(sum(n), 0) FROM session").fetchone()
    return int(total)


@contextlib.contextmanager
def store(run: Run) -> Iterator[Path]:
    """Yield the store's path: a fresh one, or the full one that is kept between runs."""
    if run.options.contracts:
        yield filled(run.directory, run.options.contracts, run.options.sessions)
    else:
        with scratch(run) as directory:
            yield directory / "retinue.db"


def main() -> None:
    """Measure, check the database, report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--sessions", type=int, default=64, help="how many; 0 makes one for each task"
        )
        parser.add_argument(
            "--contracts", type=int, default=0, help="how many the store holds already"
        )

    run = arguments("Retinue in process, SQLite", more)
    with store(run) as path:
        before = chained(path) if path.exists() else 0
        load, line = asyncio.run(measure(run, settings(path)))
        expect("contracts in the chains", chained(path) - before, 2 * load.total)
        line = {**load.line(), **line}
        if before:
            line["contracts_before"] = before
        else:
            rows = count_rows(path, "execution", "contract", "event")
            expect("completed executions", _completed(path), load.total)
            line["rows_per_task"] = {table: n / load.total for table, n in rows.items()}
            line["bytes_per_task"] = round(disk_bytes(path) / load.total)
    report(line)


def _completed(path: Path) -> int:
    where = "execution WHERE state = 'completed'"
    return count_rows(path, where)[where]


if __name__ == "__main__":
    main()

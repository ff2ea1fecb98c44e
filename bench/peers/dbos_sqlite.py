"""DBOS: a workflow with one step, on a SQLite system database.

Fair settings: the database is put into WAL beforehand (DBOS leaves the journal mode alone and
SQLite keeps it in the file; WAL is the faster one), ``synchronous=FULL`` is SQLite's default,
logging is down to errors, OTLP and Conductor are off. ``--api`` chooses its asynchronous API (one
event loop, 64 callers) or its synchronous one (64 threads). Threads with one connection gave the
most tasks and are what ``scenarios.py`` asks for: SQLite has one writer anyway, and callers that
wait for a connection do not fight over its lock. Not every caller then gets its turn equally often,
so the latencies are those of the lucky ones.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sqlite3
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dbos import DBOS  # type: ignore[import-not-found]

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


async def measure_async(run: Run) -> Load:
    """Run the loop through the asynchronous API."""

    async def answer(text: str) -> str:
        return text

    step: Any = DBOS.step()(answer)

    async def work(text: str) -> str:
        answered: str = await step(text)
        return answered

    workflow: Any = DBOS.workflow()(work)
    DBOS.launch()

    async def call(_caller: int) -> None:
        assert await workflow(TEXT) == TEXT

    return await closed_loop(call, callers=run.callers, warm=run.warm, seconds=run.seconds)


def measure_threads(run: Run) -> Load:
    """Run the loop through the synchronous API, one thread a caller."""

    def answer(text: str) -> str:
        return text

    step: Any = DBOS.step()(answer)

    def work(text: str) -> str:
        answered: str = step(text)
        return answered

    workflow: Any = DBOS.workflow()(work)
    DBOS.launch()
    load = Load(run.seconds)
    clock = time.perf_counter
    begin = clock() + run.warm
    end = begin + run.seconds
    lock = threading.Lock()

    def caller() -> None:
        while (start := clock()) < end:
            assert workflow(TEXT) == TEXT
            done = clock()
            with lock:
                load.total += 1
                if begin <= done < end:
                    load.latencies.append(done - start)

    threads = [threading.Thread(target=caller) for _ in range(run.callers)]
    for thread in threads:
        thread.start()
    time.sleep(max(begin - clock(), 0))
    before = time.process_time()
    time.sleep(max(end - clock(), 0))
    load.cpu = time.process_time() - before
    for thread in threads:
        thread.join()
    return load


def configure(database: Path, *, wal: bool, pool: int | None) -> None:
    """Make the database and tell DBOS of it."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        db.execute(f"PRAGMA journal_mode = {'WAL' if wal else 'DELETE'}")
        db.execute("CREATE TABLE bench_made_this (x)")
    config: dict[str, Any] = {
        "name": "bench-echo",
        "system_database_url": f"sqlite:///{database}",
        "log_level": "ERROR",
        "enable_otlp": False,
    }
    if pool is not None:
        config["sys_db_pool_size"] = pool
    DBOS(config=config)


def main() -> None:
    """Measure, check that every acknowledged task is in the database, report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--api", choices=("async", "threads"), default="async")
        parser.add_argument("--stock", action="store_true", help="leave the journal mode as it is")
        parser.add_argument("--pool", type=int, help="connections to the system database")

    run = arguments("DBOS, workflow and step, SQLite", more)
    options = run.options
    with scratch(run) as directory:
        database = directory / "dbos.db"
        configure(database, wal=not options.stock, pool=options.pool)
        try:
            if options.api == "async":
                load = asyncio.run(measure_async(run))
            else:
                load = measure_threads(run)
        finally:
            DBOS.destroy()
        succeeded = "workflow_status WHERE status = 'SUCCESS'"
        rows = count_rows(database, succeeded, "workflow_status", "operation_outputs")
        expect("workflows that succeeded", rows.pop(succeeded), load.total)
        line = load.line()
        line["rows_per_task"] = {table: round(n / load.total, 2) for table, n in rows.items()}
        line["bytes_per_task"] = round(disk_bytes(database) / load.total)
        with contextlib.closing(sqlite3.connect(database)) as db:
            # DBOS sets no level, so a connection's default is what it runs with.
            (level,) = db.execute("PRAGMA synchronous").fetchone()
            (mode,) = db.execute("PRAGMA journal_mode").fetchone()
        line["settings"] = {"api": options.api, "journal_mode": mode, "synchronous": level}
        line["version"] = version("dbos")
    report(line)


if __name__ == "__main__":
    main()

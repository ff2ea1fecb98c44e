"""DBOS: a workflow with one step, on a PostgreSQL system database.

What ``dbos_sqlite`` measures, on the server that the other contenders use too. PostgreSQL is what
DBOS is made for. Its asynchronous API is asked by 64 callers of one loop, or (with ``--api
threads``) its synchronous one by 64 threads. ``--pool`` is the number of its connections; 20 is
its default.
"""

from __future__ import annotations

import argparse
import asyncio
from importlib.metadata import version
from typing import Any

import psycopg  # type: ignore[import-not-found]
from dbos import DBOS  # type: ignore[import-not-found]

from bench.load import arguments, expect, report
from bench.peers.dbos_sqlite import measure_async, measure_threads


def main() -> None:
    """Measure, check that every acknowledged task is in the database, report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--api", choices=("async", "threads"), default="async")
        parser.add_argument("--pool", type=int, help="connections to the system database")

    run = arguments("DBOS, workflow and step, PostgreSQL", more)
    options = run.options
    config: dict[str, Any] = {
        "name": "bench-echo",
        "system_database_url": options.database,
        "log_level": "ERROR",
        "enable_otlp": False,
    }
    if options.pool is not None:
        config["sys_db_pool_size"] = options.pool
    DBOS(config=config)
    try:
        load = asyncio.run(measure_async(run)) if options.api == "async" else measure_threads(run)
    finally:
        DBOS.destroy()
    with psycopg.connect(options.database) as db:
        schema = "dbos"
        (succeeded,) = db.execute(
            f"SELECT count(*) FROM {schema}.workflow_status WHERE status = 'SUCCESS'"
        ).fetchone()
        (steps,) = db.execute(f"SELECT count(*) FROM {schema}.operation_outputs").fetchone()
        (durable,) = db.execute("SHOW synchronous_commit").fetchone()
    expect("workflows that succeeded", succeeded, load.total)
    line = load.line()
    line["rows_per_task"] = {
        "workflow_status": round(succeeded / load.total, 2),
        "operation_outputs": round(steps / load.total, 2),
    }
    line["settings"] = {"api": options.api, "pool": options.pool, "synchronous_commit": durable}
    line["version"] = version("dbos")
    report(line)


if __name__ == "__main__":
    main()

"""Retinue in process on PostgreSQL: ``orchestrate`` an echo agent, as ``bench.ours.echo`` does."""

from __future__ import annotations

import argparse
import asyncio

import asyncpg

from bench.load import arguments, expect, report
from bench.ours.echo import measure
from bench.probe_postgres import counts
from retinue import Settings


def settings(dsn: str) -> Settings:
    """Return settings with the store at ``dsn`` and no agents but ours."""
    return Settings.model_validate({"database_url": dsn, "examples": False, "entry_points": False})


async def completed(dsn: str) -> int:
    """Return how many executions have completed."""
    db = await asyncpg.connect(dsn)
    try:
        return int(await db.fetchval("SELECT count(*) FROM execution WHERE state = 'completed'"))
    finally:
        await db.close()


def main() -> None:
    """Measure, check the database, report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--sessions", type=int, default=64)

    run = arguments("Retinue in process, PostgreSQL", more)
    dsn = run.options.database
    load, line = asyncio.run(measure(run, settings(dsn)))
    expect("completed executions", asyncio.run(completed(dsn)), load.total)
    rows = asyncio.run(counts(dsn))
    expect("contracts", rows["contract"], 2 * load.total)
    line = {**load.line(), **line}
    line["rows_per_task"] = {table: n / load.total for table, n in rows.items()}
    report(line)


if __name__ == "__main__":
    main()

"""Lease a task from a queue: an empty one, or one in which 200,000 others are blocked.

One caller, on the store alone: some tasks are submitted that have to wait, each is leased alone,
then all are ended; what is timed is the lease. The blocked ones were written before by SQL in bulk,
in the ways there are (``--blocked``): ``key`` wait for an agent that is busy, under a key of their
own; ``line`` under the very key that is leased, behind in rank; ``time`` for their hour and
``session`` for their turn, both under the very key and ahead in rank. The leases may touch none of
them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from bench.load import Load, Run, arguments, closed_loop, expect, report, scratch
from retinue.domain.execution import Execution, Hold, State
from retinue.domain.ids import now_us
from retinue.domain.intent import Lease, Want
from retinue.domain.result import Leased
from retinue.interfaces import Store
from retinue.storage.postgres import PostgresStore
from retinue.storage.sql import insert
from retinue.storage.sqlite import SqliteStore
from retinue.storage.tables import row_of
from retinue.testing.servers import PostgresServer
from retinue.testing.store_samples import execution, finish, submit

KEY = "cap:echo"
HOUR_US = 3_600_000_000
PAGE = 5_000
READY = 64


def blocked(kind: str, number: int, count: int) -> Execution:
    """Return the n-th of the executions that wait and cannot go."""
    ahead = now_us() - HOUR_US - (count - number)
    e = execution(owner="local", session_id=f"blocked-{number % 1000}", key=KEY)
    e.request_n = number
    e.created_at = e.due_at = e.rank = ahead
    if kind == "key":
        e.queue_key = "agent:busy"
    elif kind == "line":
        e.rank += 2 * HOUR_US
    elif kind == "time":
        e.state, e.hold, e.run_at = State.SCHEDULED, Hold.TIME, now_us() + HOUR_US + number
    elif kind == "session":
        e.hold = Hold.SESSION
    return e


def pages(kinds: Sequence[str], count: int) -> Iterator[list[list[Any]]]:
    """Yield the rows of ``count`` blocked executions, dealt out over ``kinds``."""
    for start in range(0, count, PAGE):
        numbers = range(start, min(start + PAGE, count))
        yield [row_of(blocked(kinds[n % len(kinds)], n, count)) for n in numbers]


@contextlib.asynccontextmanager
async def sqlite_store(run: Run) -> AsyncIterator[Store]:
    """Yield a SQLite store with the blocked ones in it."""
    with scratch(run) as directory:
        path: Path = directory / "retinue.db"
        await _made(SqliteStore(path))
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            for rows in pages(run.options.blocked.split(","), run.options.count):
                db.executemany(insert("execution").sqlite, rows)
        store = SqliteStore(path)
        await store.open()
        yield store
        await store.close()


@contextlib.asynccontextmanager
async def postgres_store(run: Run) -> AsyncIterator[Store]:
    """Yield a PostgreSQL store, of a server of its own, with the blocked ones in it."""
    server = PostgresServer()
    await asyncio.to_thread(server.start)
    try:
        url = await asyncio.to_thread(server.create_database, "bench")
        await _made(PostgresStore(url))
        db = await asyncpg.connect(url)
        for rows in pages(run.options.blocked.split(","), run.options.count):
            await db.fetch(insert("execution").postgres, *zip(*rows, strict=True))
        await db.execute("VACUUM ANALYZE execution")
        await db.close()
        store = PostgresStore(url)
        await store.open()
        yield store
        await store.close()
    finally:
        await asyncio.to_thread(server.close)


async def _made(store: Store) -> None:
    await store.open()
    await store.close()


async def measure(run: Run) -> tuple[Load, dict[str, Any]]:
    """Run the loop; the latencies are the leases' alone."""
    opened = postgres_store if run.options.store == "postgres" else sqlite_store
    waits: list[float] = []
    async with opened(run) as store:
        begin = time.perf_counter() + run.warm

        async def call(_: int) -> None:
            ready = [execution(owner="local", session_id="bench", key=KEY) for _ in range(READY)]
            await asyncio.gather(*(store.write(submit(e, bound=1_000_000)) for e in ready))
            for e in ready:
                before = time.perf_counter()
                leased = await store.write(Lease(store.worker, (Want(KEY, "echo", 1),), now_us()))
                if before > begin:
                    waits.append(time.perf_counter() - before)
                assert isinstance(leased, Leased)
                assert [work.execution.id for work in leased.work] == [e.id]
                e.attempt, e.worker = 1, store.worker
            await asyncio.gather(*(store.write(finish(e)) for e in ready))

        load = await closed_loop(call, callers=1, warm=run.warm, seconds=run.seconds)
        left = await store.depths()
        expect("blocked", sum(d.ready + d.in_turn + d.scheduled for d in left), run.options.count)
    load.latencies[:] = waits
    # Of the leases alone, not of the loop around them.
    return load, {"per_second": round(len(waits) / sum(waits), 1)}


def main() -> None:
    """Measure and report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
        parser.add_argument("--count", type=int, default=0, help="how many are blocked")
        parser.add_argument("--blocked", default="key,time,session", help="how they are blocked")

    run = arguments("A lease from a queue", more)
    load, line = asyncio.run(measure(run))
    report({**load.line(), **line})


if __name__ == "__main__":
    main()

"""The probe on PostgreSQL: the same rows by hand, and nothing else.

What ``bench.probe`` is on SQLite: callers await two commits a task, one connection gathers what is
queued into one transaction, one ``unnest`` statement for all rows of a table. The rows, chains and
digests are that probe's; the session's settings are those of Retinue's own writer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from typing import Any

import asyncpg

from bench.load import TEXT, Load, Run, arguments, closed_loop, expect, report
from bench.probe import (
    AGENT,
    CAPABILITY,
    GENESIS,
    OWNER,
    Session,
    Task,
    ended_row,
    event_row,
    execution_row,
    request_row,
    response_row,
    session_row,
)
from retinue.domain.contract import Contract, chain_hash
from retinue.storage.link import Connection, connect
from retinue.storage.migrate import migrate_postgres
from retinue.storage.tables import TABLES, record_of, sql_type

assert AGENT == CAPABILITY  # one tally, one queue
Waiting = tuple[Task, "asyncio.Future[None]"]


class Writer:
    """The group-commit writer: one transaction is under way, the next one grows."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._waiting: list[Waiting] = []
        self._writing: asyncio.Task[None] | None = None
        self.batches = 0

    async def commit(self, task: Task) -> None:
        """Return once what ``task`` is now has been committed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((task, future))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        await future

    async def _write(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    await write(self._db, [task for task, _ in batch])
                except Exception as error:
                    for _, future in batch:
                        future.set_exception(error)
                    return
                self.batches += 1
                for _, future in batch:
                    future.set_result(None)
                # Those just answered come back in this turn: into the next batch.
                await asyncio.sleep(0)
        finally:
            self._writing = None


async def write(db: Connection, tasks: list[Task]) -> None:
    """Write one batch in one transaction."""
    accepted = [t for t in tasks if t.answer is None]
    finished = [t for t in tasks if t.answer is not None]
    sessions = {t.session.session_id: t.session for t in tasks}
    await db.execute("BEGIN")
    new = [s for s in sessions.values() if not s.n]
    if new:
        rows = [(OWNER, s.session_id, s.made_at, s.made_at, 0, GENESIS, 0, 0, 0) for s in new]
        await _insert(db, "session", rows)
    contracts = [*map(request_row, accepted), *map(response_row, finished)]
    await _insert(db, "contract", contracts)
    await _change(db, "session", [session_row(s) for s in sessions.values()])
    if accepted:
        await _insert(db, "execution", [execution_row(t) for t in accepted])
    if finished:
        await _change(db, "execution", [ended_row(t) for t in finished])
        await _insert(db, "event", [event_row(t) for t in finished])
        await _change(db, "tally", [(AGENT, len(finished), 0)])
    await db.execute("COMMIT")


async def _insert(db: Connection, table: str, rows: list[tuple[Any, ...]]) -> None:
    await db.fetch(_INSERTS[table], *zip(*rows, strict=True))


async def _change(db: Connection, name: str, rows: list[tuple[Any, ...]]) -> None:
    await db.fetch(_CHANGES[name], *zip(*rows, strict=True))


def _unnest(columns: tuple[str, ...]) -> str:
    arrays = ", ".join(f"${i}::{sql_type(c)}[]" for i, c in enumerate(columns, 1))
    return f"unnest({arrays}) AS p({', '.join(columns)})"


def _insertion(table: str, columns: tuple[str, ...]) -> str:
    names = ", ".join(columns)
    return f"INSERT INTO {table} ({names}) SELECT {names} FROM {_unnest(columns)}"


def _update(table: str, columns: tuple[str, ...], keys: tuple[str, ...]) -> str:
    sets = ", ".join(f"{c} = p.{c}" for c in columns)
    match = " AND ".join(f"t.{k} = p.{k}" for k in keys)
    return f"UPDATE {table} t SET {sets} FROM {_unnest(columns + keys)} WHERE {match}"


# The columns that the probe's rows have; what was added to the tables later has a default.
_INSERTS = {
    table: _insertion(table, TABLES[table][:count])
    for table, count in {"session": 9, "contract": 15, "execution": 33, "event": 5}.items()
}
_COUNTS = ("n", "head", "completed", "failed", "cancelled", "updated_at")
_ENDED = (
    "state", "agent_id", "attempt", "worker", "last_seq", "digest", "run_at",
    "cancel_requested_at", "started_at", "finished_at", "outcome", "error_code", "cursor",
    "response_id", "response_n",
)  # fmt: skip
_CHANGES = {
    "session": _update("session", _COUNTS, ("owner", "session_id")),
    "execution": _update("execution", _ENDED, ("id",)),
    "tally": f"INSERT INTO tally SELECT * FROM {_unnest(('agent_id', 'completed', 'failed'))}"
    " ON CONFLICT (agent_id) DO UPDATE SET completed = tally.completed + excluded.completed",
}


async def measure(run: Run) -> tuple[Load, int]:
    """Run the loop; return what it saw and the number of commits."""
    db = await connect(run.options.database, writer=True)
    await migrate_postgres(db)
    writer = Writer(db)
    ids = (f"{number:026d}" for number in itertools.count(1))
    sessions = [
        Session(f"bench-{i:04d}", time.time_ns() // 1000) for i in range(run.options.sessions)
    ]
    turn = itertools.cycle(sessions)

    async def call(_caller: int) -> None:
        body = json.dumps({"parameters": {"text": TEXT}}, separators=(",", ":")).encode()
        task = Task(next(ids), next(turn), body, next(ids), time.time_ns() // 1000)
        await writer.commit(task)
        text = json.loads(task.body)["parameters"]["text"]
        task.answer = json.dumps(text).encode()
        task.response_id = next(ids)
        task.at = time.time_ns() // 1000
        await writer.commit(task)

    try:
        load = await closed_loop(call, callers=run.callers, warm=run.warm, seconds=run.seconds)
    finally:
        await db.close()
    return load, writer.batches


async def counts(dsn: str) -> dict[str, int]:
    """Return how many rows the tables of a task hold."""
    db = await asyncpg.connect(dsn)
    try:
        tables = ("execution", "contract", "event")
        return {t: await db.fetchval(f"SELECT count(*) FROM {t}") for t in tables}
    finally:
        await db.close()


async def verify(dsn: str, session_id: str) -> int:
    """Check one chain with Retinue's own functions; return its length."""
    db = await asyncpg.connect(dsn)
    try:
        columns = ", ".join(Contract.__struct_fields__)
        rows = await db.fetch(
            f"SELECT {columns} FROM contract WHERE session_id = $1 ORDER BY n", session_id
        )
    finally:
        await db.close()
    head = GENESIS
    for row in rows:
        contract = record_of(Contract, row)
        head = chain_hash(head, contract)
        assert head == contract.hash, (session_id, contract.n)
    return len(rows)


def main() -> None:
    """Measure, check the database, report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--sessions", type=int, default=64)

    run = arguments("The same rows by hand on PostgreSQL: a bare group-commit writer", more)
    load, batches = asyncio.run(measure(run))
    rows = asyncio.run(counts(run.options.database))
    expect("executions", rows["execution"], load.total)
    expect("contracts", rows["contract"], 2 * load.total)
    expect("events", rows["event"], load.total)
    line = load.line()
    line["rows_per_task"] = {table: n / load.total for table, n in rows.items()}
    line["tasks_per_commit"] = round(2 * load.total / batches, 1)
    line["chain_checked"] = asyncio.run(verify(run.options.database, "bench-0000"))
    report(line)


if __name__ == "__main__":
    main()

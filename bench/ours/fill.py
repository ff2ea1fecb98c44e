"""A full store: executions, events and contracts of finished echo tasks, written by SQL in bulk.

``python -m bench.ours.fill --contracts 5000000 PATH`` makes one. Rows are the product's own
records, and the chains are made by the product's own ``append``, so that they verify. The benchmark
keeps the file in the temporary directory, under a name that changes with the schema.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.load import TEXT
from retinue.domain.contract import (
    GENESIS,
    ContractStatus,
    ContractType,
    Draft,
    Head,
    append,
)
from retinue.domain.event import Event, EventType, chain_event
from retinue.domain.execution import Execution, State
from retinue.domain.ids import now_us, ulid
from retinue.domain.policy import Delivery
from retinue.domain.seal import seal, seal_request
from retinue.domain.session import Session
from retinue.domain.strictjson import dumps
from retinue.storage.migrate import migrate_sqlite, migrations
from retinue.storage.sql import insert
from retinue.storage.tables import TABLES, row_of

OWNER, AGENT, CAPABILITY, CALLER = "local", "echo", "echo", "orchestrator"
PAGE = 5_000
TASK_US = 2_000
ASKED = dumps({"parameters": {"text": TEXT[:84]}})
ANSWERED = dumps(TEXT[:84])


def session_name(number: int) -> str:
    """Return the id of the benchmark's n-th session."""
    return f"bench-{number:04d}"


def filled(directory: Path, contracts: int, sessions: int) -> Path:
    """Return the path of a store with that many contracts, made now unless it is there."""
    schema = "".join(script for _, script in migrations("sqlite")) + repr(TABLES)
    mark = hashlib.sha256(schema.encode()).hexdigest()[:12]
    path = directory / f"retinue-bench-store-{mark}-{contracts}-{sessions}.db"
    if not path.exists():
        _discard(directory.glob(f"retinue-bench-store-*-{contracts}-{sessions}.*"))
        making = path.with_suffix(".making")
        _discard([making])
        fill(making, contracts, sessions)
        making.rename(path)
    return path


def _discard(paths: Iterator[Path] | list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def fill(path: Path, contracts: int, sessions: int) -> None:
    """Write a new store; nothing of it is durable until it is done."""
    began = time.monotonic()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -262144"):
            db.execute(f"PRAGMA {pragma}")
        migrate_sqlite(db)
        tasks = contracts // 2
        for number in range(sessions):
            share = tasks // sessions + (number < tasks % sessions)
            _session(db, session_name(number), share)
            if sys.stderr.isatty() or number % 10 == 9:
                done = (number + 1) / sessions
                sys.stderr.write(f"bench: filling the store, {done:.0%}\n")
        db.execute("INSERT INTO tally VALUES (?, ?, 0)", [AGENT, tasks])
        db.execute("ANALYZE")
        # From here on it is an ordinary store.
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_mode = WAL")
    took = time.monotonic() - began
    sys.stderr.write(f"bench: {contracts:,} contracts in {took:.0f} s\n")


def _session(db: sqlite3.Connection, session_id: str, tasks: int) -> None:
    """Write one session with its chain."""
    head = Head()
    first = now_us() - 2 * tasks * TASK_US
    statements = {table: insert(table).sqlite for table in ("contract", "execution", "event")}
    for start in range(0, tasks, PAGE):
        rows: dict[str, list[Any]] = {table: [] for table in statements}
        for number in range(start, min(start + PAGE, tasks)):
            _task(rows, head, session_id, first + number * TASK_US)
        db.execute("BEGIN")
        for table, sql in statements.items():
            db.executemany(sql, rows[table])
        db.execute("COMMIT")
    session = Session(
        owner=OWNER,
        session_id=session_id,
        created_at=first,
        updated_at=first + (tasks - 1) * TASK_US + TASK_US // 2,
        n=head.n,
        head=head.hash,
        completed=tasks,
        failed=0,
        cancelled=0,
    )
    db.execute(insert("session").sqlite, row_of(session))


def _task(rows: dict[str, list[Any]], head: Head, session_id: str, at: int) -> None:
    """Add the rows of one finished echo."""
    execution_id, request_id, response_id = ulid(), ulid(), ulid()
    end = at + TASK_US // 2
    event = Event(execution_id, 1, EventType.COMPLETED, end, b"{}")
    execution = Execution(
        id=execution_id,
        owner=OWNER,
        created_by=OWNER,
        session_id=session_id,
        from_agent=CALLER,
        agent_id=AGENT,
        capability=CAPABILITY,
        queue_key=f"cap:{CAPABILITY}",
        state=State.COMPLETED,
        priority=0,
        attempt=1,
        worker=None,
        delivery=Delivery.AT_MOST_ONCE,
        max_attempts=3,
        last_seq=1,
        digest=chain_event(GENESIS, event),
        deadline_at=at + 300_000_000,
        run_at=at,
        cancel_requested_at=None,
        created_at=at,
        started_at=at,
        finished_at=end,
        outcome=None,
        error_code=None,
        cursor=None,
        request_id=request_id,
        request_n=head.n + 1,
        response_id=response_id,
        response_n=head.n + 2,
        parent_id=None,
        depth=0,
    )
    request = append(
        head,
        Draft(
            id=request_id,
            type=ContractType.REQUEST,
            from_agent=CALLER,
            to_agent=AGENT,
            capability=CAPABILITY,
            status=None,
            execution_id=execution_id,
            body=ASKED,
        ),
        owner=OWNER,
        session_id=session_id,
        at=at,
        digest=seal_request(execution),
    )
    response = append(
        head,
        Draft(
            id=response_id,
            type=ContractType.RESPONSE,
            from_agent=AGENT,
            to_agent=CALLER,
            capability=None,
            status=ContractStatus.COMPLETED,
            execution_id=execution_id,
            body=ANSWERED,
        ),
        owner=OWNER,
        session_id=session_id,
        at=end,
        digest=seal(execution),
    )
    rows["contract"] += (row_of(request), row_of(response))
    rows["execution"].append(row_of(execution))
    rows["event"].append((execution_id, 1, "completed", end, b"{}"))


def main() -> None:
    """Make one store."""
    parser = argparse.ArgumentParser(description="Make a store that holds many contracts.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--contracts", type=int, default=5_000_000)
    parser.add_argument("--sessions", type=int, default=100)
    given = parser.parse_args()
    if given.path.exists():
        raise SystemExit(f"{given.path} exists already")
    fill(given.path, given.contracts, given.sessions)


if __name__ == "__main__":
    main()

"""The probe: the same rows by hand, and nothing else.

64 callers await two commits a task, as Retinue's callers do. One writer thread, the standard
library's ``sqlite3``, WAL, ``synchronous=FULL``: it gathers everything queued into one transaction,
one ``executemany`` a statement, and wakes all callers of a batch at once. The tables are made from
Retinue's own migration; the hash chains and event digests are real, and are checked afterwards with
Retinue's own functions. There is no routing, no validation, no state machine, no retry, no event
object: what stands between this and Retinue is what those cost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
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
from retinue.domain.contract import Contract, ContractStatus, ContractType, chain_hash
from retinue.domain.contract import body_hash as hash_of
from retinue.domain.execution import Execution

MIGRATIONS = Path(__file__).parent.parent / "src" / "retinue" / "storage" / "migrations" / "sqlite"
OWNER, AGENT, CAPABILITY, CALLER = "local", "echo", "echo", "orchestrator"
WORKER = "00000000000000000000WORKER"
GENESIS = bytes(32)
DEADLINE_US = 300_000_000
EXECUTION = Execution.__struct_fields__[:33]
"""Up to ``due_at`` and ``rank``: what comes after keeps its default."""


# -- what is written -----------------------------------------------------------------------------


@dataclass(slots=True)
class Session:
    """The head of one chain."""

    session_id: str
    made_at: int
    n: int = 0
    head: bytes = GENESIS
    completed: int = 0
    at: int = 0


@dataclass(slots=True)
class Task:
    """One echo on its way: what was asked, then (``answer`` is set) what was answered."""

    id: str
    session: Session
    body: bytes
    request_id: str
    at: int
    response_id: str = ""
    answer: bytes | None = None
    request_n: int = 0
    response_n: int = 0
    digest: bytes = GENESIS


def request_row(t: Task) -> tuple[Any, ...]:
    """Give the REQUEST its place in the chain and return it."""
    s = t.session
    s.n = t.request_n = s.n + 1
    body_hash = hashlib.sha256(t.body).digest()
    header = (
        f'[{s.n},"{t.request_id}","{OWNER}","{s.session_id}","REQUEST","{CALLER}","{AGENT}",'
        f'"{CAPABILITY}",null,"{t.id}",{t.at},null]'
    )
    s.head = hashlib.sha256(s.head + header.encode() + body_hash).digest()
    s.at = t.at
    return (
        *(OWNER, s.session_id, s.n, t.request_id, "REQUEST", CALLER, AGENT, CAPABILITY, None),
        *(t.id, t.at, t.body, body_hash, None, s.head),
    )


def response_row(t: Task) -> tuple[Any, ...]:
    """Give the RESPONSE its place in the chain and return it."""
    s = t.session
    assert t.answer is not None
    s.n = t.response_n = s.n + 1
    s.completed += 1
    t.digest = hashlib.sha256(b"%b|1|completed|{}" % GENESIS).digest()
    body_hash = hashlib.sha256(t.answer).digest()
    header = (
        f'[{s.n},"{t.response_id}","{OWNER}","{s.session_id}","RESPONSE","{AGENT}","{CALLER}",'
        f'null,"completed","{t.id}",{t.at},"{t.digest.hex()}"]'
    )
    s.head = hashlib.sha256(s.head + header.encode() + body_hash).digest()
    s.at = t.at
    return (
        *(OWNER, s.session_id, s.n, t.response_id, "RESPONSE", AGENT, CALLER, None, "completed"),
        *(t.id, t.at, t.answer, body_hash, t.digest, s.head),
    )


def execution_row(t: Task) -> tuple[Any, ...]:
    """Return the execution as it is accepted: leased already, its first attempt running."""
    return (
        *(t.id, OWNER, OWNER, t.session.session_id, CALLER, AGENT, CAPABILITY, f"cap:{CAPABILITY}"),
        *("running", 0, 1, WORKER, "at_most_once", 3, 0, GENESIS, t.at + DEADLINE_US, t.at, None),
        *(t.at, t.at, None, None, None, None, t.request_id, t.request_n, None, None, None, 0),
        *(t.at, t.at),
    )


def ended_row(t: Task) -> tuple[Any, ...]:
    """Return what changes when an execution ends, its id last."""
    return (
        *("completed", AGENT, 1, None, 1, t.digest, t.at, None, t.at, t.at, None, None, None),
        *(t.response_id, t.response_n, t.id),
    )


def event_row(t: Task) -> tuple[Any, ...]:
    """Return the one event of an echo: the terminal one."""
    return (t.id, 1, "completed", t.at, b"{}")


def session_row(s: Session) -> tuple[Any, ...]:
    """Return a session's head as it stands after the batch."""
    return (s.n, s.head, s.completed, 0, 0, s.at, OWNER, s.session_id)


@dataclass(frozen=True)
class Write:
    """One statement of the batch and whose rows it takes.

    Of tasks accepted, of tasks finished, of every session touched (once each), or of the batch
    (once, given how many finished).
    """

    sql: str
    accepted: Callable[[Task], tuple[Any, ...]] | None = None
    finished: Callable[[Task], tuple[Any, ...]] | None = None
    session: Callable[[Session], tuple[Any, ...]] | None = None
    batch: Callable[[int], tuple[Any, ...]] | None = None


BATCH = (
    Write(
        f"INSERT INTO contract VALUES ({', '.join('?' * 15)})",
        accepted=request_row,
        finished=response_row,
    ),
    Write(
        "UPDATE session SET n = ?, head = ?, completed = ?, failed = ?, cancelled = ?,"
        " updated_at = ? WHERE owner = ? AND session_id = ?",
        session=session_row,
    ),
    Write(
        f"INSERT INTO execution ({', '.join(EXECUTION)})"
        f" VALUES ({', '.join('?' * len(EXECUTION))})",
        accepted=execution_row,
    ),
    Write(
        "UPDATE execution SET state = ?, agent_id = ?, attempt = ?, worker = ?, last_seq = ?,"
        " digest = ?, run_at = ?, cancel_requested_at = ?, started_at = ?, finished_at = ?,"
        " outcome = ?, error_code = ?, cursor = ?, response_id = ?, response_n = ? WHERE id = ?",
        finished=ended_row,
    ),
    Write("INSERT INTO event VALUES (?, ?, ?, ?, ?)", finished=event_row),
    Write(
        "INSERT INTO tally VALUES (?, ?, 0) ON CONFLICT (agent_id) DO UPDATE SET"
        " completed = completed + excluded.completed",
        batch=lambda finished: (AGENT, finished),
    ),
)
"""What both commits of a task write, in order."""

NEW_SESSION = "INSERT INTO session VALUES (?, ?, ?, ?, 0, ?, 0, 0, 0)"


# -- who writes it -------------------------------------------------------------------------------

Waiting = tuple[Task, "asyncio.Future[None]"]


class Writer:
    """The group-commit writer: one batch is under way, the next one grows."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path
        self._loop = loop
        self._waiting: deque[Waiting] = deque()
        self._bell: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._rung = False
        self.batches = 0
        self._thread = threading.Thread(target=self._run, name="probe-write")

    def start(self) -> None:
        """Make the tables, then start."""
        with contextlib.closing(sqlite3.connect(self._path)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            for migration in sorted(MIGRATIONS.glob("*.sql")):
                db.executescript(f"BEGIN;\n{migration.read_text()}\nCOMMIT;")
        self._thread.start()

    async def commit(self, task: Task) -> None:
        """Return once what ``task`` is now has been committed."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((task, future))
        if not self._rung:
            # Once a turn of the loop, so that one turn's tasks share a commit.
            self._rung = True
            self._loop.call_soon(self._ring)
        await future

    def _ring(self) -> None:
        self._rung = False
        self._bell.put(True)

    def stop(self) -> None:
        """Stop the thread once everything is written."""
        self._bell.put(False)
        self._thread.join()

    def _run(self) -> None:
        db = sqlite3.connect(self._path, isolation_level=None)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cache_size = -65536")
        db.execute("PRAGMA wal_autocheckpoint = 4000")
        waiting = self._waiting
        while self._bell.get():
            if not waiting:
                continue  # an earlier batch took what this bell was for
            batch = [waiting.popleft() for _ in range(len(waiting))]
            write(db, [task for task, _ in batch])
            self.batches += 1
            self._loop.call_soon_threadsafe(_settle, [future for _, future in batch])
        db.close()


def _settle(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        future.set_result(None)


def write(db: sqlite3.Connection, tasks: list[Task]) -> None:
    """Write one batch in one transaction."""
    accepted = [t for t in tasks if t.answer is None]
    finished = [t for t in tasks if t.answer is not None]
    sessions = {t.session.session_id: t.session for t in tasks}
    db.execute("BEGIN IMMEDIATE")
    new = [s for s in sessions.values() if not s.n]
    if new:
        made = [(OWNER, s.session_id, s.made_at, s.made_at, GENESIS) for s in new]
        db.executemany(NEW_SESSION, made)
    for step in BATCH:
        rows: list[tuple[Any, ...]] = []
        if step.accepted is not None:
            rows += map(step.accepted, accepted)
        if step.finished is not None:
            rows += map(step.finished, finished)
        if step.session is not None:
            rows += map(step.session, sessions.values())
        if step.batch is not None and finished:
            rows.append(step.batch(len(finished)))
        if rows:
            db.executemany(step.sql, rows)
    db.execute("COMMIT")


# -- the run -------------------------------------------------------------------------------------


async def measure(run: Run, path: Path) -> tuple[Load, int]:
    """Run the loop; return what it saw and the number of commits."""
    writer = Writer(path, asyncio.get_running_loop())
    writer.start()
    ids = (f"{number:026d}" for number in itertools.count(1))
    fresh = run.options.sessions == 0
    count = run.options.sessions or 1
    sessions = [Session(f"bench-{i:04d}", time.time_ns() // 1000) for i in range(count)]
    turn = itertools.count()

    async def call(_caller: int) -> None:
        at = time.time_ns() // 1000
        session = sessions[next(turn) % count]
        if fresh:
            session = Session(f"bench-{next(turn):04d}", at)
        body = json.dumps({"parameters": {"text": TEXT}}, separators=(",", ":")).encode()
        task = Task(next(ids), session, body, next(ids), at)
        await writer.commit(task)
        text = json.loads(task.body)["parameters"]["text"]
        task.answer = json.dumps(text).encode()
        task.response_id = next(ids)
        task.at = time.time_ns() // 1000
        await writer.commit(task)

    try:
        load = await closed_loop(call, callers=run.callers, warm=run.warm, seconds=run.seconds)
    finally:
        writer.stop()
    return load, writer.batches


def verify(path: Path, most: int) -> int:
    """Check chains with Retinue's own functions, ``most`` contracts at least; return how many."""
    fields = ", ".join(Contract.__struct_fields__)
    checked = 0
    with contextlib.closing(sqlite3.connect(path)) as db:
        for (session_id,) in db.execute("SELECT session_id FROM session").fetchall():
            head = GENESIS
            rows = db.execute(
                f"SELECT {fields} FROM contract WHERE session_id = ? ORDER BY n", [session_id]
            )
            for row in rows:
                contract = Contract(**dict(zip(Contract.__struct_fields__, row, strict=True)))
                contract.type = ContractType(contract.type)
                contract.status = ContractStatus(contract.status) if contract.status else None
                assert contract.body is not None
                assert contract.body_hash == hash_of(contract.body)
                head = chain_hash(head, contract)
                assert head == contract.hash, (session_id, contract.n)
                checked += 1
            if checked >= most:
                break
    return checked


def main() -> None:
    """Measure, check the database, report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--sessions", type=int, default=64, help="how many; 0 makes one for each task"
        )

    run = arguments("The same rows by hand: a bare group-commit writer", more)
    with scratch(run) as directory:
        path = directory / "probe.db"
        load, batches = asyncio.run(measure(run, path))
        rows = count_rows(path, "execution", "contract", "event")
        expect("executions", rows["execution"], load.total)
        expect("contracts", rows["contract"], 2 * load.total)
        expect("events", rows["event"], load.total)
        line = load.line()
        line["rows_per_task"] = {table: n / load.total for table, n in rows.items()}
        line["bytes_per_task"] = round(disk_bytes(path) / load.total)
        line["tasks_per_commit"] = round(2 * load.total / batches, 1)
        line["chain_checked"] = verify(path, 10_000)
    report(line)


if __name__ == "__main__":
    main()

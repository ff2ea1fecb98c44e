"""The SQLite store: one file, one writer thread, one process.

The lock file makes this process the only writer; so session heads and running executions may be
kept in memory, and leases die with the process rather than by time. ``synchronous=FULL``: an
answered write survives a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import platform
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from retinue.domain.execution import ACTIVE, Execution
from retinue.domain.ids import now_us, ulid
from retinue.domain.intent import Intent, Lease, PutKey, Refuse, Submit
from retinue.domain.result import Result
from retinue.domain.session import Session
from retinue.domain.strictjson import dumps
from retinue.errors import RetinueError, StoreBroken, StoreFull, StoreUnavailable
from retinue.storage import bulk, program
from retinue.storage.faults import STORES_FAULT, is_broken, is_full, translate
from retinue.storage.lockfile import LockFile
from retinue.storage.migrate import migrate_sqlite
from retinue.storage.outbox_reads import OutboxReads
from retinue.storage.reads import Reads
from retinue.storage.reserve import Reserve
from retinue.storage.sql import BATCH, UPDATES
from retinue.storage.statements import (
    Change,
    Executions,
    Heads,
    Insert,
    Query,
    Saved,
    Statement,
)
from retinue.storage.tables import TABLES, record_of
from retinue.storage.writer import Answered, Waiting, settle, take

_STATEMENTS = {name: statement.sqlite for name, statement in BATCH.items()}
_HEADS_KEPT = 20_000
_WRITER_CACHE_KIB = 8 * 1024  # what agents stream would fill any, and the system's cache is there
_READER_CACHE_KIB = 16 * 1024  # the writer knows its rows; who reads a large body needs it once
GATHER_SECONDS = 0.001
_CALL_STOP = "stop"
# What may still be written when the disk is full: what ends work, not what begins it.
log = logging.getLogger(__name__)
_NEW_WORK = (Submit, Refuse, Lease, PutKey)


class SqliteStore(Reads, OutboxReads):
    """A ledger in one SQLite file, or in memory (``path`` None)."""

    shared: ClassVar[bool] = False

    def __init__(
        self,
        path: Path | None,
        *,
        url: str | None = None,
        on_broken: Callable[[StoreBroken], None] | None = None,
    ) -> None:
        """Prepare a store without opening it.

        Args:
            path: the file; None keeps everything in memory.
            url: where this process serves.
            on_broken: called in the event loop when the disk failed: nothing is acknowledged from
                then on, and the process should end.
        """
        self.path = path
        self.worker = ""
        self.sinks: tuple[str, ...] = ()
        self._url = url
        self._on_broken = on_broken
        self._broken: StoreBroken | None = None
        self._lock = LockFile(path.with_suffix(".lock"), path) if path is not None else None
        self._reserve = Reserve(path.with_suffix(".reserve")) if path is not None else None
        self._full = False
        self._waiting: deque[Waiting] = deque()
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._flagged = False
        self._closed = True
        self._thread: threading.Thread | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._live: dict[str, Execution] = {}
        self._heads: dict[tuple[str, str], Session] = {}
        self._expected = 0
        self._gather_until = 0.0

    # -- opening and closing -------------------------------------------------------------------

    async def open(self) -> None:
        """Take the lock, open the file, migrate it, and begin a new epoch."""
        if self._lock is not None and self.path is not None:
            try:
                # What people have agents do is nobody else's business on this machine.
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock.acquire(self._url)
            except OSError as error:
                raise StoreUnavailable(f"cannot open the store {self.path}: {error}") from error
        self._loop = asyncio.get_running_loop()
        self.worker = ulid()
        try:
            self._begin()
        except sqlite3.Error as error:
            self._release()
            raise self._unopened(error) from error
        except RetinueError:
            self._release()
            raise
        self._closed = False
        if self.path is not None:
            self._readers = ThreadPoolExecutor(2, thread_name_prefix="retinue-read")
        self._thread = threading.Thread(target=self._run, name="retinue-write", daemon=True)
        self._thread.start()

    def _begin(self) -> None:
        """Connect and begin a new epoch; on a full disk, with the space of the reserve."""
        try:
            self._db = self._connect()
            self._begin_epoch()
        except sqlite3.Error as error:
            # SQLite's own files need space, too, and it says of some of them only that it failed.
            if is_broken(error) or self._reserve is None or not self._reserve.give_up():
                raise
            log.error("the disk of %s is full: new tasks are refused (507)", self.path)
            self._full = True
            self._db = self._connect()
            self._begin_epoch()
        if self._reserve is not None and not self._full:
            self._reserve.take()

    def _begin_epoch(self) -> None:
        migrate_sqlite(self._db)
        # The lock says so: every earlier epoch is over.
        self._db.execute("UPDATE worker SET stopped_at = ? WHERE stopped_at IS NULL", [now_us()])
        self._db.execute(
            "INSERT INTO worker (id, node, pid, started_at, url) VALUES (?, ?, ?, ?, ?)",
            [self.worker, platform.node(), os.getpid(), now_us(), self._url],
        )

    def _unopened(self, error: sqlite3.Error) -> Exception:
        """Return what says why the store cannot be opened."""
        ours = translate(error, self.path)
        if isinstance(ours, StoreFull):
            return StoreFull(f"the disk of the store {self.path} is full")
        if type(ours) is StoreUnavailable:
            return StoreUnavailable(f"cannot open the store {self.path}: {error}")
        return ours

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.path if self.path is not None else ":memory:",
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA busy_timeout = 5000")
        db.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA wal_autocheckpoint = 16000")
        self._connections.append(db)
        return db

    async def close(self) -> None:
        """Write what is waiting, give up the epoch, close."""
        if self._closed:
            return
        self._closed = True
        self._calls.put(_CALL_STOP)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        if self._readers is not None:
            self._readers.shutdown(wait=True)
        self._release()

    def _release(self) -> None:
        for db in self._connections:
            db.close()
        self._connections.clear()
        if self._lock is not None:
            self._lock.release()

    def describe(self, url: str) -> None:
        """Write into the lock file where this process serves."""
        if self._lock is not None:
            self._lock.describe(url)

    # -- writing -------------------------------------------------------------------------------

    async def write(self, intent: Intent, /) -> Result:
        """Apply one intent and return once it is durable."""
        if self._closed:
            raise StoreUnavailable("the store is closed; nothing was acknowledged")
        if self._broken is not None:
            raise StoreBroken(self._broken.message)
        future: asyncio.Future[Result] = self._loop.create_future()
        self._waiting.append(Waiting(intent, future))
        if not self._flagged:
            # Once a turn of the loop: what this turn wants written goes into one commit.
            self._flagged = True
            self._loop.call_soon(self._flush)
        return await future

    def _flush(self) -> None:
        self._flagged = False
        self._calls.put(None)

    def _run(self) -> None:
        """Commit batches until told to stop; the writer thread."""
        stop = False
        while not stop:
            stop = self._heed(self._calls.get()) or self._gather()
            while batch := take(self._waiting):
                self._commit(batch)
                # Those just answered are about to come back, and the rest waits already.
                self._expected = len(batch) + len(self._waiting)
                self._gather_until = time.monotonic() + GATHER_SECONDS
                stop = stop or self._gather()
        if self._broken is not None:
            return
        # A full disk cannot take it, nor does it matter: the next open says it again.
        with contextlib.suppress(sqlite3.Error):
            self._db.execute(
                "UPDATE worker SET stopped_at = ? WHERE id = ?", [now_us(), self.worker]
            )

    def _heed(self, call: Any) -> bool:
        """Take in a word from the loop; True when it is to stop."""
        if callable(call):
            call()
        return call is _CALL_STOP

    def _gather(self) -> bool:
        """Give a commit the time to fill up, a millisecond at most; True when told to stop.

        Nobody who is alone waits: there is nothing to gather for while nothing waits.
        """
        while 0 < len(self._waiting) < self._expected:
            left = self._gather_until - time.monotonic()
            if left <= 0:
                break
            try:
                if self._heed(self._calls.get(timeout=left)):
                    return True
            except queue.Empty:
                break
        return False

    def _commit(self, batch: list[Waiting], *, again: bool = False) -> None:
        if self._broken is not None:
            self._refuse(batch, self._broken)
            return
        if self._full and not again and not (batch := self._admitted(batch)):
            return
        answered: Answered
        try:
            results = self._apply([item.intent for item in batch])
            answered = [(i.future, r) for i, r in zip(batch, results, strict=True)]
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, STORES_FAULT):
                # One of them cannot be applied: let each stand alone, so that only it fails.
                for item in batch:
                    self._commit([item])
                return
            if is_broken(error):
                self._break(error, batch)
                return
            if is_full(error) and self._reserve is not None and not again:
                # Once more, without new work, in the space that was kept for this.
                if not self._full:
                    log.error("the disk of %s is full: new tasks are refused (507)", self.path)
                self._full = True
                if self._reserve.give_up():
                    if batch := self._begun(batch):
                        self._commit(batch, again=True)
                    return
            answered = [(item.future, translate(error, self.path)) for item in batch]
        self._acknowledge(answered)

    def _admitted(self, batch: list[Waiting]) -> list[Waiting]:
        """Return what may be written of a batch now that the disk is full, or was."""
        if self._reserve is None or self._reserve.take():
            log.warning("the disk of %s has room again: new tasks are taken", self.path)
            self._full = False
            return batch
        return self._begun(batch)

    def _begun(self, batch: list[Waiting]) -> list[Waiting]:
        """Refuse the new work in a batch; return the rest."""
        new = [item for item in batch if isinstance(item.intent, _NEW_WORK)]
        self._refuse(new, StoreFull())
        return [item for item in batch if not isinstance(item.intent, _NEW_WORK)]

    def _refuse(self, batch: list[Waiting], why: StoreFull | StoreBroken) -> None:
        if batch:
            self._acknowledge([(item.future, type(why)(why.message)) for item in batch])

    def _break(self, error: Exception, batch: list[Waiting]) -> None:
        """Stop writing for good: the disk does not keep what it was given."""
        broken = translate(error, self.path)
        assert isinstance(broken, StoreBroken)
        self._broken = broken
        self._refuse(batch, broken)
        if self._on_broken is not None:
            self._loop.call_soon_threadsafe(self._on_broken, broken)

    def _acknowledge(self, answered: Answered) -> None:
        self._loop.call_soon_threadsafe(settle, answered)

    def _apply(self, intents: Sequence[Intent]) -> list[Result]:
        """Run the batch program in one transaction; on return it is durable."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            steps = program.run(intents, self.sinks)
            answer: Any = None
            while True:
                try:
                    statement = steps.send(answer)
                except StopIteration as end:
                    results: list[Result] = end.value
                    break
                answer = self._carry_out(db, statement)
            db.execute("COMMIT")
        except BaseException:
            self._live.clear()
            self._heads.clear()
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return results

    def _carry_out(self, db: sqlite3.Connection, statement: Statement) -> Any:
        match statement:
            case Insert(table=table, rows=rows):
                bulk.write(db, table, rows)
            case Change(name=name, rows=changes) if name in UPDATES:
                bulk.write(db, name, changes)
            case Change(name=name, rows=changes):
                db.executemany(_STATEMENTS[name], changes)
            case Executions(ids=ids):
                return self._lock_executions(db, ids)
            case Heads(keys=keys, at=at):
                return self._lock_heads(db, keys, at)
            case Query(name=name, rows=asked):
                found: list[Any] = []
                for values in asked:
                    found.extend(db.execute(_STATEMENTS[name], values).fetchall())
                return found
            case Saved():
                self._keep(statement)
        return None

    def _lock_executions(self, db: sqlite3.Connection, ids: list[str]) -> dict[str, Execution]:
        found: dict[str, Execution] = {}
        for execution_id in ids:
            execution = self._live.get(execution_id)
            if execution is None:
                row = db.execute(_STATEMENTS["lock_execution"], [execution_id]).fetchone()
                if row is None:
                    continue
                execution = record_of(Execution, row)
            found[execution_id] = execution
        return found

    def _lock_heads(
        self, db: sqlite3.Connection, keys: list[tuple[str, str]], at: int
    ) -> dict[tuple[str, str], Session]:
        found: dict[tuple[str, str], Session] = {}
        for key in keys:
            session = self._heads.get(key)
            if session is None:
                db.execute(_STATEMENTS["make_head"], [*key, at])
                row = db.execute(_STATEMENTS["lock_head"], key).fetchone()
                session = record_of(Session, row)
            found[key] = session
        return found

    def _keep(self, saved: Saved) -> None:
        live = self._live
        for execution in saved.executions:
            if execution.state in ACTIVE and execution.worker == self.worker:
                if live.get(execution.id) is not execution:
                    # The engine holds the same record; ours goes on changing.
                    live[execution.id] = copy.copy(execution)
            else:
                live.pop(execution.id, None)
        if len(self._heads) > _HEADS_KEPT:
            self._heads.clear()
        for session in saved.heads:
            self._heads[session.owner, session.session_id] = session

    # -- reading -------------------------------------------------------------------------------

    async def ping(self) -> None:
        """Return when the store answers."""
        await self._fetch("SELECT 1")

    async def orphans(self, limit: int, /) -> list[Execution]:
        """Return running executions whose worker is dead: to be taken over."""
        # The lock file says that every other epoch is over.
        columns = ", ".join(TABLES["execution"])
        rows = await self._fetch(
            f"SELECT {columns} FROM execution WHERE state IN ('running', 'input_required')"
            " AND worker <> ? LIMIT ?",
            [self.worker, limit],
        )
        return [record_of(Execution, row) for row in rows]

    @staticmethod
    def _among(column: str, values: Sequence[str]) -> tuple[str, Any]:
        return f"{column} IN (SELECT value FROM json_each(?))", dumps(list(values)).decode()

    @staticmethod
    def _at_places(places: Sequence[tuple[str, str, int]]) -> tuple[str, list[Any]]:
        return (
            "(owner, session_id, n) IN (SELECT json_extract(value, '$[0]'),"
            " json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(?))",
            [dumps([list(place) for place in places]).decode()],
        )

    async def _fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            if self._readers is not None:
                return await self._loop.run_in_executor(self._readers, self._read, sql, values)
            return await self._on_writer(lambda: self._db.execute(sql, values).fetchall())
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            raise translate(error, self.path) from error

    def _read(self, sql: str, values: Sequence[Any]) -> list[Any]:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = self._connect()
            db.execute("PRAGMA query_only = ON")
            db.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
        return db.execute(sql, values).fetchall()

    async def _on_writer(self, work: Callable[[], list[Any]]) -> list[Any]:
        """Run a read on the writer's connection: an in-memory database has no other."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def call() -> None:
            try:
                result: Any = work()
            except Exception as error:
                result = error
            self._loop.call_soon_threadsafe(settle, [(future, result)])

        self._calls.put(call)
        rows: list[Any] = await future
        return rows

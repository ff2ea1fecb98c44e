"""The PostgreSQL store: many processes, one database.

One connection writes. What all callers want written at one moment becomes one transaction, and
each statement of the batch program one round trip, its rows transposed into arrays. One batch is
under way at a time; meanwhile the next one grows.

A process is a *worker epoch*: a row with a lease by the database's clock. Every batch begins by
updating that row if the epoch still lives, and so holds its lock until the commit. Whoever takes
over updates the same row: either the batch comes first, or it is refused. The same update leaves
the batch's number behind, by which a batch whose connection broke during COMMIT recognises that
it was committed. Until that is known it is neither repeated nor answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from retinue.domain.execution import Execution
from retinue.domain.ids import ulid
from retinue.domain.instance import InstanceRecord
from retinue.domain.intent import ClaimLanes, Intent, Lease, Submit
from retinue.domain.result import Result
from retinue.errors import StoreUnavailable, WorkerLost
from retinue.storage.carrier import Carrier
from retinue.storage.lease import LeaseKeeper
from retinue.storage.link import Connection, Fault, Readers, connect, fault_of, numbered, translate
from retinue.storage.migrate import migrate_postgres
from retinue.storage.outbox_reads import OutboxReads
from retinue.storage.reads import Reads
from retinue.storage.sql import CLOCK
from retinue.storage.tables import TABLES, record_of
from retinue.storage.writer import Waiting, settle, take

_READERS = 2
_MOST_TRIES = 10
_CLOSE_SECONDS = 5.0
_BACKOFF = (0.05, 0.5)

_BEGIN_EPOCH = f"""
    WITH before AS (
        UPDATE worker SET stopped_at = {CLOCK} WHERE id = $5 AND stopped_at IS NULL
    )
    INSERT INTO worker (id, node, pid, started_at, lease_until, url)
    VALUES ($1, $2, $3, {CLOCK}, {CLOCK} + $4, $6)
"""
_STOP_EPOCH = f"UPDATE worker SET stopped_at = {CLOCK} WHERE id = $1 AND stopped_at IS NULL"
# Waits for the row lock of a batch in flight: what it commits is seen by the query that follows.
_BURY = f"""
    UPDATE worker SET stopped_at = {CLOCK} WHERE id IN (
        SELECT id FROM worker WHERE stopped_at IS NULL AND lease_until < {CLOCK}
        ORDER BY id FOR UPDATE)
"""
_ORPHANS = f"""
    SELECT {", ".join(TABLES["execution"])} FROM execution e
    WHERE state IN ('running', 'input_required')
    AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.id = e.worker AND w.stopped_at IS NULL)
    LIMIT $1
"""


class _Batch:
    """A batch on its way. ``results`` is set from when its COMMIT may have been seen."""

    def __init__(self, worker: str, number: int, intents: Sequence[Intent]) -> None:
        self.worker = worker
        self.number = number
        self.intents = intents
        self.results: list[Result] | None = None


class PostgresStore(Reads, OutboxReads):
    """A ledger in a PostgreSQL database, shared with other processes."""

    shared: ClassVar[bool] = True

    def __init__(
        self,
        dsn: str,
        *,
        lease_seconds: float = 15.0,
        url: str | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """Prepare a store without connecting.

        Args:
            dsn: where the database is.
            lease_seconds: how long others wait before they take over what this process ran.
            url: where this process serves.
            on_lost: called in the event loop when this epoch is over, or is about to be because
                its lease cannot be renewed: whatever runs under it must stop. ``worker`` is a
                new epoch before the next write is applied.
        """
        self.worker = ""
        self.sinks: tuple[str, ...] = ()
        self._dsn = dsn
        self._lease_seconds = lease_seconds
        self._url = url
        self._on_lost = on_lost
        self._waiting: deque[Waiting] = deque()
        self._flagged = False
        self._closed = True
        self._down = False
        self._why: str | None = None
        self._over = False
        self._batches = 0
        self._writer: Connection | None = None
        self._writing: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None

    # -- opening and closing -------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, migrate, and begin a new epoch."""
        self._loop = asyncio.get_running_loop()
        self._hopeless = asyncio.Event()
        self._lease = LeaseKeeper(lambda: connect(self._dsn), self._lease_seconds, self._lease_lost)
        self._carrier = Carrier()
        self._readers = Readers(lambda: connect(self._dsn), _READERS)
        try:
            self._writer = await self._connect()
            await migrate_postgres(self._writer)
            await self._begin_epoch(self._writer)
        except Exception as error:
            self._drop_writer()
            ours = translate(error)
            raise ours from (error if ours is not error else None)
        self._lease.start()
        self._down = False
        self._closed = False

    async def close(self) -> None:
        """Write what is waiting, give up the epoch, close."""
        if self._closed:
            return
        self._closed = True
        self._hopeless.set()
        self._flush()
        while self._writing is not None:
            await asyncio.wait({self._writing})
        if self._recovering is not None:
            self._recovering.cancel()
            await asyncio.wait({self._recovering})
        await asyncio.to_thread(self._lease.stop)
        if self._writer is not None:
            # Without an answer the lease runs out by itself.
            with contextlib.suppress(Exception):
                await self._writer.execute(_STOP_EPOCH, self.worker)
                await self._writer.close(timeout=_CLOSE_SECONDS)
            self._drop_writer()
        self._readers.close()

    async def _connect(self) -> Connection:
        idle = max(self._lease_seconds / 3, 1.0)
        return await connect(self._dsn, writer=True, idle_seconds=idle)

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.terminate()
            self._writer = None

    # -- the epoch -----------------------------------------------------------------------------

    async def _begin_epoch(self, db: Connection) -> None:
        """Register a new worker; the one before, if any, has stopped."""
        worker = ulid()
        sent = time.monotonic()
        lease = int(self._lease_seconds * 1_000_000)
        who = (worker, platform.node(), os.getpid(), lease, self.worker, self._url)
        await db.execute(_BEGIN_EPOCH, *who)
        self.worker = worker
        self._over = False
        if not self._closed:
            self._hopeless.clear()
        self._lease.begin(worker, sent)

    def _lease_lost(self, worker: str) -> None:
        """Hear from the lease's thread that it could not renew."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._end_epoch, worker)

    def _end_epoch(self, worker: str) -> None:
        if worker != self.worker or self._over or self._closed:
            return
        self._over = True
        self._hopeless.set()
        if self._on_lost is not None:
            self._loop.call_soon(self._on_lost)
        self._start_writing()  # with a new epoch

    # -- writing -------------------------------------------------------------------------------

    async def write(self, intent: Intent, /) -> Result:
        """Apply one intent and return once it is durable."""
        if self._closed:
            raise StoreUnavailable("the store is closed; nothing was acknowledged")
        if self._down:
            raise StoreUnavailable(self._why)
        future: asyncio.Future[Result] = self._loop.create_future()
        self._waiting.append(Waiting(intent, future))
        if not self._flagged and self._writing is None:
            # Once a turn of the loop: what this turn wants written goes into one commit.
            self._flagged = True
            self._loop.call_soon(self._flush)
        return await future

    def _flush(self) -> None:
        self._flagged = False
        if self._waiting:
            self._start_writing()

    def _start_writing(self) -> None:
        if self._writing is None and not self._down:
            self._writing = self._loop.create_task(self._write_all())

    async def _write_all(self) -> None:
        try:
            if self._over:
                with contextlib.suppress(Exception):  # else before the next batch
                    await self._begin_epoch(await self._connected())
            while batch := take(self._waiting):
                await self._commit(batch)
                # Those just answered write on in this turn: into the next batch, not the one after.
                await asyncio.sleep(0)
        finally:
            self._writing = None

    async def _commit(self, batch: list[Waiting]) -> None:
        try:
            results = await self._apply([item.intent for item in batch])
        except Exception as error:
            if len(batch) > 1 and fault_of(error) is Fault.INTENT:
                # One of them cannot be applied: let each stand alone, so that only it fails.
                for item in batch:
                    await self._commit([item])
                return
            settle([(item.future, _failure(error)) for item in batch])
        else:
            settle([(i.future, r) for i, r in zip(batch, results, strict=True)])

    async def _apply(self, intents: Sequence[Intent]) -> list[Result]:
        """Run the batch program in one transaction; on return it is durable.

        Raises:
            WorkerLost: the epoch was over; nothing was applied, and a new one has begun.
            StoreUnavailable: the server is away. Nothing was applied, unless the epoch ended
                before an answer to the COMMIT could be had.
        """
        if self._over:
            await self._begin_epoch(await self._connected())
        self._batches += 1
        batch = _Batch(self.worker, self._batches, intents)
        for attempt in range(1, _MOST_TRIES + 1):
            try:
                db = await self._connected()
                await self._carrier.prepare(db)
                return await self._transact(db, batch)
            except WorkerLost:
                self._end_epoch(batch.worker)
                with contextlib.suppress(Exception):  # else before the next batch
                    await self._begin_epoch(await self._connected())
                raise
            except Exception as error:
                fault = fault_of(error)
                if attempt == _MOST_TRIES or fault not in {Fault.LOST, Fault.AGAIN}:
                    raise
                if fault is Fault.LOST:
                    self._drop_writer()
                    await self._reconnect(wait=batch.results is not None)
                else:
                    await asyncio.sleep(random.uniform(0, 0.01 * attempt))
        raise StoreUnavailable

    async def _transact(self, db: Connection, batch: _Batch) -> list[Result]:
        try:
            # The worker is our own ULID, the number our own count: no caller's text is in here.
            status = await db.execute(
                f"BEGIN; UPDATE worker SET last_batch = {batch.number}"
                f" WHERE id = '{batch.worker}' AND last_batch < {batch.number}"
                f" AND stopped_at IS NULL AND lease_until > {CLOCK}"
            )
            if status != "UPDATE 1":
                return await self._recognise(db, batch)
            batch.results = None  # in case a COMMIT was seen before: it failed
            batch.results = await self._carrier.run(
                db, [self._of_this_epoch(intent) for intent in batch.intents], self.sinks
            )
            if await db.execute("COMMIT") != "COMMIT":
                raise StoreUnavailable("the server took the batch back; nothing was acknowledged")
        except Exception as error:
            if fault_of(error) is not Fault.LOST:
                await db.execute("ROLLBACK")
            raise
        assert batch.results is not None
        return batch.results

    async def _recognise(self, db: Connection, batch: _Batch) -> list[Result]:
        """Tell a batch that was committed already from one whose epoch is over."""
        rows = await db.fetch("SELECT last_batch FROM worker WHERE id = $1", batch.worker)
        if batch.results is None or not rows or rows[0][0] != batch.number:
            raise WorkerLost
        results = batch.results
        await db.execute("ROLLBACK")
        return results

    def _of_this_epoch(self, intent: Intent) -> Intent:
        """Keep what was asked for an epoch that is over from leasing work to it."""
        if type(intent) is Submit and intent.worker not in {None, self.worker}:
            return msgspec.structs.replace(intent, worker=None)
        if type(intent) is Lease and intent.worker != self.worker:
            return msgspec.structs.replace(intent, wants=())
        if type(intent) is ClaimLanes and intent.worker != self.worker:
            return msgspec.structs.replace(intent, worker=self.worker, limit=0)
        return intent

    # -- losing the server and finding it again ------------------------------------------------

    async def _connected(self) -> Connection:
        """Return the writer's connection, made anew when there is none."""
        if self._writer is None or self._writer.is_closed():
            await self._reconnect(wait=False)
        assert self._writer is not None
        return self._writer

    async def _reconnect(self, *, wait: bool) -> None:
        """Connect again. If the server is away, say so to all who wait, and go on trying.

        With ``wait`` this returns only when the server is back or the epoch is over.

        Raises:
            StoreUnavailable: it is away.
        """
        if not self._down:
            try:
                self._writer = await self._connect()
                return
            except Exception as error:
                failure = error
            self._down = True
            self._why = str(_failure(failure))
            self._recovering = self._loop.create_task(self._recover())
            settle([(item.future, _failure(failure)) for item in self._waiting])
            self._waiting.clear()
        if wait:
            await self._while_hopeful()
        if self._writer is None:
            raise StoreUnavailable

    async def _while_hopeful(self) -> None:
        """Wait for the server, or for the end of the epoch."""
        assert self._recovering is not None
        hopeless = self._loop.create_task(self._hopeless.wait())
        await asyncio.wait({self._recovering, hopeless}, return_when=asyncio.FIRST_COMPLETED)
        hopeless.cancel()

    async def _recover(self) -> None:
        """Connect again, however long it takes."""
        pause, longest = _BACKOFF
        while True:
            await asyncio.sleep(pause)
            try:
                db = await self._connect()
            except Exception:
                pause = min(pause * 2, longest)
                continue
            try:
                if self._over:
                    await self._begin_epoch(db)
            except Exception:
                db.terminate()
                continue
            self._writer = db
            self._down = False
            return

    # -- reading -------------------------------------------------------------------------------

    async def ping(self) -> None:
        """Return when the store answers."""
        await self._fetch("SELECT 1")

    async def orphans(self, limit: int, /) -> list[Execution]:
        """Return running executions whose worker is dead: to be taken over."""
        await self._fetch(_BURY)
        rows = await self._fetch(_ORPHANS, [limit])
        return [record_of(Execution, row) for row in rows]

    async def ownerless(self, node: str, limit: int, /) -> list[InstanceRecord]:
        """Return instances that have not ended and whose worker is dead, oldest first."""
        await self._fetch(_BURY)
        return await super().ownerless(node, limit)

    @staticmethod
    def _among(column: str, values: Sequence[str]) -> tuple[str, Any]:
        return f"{column} = ANY(?::text[])", list(values)

    @staticmethod
    def _at_places(places: Sequence[tuple[str, str, int]]) -> tuple[str, list[Any]]:
        return (
            "(owner, session_id, n) IN (SELECT * FROM unnest(?::text[], ?::text[], ?::bigint[]))",
            [list(column) for column in zip(*places, strict=True)],
        )

    async def _fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            return await self._readers.fetch(numbered(sql), values)
        except Exception as error:
            ours = translate(error)
            raise ours from (error if ours is not error else None)


def _failure(error: Exception) -> Exception:
    """Return what one caller gets: an error of its own, not shared with its neighbours."""
    if isinstance(error, WorkerLost | StoreUnavailable):
        return type(error)(error.message)
    return translate(error)

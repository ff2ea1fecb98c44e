"""The lease of a worker on PostgreSQL, renewed from a thread of its own.

The thread has its own event loop and its own connection, so that neither a busy event loop nor a
long batch can cost the lease. Time is counted from before the request that renewed it: our idea
of the lease ends before the database's. A holder that cannot renew hears of it while a fifth of
the lease is left, to stop what it runs *before* anybody else may take it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

import msgspec

from retinue.storage.link import Connect, Connection
from retinue.storage.sql import CLOCK

_GIVE_UP = 0.8
_RENEW = f"""
    UPDATE worker SET lease_until = {CLOCK} + $2
    WHERE id = $1 AND stopped_at IS NULL AND lease_until > {CLOCK} RETURNING 1
"""


class _Term(msgspec.Struct, frozen=True):
    """An epoch and when (monotonic clock) its lease was last asked for with success."""

    worker: str
    since: float


class LeaseKeeper:
    """Renews one worker's lease; tells when it could not."""

    def __init__(self, connect: Connect, seconds: float, lost: Callable[[str], None]) -> None:
        """Prepare to keep leases of ``seconds``; ``lost(worker)`` is called in the thread."""
        self._connect = connect
        self._seconds = seconds
        self._lost = lost
        self._guard = threading.Lock()
        self._term: _Term | None = None
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event | None = None
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._stopping = False
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._keep()), name="retinue-lease", daemon=True
        )
        self._thread.start()

    def begin(self, worker: str, since: float) -> None:
        """Keep the lease of ``worker``, granted by a request sent at ``since``."""
        with self._guard:
            self._term = _Term(worker, since)
        self._wake()

    def stop(self) -> None:
        """Stop renewing and end the thread; the lease runs out by itself. Blocks shortly."""
        self._stopping = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _wake(self) -> None:
        loop, changed = self._loop, self._changed
        if loop is not None and changed is not None:
            with contextlib.suppress(RuntimeError):  # the thread has ended
                loop.call_soon_threadsafe(changed.set)

    async def _keep(self) -> None:
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        try:
            while not self._stopping:
                term = self._term
                await self._pause(await self._step(term) if term is not None else None)
        finally:
            self._drop()

    async def _step(self, term: _Term) -> float:
        """Renew when it is time to, and return how long to wait then."""
        now = time.monotonic()
        left = term.since + self._seconds * _GIVE_UP - now
        if left <= 0:
            return self._end(term)
        due = term.since + self._seconds / 3 - now
        if due > 0:
            return due
        try:
            async with asyncio.timeout(left):
                renewed = await self._renew(term.worker)
        except Exception:
            # Whatever it was, the lease is not renewed yet; the next try is on a new connection.
            self._drop()
            return min(self._seconds / 30, 0.25)
        if not renewed:
            return self._end(term)
        with self._guard:
            if self._term is term:
                self._term = _Term(term.worker, now)
        return 0.0

    async def _renew(self, worker: str) -> bool:
        if self._connection is None:
            self._connection = await self._connect()
        rows = await self._connection.fetch(_RENEW, worker, int(self._seconds * 1_000_000))
        return bool(rows)

    def _end(self, term: _Term) -> float:
        with self._guard:
            if self._term is not term:
                return 0.0
            self._term = None
        self._lost(term.worker)
        return 0.0

    async def _pause(self, seconds: float | None) -> None:
        """Wait, but no longer than until something changes (None: just until then)."""
        assert self._changed is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

"""Hands queued executions to agents with free slots.

The store is the queue; this is only the bell and the hands. ``backlog`` names the keys that may
hold ready work; a pass asks the store for as much as there are free slots, key by key. Slots are
taken before the store is asked, so that a lease never finds its slot gone.

Keys take turns: one that got all it asked for goes to the end of the line, and where the process's
own limit binds, a pass deals what is left of it out evenly. So a key with 200,000 tasks delays
another one by a lease, not by 200,000. Within a key the rank alone decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from retinue.domain.execution import Execution
from retinue.domain.ids import now_us
from retinue.domain.intent import Lease, Want
from retinue.domain.result import Leased
from retinue.engine.attempts import Attempts
from retinue.engine.entry import Entry
from retinue.engine.guard import Circuit
from retinue.engine.registry import Registry
from retinue.errors import RetinueError
from retinue.interfaces import Store

log = logging.getLogger(__name__)
_PER_LEASE = 64


class Queue:
    """The dispatcher of one process."""

    def __init__(self, store: Store, registry: Registry, *, own_only: bool = False) -> None:
        """Prepare to lease; with ``own_only`` nothing but what this process accepted itself."""
        self._store = store
        self._registry = registry
        # What it accepted, by id, and under which key it waits; None: whatever waits is leased.
        self._own: dict[str, str] | None = {} if own_only else None
        self._backlog: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._resting: set[str] = set()
        self.attempts: Attempts
        self.closed = False

    def accepted(self, execution: Execution) -> None:
        """Take in that what waits (now, or again) was accepted by this process."""
        if self._own is not None:
            self._own[execution.id] = execution.queue_key

    def queued(self, key: str) -> None:
        """Take in that something ready may be waiting under ``key``."""
        if self._own is not None and key not in self._own.values():
            return
        self._backlog[key] = None
        self._nudge()

    def freed(self, entry: Entry) -> None:
        """Take in that a slot of ``entry`` is free."""
        if self._backlog and (
            self._registry.slots.bounded or any(key in self._backlog for key in entry.keys)
        ):
            self._nudge()

    def found(self, backlog: Iterable[str]) -> None:
        """Take in what a look at the store found."""
        for key in backlog:
            self.queued(key)

    def _wake_when_rested(self, key: str, now: float) -> None:
        """Look at ``key`` again when an agent that is only resting may be called."""
        wait = self._registry.rest_of(key, now)
        if wait is None or key in self._resting:
            return
        self._resting.add(key)

        def rested() -> None:
            self._resting.discard(key)
            self.queued(key)

        asyncio.get_running_loop().call_later(wait, rested)

    def _nudge(self) -> None:
        if self.closed:
            return
        if self._task is None:
            self._task = asyncio.create_task(self._passes())
        else:
            self._again = True

    def _who(self, key: str, now: float, share: int) -> tuple[Entry, int] | None:
        """Return who takes how much of what waits under ``key``.

        Where nobody can any more, and no other process either, it goes to who refuses it at once.
        """
        entry = self._registry.free_for(key, now)
        if entry is not None:
            probing = entry.breaker.circuit is not Circuit.CLOSED
            most = min(share, self._registry.slots.room_for(entry))
            return entry, 1 if probing else min(entry.at_once(now), most)
        if self._store.shared or not self._registry.slots.room:
            return None
        refusing = self._registry.refusing(key)
        return (refusing, share) if refusing is not None else None

    async def _passes(self) -> None:
        try:
            while not self.closed:
                self._again = False
                progress = await self._pass()
                if not (progress or self._again):
                    return
        except RetinueError as error:
            log.warning("lease failed: %s", error.message)
        finally:
            self._task = None

    async def _pass(self) -> bool:
        """Lease once for every key with backlog and a free slot; say whether any came."""
        wants: list[tuple[Want, Entry, int]] = []
        now = time.monotonic()
        skipped = False
        share = min(_PER_LEASE, max(self._registry.slots.room // max(len(self._backlog), 1), 1))
        for key in list(self._backlog):
            found = self._who(key, now, share)
            if found is None:
                skipped = True
                self._wake_when_rested(key, now)
                continue
            entry, count = found
            self._registry.slots.take(entry, count)
            self._registry.leasing[key] += count
            call = entry.admit(now, count)
            wants.append((Want(key, entry.agent_id, count), entry, call))
        if not wants:
            return False
        for want, _, _ in wants:
            self._backlog.pop(want.key, None)
        started: dict[str, int] = {}
        unused = 0
        try:
            only = tuple(self._own) if self._own is not None else None
            result = await self._store.write(
                Lease(self._store.worker, tuple(want for want, _, _ in wants), now_us(), only)
            )
            assert isinstance(result, Leased)
            by_key = {want.key: (entry, call) for want, entry, call in wants}
            for work in result.work:
                key = work.execution.queue_key
                if self._own is not None:
                    self._own.pop(work.execution.id, None)
                started[key] = started.get(key, 0) + 1
                self.attempts.start(work.execution, work.body, *by_key[key])
        except BaseException:
            # What was leased, if anything was, nobody here knows of.
            self.attempts.doubt()
            raise
        finally:
            for want, entry, call in wants:
                self._registry.leasing[want.key] -= want.count
                count = started.get(want.key, 0)
                if count == want.count:
                    self._backlog[want.key] = None  # there may be more
                if want.count > count:
                    entry.unused(call, want.count - count, all_of_them=count == 0)
                    unused += want.count - count
                    self._registry.slots.give(entry, want.count - count)
        # A slot that came back may be what a skipped key waits for.
        return bool(started) or (skipped and unused > 0)

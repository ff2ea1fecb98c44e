"""Retention: what is old goes, a little at a time, by itself or when somebody asks.

A round goes over the executions that have events and over the beginnings of the chains, page by
page, and has what is old removed through the one writer: events are marked first and swept later,
contracts go as closed prefixes of their chains. Whatever a crash leaves undone the next round
finds; two processes that do the same thing at once do it once. Between two writes the round gives
way, so that it costs the others little.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

import msgspec

from retinue.archive import Beginning
from retinue.domain.ids import now_us, ulid_after
from retinue.domain.intent import CutChain, ForgetInstances, Retire, Sweep
from retinue.domain.result import Retired, Swept
from retinue.domain.retention import Bounds
from retinue.interfaces import Store

log = logging.getLogger(__name__)

_PAGE = 500
INSTANCE_DAYS = 30.0
"""How long it is known of a process how it ended, where nothing else is said."""
_RETIRED_AT_ONCE = 100
_CUT_AT_ONCE = 200
_MOST_LOOKED_AT = 12_800
_SWEPT_AT_ONCE = 1000
_DAY_US = 86_400_000_000
_SESSIONS_A_ROUND = 20_000


class Policy(msgspec.Struct, frozen=True):
    """How long what is kept: days after an execution's end, and how many executions."""

    days: float | None = None
    executions: int | None = None
    event_days: float | None = None

    @property
    def none(self) -> bool:
        """Whether everything is kept."""
        return self.days is None and self.executions is None and self.event_days is None


class Pruned(msgspec.Struct):
    """What a round removed (or, tried only, would remove)."""

    executions: int = 0
    events: int = 0
    sessions: int = 0
    contracts: int = 0


class Retention:
    """The retention of one process."""

    def __init__(self, store: Store, policy: Policy, interval: float = 60.0) -> None:
        self._store = store
        self.policy = policy
        self.interval = interval
        self._place = ("", "")
        self._forget_at = 0.0
        self._round = asyncio.Lock()

    async def round(self, *, whole: bool = False) -> Pruned:
        """Remove what is old; ``whole`` goes over all sessions, however many they are."""
        found = Pruned()
        async with self._round:
            if not self.policy.none:
                events, contracts = await self._bounds(now_us())
                await self._retire(events, found)
                if not contracts.none:
                    await self._cut(contracts, found, whole=whole)
            await self._sweep(found)
            await self._forget_instances()
        if found.executions or found.contracts or found.events:
            log.info(
                "removed the events of %d executions, and %d contracts of %d sessions",
                found.executions,
                found.contracts,
                found.sessions,
            )
        return found

    async def _forget_instances(self) -> None:
        """Forget processes that ended long ago; looked at once an hour."""
        if time.monotonic() < self._forget_at:
            return
        self._forget_at = time.monotonic() + 3600
        days = self.policy.days if self.policy.days is not None else INSTANCE_DAYS
        before = now_us() - int(days * _DAY_US)
        more = True
        while more:
            gone = await self._store.write(ForgetInstances(before, _PAGE))
            more = isinstance(gone, Swept) and gone.more

    async def trial(self) -> Pruned:
        """Say what a round would retire: executions with their events; nothing is changed."""
        found = Pruned()
        if not self.policy.none:
            events, contracts = await self._bounds(now_us())
            async for page in self._old(events):
                found.executions += len(page)
            if not contracts.none:
                async for _ in self._beginnings(contracts, lambda: True):
                    found.sessions += 1
        return found

    async def sweep(self) -> None:
        """Deal with all that is marked."""
        async with self._round:
            await self._sweep(Pruned())

    async def _bounds(self, now: int) -> tuple[Bounds, Bounds]:
        """Return what is old enough for its events to go, and for its contracts."""
        policy = self.policy
        before = now - int(policy.days * _DAY_US) if policy.days is not None else 0
        below = await self._oldest_kept() if policy.executions is not None else ""
        sooner = before
        if policy.event_days is not None:
            sooner = max(before, now - int(policy.event_days * _DAY_US))
        return Bounds(sooner, below), Bounds(before, below)

    async def _oldest_kept(self) -> str:
        """Return the id of the oldest execution that is kept for being one of the newest."""
        left = self.policy.executions or 1
        found: str | None = None
        while left > 0:
            step = min(left, 10 * _PAGE)
            found = await self._store.newest_but(step, found)
            if found is None:
                return ""
            left -= step
        return found or ""

    async def _old(self, bounds: Bounds) -> AsyncIterator[list[str]]:
        """Yield the executions whose events are to go, page by page."""
        # What was begun later has not ended before.
        place, end = "", max(ulid_after(bounds.before), bounds.below)
        while True:
            rows = await self._store.with_events(place, _PAGE)
            old = [
                row.id
                for row in rows
                if row.finished_at is not None
                and not row.removed
                and bounds.old(row.finished_at, row.id)
            ]
            if old:
                yield old
            if len(rows) < _PAGE or rows[-1].id > end:
                return
            place = rows[-1].id

    async def _retire(self, bounds: Bounds, found: Pruned) -> None:
        async for page in self._old(bounds):
            for start in range(0, len(page), _RETIRED_AT_ONCE):
                some = tuple(page[start : start + _RETIRED_AT_ONCE])
                result = await self._store.write(Retire(some, bounds, now_us()))
                if isinstance(result, Retired):
                    found.executions += result.count

    async def _beginnings(
        self, bounds: Bounds, go_on: Callable[[], bool]
    ) -> AsyncIterator[Beginning]:
        """Yield the sessions whose first contract may be old."""
        while True:
            rows = await self._store.beginnings(self._place, _PAGE)
            for row in rows:
                self._place = (row.owner, row.session_id)
                # A REQUEST is older than the end of what it asks for.
                if row.id and bounds.old(row.at, row.id):
                    yield row
            if len(rows) < _PAGE:
                self._place = ("", "")
                return
            if not go_on():
                return

    async def _cut(self, bounds: Bounds, found: Pruned, *, whole: bool) -> None:
        pages = 0

        def go_on() -> bool:
            nonlocal pages
            pages += 1
            return whole or pages * _PAGE < _SESSIONS_A_ROUND

        if whole:
            self._place = ("", "")
        async for row in self._beginnings(bounds, go_on):
            count = await self._cut_one(row, bounds)
            found.contracts += count
            found.sessions += count > 0

    async def _cut_one(self, row: Beginning, bounds: Bounds) -> int:
        """Remove what is old from the beginning of one chain; return how many contracts."""
        total, limit = 0, _CUT_AT_ONCE
        while True:
            result = await self._store.write(
                CutChain(row.owner, row.session_id, bounds, limit, now_us())
            )
            if not isinstance(result, Retired) or not result.more:
                return total
            total += result.count
            if result.count:
                limit = _CUT_AT_ONCE
            elif limit < _MOST_LOOKED_AT:
                limit *= 4
            else:
                return total  # so many at once stand open there; the next round looks again

    async def _sweep(self, found: Pruned) -> None:
        if not await self._store.unswept(now_us()):
            return
        while True:
            result = await self._store.write(Sweep(_SWEPT_AT_ONCE, now_us()))
            if not isinstance(result, Swept):
                return
            found.events += result.count
            if not result.more:
                return

"""A feed delivers contracts to one sink: at least once, each session's in the order of its chain.

It claims lanes of the outbox (sessions with something to deliver), delivers a page of each, and
gives them back with how far it came, in that order; what a crash leaves between is delivered
again. A few sessions are served at a time, and one that fails waits alone.

A delivery fails in one of three ways. The sink cannot be reached, or says *later*: nothing is
wrong with the contract, so it is never given up. The sink says no: that counts, and after many
times the contract is parked. The sink says no for good: it is parked at once. A parked contract
is kept and shown, and its session goes on behind it. When the sink fails for everybody, it is
tried by one session at a time, ever more seldom, until it takes something again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress

import msgspec

from retinue.domain.contract import Contract
from retinue.domain.ids import now_us
from retinue.domain.intent import ClaimLanes, SettleLane, Unpark, WakeLanes
from retinue.domain.outbox import Lane, Parked
from retinue.domain.result import Claimed
from retinue.engine.watch import Watch
from retinue.errors import PeerRefused, PeerUnavailable, RetinueError
from retinue.interfaces import Health, Page, Sink, Store

log = logging.getLogger(__name__)
GATHER_SECONDS = 0.01
_MOST_ERROR = 500


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a sink is fed, and how patient we are with it. Times are seconds.

    ``sessions`` are delivered at a time, ``page`` contracts or ``page_bytes`` of each. After
    ``ailing`` failures in a row the sink is taken to be ill. ``tries`` is how often it may say no
    to one contract.
    """

    sessions: int = 8
    page: int = 16
    page_bytes: int = 1 << 20
    poll: float = 1.0
    ailing: int = 3
    tries: int = 20
    first_wait: float = 1.0
    longest_wait: float = 300.0
    longest_away: float = 60.0
    longest_pause: float = 10.0
    last_call: float = 2.0

    def wait(self, failures: int, longest: float) -> float:
        """Return how long to wait after so many failures: doubling, with jitter."""
        full = min(self.first_wait * 2.0 ** min(failures - 1, 30), longest)
        return full * random.uniform(0.5, 1.0)


class _Progress:
    """How far a delivery of one lane came."""

    def __init__(self, lane: Lane) -> None:
        self.next_n = lane.first_n
        self.tries = lane.tries
        self.error = lane.error
        self.wait = 0.0
        self.parked: list[Parked] = []

    def passed(self, contract: Contract) -> None:
        """Go on behind ``contract``."""
        self.next_n = contract.n + 1
        self.tries = 0
        self.error = None


class Feed:
    """Feeds one sink."""

    def __init__(self, store: Store, sink: Sink, pace: Pace) -> None:
        self.sink = sink
        self.pace = pace
        self.watch = Watch(sink)
        self.failures = 0
        self._store = store
        self._active: set[asyncio.Task[None]] = set()
        self._bell = asyncio.Event()
        self._in_a_row = 0
        self._doubt = False
        self._not_before = 0.0
        self._until: float | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def well(self) -> bool:
        """Whether the last delivery was one."""
        return self._in_a_row == 0

    def ring(self) -> None:
        """Say that there may be something to deliver."""
        self._bell.set()

    def start(self) -> None:
        """Begin to deliver."""
        self.watch.start()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Deliver what can be at once, and stop. The rest stays in the outbox."""
        if self._task is not None:
            self._until = asyncio.get_running_loop().time() + self.pace.last_call
            self._bell.set()
            await self._task
        await self.watch.stop()

    def lost(self) -> None:
        """Stop what is under way: others may deliver it now."""
        for task in self._active:
            task.cancel()

    # -- claiming ------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = True  # an earlier process may have left something
        while True:
            begun = 0
            try:
                begun = await self._turn(due)
            except RetinueError as error:
                self._doubt = True
                log.warning("%s: the outbox is out of reach: %s", self.sink.name, error.message)
            except Exception:
                self._doubt = True
                log.exception("%s: the feed stumbled", self.sink.name)
            if self._until is not None:
                idle = not self._active and not begun
                if idle or not self.well or loop.time() >= self._until:
                    break
            due = await self._pause()
        for task in self._active:
            task.cancel()
        if self._active:
            await asyncio.wait(self._active)

    async def _turn(self, due: bool) -> int:
        """Claim what is due and can be served now; return how many lanes were begun."""
        begun = 0
        while (free := self._free()) > 0:
            if not (due or await self._store.outbox_due(self.sink.name, now_us())):
                break
            idle = not self._active
            wanted = ClaimLanes(self.sink.name, self._store.worker, free, now_us(), idle)
            claimed = await self._store.write(wanted)
            assert isinstance(claimed, Claimed)
            self._doubt = False
            for lane in claimed.lanes:
                task = asyncio.create_task(self._serve(lane))
                self._active.add(task)
                task.add_done_callback(self._ended)
            begun += len(claimed.lanes)
            if len(claimed.lanes) < free:
                break
        return begun

    def _free(self) -> int:
        """Return how many more sessions may be served now."""
        if self._in_a_row >= self.pace.ailing:
            early = asyncio.get_running_loop().time() < self._not_before
            return 0 if early or self._active else 1
        if self._doubt and self._active:
            return 0  # once nothing is under way, what we hold in error can be told
        return self.pace.sessions - len(self._active)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._active.discard(task)
        self._bell.set()

    async def _pause(self) -> bool:
        """Wait for the bell, or until it is time to look without; True when it rang."""
        loop = asyncio.get_running_loop()
        wait = self.pace.poll
        if self._in_a_row >= self.pace.ailing and not self._active:
            wait = max(self._not_before - loop.time(), 0.0)
        if self._until is not None:
            wait = min(wait, max(self._until - loop.time(), 0.0))
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._bell.wait()
        rang = self._bell.is_set()
        if rang and self._until is None:
            await asyncio.sleep(GATHER_SECONDS)  # what follows at once comes along
        self._bell.clear()
        return rang

    # -- delivering ----------------------------------------------------------------------------

    async def _serve(self, lane: Lane) -> None:
        progress = _Progress(lane)
        try:
            await self._deliver(lane, progress)
        except asyncio.CancelledError:
            pass  # we stop: what was delivered is noted, the rest is due
        except RetinueError as error:
            log.warning("%s: the store is away: %s", self.sink.name, error.message)
        except Exception:
            log.exception("%s: a delivery stumbled", self.sink.name)
            progress.wait = self.pace.longest_wait
        try:
            await self._settle(lane, progress)
        except RetinueError as error:
            self._doubt = True
            log.warning("%s: delivered, but not noted: %s", self.sink.name, error.message)

    async def _deliver(self, lane: Lane, progress: _Progress) -> None:
        """Deliver the next page of a lane, up to the first contract that must wait."""
        contracts = await self._store.undelivered(
            lane.owner,
            lane.session_id,
            lane.first_n,
            lane.last_n,
            limit=self.pace.page,
            most_bytes=self.pace.page_bytes,
        )
        if not contracts:
            progress.next_n = lane.last_n + 1  # retention was faster than the sink
        for contract in contracts:
            try:
                await self.sink.deliver(contract)
            except PeerUnavailable as error:
                self._fail(contract, progress, error, self._away(error))
                return
            except Exception as error:
                refusal = _refusal(error)
                progress.tries += 1
                if refusal.for_good or progress.tries >= self.pace.tries:
                    self._park(contract, progress, refusal)
                    continue
                wait = self.pace.wait(progress.tries, self.pace.longest_wait)
                self._fail(contract, progress, refusal, wait)
                return
            progress.passed(contract)
            await self._taken()

    def _away(self, error: PeerUnavailable) -> float:
        asked = float(error.details.get("retry_after_ms", 0)) / 1000
        longest = self.pace.longest_away
        return max(self.pace.wait(self._in_a_row + 1, longest), min(asked, longest))

    async def _taken(self) -> None:
        was_ill = self._in_a_row >= self.pace.ailing
        self._in_a_row = 0
        self.watch.heard(Health(healthy=True))
        if was_ill:
            log.warning("%s takes contracts again", self.sink.name)
            await self._store.write(WakeLanes(self.sink.name, now_us()))
            self._bell.set()

    def _fail(
        self, contract: Contract, progress: _Progress, error: RetinueError, wait: float
    ) -> None:
        self.failures += 1
        self._in_a_row += 1
        pause = self.pace.wait(self._in_a_row, self.pace.longest_pause)
        self._not_before = asyncio.get_running_loop().time() + pause
        progress.error = error.message[:_MOST_ERROR]
        progress.wait = wait
        self.watch.heard(Health(healthy=False, reason=error.message))
        log.warning(
            "%s: contract %s is not delivered: %s; again in %.1f s",
            self.sink.name,
            contract.id,
            _said(error),
            wait,
            extra={"session_id": contract.session_id, "execution_id": contract.execution_id},
        )

    def _park(self, contract: Contract, progress: _Progress, error: PeerRefused) -> None:
        self.failures += 1
        log.error(
            "%s: contract %s is parked: %s",
            self.sink.name,
            contract.id,
            _said(error),
            extra={"session_id": contract.session_id, "execution_id": contract.execution_id},
        )
        parked = Parked(
            sink=self.sink.name,
            owner=contract.owner,
            session_id=contract.session_id,
            n=contract.n,
            contract_id=contract.id,
            tries=progress.tries,
            error=_said(error)[:_MOST_ERROR],
            at=now_us(),
        )
        progress.parked.append(parked)
        progress.passed(contract)

    async def _settle(self, lane: Lane, progress: _Progress) -> None:
        assert lane.worker is not None
        now = now_us()
        await self._store.write(
            SettleLane(
                lane.sink,
                lane.owner,
                lane.session_id,
                lane.worker,
                progress.next_n,
                now + int(progress.wait * 1_000_000),
                now,
                progress.tries,
                progress.error,
                tuple(progress.parked),
            )
        )

    # -- what is parked ------------------------------------------------------------------------

    async def retry(self, owner: str | None) -> tuple[int, int]:
        """Deliver once more what is parked; return how many were taken, and how many were not.

        Raises:
            PeerUnavailable: the sink is away.
        """
        taken = refused = 0
        page = Page(limit=100)
        while True:
            listing = await self._store.parked(self.sink.name, owner, page)
            for row in listing.items:
                rows = await self._store.chain(row.owner, row.session_id, row.n - 1, 1)
                try:
                    if rows and rows[0].n == row.n:
                        await self.sink.deliver(rows[0])
                except PeerRefused:
                    refused += 1
                    continue
                await self._store.write(Unpark(row.sink, row.owner, row.session_id, row.n))
                taken += 1
            if listing.next_cursor is None:
                return taken, refused
            page = Page(limit=100, cursor=listing.next_cursor)


def _refusal(error: Exception) -> PeerRefused:
    """Return what a sink raised as a refusal; a mistake of its code is one like any other."""
    if isinstance(error, PeerRefused):
        return error
    log.error("a sink raised %s", type(error).__name__, exc_info=error)
    return PeerRefused(f"{type(error).__name__}: {error}")


def _said(error: RetinueError) -> str:
    said = error.details.get("said")
    return f"{error.message}: {said}" if said else error.message

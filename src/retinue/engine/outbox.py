"""The outbox's feeds, one per sink, started and stopped with the engine.

Nobody who writes a contract waits for a sink: the contract's commit puts it into the outbox, and a
bell says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from retinue.engine.feed import Feed, Pace
from retinue.interfaces import Backlog, Sink, Store


class SinkReport(msgspec.Struct, frozen=True):
    """How a sink does: ``failures`` counts failed deliveries since this process started."""

    healthy: bool
    failures: int
    backlog: Backlog


class Outbox:
    """The feeds of all sinks."""

    def __init__(self, store: Store, sinks: Sequence[Sink], pace: Pace | None = None) -> None:
        self.feeds = {sink.name: Feed(store, sink, pace or Pace()) for sink in sinks}
        self._store = store

    def ring(self) -> None:
        """Say that a contract was written."""
        for feed in self.feeds.values():
            feed.ring()

    def start(self) -> None:
        """Begin to deliver."""
        for feed in self.feeds.values():
            feed.start()

    async def stop(self) -> None:
        """Stop; what is not delivered stays in the outbox."""
        await asyncio.gather(*(feed.stop() for feed in self.feeds.values()))

    def lost(self) -> None:
        """Stop what is under way: this worker's lease is over."""
        for feed in self.feeds.values():
            feed.lost()

    async def report(self, sink: str) -> SinkReport:
        """Say how a sink does."""
        feed = self.feeds[sink]
        backlog = await self._store.outbox_backlog(sink)
        health = await feed.watch.known()
        well = health.healthy and feed.well and not backlog.failing
        return SinkReport(well, feed.failures, backlog)


class Grown(set[tuple[str, str]]):
    """Sessions that grew since the last anchor; each new contract rings the outbox's bell."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def add(self, session: tuple[str, str], /) -> None:
        """Take in a session that grew."""
        super().add(session)
        self._outbox.ring()

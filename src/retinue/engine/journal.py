"""The journal: events are stored, then published; a reader is a cursor over the log.

``follow`` is the one way to watch an execution, whoever runs it. A channel exists only while
somebody watches: it holds the last few committed events, so that readers near the end need no
query, and one that lags reads on from the store. Channels and pages are bounded by bytes as well:
a reader that takes nothing costs one page at most. One poll a second over all watched executions
finds what other processes wrote; publishing in this process only shortens the wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager

from retinue.domain.event import Event, EventType
from retinue.domain.execution import TERMINAL
from retinue.domain.ids import now_us
from retinue.domain.retention import REMOVED
from retinue.domain.strictjson import dumps
from retinue.errors import NotFound
from retinue.interfaces import Store, Watched

KEPT = 256
KEPT_BYTES = 64 * 1024
PAGE = 1000
PAGES_KEPT = 2
PAGE_BYTES = 64 * 1024


def truncated(execution_id: str, after: int, last: int) -> Event:
    """Return what a reader gets in place of the events from ``after`` to the ``last`` one.

    It has the number of the last event, in whose place it stands: who comes back with that number
    has seen everything there is.
    """
    data = {"removed": {"from": after + 1, "to": last}}
    return Event(execution_id, last, EventType.TRUNCATED, now_us(), dumps(data))


class _Channel:
    """What the watchers of one execution share."""

    __slots__ = ("bell", "bytes", "ended", "pages", "recent", "seq", "watchers")

    def __init__(self) -> None:
        self.watchers = 0
        self.seq = 0
        self.ended = False
        self.recent: deque[Event] = deque()
        self.bytes = 0
        self.bell: asyncio.Future[None] | None = None
        self.pages: dict[int, asyncio.Task[list[Event]]] = {}
        """The last few pages read from the store, by the cursor they follow: readers that lag
        together read once."""

    def ring(self) -> None:
        bell, self.bell = self.bell, None
        if bell is not None and not bell.done():
            bell.set_result(None)

    def keep(self, event: Event) -> None:
        """Keep the next event, and let go of those that are too many or too large."""
        if self.recent and event.seq != self.recent[-1].seq + 1:
            self.forget()  # another process wrote in between
        self.recent.append(event)
        self.bytes += len(event.data)
        while len(self.recent) > KEPT or (self.bytes > KEPT_BYTES and self.recent):
            self.bytes -= len(self.recent.popleft().data)

    def forget(self) -> None:
        """Keep none: readers turn to the store."""
        self.recent.clear()
        self.bytes = 0

    def since(self, cursor: int) -> list[Event] | None:
        """Return the recent events after ``cursor``, or None when they do not reach back so far."""
        if not self.recent or self.recent[0].seq > cursor + 1:
            return None
        return [event for event in self.recent if event.seq > cursor]


class Journal:
    """Follows and publishes events of executions."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._channels: dict[str, _Channel] = {}
        self._closing = False

    @property
    def watched(self) -> list[str]:
        """The executions that somebody watches."""
        return list(self._channels)

    def publish(self, events: Sequence[Event]) -> None:
        """Tell the watchers about events of one execution that are committed, in order."""
        channel = self._channels.get(events[0].execution_id)
        if channel is None:
            return
        for event in events:
            channel.keep(event)
            channel.seq = max(channel.seq, event.seq)
            channel.ended = channel.ended or event.terminal
        channel.ring()

    def heard(self, watched: Sequence[Watched]) -> None:
        """Take in what a poll found."""
        for seen in watched:
            channel = self._channels.get(seen.id)
            if channel is None:
                continue
            ended = seen.state in TERMINAL
            if seen.last_seq > channel.seq or ended is not channel.ended:
                channel.seq = max(channel.seq, seen.last_seq)
                channel.ended = ended
                channel.ring()

    def close(self) -> None:
        """End every follow: its reader comes back with its cursor after the restart."""
        self._closing = True
        for channel in self._channels.values():
            channel.ring()

    def is_watched(self, execution_id: str) -> bool:
        """Say whether somebody watches."""
        return execution_id in self._channels

    async def follow(
        self, execution_id: str, *, after: int = 0, heartbeat: float | None = None
    ) -> AsyncGenerator[list[Event], None]:
        """Yield the events after ``after``, as they are committed, until the terminal one.

        What is there at one moment comes as one list. With ``heartbeat`` an empty list comes
        whenever that many seconds brought nothing.

        Raises:
            NotFound: there is no such execution.
        """
        cursor = after
        with self._watch(execution_id) as channel:
            await self._look(execution_id, channel)
            while not self._closing:
                if cursor < channel.seq:
                    events = channel.since(cursor)
                    if not events:
                        events = await self._page(execution_id, channel, cursor)
                    if (not events or events[0].seq != cursor + 1) and await self._removed(
                        execution_id
                    ):
                        yield [truncated(execution_id, cursor, channel.seq)]
                        return
                    if events:
                        cursor, terminal = events[-1].seq, events[-1].terminal
                        yield events  # the reader's own: it may empty the list
                        del events
                        if terminal:
                            return
                        continue
                if channel.ended:
                    return
                if not await self._rung(channel, heartbeat):
                    yield []

    async def _page(self, execution_id: str, channel: _Channel, cursor: int) -> list[Event]:
        """Read a page from the store, or share one that was read, or is being read, already."""
        page = channel.pages.get(cursor)
        if page is None:
            page = asyncio.create_task(self._read(execution_id, cursor))
            channel.pages[cursor] = page
            while len(channel.pages) > PAGES_KEPT:
                del channel.pages[next(iter(channel.pages))]
            page.add_done_callback(lambda read: _forget(channel, cursor, read))
        # A reader that leaves takes nobody along. Events never change; a reader's list may.
        return list(await asyncio.shield(page))

    async def _read(self, execution_id: str, cursor: int) -> list[Event]:
        events = await self._store.events(
            execution_id, after=cursor, limit=PAGE, most_bytes=PAGE_BYTES
        )
        return list(events)

    async def _removed(self, execution_id: str) -> bool:
        """Say whether retention has removed the events."""
        marks = await self._store.marks_of([execution_id])
        return any(mark.kind == REMOVED for mark in marks)

    async def wait(self, execution_id: str) -> None:
        """Return once the execution has ended, or this process stops.

        Raises:
            NotFound: there is no such execution.
        """
        with self._watch(execution_id) as channel:
            await self._look(execution_id, channel)
            while not channel.ended and not self._closing:
                await self._rung(channel, None)

    @contextmanager
    def _watch(self, execution_id: str) -> Iterator[_Channel]:
        channel = self._channels.setdefault(execution_id, _Channel())
        channel.watchers += 1
        try:
            yield channel
        finally:
            channel.watchers -= 1
            if not channel.watchers:
                self._channels.pop(execution_id, None)

    async def _look(self, execution_id: str, channel: _Channel) -> None:
        """See where the execution stands; the channel is open, so nothing after this is missed."""
        seen = await self._store.watch([execution_id])
        if not seen:
            raise NotFound(f"no execution {execution_id}")
        channel.seq = max(channel.seq, seen[0].last_seq)
        channel.ended = channel.ended or seen[0].state in TERMINAL

    @staticmethod
    async def _rung(channel: _Channel, timeout: float | None) -> bool:
        """Wait until something changed; False when ``timeout`` seconds brought nothing."""
        if channel.bell is None:
            channel.bell = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait({channel.bell}, timeout=timeout)
        return bool(done)


def _forget(channel: _Channel, cursor: int, read: asyncio.Task[list[Event]]) -> None:
    """Drop a page that is none (it could not be read, or nothing is there yet), or too large."""
    failed = read.cancelled() or read.exception() is not None
    size = 0 if failed else sum(len(event.data) for event in read.result())
    if not 0 < size <= PAGE_BYTES and channel.pages.get(cursor) is read:
        del channel.pages[cursor]

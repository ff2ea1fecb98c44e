"""The pen writes one attempt's events into the journal while the agent goes on.

The first piece of text goes out at once; later ones are merged for at most 50 ms or 4 KiB; every
other kind of event takes what is waiting with it. One commit is under way at a time, the next one
gathers meanwhile; an agent that writes faster than the store waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from retinue.domain.event import Event, EventData, EventType
from retinue.domain.ids import now_us
from retinue.domain.intent import Append, Fence
from retinue.domain.result import Appended, Conflict
from retinue.domain.strictjson import NotJson, check, dumps
from retinue.engine.journal import Journal
from retinue.errors import InvalidResult, StoreBroken, Unavailable, WorkerLost
from retinue.interfaces import Store

MERGE_SECONDS = 0.05
MERGE_BYTES = 4096
MOST_MERGED = 64 * 1024
MOST_WAITING = 256 * 1024
MOST_EVENT = 1 << 20
PATIENCE = 0.2


class Pen:
    """Writes the events of one attempt, in order."""

    def __init__(
        self, store: Store, journal: Journal, fence: Fence, on_fenced: Callable[[], None]
    ) -> None:
        self._store = store
        self._journal = journal
        self._fence = fence
        self._on_fenced = on_fenced
        self._waiting: list[EventData] = []
        self._text: EventData | None = None  # comes after those, with ``_parts`` as its content
        self._parts: list[str] = []
        self._length = 0
        self._bytes = 0
        self._merged = 0
        self._streamed = False
        self._ending = False
        self._task: asyncio.Task[None] | None = None
        self._hurry: asyncio.Event | None = None

    async def write(self, event: EventData) -> None:
        """Take one event of the agent's.

        Raises:
            InvalidResult: its data is not JSON, or larger than 1 MiB.
        """
        try:
            check(event.data, MOST_EVENT)
        except NotJson as error:
            raise InvalidResult(f"the agent's {event.type.value} event: {error}") from None
        urgent = True
        if event.type is EventType.CONTENT_CHUNK:
            urgent = not self._streamed
            self._streamed = True
            self._merge(event)
        else:
            self._end_text()
            self._waiting.append(event)
            self._bytes += len(dumps(event.data))
        if urgent or self._merged >= MERGE_BYTES:
            self._push()
        elif self._task is None:
            self._task = asyncio.create_task(self._flush(MERGE_SECONDS))
        while self._bytes > MOST_WAITING and self._task is not None:
            self._push()
            await asyncio.wait({self._task})

    def _merge(self, event: EventData) -> None:
        """Join a piece of text to what waits last, if the same node said it and both count.

        What is joined is kept in parts: a stream of short lines must not be copied line by line.
        """
        content = event.data.get("content", "")
        size = len(content)
        self._merged += size
        self._bytes += size
        last = self._text
        if (
            last is None
            or event.data.get("is_reset")
            or last.data.get("node_name") != event.data.get("node_name")
            or self._length + size > MOST_MERGED
        ):
            self._end_text()
            self._text = event
        else:
            self._text = EventData(last.type, last.data, event.cursor)
        self._parts.append(content)
        self._length += size

    def _end_text(self) -> None:
        """Have what was joined wait like any other event."""
        text = self._text
        if text is not None:
            data = {**text.data, "content": "".join(self._parts)}
            self._waiting.append(EventData(text.type, data, text.cursor))
            self._text = None
            self._parts.clear()
            self._length = 0

    def _push(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._flush(0.0))
        elif self._hurry is not None:
            self._hurry.set()

    async def _flush(self, delay: float) -> None:
        """Commit what waits until nothing does; one task per pen at a time."""
        try:
            while (self._waiting or self._text is not None) and not self._ending:
                if delay:
                    self._hurry = asyncio.Event()
                    try:
                        await asyncio.wait_for(self._hurry.wait(), delay)
                    except TimeoutError:
                        pass
                    self._hurry = None
                await self._commit(self._take())
                only_text = all(e.type is EventType.CONTENT_CHUNK for e in self._waiting)
                delay = MERGE_SECONDS if only_text and self._merged < MERGE_BYTES else 0.0
        finally:
            self._task = None

    def _take(self) -> tuple[EventData, ...]:
        self._end_text()
        events = tuple(self._waiting)
        self._waiting = []
        self._bytes = self._merged = 0
        return events

    async def _commit(self, events: tuple[EventData, ...]) -> None:
        at = now_us()
        while True:
            try:
                result = await self._store.write(Append(self._fence, events, at))
                break
            except (WorkerLost, StoreBroken):
                self._on_fenced()
                return
            except Unavailable:
                # The store is away. The agent's events wait for it rather than be lost.
                await asyncio.sleep(PATIENCE)
        if isinstance(result, Conflict):
            self._on_fenced()
            return
        assert isinstance(result, Appended)
        publish(self._journal, self._fence.execution_id, result.first_seq, events, at)

    async def rest(self) -> tuple[EventData, ...]:
        """End the writing; return what was not committed yet, for the last commit to carry."""
        self._ending = True
        while self._task is not None:
            if self._hurry is not None:
                # Only merging: no need to commit it apart.
                self._task.cancel()
            await asyncio.wait({self._task})
        self._ending = False
        return self._take()


def publish(
    journal: Journal, execution_id: str, first: int, events: tuple[EventData, ...], at: int
) -> None:
    """Publish events that are committed."""
    if journal.is_watched(execution_id):
        journal.publish(
            [
                Event(execution_id, first + i, event.type, at, dumps(event.data))
                for i, event in enumerate(events)
            ]
        )

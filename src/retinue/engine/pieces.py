"""Events in pieces: how a stream sends what is large without ever holding it whole.

A reader that takes nothing costs one piece, not one result. Small events stay together; of a large
one each piece is read from the store when the one before is on its way, of a large result from
what all streams share. The result stands in the terminal event only at the door: the ledger keeps
it once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import msgspec

from retinue.domain.event import Event, EventType, Piece
from retinue.domain.execution import Execution, State
from retinue.engine.complete import complete
from retinue.errors import StoreUnavailable
from retinue.interfaces import Store

PIECE_BYTES = 32 * 1024
SHARED_BYTES = 24 << 20

_WITH_RESULT = frozenset({EventType.COMPLETED, EventType.TRUNCATED})
_Read = Callable[[int, int], Awaitable[bytes | None]]


class Results:
    """The large results that streams are sending: read once, shared, bounded in bytes.

    Neither store reads the middle of a body without its beginning. Streams hold none of it: one
    that comes back for its next piece after others took the room has the result read again.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._reading: dict[str, asyncio.Task[bytes | None]] = {}
        self._ending: dict[tuple[str, bytes], asyncio.Task[Piece | None]] = {}

    async def ending(self, event: Event) -> Piece | None:
        """Complete an execution's last event; None when its result is large.

        Readers that come to the end together share what is read, and nobody keeps it.
        """
        key = (event.execution_id, event.data)
        ending = self._ending.get(key)
        if ending is None:
            ending = self._ending[key] = asyncio.create_task(self._end(event))
            ending.add_done_callback(lambda read: self._ended(key, read))
        return await asyncio.shield(ending)

    def _ended(self, key: tuple[str, bytes], read: asyncio.Task[Piece | None]) -> None:
        del self._ending[key]
        if not read.cancelled():
            read.exception()  # heard, though every reader may have left

    async def _end(self, event: Event) -> Piece | None:
        execution = await self.store.execution(event.execution_id, None)
        body = await self.store.result(execution, 0, PIECE_BYTES) if execution else None
        if body is not None and len(body) >= PIECE_BYTES:
            return None
        return (await complete(self.store, event)).piece

    async def part(self, execution: Execution, offset: int, length: int) -> bytes | None:
        """Return a part of an execution's result; None when it is not there."""
        body = self._kept.get(execution.id)
        if body is not None:
            self._kept.move_to_end(execution.id)
            return body[offset : offset + length]
        reading = self._reading.get(execution.id)
        if reading is None:
            reading = self._reading[execution.id] = asyncio.create_task(self._read(execution))
        body = await asyncio.shield(reading)
        return body[offset : offset + length] if body is not None else None

    async def _read(self, execution: Execution) -> bytes | None:
        try:
            _, body = await self.store.bodies(execution)
        finally:
            del self._reading[execution.id]
        if body is not None:
            self._kept[execution.id] = body
            self._bytes += len(body)
            while self._bytes > SHARED_BYTES and len(self._kept) > 1:
                _, let_go = self._kept.popitem(last=False)
                self._bytes -= len(let_go)
        return body


async def in_pieces(
    results: Results, batches: AsyncGenerator[list[Event], None]
) -> AsyncGenerator[list[Piece], None]:
    """Yield the events of ``batches`` as lists of pieces of about ``PIECE_BYTES``.

    An empty batch, the sign of life, stays empty. The batches are emptied.
    """
    async with aclosing(batches):
        async for batch in batches:
            if not batch:
                yield []
            events = deque(batch)
            batch.clear()  # so that nobody but us holds them
            together: list[Piece] = []
            size = 0
            while events:
                event = events.popleft()
                if event.type in _WITH_RESULT:
                    whole = await results.ending(event)
                else:
                    whole = event.piece if len(event.data) <= PIECE_BYTES else None
                if whole is not None and size + len(whole.wire) <= PIECE_BYTES:
                    together.append(whole)
                    size += len(whole.wire)
                    continue
                if together:
                    yield together
                if whole is not None:
                    together, size = [whole], len(whole.wire)
                    continue
                together, size = [], 0
                parts = _pieces(results, event)
                del event, whole
                async for part in parts:
                    yield [part]
                    del part
            if together:
                yield together


async def _pieces(results: Results, event: Event) -> AsyncIterator[Piece]:
    """Yield an event that is large, or the last one with a large result, piece by piece."""
    store, seq = results.store, event.seq
    yield Piece(seq, event.wire_head(), last=False)
    if event.type in _WITH_RESULT:
        async for part in _completed(results, event):
            yield Piece(seq, part, first=False, last=False)
        yield Piece(seq, event.wire_tail(), first=False)
        return
    bare = msgspec.structs.replace(event, data=b"")
    del event

    async def read(offset: int, length: int) -> bytes:
        return await store.data_of(bare, offset, length)

    yield Piece(seq, b",", first=False, last=False)
    async for part in _parts(read, 1):
        yield Piece(seq, part, first=False, last=False)
    yield Piece(seq, b"", first=False)


async def _completed(results: Results, event: Event) -> AsyncIterator[bytes]:
    """Yield what ``complete`` adds to the last event, a large result part by part."""
    execution = await results.store.execution(event.execution_id, None)
    if execution is None:
        return

    async def read(offset: int, length: int) -> bytes | None:
        return await results.part(execution, offset, length)

    if event.type is EventType.COMPLETED:
        is_text = await results.store.result(execution, 0, 1) == b'"'
        quote = b"" if is_text else b'"'
        yield b',"final_response":' + quote
        async for part in _parts(read, 0):
            yield part if is_text else _escaped(part)
        yield quote + b',"result":'
    else:
        kind = b"result" if execution.state is State.COMPLETED else b"failure"
        yield b',"state":"%b","%b":' % (execution.state.value.encode(), kind)
    async for part in _parts(read, 0):
        yield part


async def _parts(read: _Read, offset: int) -> AsyncIterator[bytes]:
    """Yield what ``read`` gives from ``offset`` to the end, part by part.

    Raises:
        StoreUnavailable: it is not there any more.
    """
    while True:
        part = await read(offset, PIECE_BYTES)
        if part is None:
            raise StoreUnavailable("what was being sent is not there any more")
        if part:
            yield part
        if len(part) < PIECE_BYTES:
            return
        offset += PIECE_BYTES


def _escaped(json: bytes) -> bytes:
    """Return JSON of our own encoder as the inside of a JSON string; it has no control characters.

    What is escaped is ASCII, so that parts may begin and end within a character.
    """
    return json.replace(b"\\", b"\\\\").replace(b'"', b'\\"')

"""Many readers of one execution that lag behind together: the store is asked once for all."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from retinue import Context, Orchestrator, Runtime, Settings, capability
from retinue.domain.event import Event
from retinue.domain.execution import Task
from retinue.errors import StoreUnavailable
from retinue.interfaces import PAGE_BYTES
from retinue.storage.sqlite import SqliteStore

EVENTS = 2500
READERS = 30


class Counting(SqliteStore):
    """A store that counts its reads of events, and lets none through while it is held."""

    def __init__(self) -> None:
        super().__init__(None)
        self.reads = 0
        self.away = False
        self.let = asyncio.Event()
        self.let.set()

    async def events(
        self,
        execution_id: str,
        /,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = PAGE_BYTES,
    ) -> Sequence[Event]:
        self.reads += 1
        await self.let.wait()
        if self.away:
            raise StoreUnavailable
        return await super().events(execution_id, after=after, limit=limit, most_bytes=most_bytes)


@capability()
async def tell(context: Context) -> None:
    """Emit events."""
    for number in range(EVENTS):
        context.progress(number, "step")


@pytest.fixture
async def store() -> Counting:
    return Counting()


@pytest.fixture
async def orchestrator(store: Counting) -> AsyncIterator[Orchestrator]:
    settings = Settings(database_url="sqlite://", examples=False, entry_points=False)
    runtime = Runtime(settings, store=store)
    orchestrator = await runtime.start()
    orchestrator.register_agent(tell)
    yield orchestrator
    store.let.set()
    await runtime.stop(grace=1)


@pytest.fixture
async def told(orchestrator: Orchestrator) -> str:
    reply = await orchestrator.perform(Task(session_id="s", capability="tell", parameters={}))
    assert reply.success
    return reply.execution_id


async def read(orchestrator: Orchestrator, execution_id: str) -> list[int]:
    seen: list[int] = []
    async for events in orchestrator.follow(execution_id):
        seen += [event.seq for event in events]
    return seen


async def test_they_share_what_is_read(
    orchestrator: Orchestrator, store: Counting, told: str
) -> None:
    everything = list(range(1, EVENTS + 2))
    store.reads = 0
    readers = [read(orchestrator, told) for _ in range(READERS)]
    assert await asyncio.gather(*readers) == [everything] * READERS
    assert store.reads == 3
    # Nobody watches any more, so nothing of it is kept.
    store.reads = 0
    assert await read(orchestrator, told) == everything
    assert store.reads == 3


async def test_one_that_leaves_takes_nobody_along(
    orchestrator: Orchestrator, store: Counting, told: str
) -> None:
    store.let.clear()
    store.reads = 0
    leaving, staying = [asyncio.create_task(read(orchestrator, told)) for _ in range(2)]
    while not store.reads:
        await asyncio.sleep(0.001)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    store.let.set()
    assert len(await staying) == EVENTS + 1


async def test_what_could_not_be_read_is_read_again(
    orchestrator: Orchestrator, store: Counting, told: str
) -> None:
    store.let.clear()
    store.away = True
    store.reads = 0
    readers = [asyncio.create_task(read(orchestrator, told)) for _ in range(2)]
    while not store.reads:
        await asyncio.sleep(0.001)
    store.let.set()
    for reader in readers:
        with pytest.raises(StoreUnavailable):
            await reader
    store.away = False
    assert len(await read(orchestrator, told)) == EVENTS + 1

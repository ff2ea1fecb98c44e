"""PostgreSQL while connections break and the server dies: nothing lost, nothing invented."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import pytest

from retinue.domain.execution import Execution, State
from retinue.domain.ids import now_us
from retinue.domain.intent import Append, Intent
from retinue.domain.result import Appended
from retinue.errors import InvalidInput, StoreUnavailable, Unavailable, WorkerLost
from retinue.interfaces import ExecutionFilter, Page
from retinue.storage.postgres import PostgresStore
from retinue.testing.servers import PostgresServer
from retinue.testing.store_samples import (
    execution,
    fence,
    finish,
    load,
    run,
    submit,
    text,
    until,
    verify_chain,
    verify_events,
)

Open: TypeAlias = Callable[..., Awaitable[PostgresStore]]
Sql: TypeAlias = Callable[..., Awaitable[list[Any]]]
RECOVERY_SECONDS = 5.0
QUICK_SECONDS = 2.0


def append(e: Execution) -> Append:
    return Append(fence(e), (text(),), now_us())


class Load:
    """Callers that submit, write and finish; it keeps what was acknowledged, and when."""

    def __init__(self, store: PostgresStore) -> None:
        self.store = store
        self.ended: dict[str, int] = {}
        self.times: list[float] = []
        self.refused = 0
        self.stopping = False

    async def caller(self, number: int) -> None:
        turn = 0
        while not self.stopping:
            turn += 1
            e = execution(session_id=f"s{number % 4}", key=f"k{number}")
            try:
                await run(self.store, e)
                written = 0
                for _ in range(turn % 3):
                    await self.acknowledged(Append(fence(e), (text("x"), text("y")), now_us()))
                    written += 2
                await self.acknowledged(finish(e))
                self.ended[e.id] = written + 1
            except Unavailable:
                self.refused += 1
                await asyncio.sleep(0.01)
            except WorkerLost:
                self.refused += 1

    async def acknowledged(self, intent: Intent) -> None:
        result = await self.store.write(intent)
        assert isinstance(result, Appended), result
        self.times.append(time.monotonic())

    @contextlib.asynccontextmanager
    async def under_way(self, callers: int) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.caller(i)) for i in range(callers)]
        try:
            yield
            self.stopping = True
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def more(self, count: int) -> None:
        """Wait for more acknowledgements."""
        before = len(self.times)

        async def grown() -> bool:
            return len(self.times) >= before + count

        await until(grown)

    async def verify(self) -> None:
        """Check that all acknowledged is there, once, and that the chains hold."""
        answered: dict[str, int] = {}
        for i in range(4):
            for row in await verify_chain(self.store, "ann", f"s{i}"):
                if row.status is not None and row.execution_id is not None:
                    answered[row.execution_id] = answered.get(row.execution_id, 0) + 1
        assert set(answered.values()) == {1}
        for execution_id, events in self.ended.items():
            stored = await self.store.execution(execution_id, None)
            assert stored is not None
            assert stored.state is State.COMPLETED
            assert answered[execution_id] == 1
            assert len(await verify_events(self.store, stored)) == events
        listing = await self.store.executions(ExecutionFilter(state=State.COMPLETED), Page(1))
        assert listing.total == len(answered)


class TestLostConnections:
    async def test_killed_connections_cost_and_double_nothing(self, opened: Open, sql: Sql) -> None:
        load = Load(await opened())
        async with load.under_way(24):
            for _ in range(25):
                await load.more(20)
                await sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
        assert load.refused == 0
        await load.verify()

    async def test_a_commit_whose_answer_was_lost_is_recognised(self, opened: Open) -> None:
        store = await opened()
        e = await run(store)
        async with through_proxy(store) as proxy:
            for number in range(1, 6):
                proxy.lose_answer_to_commit = True
                assert await store.write(append(e)) == Appended(number)
                assert not proxy.lose_answer_to_commit
        assert len(await verify_events(store, e)) == 5

    async def test_a_commit_that_never_arrived_is_repeated(self, opened: Open) -> None:
        store = await opened()
        e = await run(store)
        async with through_proxy(store) as proxy:
            for number in range(1, 6):
                proxy.lose_commit = True
                assert await store.write(append(e)) == Appended(number)
                assert not proxy.lose_commit
        assert len(await verify_events(store, e)) == 5

    async def test_a_commit_that_never_arrived_is_not_invented(
        self, opened: Open, sql: Sql
    ) -> None:
        store = await opened()
        e = await run(store)
        async with through_proxy(store) as proxy:
            proxy.lose_commit = True
            proxy.when_lost = partial(sql, "UPDATE worker SET stopped_at = 1")
            with pytest.raises(WorkerLost):
                await store.write(append(e))
            assert await store.events(e.id) == []

    async def test_a_commit_in_doubt_waits_while_the_server_is_away(self, opened: Open) -> None:
        store = await opened()
        e = await run(store)
        async with through_proxy(store) as proxy:
            proxy.lose_answer_to_commit = True
            lost = asyncio.Event()

            async def gone() -> None:
                await proxy.close()
                lost.set()

            proxy.when_lost = gone
            doubtful = asyncio.create_task(store.write(append(e)))
            await lost.wait()
            await until(lambda: _refuses(store))
            assert not doubtful.done()
            await proxy.open()
            assert await doubtful == Appended(1)
            assert await store.write(append(e)) == Appended(2)

    async def test_a_read_survives_its_connection(self, opened: Open, sql: Sql) -> None:
        store = await opened()
        e = await run(store)
        for _ in range(5):
            assert await load(store, e) == e
            await sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    async def test_no_error_of_the_driver_comes_through(self, opened: Open) -> None:
        store = await opened()
        with pytest.raises(InvalidInput):
            await store.execution("\0", None)
        bad, good = execution(session_id="a\0b"), execution()
        results = await asyncio.gather(
            store.write(submit(bad)), store.write(submit(good)), return_exceptions=True
        )
        assert isinstance(results[0], InvalidInput)
        assert (await load(store, good)).state is State.QUEUED


class Proxy:
    """Passes bytes to the server; can lose a COMMIT, or the answer to one that was carried out."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._pumps: set[asyncio.Task[None]] = set()
        self.port = 0
        self.lose_commit = False
        self.lose_answer_to_commit = False
        self.when_lost: Callable[[], Awaitable[Any]] | None = None

    async def open(self) -> None:
        """Listen: on the port it had before, if it had one."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more."""
        self._server.close()

    async def end(self) -> None:
        """Listen no more, and drop all connections."""
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accept(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_connection("127.0.0.1", self._server_port)
        pump = asyncio.create_task(self._pass(client, back, answers, server))
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)

    async def _pass(
        self,
        client: asyncio.StreamReader,
        back: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> None:
        """Pass bytes both ways until either end is closed, or something is to be lost."""
        ways = [
            asyncio.create_task(self._one_way(client, server, "lose_commit")),
            asyncio.create_task(self._one_way(answers, back, "lose_answer_to_commit")),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if any(way.done() and way.result() for way in ways) and self.when_lost is not None:
                server.close()
                await self.when_lost()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for writer in (server, back):
                writer.close()

    async def _one_way(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, loss: str
    ) -> bool:
        """Pass bytes on; say whether it ended because they were to be lost."""
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if getattr(self, loss) and b"COMMIT\0" in data:
                    setattr(self, loss, False)
                    return True
                target.write(data)
                await target.drain()
        return False


@contextlib.asynccontextmanager
async def through_proxy(store: PostgresStore) -> AsyncIterator[Proxy]:
    """Put a proxy between a store's writer and its server."""
    direct = urlsplit(store._dsn)
    assert direct.port is not None
    proxy = Proxy(direct.port)
    await proxy.open()
    store._dsn = direct._replace(netloc=f"{direct.username}@127.0.0.1:{proxy.port}").geturl()
    store._drop_writer()
    try:
        yield proxy
    finally:
        store._dsn = direct.geturl()
        await proxy.end()


async def _refuses(store: PostgresStore) -> bool:
    try:
        await store.write(submit(execution(key="probe")))
    except StoreUnavailable:
        return True
    return False


class TestServerDies:
    @pytest.fixture
    def server(self) -> Iterator[PostgresServer]:
        with PostgresServer() as server:
            yield server

    async def test_every_acknowledged_write_outlives_it(self, server: PostgresServer) -> None:
        store = PostgresStore(server.url())
        await store.open()
        try:
            load = Load(store)
            async with load.under_way(24):
                for _ in range(3):
                    await load.more(100)
                    await asyncio.to_thread(server.kill9)
                    killed = time.monotonic()
                    with pytest.raises(StoreUnavailable):
                        await run(store, execution(key="refused"))
                    # The answers that were on their way have arrived: none follows.
                    down = time.monotonic()
                    for _ in range(5):
                        with pytest.raises(StoreUnavailable):
                            await run(store, execution(key="refused"))
                        with pytest.raises(StoreUnavailable):
                            await store.ping()
                    assert time.monotonic() - killed < QUICK_SECONDS
                    assert not [at for at in load.times if at > down]
                    await asyncio.to_thread(server.start)
                    back = time.monotonic()
                    await load.more(1)
                    assert time.monotonic() - back < RECOVERY_SECONDS
            await load.verify()
        finally:
            await store.close()

    async def test_an_outage_longer_than_the_lease_ends_the_epoch(
        self, server: PostgresServer
    ) -> None:
        lost = asyncio.Event()
        store = PostgresStore(server.url(), lease_seconds=1.0, on_lost=lost.set)
        await store.open()
        try:
            first = store.worker
            e = await run(store)
            await asyncio.to_thread(server.kill9)
            with pytest.raises(StoreUnavailable):
                await store.write(finish(e))
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.write(finish(e))
            assert time.monotonic() - began < QUICK_SECONDS
            await lost.wait()
            await asyncio.to_thread(server.start)
            await until(lambda: _answers(store))
            await run(store, execution(key="new"))
            assert store.worker != first
            assert [x.id for x in await store.orphans(10)] == [e.id]
        finally:
            await store.close()

    async def test_it_closes_while_the_server_is_away(self, server: PostgresServer) -> None:
        store = PostgresStore(server.url())
        await store.open()
        e = await run(store)
        await asyncio.to_thread(server.kill9)
        with pytest.raises(StoreUnavailable):
            await store.write(finish(e))
        await store.close()


async def _answers(store: PostgresStore) -> bool:
    try:
        await run(store, execution(key="probe"))
    except Unavailable:
        return False
    return True

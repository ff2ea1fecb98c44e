"""What only PostgreSQL can show: several processes, lost connections, a server that dies."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import asyncpg
import pytest

from retinue.domain.execution import Execution, State
from retinue.domain.ids import now_us
from retinue.domain.intent import Append, Appended, Conflict, Intent, Lease, Leased, Requeue
from retinue.errors import InvalidInput, StoreUnavailable, Unavailable, WorkerLost
from retinue.interfaces import ExecutionFilter, Page
from retinue.storage.migrate import migrations
from retinue.storage.postgres import PostgresStore
from retinue.testing.servers import PostgresServer
from retinue.testing.store_samples import (
    execution,
    fence,
    finish,
    lease,
    load,
    queue,
    run,
    submit,
    text,
    until,
    verify_chain,
    verify_events,
    want,
)

Open: TypeAlias = Callable[..., Awaitable[PostgresStore]]
Sql: TypeAlias = Callable[..., Awaitable[list[Any]]]
RECOVERY_SECONDS = 5.0


@pytest.fixture
async def sql(postgres_url: str) -> AsyncIterator[Sql]:
    """Run statements beside the stores."""
    db = await asyncpg.connect(postgres_url)
    yield db.fetch
    await db.close()


@pytest.fixture
async def opened(postgres_url: str) -> AsyncIterator[Open]:
    """Open stores on one database; close what is left open."""
    stores: list[PostgresStore] = []

    async def opener(**how: Any) -> PostgresStore:
        store = PostgresStore(postgres_url, **how)
        stores.append(store)
        await store.open()
        return store

    yield opener
    await asyncio.gather(*(store.close() for store in stores))


class TestSeveralProcesses:
    async def test_they_never_lease_the_same_execution(self, opened: Open) -> None:
        one, two = await asyncio.gather(opened(), opened())
        assert one.worker != two.worker
        queued = [execution(session_id=f"s{i % 7}", priority=i % 3) for i in range(200)]
        await asyncio.gather(
            *(store.write(submit(e)) for e, store in zip(queued, [one, two] * 100, strict=True))
        )

        async def worker(store: PostgresStore) -> list[Execution]:
            got: list[Execution] = []
            while part := await lease(store, want(count=3)):
                await asyncio.gather(*(store.write(finish(e)) for e in part))
                got += part
            return got

        parts = await asyncio.gather(*(worker(store) for store in [one, two] * 4))
        ids = [e.id for part in parts for e in part]
        assert sorted(ids) == sorted(e.id for e in queued)
        assert {e.worker for part in parts for e in part} <= {None, one.worker, two.worker}
        assert all(parts[0::2])
        assert all(parts[1::2])
        for i in range(7):
            await verify_chain(two, "ann", f"s{i}")

    async def test_their_writes_to_one_chain_interleave_without_deadlock(
        self, opened: Open, sql: Sql
    ) -> None:
        stores = await asyncio.gather(*(opened() for _ in range(3)))

        async def caller(store: PostgresStore, i: int) -> None:
            for turn in range(5):
                e = execution(session_id=f"s{(i + turn) % 6}", key=f"{i}", agent_id=f"a{turn % 2}")
                await run(store, e)
                await store.write(finish(e))

        await asyncio.gather(*(caller(store, i) for i in range(12) for store in stores))
        rows = [await verify_chain(stores[0], "ann", f"s{i}") for i in range(6)]
        assert sum(map(len, rows)) == 2 * 5 * 12 * 3
        (dead,) = await sql(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        assert dead[0] == 0

    async def test_only_one_of_two_takes_over(self, opened: Open) -> None:
        dead = await opened(lease_seconds=0.5)
        e = await run(dead)
        await asyncio.to_thread(dead._lease.stop)
        one, two = await asyncio.gather(opened(), opened())
        orphans = await until(lambda: one.orphans(10))
        assert [x.id for x in orphans] == [x.id for x in await two.orphans(10)] == [e.id]
        at = now_us()
        results = await asyncio.gather(
            one.write(Requeue(fence(orphans[0]), at, at)), two.write(finish(orphans[0]))
        )
        assert sum(isinstance(result, Conflict) for result in results) == 1

    async def test_a_full_queue_is_full_for_all(self, opened: Open) -> None:
        one, two = await asyncio.gather(opened(), opened())
        await queue(one, bound=1)
        refused = await two.write(submit(execution(), bound=1))
        assert not isinstance(refused, Leased)
        assert len(await lease(two)) == 1


class TestEpochs:
    async def test_who_was_taken_over_is_refused_and_begins_anew(self, opened: Open) -> None:
        lost: list[str] = []
        zombie = await opened(lease_seconds=0.5, on_lost=lambda: lost.append("lost"))
        other = await opened()
        first = zombie.worker
        e = await run(zombie)
        await asyncio.to_thread(zombie._lease.stop)
        (orphan,) = await until(lambda: other.orphans(10))
        at = now_us()
        await other.write(Requeue(fence(orphan), at, at))
        (taken,) = await lease(other)
        intents: list[Intent] = [
            Append(fence(e), (text("late"),), at),
            submit(execution(session_id="late")),
            submit(execution(session_id="late"), worker=first),
        ]
        results = await asyncio.gather(
            *(zombie.write(intent) for intent in intents), return_exceptions=True
        )
        assert [type(result) for result in results] == [WorkerLost] * 3
        assert lost == ["lost"]
        assert zombie.worker != first
        assert await zombie.session("ann", "late") is None
        # The new epoch works, and the old one's fence stays closed.
        again = await run(zombie, execution(key="new"))
        assert again.worker == zombie.worker
        refused = await zombie.write(Append(fence(e), (text("late"),), at))
        assert refused == Conflict("fenced", {"attempt": 2})
        await other.write(finish(taken))
        assert len(await verify_events(other, e)) == 2

    async def test_an_expired_lease_is_over_before_anybody_takes_over(
        self, opened: Open, sql: Sql
    ) -> None:
        store = await opened(lease_seconds=600)
        e = await run(store)
        await sql("UPDATE worker SET lease_until = 1")
        with pytest.raises(WorkerLost):
            await store.write(Append(fence(e), (text(),), now_us()))
        assert [x.id for x in await store.orphans(10)] == [e.id]

    async def test_a_takeover_waits_for_the_batch_in_flight(self, opened: Open, sql: Sql) -> None:
        zombie, other = await opened(), await opened()
        e = await run(zombie)
        before = [await sql("SELECT id FROM execution FOR UPDATE")]
        assert before
        blocker = await asyncpg.connect(zombie._dsn)
        try:
            await blocker.execute("BEGIN")
            await blocker.execute("SELECT 1 FROM execution FOR UPDATE")
            ending = asyncio.create_task(zombie.write(finish(e)))
            # Its batch holds its worker's row and waits for the execution.
            await until(lambda: _waiting(sql, 1))
            await blocker.execute("SET lock_timeout = '50ms'")
            with pytest.raises(asyncpg.LockNotAvailableError):
                await blocker.execute("UPDATE worker SET lease_until = 1")
            await blocker.execute("ROLLBACK")
            taking = asyncio.create_task(other.orphans(10))
            assert isinstance(await ending, Appended)
            assert await taking == []
        finally:
            await blocker.close()

    async def test_the_lease_is_renewed_while_the_loop_is_busy(self, opened: Open) -> None:
        lost: list[str] = []
        store = await opened(lease_seconds=1.5, on_lost=lambda: lost.append("lost"))
        e = await run(store)
        time.sleep(2.5)  # noqa: ASYNC251, an agent that never yields
        assert await store.write(finish(e)) == Appended(1)
        assert lost == []

    async def test_who_cannot_renew_hears_of_it_before_the_lease_ends(
        self, opened: Open, sql: Sql
    ) -> None:
        lost = asyncio.Event()
        store = await opened(lease_seconds=2.0, on_lost=lost.set)
        first = store.worker
        e = await run(store)
        db = await asyncpg.connect(store._dsn)
        try:
            async with db.transaction():
                await db.execute("SELECT 1 FROM worker FOR UPDATE")
                await lost.wait()
                (left,) = await sql(
                    "SELECT lease_until - (extract(epoch FROM clock_timestamp()) * 1e6) > 0"
                    " FROM worker"
                )
                assert left[0]
        finally:
            await db.close()
        # A new epoch begins as soon as it can, and the old one is over with it.
        await until(lambda: _changed(store, first))
        await run(store, execution(key="new"))
        assert [x.id for x in await store.orphans(10)] == [e.id]

    async def test_what_was_asked_for_an_older_epoch_leases_nothing(
        self, opened: Open, sql: Sql
    ) -> None:
        store = await opened()
        old = store.worker
        await sql("UPDATE worker SET stopped_at = 1")
        with pytest.raises(WorkerLost):
            await store.write(submit(execution(), worker=old))
        e = execution()
        assert not (await _submitted(store, e, old)).leased
        assert await store.write(Lease(old, (want(),), now_us())) == Leased([])
        assert [x.id for x in await lease(store)] == [e.id]

    async def test_a_closed_store_leaves_its_work_at_once(self, opened: Open) -> None:
        closing, other = await opened(), await opened()
        e = await run(closing)
        pending = [asyncio.create_task(queue(closing, execution(key=f"{i}"))) for i in range(20)]
        await asyncio.sleep(0)
        await closing.close()
        await asyncio.gather(*pending)
        assert [x.id for x in await other.orphans(10)] == [e.id]

    async def test_a_stopped_transaction_does_not_hold_others_up(self, opened: Open) -> None:
        frozen, other = await opened(lease_seconds=3), await opened()
        await run(frozen)
        # As a process stopped in the middle of a batch: its session's head is locked.
        assert frozen._writer is not None
        await frozen._writer.execute("BEGIN; SELECT 1 FROM session FOR UPDATE")
        began = time.monotonic()
        await run(other, execution(key="other"))
        assert time.monotonic() - began < RECOVERY_SECONDS
        await run(frozen, execution(key="again"))
        assert len(await verify_chain(other, "ann", "s1")) == 3


async def _changed(store: PostgresStore, worker: str) -> bool:
    return store.worker != worker


async def _waiting(sql: Sql, count: int) -> bool:
    rows = await sql(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )
    return bool(rows[0][0] >= count)


async def _submitted(store: PostgresStore, e: Execution, worker: str) -> Any:
    return await store.write(submit(e, worker=worker))


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

    async def test_a_commit_whose_answer_was_lost_is_recognised(
        self, opened: Open, sql: Sql
    ) -> None:
        store = await opened()
        e = await run(store)
        proxied = await _through_proxy(store)
        try:
            for number in range(1, 6):
                proxied.cut_after_commit = True
                assert await store.write(Append(fence(e), (text(),), now_us())) == Appended(number)
                assert not proxied.cut_after_commit
            assert len(await verify_events(store, e)) == 5
        finally:
            await proxied.close()

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
    """Passes bytes to the server; can lose the answer to a COMMIT that was carried out."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.cut_after_commit = False

    async def open(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _accept(self, up: asyncio.StreamReader, down: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [down, to_server]
        for source, target, answers in ((up, to_server, False), (from_server, down, True)):
            task = asyncio.create_task(self._pump(source, target, answers=answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if answers and self.cut_after_commit and b"COMMIT\0" in data:
                    self.cut_after_commit = False
                    break
                target.write(data)
                await target.drain()
        target.close()

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()


async def _through_proxy(store: PostgresStore) -> Proxy:
    """Put a proxy between a store's writer and its server."""
    host, _, database = store._dsn.rpartition("/")
    start, _, port = host.rpartition(":")
    proxy = Proxy(int(port))
    own = await proxy.open()
    store._dsn = f"{start}:{own}/{database}"
    store._drop_writer()
    return proxy


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
                    assert time.monotonic() - killed < 1
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
            assert time.monotonic() - began < 0.5
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


class TestOpening:
    async def test_two_may_migrate_at_once(self, opened: Open, sql: Sql) -> None:
        await asyncio.gather(*(opened() for _ in range(4)))
        rows = await sql("SELECT version FROM schema_version ORDER BY version")
        assert [row[0] for row in rows] == [number for number, _ in migrations("postgres")]

    async def test_a_newer_store_is_refused(self, opened: Open, sql: Sql) -> None:
        await (await opened()).close()
        await sql("INSERT INTO schema_version VALUES (9999, 0)")
        with pytest.raises(StoreUnavailable, match="version 9999, newer"):
            await opened()

    @pytest.mark.parametrize(
        "dsn",
        ["postgresql://nobody@127.0.0.1:1/none", "postgresql://[", "", "http://example.invalid"],
    )
    async def test_no_server_is_said(self, dsn: str) -> None:
        with pytest.raises(StoreUnavailable):
            await PostgresStore(dsn).open()

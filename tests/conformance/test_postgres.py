"""What only PostgreSQL can show: several processes on one database, their epochs and leases."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import asyncpg
import pytest

from retinue.domain.contract import ContractType
from retinue.domain.execution import Execution, State
from retinue.domain.holder import Holder
from retinue.domain.ids import now_us
from retinue.domain.intent import Append, Audit, ClaimLanes, Intent, Lease, Release, Requeue
from retinue.domain.policy import BusyPolicy
from retinue.domain.result import Appended, Claimed, Conflict, Leased, Ok, Submitted
from retinue.errors import StoreUnavailable, WorkerLost
from retinue.storage.holders import read_workers
from retinue.storage.migrate import migrations
from retinue.storage.postgres import PostgresStore
from retinue.testing.servers import PostgresServer
from retinue.testing.store_agents import put, registration
from retinue.testing.store_outbox import claim, places, settle
from retinue.testing.store_records import audited, verify_audit
from retinue.testing.store_samples import (
    SECOND,
    execution,
    fence,
    finish,
    lease,
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
QUICK_SECONDS = 2.0


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
        self, opened: Open, postgres_server: PostgresServer
    ) -> None:
        stores = await asyncio.gather(*(opened() for _ in range(3)))
        before = postgres_server.log.count("deadlock detected")

        async def caller(store: PostgresStore, i: int) -> None:
            for turn in range(5):
                e = execution(session_id=f"s{(i + turn) % 6}", key=f"{i}", agent_id=f"a{turn % 2}")
                await run(store, e)
                await store.write(finish(e))

        await asyncio.gather(*(caller(store, i) for i in range(12) for store in stores))
        rows = [await verify_chain(stores[0], "ann", f"s{i}") for i in range(6)]
        assert sum(map(len, rows)) == 2 * 5 * 12 * 3
        assert postgres_server.log.count("deadlock detected") == before

    async def test_a_session_has_one_turn_at_a_time_among_them_all(
        self, opened: Open, postgres_server: PostgresServer
    ) -> None:
        stores = await asyncio.gather(*(opened() for _ in range(3)))
        before = postgres_server.log.count("deadlock detected")
        running: dict[str, str] = {}
        waited = 0

        async def go(store: PostgresStore, e: Execution) -> None:
            assert running.setdefault(e.session_id, e.id) == e.id, "two at a time"
            await store.write(Append(fence(e), (text(),), now_us()))
            del running[e.session_id]
            await store.write(finish(e))

        async def caller(store: PostgresStore, i: int) -> None:
            nonlocal waited
            for turn in range(4):
                e = execution(
                    session_id=f"s{(i + turn) % 3}", key=f"k{i}", on_busy=BusyPolicy.ENQUEUE
                )
                await store.write(submit(e, worker=store.worker))
                if e.state is State.QUEUED:
                    waited += 1

                    async def mine(e: Execution = e) -> list[Execution]:
                        await store.write(Release("ann", e.session_id, now_us()))
                        return await lease(store, want(e.queue_key, 1))

                    (e,) = await until(mine)
                await go(store, e)

        callers = [caller(store, 10 * i + n) for n, store in enumerate(stores) for i in range(5)]
        await asyncio.gather(*callers)
        assert waited
        for i in range(3):
            rows = await verify_chain(stores[0], "ann", f"s{i}")
            asked = [row.execution_id for row in rows if row.type is ContractType.REQUEST]
            answered = [row.execution_id for row in rows if row.type is ContractType.RESPONSE]
            assert asked == answered
        assert postgres_server.log.count("deadlock detected") == before

    async def test_of_many_that_would_not_wait_one_goes(self, opened: Open) -> None:
        stores = await asyncio.gather(*(opened() for _ in range(3)))
        for turn in range(5):
            tried = [
                execution(session_id=f"s{turn}", key=f"k{i}", on_busy=BusyPolicy.REJECT)
                for i in range(9)
            ]
            results = await asyncio.gather(
                *(
                    store.write(submit(e, worker=store.worker))
                    for e, store in zip(tried, stores * 3, strict=True)
                )
            )
            assert sum(isinstance(result, Submitted) for result in results) == 1

    async def test_their_audit_is_one_chain(self, opened: Open) -> None:
        stores = await asyncio.gather(opened(), opened())

        async def caller(store: PostgresStore) -> None:
            for i in range(5):
                await store.write(Audit(audited(target=str(i)), now_us()))

        await asyncio.gather(*(caller(store) for store in stores * 4))
        assert await verify_audit(stores[0]) == 40

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

    async def test_a_session_that_another_removed_is_made_again(
        self, opened: Open, sql: Sql
    ) -> None:
        store = await opened()
        await run(store)
        await sql("DELETE FROM contract")
        await sql("DELETE FROM session")
        await run(store)
        assert len(await verify_chain(store, "ann", "s1")) == 1

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
            append(e),
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
        refused = await zombie.write(append(e))
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
            await store.write(append(e))
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


def append(e: Execution) -> Append:
    return Append(fence(e), (text(),), now_us())


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


class TestHolders:
    async def test_the_living_are_named_and_where_they_serve(
        self, opened: Open, sql: Sql, schema_url: str
    ) -> None:
        assert await read_workers(schema_url) == []  # no schema at all
        first, second = await opened(url="http://127.0.0.1:1"), await opened()
        far, gone = await opened(url="http://127.0.0.1:2"), await opened()
        await sql("UPDATE worker SET node = 'far.away' WHERE id = $1", far.worker)
        await sql("UPDATE worker SET lease_until = 0 WHERE id = $1", gone.worker)
        assert await read_workers(schema_url) == [
            Holder(os.getpid(), "http://127.0.0.1:2", far.worker, "far.away"),
            Holder(os.getpid(), None, second.worker),
            Holder(os.getpid(), "http://127.0.0.1:1", first.worker),
        ]
        await first.close()
        assert [holder.worker for holder in await read_workers(schema_url)] == [
            far.worker,
            second.worker,
        ]

    async def test_a_new_epoch_serves_where_the_last_one_did(
        self, opened: Open, sql: Sql, schema_url: str
    ) -> None:
        store = await opened(url="http://127.0.0.1:1")
        before = store.worker
        await sql("UPDATE worker SET stopped_at = 1 WHERE id = $1", before)
        with pytest.raises(WorkerLost):
            await run(store)
        assert store.worker != before
        (holder,) = await read_workers(schema_url)
        assert (holder.worker, holder.url) == (store.worker, "http://127.0.0.1:1")

    async def test_a_schema_of_before_names_nobody(self, sql: Sql, schema_url: str) -> None:
        await sql(
            "CREATE TABLE worker (id TEXT, node TEXT, pid BIGINT, started_at BIGINT,"
            " lease_until BIGINT, stopped_at BIGINT)"
        )
        assert await read_workers(schema_url) == []


class TestOutbox:
    async def test_writers_and_feeds_of_two_processes_never_wait_for_each_other(
        self, opened: Open, sql: Sql
    ) -> None:
        stores = await asyncio.gather(opened(), opened())
        for store in stores:
            store.sinks = ("trace", "other")
        names = [f"s{number}" for number in range(6)]

        async def write(store: PostgresStore) -> None:
            for number in range(25):
                e = execution(session_id=names[number % 6])
                await store.write(submit(e, worker=store.worker))
                await store.write(finish(e))

        taken: dict[tuple[str, str], list[int]] = {}

        async def feed(store: PostgresStore, sink: str) -> None:
            while (await store.outbox_backlog(sink)).contracts or not written.done():
                for lane in await claim(store, 2, sink=sink, at=60 * SECOND):
                    got = taken.setdefault((sink, lane.session_id), [])
                    got += await places(store, lane, 2)
                    assert await settle(store, lane, got[-1] + 1) == Ok()

        written = asyncio.gather(*(write(store) for store in stores for _ in range(4)))
        feeds = [feed(store, sink) for store in stores for sink in ("trace", "other")]
        await asyncio.gather(written, *feeds)
        for sink in ("trace", "other"):
            for name in names:
                session = await stores[0].session("ann", name)
                assert session is not None
                assert taken[sink, name] == list(range(1, session.n + 1))
        # A deadlock would have been resolved by trying again, a second later.
        rows = await sql(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        assert rows[0][0] == 0

    async def test_a_claim_asked_for_by_an_epoch_that_is_over_takes_nothing(
        self, opened: Open
    ) -> None:
        store = await opened()
        store.sinks = ("trace",)
        await run(store)
        stale = ClaimLanes("trace", "an earlier epoch", 10, now_us() + SECOND)
        assert await store.write(stale) == Claimed([])
        assert len(await claim(store, at=SECOND)) == 1


class TestOpening:
    @pytest.mark.parametrize("had", [(1,), (1, 6)])
    async def test_an_older_schema_is_brought_up_to_date(
        self, opened: Open, sql: Sql, had: tuple[int, ...]
    ) -> None:
        scripts = dict(migrations("postgres"))
        await sql("CREATE TABLE schema_version (version BIGINT PRIMARY KEY, at BIGINT NOT NULL)")
        for number in had:
            for statement in scripts[number].split(";\n"):
                if statement.strip():
                    await sql(statement)
            await sql("INSERT INTO schema_version VALUES ($1, 0)", number)
        store = await opened()
        rows = await sql("SELECT version FROM schema_version ORDER BY version")
        assert [row[0] for row in rows] == sorted(scripts)
        store.sinks = ("trace",)
        await run(store)
        assert len(await claim(store, at=SECOND)) == 1

    async def test_two_may_migrate_at_once(self, opened: Open, sql: Sql) -> None:
        await asyncio.gather(*(opened() for _ in range(4)))
        rows = await sql("SELECT version FROM schema_version ORDER BY version")
        assert [row[0] for row in rows] == [number for number, _ in migrations("postgres")]

    async def test_a_store_of_the_first_version_is_brought_up_to_date(
        self, opened: Open, sql: Sql, schema_url: str
    ) -> None:
        db = await asyncpg.connect(schema_url)
        try:
            await db.execute("CREATE TABLE schema_version (version BIGINT PRIMARY KEY, at BIGINT)")
            await db.execute(migrations("postgres")[0][1])
            await db.execute("INSERT INTO schema_version VALUES (1, 0)")
        finally:
            await db.close()
        old = await opened()
        assert await old.write(put(registration())) == Ok()
        assert len(await old.agents()) == 1
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

"""What only SQLite can show: the lock, the full disk, the file."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from retinue.domain.holder import Holder
from retinue.domain.ids import now_us
from retinue.domain.intent import Requeue
from retinue.domain.result import Ok
from retinue.errors import StoreDamaged, StoreFull, StoreLocked, StoreUnavailable
from retinue.storage.lockfile import LockFile, read_holder
from retinue.storage.migrate import migrations, missing
from retinue.storage.sqlite import SqliteStore
from retinue.testing.store_agents import put, registration
from retinue.testing.store_samples import execution, fence, finish, load, run, submit, verify_chain


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "ledger.db")
    await store.open()
    yield store
    await store.close()


class TestLock:
    async def test_a_second_open_names_the_first(self, store: SqliteStore) -> None:
        assert store.path is not None
        second = SqliteStore(store.path)
        with pytest.raises(StoreLocked, match=f"process {os.getpid()} has this store open") as told:
            await second.open()
        assert told.value.details == {"pid": os.getpid(), "url": None}
        store.describe("http://127.0.0.1:8000")
        with pytest.raises(StoreLocked, match=r"serving http://127\.0\.0\.1:8000") as told:
            await second.open()
        assert told.value.details["url"] == "http://127.0.0.1:8000"
        await run(store)

    async def test_where_it_serves_is_in_its_row_as_well(self, tmp_path: Path) -> None:
        store = SqliteStore(tmp_path / "served.db", url="http://127.0.0.1:1")
        await store.open()
        await store.close()
        with closing(sqlite3.connect(tmp_path / "served.db")) as db:
            rows = db.execute("SELECT id, url FROM worker").fetchall()
        assert rows == [(store.worker, "http://127.0.0.1:1")]

    async def test_it_is_free_again_after_close(self, store: SqliteStore) -> None:
        assert store.path is not None
        first = store.worker
        await run(store)
        await store.close()
        await store.open()
        assert store.worker != first
        assert len(await store.orphans(10)) == 1

    def test_the_file_names_who_holds_it(self, tmp_path: Path) -> None:
        path = tmp_path / "a.lock"
        assert read_holder(path) is None
        lock = LockFile(path, path.with_suffix(".db"))
        lock.acquire("http://127.0.0.1:1")
        assert read_holder(path) == Holder(os.getpid(), "http://127.0.0.1:1")
        lock.describe("http://127.0.0.1:22")
        assert read_holder(path) == Holder(os.getpid(), "http://127.0.0.1:22")
        lock.release()
        assert read_holder(path) is None
        lock.acquire(None)
        assert read_holder(path) == Holder(os.getpid())
        lock.release()
        lock.release()

    def test_a_lock_without_a_readable_holder_holds_all_the_same(self, tmp_path: Path) -> None:
        path = tmp_path / "a.lock"
        lock = LockFile(path, path.with_suffix(".db"))
        lock.acquire(None)
        path.write_bytes(b"not json")
        assert read_holder(path) is None
        with pytest.raises(StoreLocked, match="another process"):
            LockFile(path, path.with_suffix(".db")).acquire(None)
        lock.release()

    async def test_a_removed_lock_file_lets_nobody_in(
        self, store: SqliteStore, tmp_path: Path
    ) -> None:
        assert store.path is not None
        store.path.with_suffix(".lock").unlink()
        for _ in range(2):  # the second one finds the file that the first one made
            # From another process: closing a file takes this one's own locks on it.
            script = (
                "import asyncio, sys; from pathlib import Path\n"
                "from retinue.storage.sqlite import SqliteStore\n"
                "asyncio.run(SqliteStore(Path(sys.argv[1])).open())"
            )
            command = [sys.executable, "-c", script, str(store.path)]
            done = await asyncio.to_thread(_run, command)
            assert done.returncode
            assert "StoreLocked" in done.stderr
        await run(store)

    async def test_a_failed_open_gives_the_lock_up(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger.db"
        path.write_bytes(b"this is not a database, whatever its name says" * 100)
        for _ in range(2):
            with pytest.raises(StoreDamaged, match=r"the store .*ledger\.db is damaged"):
                await SqliteStore(path).open()
        assert read_holder(path.with_suffix(".lock")) is None


class TestFullDisk:
    @staticmethod
    async def limit(store: SqliteStore, pages: int) -> None:
        """Let the file grow to so many pages."""
        await store._on_writer(
            lambda: store._db.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        )

    async def test_it_refuses_and_goes_on_when_there_is_space_again(
        self, store: SqliteStore
    ) -> None:
        before = await run(store)
        await self.limit(store, 1)  # as many as there are now
        big = b'"%s"' % (b"x" * 300_000)
        e = execution(key="big")
        results = await asyncio.gather(
            *(store.write(submit(x, worker=store.worker, body=big))
              for x in (e, execution(key="other"))),
            return_exceptions=True,
        )  # fmt: skip
        assert [type(result) for result in results] == [StoreFull] * 2
        with pytest.raises(StoreFull):
            await store.write(finish(before, body=big))
        assert (await load(store, before)) == before
        assert len(await verify_chain(store, "ann", "s1")) == 1
        await self.limit(store, 1 << 30)
        await store.write(finish(before, body=big))
        await run(store, e, body=big)
        assert len(await verify_chain(store, "ann", "s1")) == 3

    async def test_it_closes_on_a_full_disk(self, store: SqliteStore) -> None:
        await run(store)
        await self.limit(store, 1)
        await store.close()


class TestMemory:
    async def test_what_does_not_run_here_is_not_kept(self, store: SqliteStore) -> None:
        ended, repeated, running = await run(store), await run(store), await run(store)
        await store.write(finish(ended))
        await store.write(Requeue(fence(repeated), now_us(), now_us()))
        assert store._live.keys() == {running.id}


class TestSchema:
    async def test_a_newer_store_is_refused(self, store: SqliteStore) -> None:
        assert store.path is not None
        await store.close()
        with closing(sqlite3.connect(store.path)) as db:
            db.execute("PRAGMA user_version = 9999")
        with pytest.raises(StoreUnavailable, match="version 9999, newer"):
            await store.open()
        assert read_holder(store.path.with_suffix(".lock")) is None

    async def test_it_keeps_its_version(self, store: SqliteStore) -> None:
        assert store.path is not None
        with closing(sqlite3.connect(store.path)) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (migrations("sqlite")[-1][0],)
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    @pytest.mark.parametrize("had", [(1,)])
    async def test_an_older_file_is_brought_up_to_date(
        self, tmp_path: Path, had: tuple[int, ...]
    ) -> None:
        path = tmp_path / "old.db"
        scripts = dict(migrations("sqlite"))
        with closing(sqlite3.connect(path)) as db:
            for number in had:
                db.executescript(f"{scripts[number]}\nPRAGMA user_version = {number};")
        for _ in range(2):
            store = SqliteStore(path)
            await store.open()
            try:
                store.sinks = ("trace",)
                await run(store)
                assert (await store.outbox_backlog("trace")).contracts > 0
            finally:
                await store.close()
        with closing(sqlite3.connect(path)) as db:
            rows = db.execute("SELECT version FROM schema_version ORDER BY version").fetchall()
            assert [number for (number,) in rows] == sorted(scripts)
            assert db.execute("PRAGMA user_version").fetchone() == (max(scripts),)

    def test_a_migration_with_a_lower_number_is_not_passed_over(self) -> None:
        numbers = [number for number, _ in migrations("sqlite")]
        assert numbers == sorted(set(numbers))
        assert [number for number, _ in missing("sqlite", [])] == numbers
        assert [number for number, _ in missing("sqlite", [1, numbers[-1]])] == numbers[1:-1]
        assert missing("sqlite", numbers) == []

    async def test_a_store_of_the_first_version_is_brought_up_to_date(self, tmp_path: Path) -> None:
        (number, script), *later = migrations("sqlite")
        assert (number, missing("sqlite", [number])) == (1, later)
        with closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as db:
            db.executescript(f"{script}; PRAGMA user_version = 1")
        old = SqliteStore(tmp_path / "old.db")
        await old.open()
        try:
            assert await old.write(put(registration())) == Ok()
            assert len(await old.agents()) == 1
        finally:
            await old.close()
        with closing(sqlite3.connect(tmp_path / "old.db")) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (migrations("sqlite")[-1][0],)

    def test_both_dialects_have_the_same_migrations(self) -> None:
        assert [n for n, _ in migrations("sqlite")] == [n for n, _ in migrations("postgres")]

    async def test_writes_are_fsynced(self, store: SqliteStore) -> None:
        rows = await store._on_writer(lambda: store._db.execute("PRAGMA synchronous").fetchall())
        assert rows == [(2,)]


async def test_only_the_owner_may_read_the_store(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "data" / "retinue.db")
    await store.open()
    try:
        files = sorted((tmp_path / "data").iterdir())
        assert len(files) >= 3  # the database, its log, the lock
        assert {file.stat().st_mode & 0o077 for file in [tmp_path / "data", *files]} == {0}
    finally:
        await store.close()


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)

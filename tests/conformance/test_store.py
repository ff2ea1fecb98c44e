"""One suite over every store."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from retinue.storage.postgres import PostgresStore
from retinue.storage.sqlite import SqliteStore
from retinue.testing.store_records import Tamper
from retinue.testing.store_suite import Reopen, StoreSuite


class TestSqliteFile(StoreSuite):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[SqliteStore]:
        store = SqliteStore(tmp_path / "ledger.db")
        await store.open()
        yield store
        await store.close()

    @pytest.fixture
    def tamper(self, store: SqliteStore) -> Tamper:
        async def execute(statement: str) -> None:
            assert store.path is not None
            with closing(sqlite3.connect(store.path)) as db, db:
                db.execute(statement)

        return execute

    @pytest.fixture
    async def reopen(self, store: SqliteStore, tmp_path: Path) -> AsyncIterator[Reopen]:
        opened: list[SqliteStore] = []

        async def crash() -> SqliteStore:
            # The files as a SIGKILL at this moment would leave them.
            assert store.path is not None
            (tmp_path / "after").mkdir()
            for suffix in ("", "-wal"):
                found = Path(f"{store.path}{suffix}")
                shutil.copy(found, tmp_path / "after" / found.name)
            again = SqliteStore(tmp_path / "after" / store.path.name)
            opened.append(again)
            await again.open()
            return again

        yield crash
        for again in opened:
            await again.close()


class TestSqliteMemory(StoreSuite):
    @pytest.fixture
    async def store(self) -> AsyncIterator[SqliteStore]:
        store = SqliteStore(None)
        await store.open()
        yield store
        await store.close()

    @pytest.fixture
    def tamper(self, store: SqliteStore) -> Tamper:
        async def execute(statement: str) -> None:
            await store._on_writer(lambda: store._db.execute(statement).fetchall())

        return execute

    @pytest.fixture
    def reopen(self) -> Reopen:
        pytest.skip("memory does not outlive its process")


class TestPostgres(StoreSuite):
    @pytest.fixture
    async def store(self, schema_url: str) -> AsyncIterator[PostgresStore]:
        store = PostgresStore(schema_url)
        await store.open()
        yield store
        await store.close()

    @pytest.fixture
    def tamper(self, store: PostgresStore, sql: Tamper) -> Tamper:
        async def execute(statement: str) -> None:
            await sql(statement)

        return execute

    @pytest.fixture
    async def reopen(
        self, store: PostgresStore, tamper: Tamper, schema_url: str
    ) -> AsyncIterator[Reopen]:
        opened: list[PostgresStore] = []

        async def crash() -> PostgresStore:
            await asyncio.to_thread(store._lease.stop)
            store._drop_writer()
            store._readers.close()
            await tamper("UPDATE worker SET lease_until = 0")
            again = PostgresStore(schema_url)
            opened.append(again)
            await again.open()
            return again

        yield crash
        for again in opened:
            await again.close()

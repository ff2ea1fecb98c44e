"""One suite over every store."""

import asyncio
import itertools
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from retinue.storage.postgres import PostgresStore
from retinue.storage.sqlite import SqliteStore
from retinue.testing.servers import PostgresServer
from retinue.testing.store_records import Tamper
from retinue.testing.store_suite import Reopen, StoreSuite

_schema_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """A database for all these tests; each has a schema of its own, which is made much faster."""
    yield postgres_server.create_database("store_suite")
    postgres_server.drop_database("store_suite")


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
    async def url(self, database: str) -> str:
        schema = f"s{next(_schema_numbers)}"
        await execute(database, f"CREATE SCHEMA {schema}")
        return f"{database}?search_path={schema}"

    @pytest.fixture
    async def store(self, url: str) -> AsyncIterator[PostgresStore]:
        store = PostgresStore(url)
        await store.open()
        yield store
        await store.close()

    @pytest.fixture
    def tamper(self, store: PostgresStore, url: str) -> Tamper:
        return partial(execute, url)

    @pytest.fixture
    async def reopen(self, store: PostgresStore, tamper: Tamper, url: str) -> AsyncIterator[Reopen]:
        opened: list[PostgresStore] = []

        async def crash() -> PostgresStore:
            await asyncio.to_thread(store._lease.stop)
            store._drop_writer()
            store._readers.close()
            await tamper("UPDATE worker SET lease_until = 0")
            again = PostgresStore(url)
            opened.append(again)
            await again.open()
            return again

        yield crash
        for again in opened:
            await again.close()


async def execute(url: str, statement: str) -> None:
    db = await asyncpg.connect(url)
    try:
        await db.execute(statement)
    finally:
        await db.close()

"""What the suites over every implementation share."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pytest

from retinue.storage.postgres import PostgresStore
from retinue.testing.servers import PostgresServer

# The suites of ``retinue.testing`` are tests too: their assertions explain themselves.
PARTS = "samples queue runs records lists outbox agents retention suite"
for part in PARTS.split():
    pytest.register_assert_rewrite(f"retinue.testing.store_{part}")

_schema_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """A database for all of these tests."""
    yield postgres_server.create_database("conformance")
    postgres_server.drop_database("conformance")


@pytest.fixture
async def schema_url(database: str) -> str:
    """The address of an empty schema, this test's own: made much faster than a database."""
    schema = f"schema_{next(_schema_numbers)}"
    db = await asyncpg.connect(database)
    try:
        await db.execute(f"CREATE SCHEMA {schema}")
    finally:
        await db.close()
    return f"{database}?search_path={schema}"


@pytest.fixture
async def sql(schema_url: str) -> AsyncIterator[Callable[..., Awaitable[list[Any]]]]:
    """Run statements on the schema beside the stores."""
    db = await asyncpg.connect(schema_url)
    yield db.fetch
    await db.close()


@pytest.fixture
async def opened(schema_url: str) -> AsyncIterator[Callable[..., Awaitable[PostgresStore]]]:
    """Open stores on one database; close what is left open."""
    stores: list[PostgresStore] = []

    async def opener(**how: Any) -> PostgresStore:
        store = PostgresStore(schema_url, **how)
        stores.append(store)
        await store.open()
        return store

    yield opener
    await asyncio.gather(*(store.close() for store in stores))

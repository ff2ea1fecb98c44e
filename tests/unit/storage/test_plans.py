"""How statements about the queue are carried out: by an index each, never by a look at all rows."""

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from retinue.storage import queue_reads
from retinue.storage.postgres import PostgresStore
from retinue.storage.sql import BATCH
from retinue.storage.sqlite import SqliteStore

# Which index; a walk over a partial index that holds only what is looked for is "all of it".
STATEMENTS = {
    "lease": ({"execution_queue"}, 2),
    "ready": ({"execution_queue"}, 1),
    "queue_depth": ({"execution_queue", "execution_on_hold"}, 2),
    "busy": ({"execution_busy"}, 3),
    "turn": ({"execution_turn"}, 2),
    "next_turn": ({"execution_turn"}, 2),
}
READS = {
    "BACKLOG": {"execution_queue"},
    "DEPTHS": {"execution_queue", "execution_on_hold"},
    "DUE": {"execution_due"},
    "NEXT_DUE": {"execution_due"},
    "TURNS": {"execution_turn"},
    "INTERRUPTING": {"execution_interrupt"},
    "OVERDUE": {"execution_deadline"},
    "AHEAD_RUNNING": {"execution_busy"},
    "AHEAD_WAITING": {"execution_turn"},
    "PLACE": {"execution_queue"},
}
SORTS = {"DEPTHS"}  # the keys, not the tasks


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """An empty store's database, about which SQLite has no statistics."""

    async def make() -> None:
        store = SqliteStore(tmp_path / "retinue.db")
        await store.open()
        await store.close()

    asyncio.run(make())
    with closing(sqlite3.connect(tmp_path / "retinue.db")) as db:
        yield db


def check(plan: str, indexes: set[str], *, sorts: bool = False) -> None:
    assert set(re.findall(r"INDEX (execution_\w+)", plan)) == indexes, plan
    # Nothing reads the table from one end to the other, or sorts what it found.
    assert re.search(r"SCAN (execution|e)\b(?! USING (COVERING )?INDEX)", plan) is None, plan
    assert sorts or "TEMP B-TREE" not in plan, plan


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_of_the_queue_probes_an_index(database: sqlite3.Connection, name: str) -> None:
    indexes, parameters = STATEMENTS[name]
    rows = database.execute(f"EXPLAIN QUERY PLAN {BATCH[name].sqlite}", [1] * parameters).fetchall()
    plan = "\n".join(row[3] for row in rows)
    check(plan, indexes)
    assert "SCAN e" not in plan, plan


@pytest.mark.parametrize("name", READS)
def test_a_read_of_the_queue_uses_an_index(database: sqlite3.Connection, name: str) -> None:
    text: str = getattr(queue_reads, name)
    rows = database.execute(f"EXPLAIN QUERY PLAN {text}", [1] * text.count("?")).fetchall()
    check("\n".join(row[3] for row in rows), READS[name], sorts=name in SORTS)


async def test_postgres_uses_them_too(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    await store.open()
    await store.close()
    db = await asyncpg.connect(postgres_url)
    try:
        # Twenty thousand that wait for each reason, so that the planner has something to choose.
        await db.execute(
            "INSERT INTO execution SELECT lpad(i::text, 26, '0'), 'o', 'o', 's' || i % 50, 'x',"
            " NULL, 'c', 'k' || i % 5, CASE WHEN i % 3 = 1 THEN 'scheduled' ELSE 'queued' END,"
            " 0, 0, NULL, 'idempotent', 3, 0, '', i, i, NULL, i, NULL, NULL, NULL, NULL, NULL,"
            " 'r', i, NULL, NULL, NULL, 0, i, i,"
            " (ARRAY['none', 'time', 'session'])[i % 3 + 1], 'enqueue' FROM"
            " generate_series(1, 60000) AS i"
        )
        await db.execute("ANALYZE execution")
        for name, (indexes, parameters) in STATEMENTS.items():
            text = BATCH[name].postgres
            kinds = re.findall(r"\$\d+::(\w+)\[\]", text)[:parameters]
            values = [
                ["k1" if i == 0 else "s1"] if k == "text" else [10] for i, k in enumerate(kinds)
            ]
            rows = await db.fetch(f"EXPLAIN {text}", *values)
            plan = "\n".join(row[0] for row in rows)
            assert (
                set(re.findall(r"(?:Scan using|Scan on) (execution_(?!pkey)\w+)", plan)) == indexes
            ), plan
            assert "Seq Scan on execution" not in plan, plan
            assert name != "lease" or "Sort" not in plan, plan
    finally:
        await db.close()

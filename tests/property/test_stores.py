"""SQLite, PostgreSQL and a model in plain Python, given one program of steps, say the same."""

from pathlib import Path

from torture import machine
from torture.machine import Size

from retinue.storage.postgres import PostgresStore
from retinue.storage.sqlite import SqliteStore

# `make torture ARGS="--full --only machines"` runs many more, and shortens what fails.
SIZE = Size(examples=40, steps=30, shrink=False)
LONG_LEASE = 3600.0


def test_they_say_the_same(tmp_path: Path, postgres_url: str) -> None:
    sqlite = SqliteStore(tmp_path / "retinue.db")
    postgres = PostgresStore(postgres_url, lease_seconds=LONG_LEASE)
    machine.run_on([sqlite, postgres], SIZE, seed=1)

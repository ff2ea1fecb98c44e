"""The numbered migrations of a store's schema.

A store lists the numbers it has applied, so one that comes later with a lower number than the
newest is applied all the same.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING

from retinue.domain.ids import now_us
from retinue.errors import StoreUnavailable
from retinue.storage.sql import CLOCK

if TYPE_CHECKING:  # the SQLite store does without the driver of PostgreSQL
    from retinue.storage.link import Connection

_LOCK = 0x72_6574_696E_7565
"""The advisory lock that lets one process migrate at a time: "retinue" in ASCII."""


def migrations(dialect: str) -> list[tuple[int, str]]:
    """Return the numbered migrations of a dialect, in order."""
    folder = resources.files("retinue.storage") / "migrations" / dialect
    found = [(int(f.name[:4]), f.read_text()) for f in folder.iterdir() if f.name[:4].isdigit()]
    return sorted(found)


def missing(dialect: str, applied: Iterable[int]) -> list[tuple[int, str]]:
    """Return the migrations that a store still needs, in order.

    Raises:
        StoreUnavailable: the store is newer than this program.
    """
    known = dict(migrations(dialect))
    had = set(applied)
    unknown = had - known.keys()
    if unknown:
        version, newest = max(unknown), max(known)
        raise StoreUnavailable(
            f"the store is of version {version}, newer than this Retinue knows"
            f" ({newest}); install the newer Retinue",
            details={"version": version, "known": newest},
        )
    return [(number, script) for number, script in sorted(known.items()) if number not in had]


def migrate_sqlite(db: sqlite3.Connection) -> None:
    """Bring an SQLite file up to date, one migration after the other.

    Raises:
        StoreUnavailable: the store is newer than this program.
    """
    (newest,) = db.execute("PRAGMA user_version").fetchone()
    listed = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'schema_version'").fetchone()
    if listed:
        applied = [number for (number,) in db.execute("SELECT version FROM schema_version")]
    else:
        applied = [newest] if newest else []  # the first version did not list any
    # The newest number stays in its old place, too: there older programs look for it.
    for number, script in missing("sqlite", {*applied, *([newest] if newest else [])}):
        newest = max(newest, number)
        db.executescript(
            "BEGIN IMMEDIATE;\n"
            "CREATE TABLE IF NOT EXISTS schema_version"
            " (version INTEGER PRIMARY KEY, at INTEGER NOT NULL);\n"
            + "".join(f"INSERT OR IGNORE INTO schema_version VALUES ({n}, 0);\n" for n in applied)
            + f"{script}\nINSERT INTO schema_version VALUES ({number}, {now_us()});\n"
            f"PRAGMA user_version = {newest};\nCOMMIT;"
        )


async def migrate_postgres(db: Connection) -> None:
    """Bring a PostgreSQL schema up to date, all of it or nothing, one process at a time.

    Raises:
        StoreUnavailable: the store is newer than this program.
    """
    async with db.transaction():
        await db.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        if await db.fetchval("SELECT to_regclass('schema_version')") is None:
            await db.execute(
                "CREATE TABLE schema_version (version BIGINT PRIMARY KEY, at BIGINT NOT NULL)"
            )
        rows = await db.fetch("SELECT version FROM schema_version")
        for number, script in missing("postgres", [row[0] for row in rows]):
            await db.execute(script)
            await db.execute(f"INSERT INTO schema_version VALUES ($1, {CLOCK})", number)

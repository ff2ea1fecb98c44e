"""The numbered migrations of a store's schema."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

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


def missing(dialect: str, version: int) -> list[tuple[int, str]]:
    """Return the migrations that a store of ``version`` still needs, in order.

    Raises:
        StoreUnavailable: the store is newer than this program.
    """
    known = migrations(dialect)
    newest = known[-1][0]
    if version > newest:
        raise StoreUnavailable(
            f"the store is of version {version}, newer than this Retinue knows"
            f" ({newest}); install the newer Retinue",
            details={"version": version, "known": newest},
        )
    return [(number, script) for number, script in known if number > version]


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
        version = await db.fetchval("SELECT coalesce(max(version), 0) FROM schema_version")
        for number, script in missing("postgres", version):
            await db.execute(script)
            await db.execute(f"INSERT INTO schema_version VALUES ($1, {CLOCK})", number)

"""The store that the settings name, and who has it open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from retinue.domain.holder import Holder
from retinue.drivers.coding.look import Look as Look  # noqa: PLC0414 doctor shows it
from retinue.errors import StoreBroken
from retinue.interfaces import Store
from retinue.settings import (
    Settings,
)
from retinue.storage.lockfile import read_holder
from retinue.storage.sqlite import SqliteStore


def open_store(
    settings: Settings,
    *,
    url: str | None = None,
    on_lost: Callable[[], None] | None = None,
    on_broken: Callable[[StoreBroken], None] | None = None,
) -> Store:
    """Return the store that the settings name, not opened yet.

    ``database_url`` is ``sqlite:///path``, ``sqlite://`` (in memory) or ``postgresql://…``; unset
    it is ``retinue.db`` in the data directory. ``url`` is where this process will serve;
    ``on_lost`` is called when others may take over what it runs (PostgreSQL only), ``on_broken``
    when the disk failed and the store cannot go on (SQLite only).
    """
    address = settings.database_url
    if address is None or address.startswith("sqlite:"):
        return SqliteStore(store_file(settings), url=url, on_broken=on_broken)
    from retinue.storage.postgres import PostgresStore  # noqa: PLC0415 asyncpg only when used

    return PostgresStore(address, lease_seconds=settings.lease_seconds, url=url, on_lost=on_lost)


def store_file(settings: Settings) -> Path | None:
    """Return the file of the SQLite store; None when it is in memory, or PostgreSQL."""
    address = settings.database_url
    if address is None:
        return settings.data_dir / "retinue.db"
    path = address.removeprefix("sqlite:///")
    return Path(path) if path != address else None


def is_shared(settings: Settings) -> bool:
    """Say whether other processes may have the store open at the same time: PostgreSQL."""
    return not (settings.database_url or "sqlite:").startswith("sqlite:")


async def holders_of(settings: Settings) -> list[Holder]:
    """Return which processes have the store open, and where they serve; the youngest first.

    Raises:
        StoreUnavailable: PostgreSQL does not answer.
    """
    path = store_file(settings)
    if path is not None:
        holder = read_holder(path.with_suffix(".lock"))
        return [holder] if holder is not None else []
    if not is_shared(settings):
        return []
    from retinue.storage.holders import read_workers  # noqa: PLC0415 asyncpg only when used

    return await read_workers(settings.database_url or "")

"""The reads of the outbox, portable as those of ``storage.reads``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retinue.domain.contract import Contract
from retinue.domain.outbox import Parked
from retinue.interfaces import Backlog, Listing, Page
from retinue.storage.pages import decode_cursor, encode_cursor
from retinue.storage.sql import NOBODY
from retinue.storage.tables import TABLES, record_of


class OutboxReads:
    """What the ``Store`` protocol reads of the outbox; see there for the contracts."""

    async def _fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run one query and return its rows. Each store brings its own."""
        raise NotImplementedError

    async def outbox_due(self, sink: str, now: int, /) -> bool:
        """Say whether a lane of ``sink`` can be claimed at ``now``."""
        rows = await self._fetch(
            "SELECT EXISTS (SELECT 1 FROM outbox WHERE sink = ? AND worker IS NULL AND due_at <= ?)"
            " OR EXISTS (SELECT 1 FROM outbox o WHERE sink = ? AND worker IS NOT NULL"
            f" AND {NOBODY})",
            [sink, now, sink],
        )
        return bool(rows[0][0])

    async def outbox_backlog(self, sink: str, /) -> Backlog:
        """Count what ``sink`` has still to take."""
        rows = await self._fetch(
            "SELECT count(*), coalesce(sum(last_n - first_n + 1), 0), count(failed_at),"
            " (SELECT count(*) FROM parked WHERE sink = ?) FROM outbox WHERE sink = ?",
            [sink, sink],
        )
        sessions, contracts, failing, parked = (int(value) for value in rows[0])
        latest = await self._fetch(
            "SELECT error, failed_at FROM outbox WHERE sink = ? AND failed_at IS NOT NULL"
            " ORDER BY failed_at DESC LIMIT 1",
            [sink],
        )
        error, failed_at = latest[0] if latest else (None, None)
        return Backlog(sessions, contracts, failing, parked, error, failed_at)

    async def undelivered(
        self, owner: str, session_id: str, first: int, last: int, /, *, limit: int, most_bytes: int
    ) -> list[Contract]:
        """Return the rows of a chain from place ``first`` to ``last``, in order."""
        key = [owner, session_id]
        sizes = await self._fetch(
            "SELECT n, coalesce(length(body), 0) FROM contract WHERE owner = ? AND session_id = ?"
            " AND n >= ? AND n <= ? ORDER BY n LIMIT ?",
            [*key, first, last, limit],
        )
        end, total = first - 1, 0
        for n, size in sizes:
            total += size
            if total > most_bytes and end >= first:
                break
            end = n
        if end < first:
            return []
        rows = await self._fetch(
            f"SELECT {', '.join(TABLES['contract'])} FROM contract"
            " WHERE owner = ? AND session_id = ? AND n >= ? AND n <= ? ORDER BY n",
            [*key, first, end],
        )
        return [record_of(Contract, row) for row in rows]

    async def parked(self, sink: str | None, owner: str | None, page: Page, /) -> Listing[Parked]:
        """List parked contracts by sink, owner and place."""
        given = {"sink": sink, "owner": owner}
        where = [f"{name} = ?" for name, value in given.items() if value is not None]
        values: list[Any] = [value for value in given.values() if value is not None]
        text = f" WHERE {' AND '.join(where)}" if where else ""
        total = await self._fetch(f"SELECT count(*) FROM parked{text}", values)
        if page.cursor is not None:
            where.append("(sink, owner, session_id, n) > (?, ?, ?, ?)")
            values += decode_cursor(page.cursor, str, str, str, int)
            text = f" WHERE {' AND '.join(where)}"
        rows = await self._fetch(
            f"SELECT {', '.join(TABLES['parked'])} FROM parked{text}"
            " ORDER BY sink, owner, session_id, n LIMIT ?",
            [*values, page.limit + 1],
        )
        items = [record_of(Parked, row) for row in rows]
        if len(items) <= page.limit:
            return Listing(items, int(total[0][0]))
        items = items[: page.limit]
        last = items[-1]
        place = encode_cursor(last.sink, last.owner, last.session_id, last.n)
        return Listing(items, int(total[0][0]), place)

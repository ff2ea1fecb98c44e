"""The reads that walk over the whole record, page by page: verification and retention.

Every page is bounded by rows, and where rows hold bodies by bytes: their sizes are looked at
first. No read goes over more than a page, so none holds a transaction open for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retinue.archive import Beginning, Ended, Standing
from retinue.domain.audit import AuditRow
from retinue.domain.contract import Contract
from retinue.domain.event import Event
from retinue.domain.execution import Execution, State
from retinue.domain.question import Question
from retinue.domain.retention import Checkpoint, Mark
from retinue.storage.tables import TABLES, record_of

PAGE_BYTES = 8 << 20


def _columns(table: str, prefix: str = "") -> str:
    return ", ".join(prefix + column for column in TABLES[table])


def _fitting(sizes: list[int]) -> int:
    """Return how many rows of these sizes make a page: one at least, however large it is."""
    left = PAGE_BYTES
    for count, size in enumerate(sizes):
        left -= size
        if left < 0:
            return max(count, 1)
    return len(sizes)


class Walks:
    """A store's walks; see ``Archive`` for the contracts."""

    @staticmethod
    def _among(column: str, values: Sequence[str]) -> tuple[str, Any]:
        raise NotImplementedError

    @staticmethod
    def _at_places(places: Sequence[tuple[str, str, int]]) -> tuple[str, list[Any]]:
        """Return a condition on owner, session_id and n, with its parameters."""
        raise NotImplementedError

    async def _fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        raise NotImplementedError

    async def _by_bytes(
        self, what: str, size: str, source: str, values: list[Any], limit: int
    ) -> list[Any]:
        sizes = await self._fetch(f"SELECT {size} {source} LIMIT ?", [*values, limit])
        if not sizes:
            return []
        count = _fitting([row[0] for row in sizes])
        return await self._fetch(f"SELECT {what} {source} LIMIT ?", [*values, count])

    async def contracts_after(
        self, place: tuple[str, str, int], owner: str | None, limit: int, /
    ) -> list[Contract]:
        """Return the contracts after a place of all chains, in order."""
        scope, values = ("owner = ? AND ", [owner]) if owner is not None else ("", [])
        rows = await self._by_bytes(
            _columns("contract"),
            "coalesce(length(body), 0)",
            f"FROM contract WHERE {scope}(owner, session_id, n) > (?, ?, ?)"
            " ORDER BY owner, session_id, n",
            [*values, *place],
            limit,
        )
        return [record_of(Contract, row) for row in rows]

    async def hashes_at(
        self, places: Sequence[tuple[str, str, int]], /
    ) -> dict[tuple[str, str, int], bytes]:
        """Return the hashes of the contracts at these places."""
        condition, values = self._at_places(places)
        rows = await self._fetch(
            f"SELECT owner, session_id, n, hash FROM contract WHERE {condition}", values
        )
        return {(owner, session_id, n): digest for owner, session_id, n, digest in rows}

    async def executions_of(self, ids: Sequence[str], /) -> list[Execution]:
        """Return these executions."""
        condition, among = self._among("id", ids)
        rows = await self._fetch(
            f"SELECT {_columns('execution')} FROM execution WHERE {condition}", [among]
        )
        return [record_of(Execution, row) for row in rows]

    async def events_after(
        self, ids: Sequence[str], place: tuple[str, int], limit: int, /
    ) -> list[tuple[Event, bytes | None]]:
        """Return events of these executions after a place, with the hashes of erased ones."""
        condition, among = self._among("execution_id", ids)
        rows = await self._by_bytes(
            f"{_columns('event', 'v.')}, (SELECT x.data_hash FROM erased_event x"
            " WHERE x.execution_id = v.execution_id AND x.seq = v.seq)",
            "length(v.data)",
            f"FROM event v WHERE {condition} AND (execution_id, seq) > (?, ?)"
            " ORDER BY execution_id, seq",
            [among, *place],
            limit,
        )
        return [(record_of(Event, row[:-1]), row[-1]) for row in map(tuple, rows)]

    async def questions_of(self, ids: Sequence[str], /) -> list[Question]:
        """Return all questions of these executions."""
        condition, among = self._among("execution_id", ids)
        rows = await self._fetch(
            f"SELECT {_columns('question')} FROM question WHERE {condition} ORDER BY id", [among]
        )
        return [record_of(Question, row) for row in rows]

    async def marks_of(self, ids: Sequence[str], /) -> list[Mark]:
        """Return what was removed or erased of these executions (or contracts)."""
        condition, among = self._among("id", ids)
        rows = await self._fetch(f"SELECT {_columns('mark')} FROM mark WHERE {condition}", [among])
        return [record_of(Mark, row) for row in rows]

    async def audit_rows(self, numbers: Sequence[int], /) -> list[AuditRow]:
        """Return these rows of the audit."""
        found: list[AuditRow] = []
        for n in numbers:
            rows = await self._fetch(f"SELECT {_columns('audit')} FROM audit WHERE n = ?", [n])
            found.extend(record_of(AuditRow, row) for row in rows)
        return found

    async def checkpoints(
        self, first: tuple[str, str], last: tuple[str, str], /
    ) -> list[Checkpoint]:
        """Return the checkpoints of the sessions from ``first`` to ``last``."""
        rows = await self._fetch(
            f"SELECT {_columns('checkpoint')} FROM checkpoint"
            " WHERE (owner, session_id) >= (?, ?) AND (owner, session_id) <= (?, ?)",
            [*first, *last],
        )
        return [record_of(Checkpoint, row) for row in rows]

    async def standing_after(
        self, execution_id: str, owner: str | None, limit: int, /
    ) -> list[Standing]:
        """Return where the executions after an id stand, in order."""
        scope, values = (" AND e.owner = ?", [owner]) if owner is not None else ("", [])
        rows = await self._fetch(
            "SELECT e.id, e.owner, e.session_id, e.agent_id, e.state, e.outcome, e.request_id,"
            " e.request_n, c.id, (SELECT k.n FROM checkpoint k WHERE k.owner = e.owner"
            "  AND k.session_id = e.session_id)"
            " FROM execution e LEFT JOIN contract c ON c.owner = e.owner"
            " AND c.session_id = e.session_id AND c.n = e.request_n"
            f" WHERE e.id > ?{scope} ORDER BY e.id LIMIT ?",
            [execution_id, *values, limit],
        )
        return [
            Standing(i, owner, session_id, agent_id, State(state), *rest)
            for i, owner, session_id, agent_id, state, *rest in rows
        ]

    async def stray_event(self, after: str, last: str | None, /) -> tuple[str, int] | None:
        """Return an event without execution, with an id after ``after`` and up to ``last``."""
        end, values = (" AND v.execution_id <= ?", [last]) if last is not None else ("", [])
        rows = await self._fetch(
            f"SELECT v.execution_id, v.seq FROM event v WHERE v.execution_id > ?{end}"
            " AND NOT EXISTS (SELECT 1 FROM execution e WHERE e.id = v.execution_id)"
            " ORDER BY v.execution_id, v.seq LIMIT 1",
            [after, *values],
        )
        return (rows[0][0], rows[0][1]) if rows else None

    async def stray_question(self) -> str | None:
        """Return a question without execution."""
        rows = await self._fetch(
            "SELECT q.id FROM question q WHERE NOT EXISTS"
            " (SELECT 1 FROM execution e WHERE e.id = q.execution_id) ORDER BY q.id LIMIT 1"
        )
        return rows[0][0] if rows else None

    async def with_events(self, after: str, limit: int, /) -> list[Ended]:
        """Return the executions after an id that have events, in order."""
        # From one to the next through the key, never over the events themselves.
        rows = await self._fetch(
            "WITH RECURSIVE found(id, number) AS ("
            " SELECT (SELECT min(execution_id) FROM event WHERE execution_id > ?), 1 UNION ALL"
            " SELECT (SELECT min(execution_id) FROM event WHERE execution_id > found.id),"
            "  number + 1 FROM found WHERE found.id IS NOT NULL AND number < ?)"
            " SELECT found.id, e.finished_at,"
            " EXISTS (SELECT 1 FROM mark m WHERE m.id = found.id AND m.kind = 'removed')"
            " FROM found LEFT JOIN execution e ON e.id = found.id"
            " WHERE found.id IS NOT NULL ORDER BY found.id",
            [after, limit],
        )
        return [Ended(row[0], row[1], bool(row[2])) for row in rows]

    async def newest_but(self, count: int, before: str | None, /) -> str | None:
        """Return the id of the ``count``-th newest execution (of those before ``before``)."""
        where, values = (" WHERE id < ?", [before]) if before is not None else ("", [])
        rows = await self._fetch(
            f"SELECT id FROM execution{where} ORDER BY id DESC LIMIT 1 OFFSET ?",
            [*values, count - 1],
        )
        return rows[0][0] if rows else None

    async def beginnings(self, after: tuple[str, str], limit: int, /) -> list[Beginning]:
        """Return where the chains of the sessions after one begin, in order."""
        rows = await self._fetch(
            "SELECT s.owner, s.session_id, c.at, c.id FROM (SELECT owner, session_id, n,"
            " coalesce((SELECT k.n FROM checkpoint k WHERE k.owner = session.owner"
            "  AND k.session_id = session.session_id), 0) AS cut FROM session"
            " WHERE (owner, session_id) > (?, ?) ORDER BY owner, session_id LIMIT ?) s"
            " LEFT JOIN contract c ON c.owner = s.owner AND c.session_id = s.session_id"
            " AND c.n = s.cut + 1 ORDER BY s.owner, s.session_id",
            [*after, limit],
        )
        return [Beginning(row[0], row[1], row[2] or 0, row[3] or "") for row in rows]

    async def unswept(self, now: int, /) -> bool:
        """Say whether something marked, or a key that has expired at ``now``, is to go."""
        rows = await self._fetch(
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM mark WHERE pending = 1)"
            " OR EXISTS (SELECT 1 FROM idempotency WHERE expires_at < ?)",
            [now],
        )
        return bool(rows)

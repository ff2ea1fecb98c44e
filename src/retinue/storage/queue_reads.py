"""The reads about what waits: what is due, whose turn may have come, how long the queues are.

Everything the scheduler asks once a second is a few probes of a partial index, however many wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retinue.domain.execution import Execution
from retinue.interfaces import QueueDepth
from retinue.storage.sql import BUSY
from retinue.storage.tables import TABLES, record_of

_EXECUTION = ", ".join(TABLES["execution"])

# Loose walks over an index: one probe per key, not one per row that waits.
_READY_KEYS = (
    "ready(key) AS ("
    " SELECT min(queue_key) FROM execution WHERE state = 'queued' AND hold = 'none' UNION ALL"
    " SELECT (SELECT min(queue_key) FROM execution WHERE state = 'queued' AND hold = 'none'"
    "  AND queue_key > ready.key) FROM ready WHERE ready.key IS NOT NULL)"
)
_HELD_KEYS = (
    "held(key) AS ("
    " SELECT min(queue_key) FROM execution WHERE hold <> 'none' UNION ALL"
    " SELECT (SELECT min(queue_key) FROM execution WHERE hold <> 'none'"
    "  AND queue_key > held.key) FROM held WHERE held.key IS NOT NULL)"
)
BACKLOG = f"WITH RECURSIVE {_READY_KEYS} SELECT key FROM ready WHERE key IS NOT NULL"
DEPTHS = (
    f"WITH RECURSIVE {_READY_KEYS}, {_HELD_KEYS},"
    " keys(key) AS (SELECT key FROM ready UNION SELECT key FROM held)"
    " SELECT key,"
    " (SELECT count(*) FROM execution WHERE queue_key = key AND state = 'queued'"
    "  AND hold = 'none'),"
    " (SELECT count(*) FROM execution WHERE queue_key = key AND hold <> 'none'"
    "  AND hold = 'session'),"
    " (SELECT count(*) FROM execution WHERE queue_key = key AND hold <> 'none'"
    "  AND hold = 'time'),"
    " (SELECT min(id) FROM execution WHERE queue_key = key AND state = 'queued'"
    "  AND hold = 'none'),"
    " (SELECT min(id) FROM execution WHERE queue_key = key AND hold <> 'none'"
    "  AND hold = 'session')"
    " FROM keys WHERE key IS NOT NULL ORDER BY key"
)
DUE = (
    f"SELECT {_EXECUTION} FROM execution WHERE hold = 'time' AND run_at <= ?"
    " ORDER BY run_at LIMIT ?"
)
NEXT_DUE = "SELECT min(run_at) FROM execution WHERE hold = 'time'"
TURNS = (
    "SELECT owner, session_id FROM execution WHERE hold = 'session'"
    " AND (owner, session_id) > (?, ?) ORDER BY owner, session_id LIMIT 1"
)
INTERRUPTING = (
    f"SELECT {_EXECUTION} FROM execution WHERE hold = 'session' AND on_busy = 'interrupt'"
    " ORDER BY id LIMIT ?"
)
OVERDUE = (
    f"SELECT {_EXECUTION} FROM execution WHERE state = 'queued'"
    " AND deadline_at IS NOT NULL AND deadline_at <= ? ORDER BY deadline_at LIMIT ?"
)
AHEAD_RUNNING = f"SELECT id, request_n FROM execution WHERE owner = ? AND session_id = ? AND {BUSY}"
AHEAD_WAITING = (
    "SELECT id, request_n FROM execution WHERE owner = ? AND session_id = ?"
    " AND hold = 'session' AND request_n < ?"
)
PLACE = (
    "SELECT count(*) FROM execution WHERE queue_key = ? AND state = 'queued' AND hold = 'none'"
    " AND (rank, id) < (?, ?)"
)


class QueueReads:
    """The reads of the ``Store`` protocol that are about the queue; see there for the contracts."""

    async def _fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run one query and return its rows. Each store brings its own."""
        raise NotImplementedError

    async def overdue(self, now: int, limit: int, /) -> list[Execution]:
        """Return queued executions whose deadline has passed."""
        return [record_of(Execution, row) for row in await self._fetch(OVERDUE, [now, limit])]

    async def backlog(self) -> list[str]:
        """Return the queue keys that hold something ready."""
        return [row[0] for row in await self._fetch(BACKLOG)]

    async def due(self, now: int, limit: int, /) -> list[Execution]:
        """Return what waited for a time that has come, the longest due first."""
        return [record_of(Execution, row) for row in await self._fetch(DUE, [now, limit])]

    async def next_due(self) -> int | None:
        """Return when the next one that waits for its time is due."""
        at: int | None = (await self._fetch(NEXT_DUE))[0][0]
        return at

    async def turns(self, after: tuple[str, str], limit: int, /) -> list[tuple[str, str]]:
        """Return owner and id of sessions behind ``after`` that somebody waits for, in order."""
        found: list[tuple[str, str]] = []
        while len(found) < limit:
            rows = await self._fetch(TURNS, after)
            if not rows:
                break
            after = (rows[0][0], rows[0][1])
            found.append(after)
        return found

    async def interrupting(self, limit: int, /) -> list[Execution]:
        """Return what waits for its session and has those before it cancelled."""
        return [record_of(Execution, row) for row in await self._fetch(INTERRUPTING, [limit])]

    async def ahead(self, execution: Execution, /) -> list[str]:
        """Return what keeps an execution from its turn: the earlier ones of its session."""
        place = [execution.owner, execution.session_id]
        running = await self._fetch(AHEAD_RUNNING, place)
        waiting = await self._fetch(AHEAD_WAITING, [*place, execution.request_n])
        places = sorted((n, i) for i, n in (*running, *waiting))
        return [i for n, i in places if n < execution.request_n]

    async def place(self, execution: Execution, /) -> int:
        """Return how many stand before a queued execution under its key, as one that is ready."""
        place = [execution.queue_key, execution.rank, execution.id]
        return int((await self._fetch(PLACE, place))[0][0])

    async def depths(self) -> list[QueueDepth]:
        """Return how much waits under each queue key."""
        return [QueueDepth(*row) for row in await self._fetch(DEPTHS)]

"""The reads of rows that hold bodies: bounded by bytes as well as by count.

The sizes are looked at first (neither store reads a body to tell its length), then as many rows
are read as fit. Who wants a part of one body gets just that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retinue.domain.audit import AuditRow
from retinue.domain.contract import Contract, ContractType
from retinue.domain.event import Event
from retinue.domain.execution import Execution, State
from retinue.domain.question import Question
from retinue.interfaces import PAGE_BYTES, ContractFilter, ContractView, Listing, Page
from retinue.storage.pages import Where, columns, decode_cursor, fitting, listing
from retinue.storage.tables import record_of

_ANSWER = (
    "(SELECT {what} FROM contract r WHERE r.owner = c.owner AND r.session_id = c.session_id"
    " AND r.n = CASE WHEN c.execution_id IS NULL THEN c.n + 1 ELSE e.response_n END)"
)


class Bodies:
    """A store's reads of what may be large; see ``Store`` for the contracts."""

    @staticmethod
    def _among(column: str, values: Sequence[str]) -> tuple[str, Any]:
        """Return a condition that ``column`` is one of ``values``, with its one parameter."""
        raise NotImplementedError

    async def _fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run one query and return its rows. Each store brings its own."""
        raise NotImplementedError

    async def _bounded(
        self, what: str, size: str, source: str, values: Sequence[Any], limit: int, most_bytes: int
    ) -> tuple[list[Any], bool]:
        """Return the next rows, within ``limit`` and ``most_bytes``; say whether there are more."""
        ahead = await self._fetch(f"SELECT {size}{source} LIMIT ?", [*values, limit + 1])
        if not ahead:
            return [], False
        count = min(fitting([row[0] for row in ahead], most_bytes), limit)
        rows = await self._fetch(f"SELECT {what}{source} LIMIT ?", [*values, count])
        return rows, len(ahead) > count

    async def events(
        self,
        execution_id: str,
        /,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = PAGE_BYTES,
    ) -> Sequence[Event]:
        """Return journaled events with a number greater than ``after``, in order."""
        rows, _ = await self._bounded(
            columns("event"),
            "length(data)",
            " FROM event WHERE execution_id = ? AND seq > ? ORDER BY seq",
            [execution_id, after],
            limit,
            most_bytes,
        )
        return [record_of(Event, row) for row in rows]

    async def data_of(self, event: Event, offset: int, length: int, /) -> bytes:
        """Return a part of an event's data."""
        rows = await self._fetch(
            "SELECT substr(data, ?, ?) FROM event WHERE execution_id = ? AND seq = ?",
            [offset + 1, length, event.execution_id, event.seq],
        )
        return bytes(rows[0][0]) if rows else b""

    async def result(self, execution: Execution, offset: int, length: int, /) -> bytes | None:
        """Return a part of the body of an execution's RESPONSE."""
        rows = await self._fetch(
            "SELECT substr(body, ?, ?) FROM contract WHERE owner = ? AND session_id = ? AND n = ?",
            [
                offset + 1,
                length,
                execution.owner,
                execution.session_id,
                execution.response_n or 0,
            ],
        )
        return bytes(rows[0][0]) if rows and rows[0][0] is not None else None

    async def bodies(self, execution: Execution, /) -> tuple[bytes | None, bytes | None]:
        """Return the bodies of an execution's REQUEST and RESPONSE."""
        rows = await self._fetch(
            "SELECT n, body FROM contract WHERE owner = ? AND session_id = ? AND n IN (?, ?)",
            [
                execution.owner,
                execution.session_id,
                execution.request_n,
                execution.response_n or execution.request_n,
            ],
        )
        found: dict[int, bytes | None] = {row[0]: row[1] for row in rows}
        return found.get(execution.request_n), found.get(execution.response_n or -1)

    async def contracts(self, where: ContractFilter, page: Page, /) -> Listing[ContractView]:
        """List contracts, in chain order."""
        query = Where()
        query.equal(**{"c.owner": where.owner, "c.session_id": where.session_id})
        query.equal(**{"c.from_agent": where.from_agent})
        if where.to_agent is not None:
            # A request that was queued unbound was given to whoever answered it.
            query.add("coalesce(c.to_agent, e.agent_id) = ?", where.to_agent)
        source = " FROM contract c LEFT JOIN execution e ON e.id = c.execution_id"
        total = await self._total_contracts(where, source, query)
        if page.cursor is not None:
            place = decode_cursor(page.cursor, str, str, int)
            query.add("(c.owner, c.session_id, c.n) > (?, ?, ?)", *place)
        rows, more = await self._bounded(
            f"{columns('contract', 'c.')}, e.state, e.agent_id, e.finished_at,"
            f" CASE WHEN c.type = 'REQUEST' THEN {_ANSWER.format(what='r.body')} END",
            "coalesce(length(c.body), 0) + CASE WHEN c.type = 'REQUEST' THEN"
            f" coalesce({_ANSWER.format(what='length(r.body)')}, 0) ELSE 0 END",
            f"{source}{query} ORDER BY c.owner, c.session_id, c.n",
            query.values,
            page.limit,
            PAGE_BYTES,
        )
        items = [_view(row) for row in rows]
        return listing(
            items, total, more, lambda v: (v.contract.owner, v.contract.session_id, v.contract.n)
        )

    async def _total_contracts(self, where: ContractFilter, source: str, query: Where) -> int:
        if where.from_agent is None and where.to_agent is None:
            # The sessions know their own counts: no scan of the chain.
            sessions = Where()
            sessions.equal(owner=where.owner, session_id=where.session_id)
            rows = await self._fetch(
                "SELECT coalesce(sum(n), 0)"
                f" - (SELECT coalesce(sum(n), 0) FROM checkpoint{sessions}) FROM session{sessions}",
                [*sessions.values, *sessions.values],
            )
        else:
            rows = await self._fetch(f"SELECT count(*){source}{query}", query.values)
        return int(rows[0][0])

    async def questions(self, owner: str | None, page: Page, /) -> Listing[Question]:
        """List open questions, oldest first."""
        query = Where()
        query.equal(owner=owner)
        query.add("state = 'open'")
        total = await self._count("question", query)
        if page.cursor is not None:
            query.add("id > ?", *decode_cursor(page.cursor, str))
        rows, more = await self._bounded(
            columns("question"),
            "length(prompt) + coalesce(length(schema), 0)",
            f" FROM question{query} ORDER BY id",
            query.values,
            page.limit,
            PAGE_BYTES,
        )
        items = [record_of(Question, row) for row in rows]
        return listing(items, total, more, lambda q: (q.id,))

    async def audit(self, page: Page, /) -> Listing[AuditRow]:
        """List the audit chain, oldest first."""
        query = Where()
        total = await self._count("audit", query)
        if page.cursor is not None:
            query.add("n > ?", *decode_cursor(page.cursor, int))
        rows, more = await self._bounded(
            columns("audit"),
            "length(detail)",
            f" FROM audit{query} ORDER BY n",
            query.values,
            page.limit,
            PAGE_BYTES,
        )
        items = [record_of(AuditRow, row) for row in rows]
        return listing(items, total, more, lambda row: (row.n,))

    async def chain(self, owner: str, session_id: str, after: int, limit: int, /) -> list[Contract]:
        """Return rows of one session's chain, for verification."""
        rows, _ = await self._bounded(
            columns("contract"),
            "coalesce(length(body), 0)",
            " FROM contract WHERE owner = ? AND session_id = ? AND n > ? ORDER BY n",
            [owner, session_id, after],
            limit,
            PAGE_BYTES,
        )
        return [record_of(Contract, row) for row in rows]

    async def _count(self, table: str, query: Where) -> int:
        rows = await self._fetch(f"SELECT count(*) FROM {table}{query}", query.values)
        return int(rows[0][0])


def _view(row: Any) -> ContractView:
    *own, state, agent_id, finished_at, answered = row
    contract = record_of(Contract, own)
    if contract.type is ContractType.RESPONSE:
        answered = contract.body
    if state is None:
        # No execution: the task was refused, and its REQUEST failed with it.
        return ContractView(contract, State.FAILED, None, contract.at, answered)
    return ContractView(contract, State(state), agent_id, finished_at, answered)

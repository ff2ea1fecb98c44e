"""The reads of a store, written once: portable SQL with ``?`` and the records it becomes.

A ``Reader`` is a store's way to run one query; both stores inherit everything else from here.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from retinue.domain.audit import ANCHOR, AuditRow
from retinue.domain.contract import Contract, ContractStatus, ContractType
from retinue.domain.event import Event
from retinue.domain.execution import Execution, State
from retinue.domain.intent import Fence
from retinue.domain.principal import ApiKey
from retinue.domain.question import Question
from retinue.domain.session import Session
from retinue.errors import InvalidInput
from retinue.interfaces import (
    AgentTally,
    ContractFilter,
    ContractView,
    ExecutionFilter,
    Listing,
    Page,
    StoreCounts,
    Watched,
)
from retinue.storage.agents import AgentReads
from retinue.storage.queue_reads import QueueReads
from retinue.storage.tables import TABLES, record_of
from retinue.storage.walks import Walks

R = TypeVar("R", bound=msgspec.Struct)
_TERMINAL = "'completed', 'failed', 'cancelled', 'timed_out'"


def _columns(table: str, prefix: str = "") -> str:
    return ", ".join(prefix + column for column in TABLES[table])


def encode_cursor(*place: Any) -> str:
    """Turn a place in a list into the opaque text a caller gets."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def decode_cursor(cursor: str, *kinds: type) -> tuple[Any, ...]:
    """Turn a caller's cursor back into a place.

    Raises:
        InvalidInput: it is none of ours.
    """
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        place = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        place = None
    if (
        not isinstance(place, list)
        or [type(item) for item in place] != list(kinds)
        or any(type(item) is str and "\0" in item for item in place)
        or any(type(item) is int and not 0 <= item < 1 << 63 for item in place)
    ):
        raise InvalidInput("cursor is not one that this list returned", details={"path": "cursor"})
    return tuple(place)


class _Where:
    """Conditions and their parameters, joined by AND."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.values: list[Any] = []

    def add(self, text: str, *values: Any) -> None:
        self.parts.append(text)
        self.values.extend(values)

    def equal(self, **columns: Any) -> None:
        for column, value in columns.items():
            if value is not None:
                self.add(f"{column} = ?", value)

    def __str__(self) -> str:
        return " WHERE " + " AND ".join(self.parts) if self.parts else ""


class Reads(AgentReads, QueueReads, Walks):
    """Every read of the ``Store`` protocol; see there for the contracts."""

    worker: str

    @staticmethod
    def _among(column: str, values: Sequence[str]) -> tuple[str, Any]:
        """Return a condition that ``column`` is one of ``values``, with its one parameter."""
        raise NotImplementedError

    async def execution(self, execution_id: str, owner: str | None, /) -> Execution | None:
        """Return an execution of ``owner``."""
        where = _Where()
        where.equal(id=execution_id, owner=owner)
        rows = await self._fetch(
            f"SELECT {_columns('execution')} FROM execution{where}", where.values
        )
        return record_of(Execution, rows[0]) if rows else None

    async def idempotent(self, owner: str, key: str, now: int, /) -> tuple[bytes, str] | None:
        """Return the fingerprint and the execution that a key stands for at ``now``."""
        rows = await self._fetch(
            "SELECT fingerprint, execution_id FROM idempotency"
            " WHERE owner = ? AND key = ? AND expires_at >= ?",
            [owner, key, now],
        )
        return (bytes(rows[0][0]), rows[0][1]) if rows else None

    async def executions(self, where: ExecutionFilter, page: Page, /) -> Listing[Execution]:
        """List executions, newest first."""
        query = _Where()
        query.equal(
            owner=where.owner,
            agent_id=where.agent_id,
            capability=where.capability,
            state=where.state.value if where.state is not None else None,
            reason=where.reason,
        )
        if where.states:
            marks = ", ".join("?" * len(where.states))
            query.add(f"state IN ({marks})", *(state.value for state in where.states))
        if where.session_id is not None:
            # Through the session's chain, which has them in order already: no index of their own.
            chain = _Where()
            chain.equal(owner=where.owner, session_id=where.session_id)
            chain.add("type = 'REQUEST'")
            query.add(f"id IN (SELECT execution_id FROM contract{chain})", *chain.values)
        total = await self._count("execution", query)
        if page.cursor is not None:
            query.add("id < ?", *decode_cursor(page.cursor, str))
        rows = await self._fetch(
            f"SELECT {_columns('execution')} FROM execution{query} ORDER BY id DESC LIMIT ?",
            [*query.values, page.limit + 1],
        )
        items = [record_of(Execution, row) for row in rows]
        return _listing(items, total, page, lambda last: (last.id,))

    async def events(
        self, execution_id: str, /, *, after: int = 0, limit: int = 1000
    ) -> Sequence[Event]:
        """Return journaled events with a number greater than ``after``, in order."""
        rows = await self._fetch(
            f"SELECT {_columns('event')} FROM event WHERE execution_id = ? AND seq > ?"
            " ORDER BY seq LIMIT ?",
            [execution_id, after, limit],
        )
        return [record_of(Event, row) for row in rows]

    async def events_of(self, execution_ids: Sequence[str], limit: int, /) -> list[Event]:
        """Return the first ``limit`` events of several executions, by execution and number."""
        condition, among = self._among("execution_id", execution_ids)
        rows = await self._fetch(
            f"SELECT {_columns('event')} FROM event WHERE {condition}"
            " ORDER BY execution_id, seq LIMIT ?",
            [among, limit],
        )
        return [record_of(Event, row) for row in rows]

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
        query = _Where()
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
        rows = await self._fetch(
            f"SELECT {_columns('contract', 'c.')}, e.state, e.agent_id, e.finished_at,"
            " (SELECT r.body FROM contract r WHERE r.owner = c.owner"
            "  AND r.session_id = c.session_id AND r.n ="
            "  CASE WHEN c.execution_id IS NULL THEN c.n + 1 ELSE e.response_n END)"
            f"{source}{query} ORDER BY c.owner, c.session_id, c.n LIMIT ?",
            [*query.values, page.limit + 1],
        )
        items = [_view(row) for row in rows]
        return _listing(
            items,
            total,
            page,
            lambda v: (v.contract.owner, v.contract.session_id, v.contract.n),
        )

    async def _total_contracts(self, where: ContractFilter, source: str, query: _Where) -> int:
        if where.from_agent is None and where.to_agent is None:
            # The sessions know their own counts: no scan of the chain.
            sessions = _Where()
            sessions.equal(owner=where.owner, session_id=where.session_id)
            rows = await self._fetch(
                "SELECT coalesce(sum(n), 0)"
                f" - (SELECT coalesce(sum(n), 0) FROM checkpoint{sessions}) FROM session{sessions}",
                [*sessions.values, *sessions.values],
            )
        else:
            rows = await self._fetch(f"SELECT count(*){source}{query}", query.values)
        return int(rows[0][0])

    async def sessions(self, owner: str | None, page: Page, /) -> Listing[Session]:
        """List sessions by id."""
        query = _Where()
        query.equal(owner=owner)
        total = await self._count("session", query)
        if page.cursor is not None:
            query.add("(owner, session_id) > (?, ?)", *decode_cursor(page.cursor, str, str))
        rows = await self._fetch(
            f"SELECT {_columns('session')} FROM session{query} ORDER BY owner, session_id LIMIT ?",
            [*query.values, page.limit + 1],
        )
        items = [record_of(Session, row) for row in rows]
        return _listing(items, total, page, lambda s: (s.owner, s.session_id))

    async def session(self, owner: str, session_id: str, /) -> Session | None:
        """Return one session."""
        rows = await self._fetch(
            f"SELECT {_columns('session')} FROM session WHERE owner = ? AND session_id = ?",
            [owner, session_id],
        )
        return record_of(Session, rows[0]) if rows else None

    async def counts(self, owner: str | None, /) -> StoreCounts:
        """Count sessions and contracts."""
        query = _Where()
        query.equal(owner=owner)
        rows = await self._fetch(
            "SELECT count(*), coalesce(sum(n), 0), coalesce(sum(completed), 0),"
            f" coalesce(sum(failed), 0), coalesce(sum(cancelled), 0) FROM session{query}",
            query.values,
        )
        removed = await self._fetch(
            "SELECT 0, coalesce(sum(n), 0), coalesce(sum(completed), 0),"
            f" coalesce(sum(failed), 0), coalesce(sum(cancelled), 0) FROM checkpoint{query}",
            query.values,
        )
        sessions, contracts, completed, failed, cancelled = (
            int(had) - int(lost) for had, lost in zip(rows[0], removed[0], strict=True)
        )
        # Each answered exchange is two contracts of one status; what is left waits or runs.
        running = _Where()
        running.equal(owner=owner)
        running.add("state IN ('running', 'input_required')")
        active = await self._count("execution", running)
        ended = 2 * (completed + failed + cancelled)
        by_status = {
            ContractStatus.PENDING: max(contracts - ended - active, 0),
            ContractStatus.IN_PROGRESS: min(active, contracts - ended),
            ContractStatus.COMPLETED: 2 * completed,
            ContractStatus.FAILED: 2 * failed,
            ContractStatus.CANCELLED: 2 * cancelled,
        }
        return StoreCounts(sessions, contracts, {k.value: n for k, n in by_status.items() if n})

    async def tallies(self) -> dict[str, AgentTally]:
        """Return the tally of every agent that ever ended an execution."""
        rows = await self._fetch("SELECT agent_id, completed, failed FROM tally")
        return {agent_id: AgentTally(done, failed) for agent_id, done, failed in rows}

    async def watch(self, execution_ids: Sequence[str], /) -> list[Watched]:
        """Return where the given executions stand, in one query."""
        if not execution_ids:
            return []
        condition, among = self._among("id", execution_ids)
        rows = await self._fetch(
            f"SELECT id, state, last_seq, cancel_requested_at FROM execution WHERE {condition}",
            [among],
        )
        return [Watched(i, State(s), seq, asked is not None) for i, s, seq, asked in rows]

    async def held(self) -> list[Fence]:
        """Return the attempts that are leased to this worker now."""
        rows = await self._fetch(
            "SELECT id, attempt, worker FROM execution"
            " WHERE worker = ? AND state IN ('running', 'input_required')",
            [self.worker],
        )
        return [Fence(*row) for row in rows]

    async def questions(self, owner: str | None, page: Page, /) -> Listing[Question]:
        """List open questions, oldest first."""
        query = _Where()
        query.equal(owner=owner)
        query.add("state = 'open'")
        total = await self._count("question", query)
        if page.cursor is not None:
            query.add("id > ?", *decode_cursor(page.cursor, str))
        rows = await self._fetch(
            f"SELECT {_columns('question')} FROM question{query} ORDER BY id LIMIT ?",
            [*query.values, page.limit + 1],
        )
        items = [record_of(Question, row) for row in rows]
        return _listing(items, total, page, lambda q: (q.id,))

    async def answered(self, execution_id: str, /) -> list[Question]:
        """Return an execution's answered questions, oldest first."""
        rows = await self._fetch(
            f"SELECT {_columns('question')} FROM question WHERE execution_id = ?"
            " AND state = 'answered' ORDER BY id",
            [execution_id],
        )
        return [record_of(Question, row) for row in rows]

    async def question(self, question_id: str, owner: str | None, /) -> Question | None:
        """Return one question."""
        query = _Where()
        query.equal(id=question_id, owner=owner)
        rows = await self._fetch(
            f"SELECT {_columns('question')} FROM question{query}", query.values
        )
        return record_of(Question, rows[0]) if rows else None

    async def keys(self) -> list[ApiKey]:
        """Return all API keys, revoked ones too."""
        rows = await self._fetch(f"SELECT {_columns('api_key')} FROM api_key ORDER BY id")
        return [record_of(ApiKey, row) for row in rows]

    async def audit(self, page: Page, /) -> Listing[AuditRow]:
        """List the audit chain, oldest first."""
        query = _Where()
        total = await self._count("audit", query)
        if page.cursor is not None:
            query.add("n > ?", *decode_cursor(page.cursor, int))
        rows = await self._fetch(
            f"SELECT {_columns('audit')} FROM audit{query} ORDER BY n LIMIT ?",
            [*query.values, page.limit + 1],
        )
        items = [record_of(AuditRow, row) for row in rows]
        return _listing(items, total, page, lambda row: (row.n,))

    async def unanchored(self) -> list[tuple[str, str]]:
        """Return the sessions that grew since the last anchor was written."""
        rows = await self._fetch(
            "SELECT owner, session_id FROM session WHERE updated_at >"
            " coalesce((SELECT max(at) FROM audit WHERE action = ?), 0)",
            [ANCHOR],
        )
        return [(owner, session_id) for owner, session_id in rows]

    async def audit_head(self) -> tuple[int, bytes]:
        """Return the audit chain's last number and hash."""
        rows = await self._fetch("SELECT n, hash FROM audit_head")
        return (int(rows[0][0]), bytes(rows[0][1])) if rows else (0, b"")

    async def chain(self, owner: str, session_id: str, after: int, limit: int, /) -> list[Contract]:
        """Return rows of one session's chain, for verification."""
        rows = await self._fetch(
            f"SELECT {_columns('contract')} FROM contract WHERE owner = ? AND session_id = ?"
            " AND n > ? ORDER BY n LIMIT ?",
            [owner, session_id, after, limit],
        )
        return [record_of(Contract, row) for row in rows]

    async def _count(self, table: str, query: _Where) -> int:
        rows = await self._fetch(f"SELECT count(*) FROM {table}{query}", query.values)
        return int(rows[0][0])


def _listing(items: list[R], total: int, page: Page, place: Any) -> Listing[R]:
    if len(items) <= page.limit:
        return Listing(items, total)
    items = items[: page.limit]
    return Listing(items, total, encode_cursor(*place(items[-1])))


def _view(row: Any) -> ContractView:
    *columns, state, agent_id, finished_at, answered = row
    contract = record_of(Contract, columns)
    if contract.type is ContractType.RESPONSE:
        answered = contract.body
    if state is None:
        # No execution: the task was refused, and its REQUEST failed with it.
        return ContractView(contract, State.FAILED, None, contract.at, answered)
    return ContractView(contract, State(state), agent_id, finished_at, answered)

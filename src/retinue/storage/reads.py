"""The reads of a store, written once: portable SQL with ``?`` and the records it becomes.

A store brings its way to run one query; everything else both inherit from here. What may be large
is read by ``Bodies``.
"""

from __future__ import annotations

from collections.abc import Sequence

from retinue.domain.audit import ANCHOR
from retinue.domain.contract import ContractStatus
from retinue.domain.execution import Execution, State
from retinue.domain.intent import Fence
from retinue.domain.principal import ApiKey
from retinue.domain.question import Question
from retinue.domain.session import Session
from retinue.interfaces import (
    AgentTally,
    ExecutionFilter,
    Listing,
    Page,
    StoreCounts,
    Watched,
)
from retinue.storage.agents import AgentReads
from retinue.storage.bodies import Bodies
from retinue.storage.instances import InstanceReads
from retinue.storage.pages import Where, columns, decode_cursor, listing
from retinue.storage.queue_reads import QueueReads
from retinue.storage.tables import record_of
from retinue.storage.walks import Walks


class Reads(Bodies, AgentReads, InstanceReads, QueueReads, Walks):
    """Every read of the ``Store`` protocol; see there for the contracts."""

    worker: str

    async def execution(self, execution_id: str, owner: str | None, /) -> Execution | None:
        """Return an execution of ``owner``."""
        where = Where()
        where.equal(id=execution_id, owner=owner)
        rows = await self._fetch(
            f"SELECT {columns('execution')} FROM execution{where}", where.values
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
        query = Where()
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
            chain = Where()
            chain.equal(owner=where.owner, session_id=where.session_id)
            chain.add("type = 'REQUEST'")
            query.add(f"id IN (SELECT execution_id FROM contract{chain})", *chain.values)
        total = await self._count("execution", query)
        if page.cursor is not None:
            query.add("id < ?", *decode_cursor(page.cursor, str))
        rows = await self._fetch(
            f"SELECT {columns('execution')} FROM execution{query} ORDER BY id DESC LIMIT ?",
            [*query.values, page.limit + 1],
        )
        items = [record_of(Execution, row) for row in rows[: page.limit]]
        return listing(items, total, len(rows) > page.limit, lambda last: (last.id,))

    async def sessions(self, owner: str | None, page: Page, /) -> Listing[Session]:
        """List sessions by id."""
        query = Where()
        query.equal(owner=owner)
        total = await self._count("session", query)
        if page.cursor is not None:
            query.add("(owner, session_id) > (?, ?)", *decode_cursor(page.cursor, str, str))
        rows = await self._fetch(
            f"SELECT {columns('session')} FROM session{query} ORDER BY owner, session_id LIMIT ?",
            [*query.values, page.limit + 1],
        )
        items = [record_of(Session, row) for row in rows[: page.limit]]
        return listing(items, total, len(rows) > page.limit, lambda s: (s.owner, s.session_id))

    async def session(self, owner: str, session_id: str, /) -> Session | None:
        """Return one session."""
        rows = await self._fetch(
            f"SELECT {columns('session')} FROM session WHERE owner = ? AND session_id = ?",
            [owner, session_id],
        )
        return record_of(Session, rows[0]) if rows else None

    async def counts(self, owner: str | None, /) -> StoreCounts:
        """Count sessions and contracts."""
        query = Where()
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
        running = Where()
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

    async def answered(self, execution_id: str, /) -> list[Question]:
        """Return an execution's answered questions, oldest first."""
        rows = await self._fetch(
            f"SELECT {columns('question')} FROM question WHERE execution_id = ?"
            " AND state = 'answered' ORDER BY id",
            [execution_id],
        )
        return [record_of(Question, row) for row in rows]

    async def question(self, question_id: str, owner: str | None, /) -> Question | None:
        """Return one question."""
        query = Where()
        query.equal(id=question_id, owner=owner)
        rows = await self._fetch(f"SELECT {columns('question')} FROM question{query}", query.values)
        return record_of(Question, rows[0]) if rows else None

    async def keys(self) -> list[ApiKey]:
        """Return all API keys, revoked ones too."""
        rows = await self._fetch(f"SELECT {columns('api_key')} FROM api_key ORDER BY id")
        return [record_of(ApiKey, row) for row in rows]

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

"""Registrations of agents: how a batch writes them, and how they are read.

A row is never deleted: the end of a registration is written into it, and another registration of
the same id is another revision. So the rows and the ends, counted, tell whether anything changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retinue.domain.agent import StoredAgent
from retinue.domain.intent import PutAgent, RemoveAgent
from retinue.domain.result import Conflict, Ok, Rejected, Result
from retinue.storage.decisions import Batch
from retinue.storage.sql import PUT_AGENT
from retinue.storage.statements import Query, Steps
from retinue.storage.tables import TABLES, record_of


def put_or_remove(
    batch: Batch, wanted: list[tuple[int, PutAgent | RemoveAgent]], results: list[Result]
) -> Steps[None]:
    """Carry registrations and removals out, by agent, each agent's in the order they came."""
    for i, intent in sorted(wanted, key=_agent_id):
        if type(intent) is PutAgent:
            agent = intent.agent
            values = tuple(getattr(agent, column) for column in PUT_AGENT)
            done = yield Query("put_agent", [values])
            at = agent.created_at
            refusal: Result = Conflict("exists")
        else:
            assert type(intent) is RemoveAgent
            done = yield Query("remove_agent", [(intent.agent_id, intent.at, intent.by)])
            at = intent.at
            refusal = Rejected("not_found")
        if done:
            batch.audits.append((intent.audit, at))
        results[i] = Ok() if done else refusal


def _agent_id(pair: tuple[int, PutAgent | RemoveAgent]) -> str:
    intent = pair[1]
    return intent.agent.agent_id if type(intent) is PutAgent else intent.agent_id  # type: ignore[union-attr]


class AgentReads:
    """The reads of registrations; see the ``Store`` protocol for the contracts."""

    async def _fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run one query and return its rows. Each store brings its own."""
        raise NotImplementedError

    async def agents(self) -> list[StoredAgent]:
        """Return the registrations that are not removed, oldest first."""
        rows = await self._fetch(
            f"SELECT {', '.join(TABLES['agent_definition'])} FROM agent_definition"
            " WHERE removed_at IS NULL ORDER BY created_at, agent_id"
        )
        return [record_of(StoredAgent, row) for row in rows]

    async def agent_changes(self) -> int:
        """Return a number that grows with every registration and every removal."""
        rows = await self._fetch("SELECT count(*) + count(removed_at) FROM agent_definition")
        return int(rows[0][0])

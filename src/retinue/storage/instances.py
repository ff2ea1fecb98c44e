"""Instances: how a batch writes them, and how they are read.

The worker that supervises an instance is the only one that writes its row, as a whole; what it
writes must follow from what is stored by the instance's machine. Another worker gets the row by
taking it over, together with the execution it works on, when that worker is dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retinue.domain.execution import Execution, State
from retinue.domain.instance import EDGES, InstanceRecord
from retinue.domain.intent import AdoptInstance, ForgetInstances, Intent, PutInstance, SaveInstance
from retinue.domain.result import Adopted, Conflict, Ok, Rejected, Result, Swept
from retinue.interfaces import InstanceFilter, Listing, Page
from retinue.storage.decisions import Batch, fenced
from retinue.storage.pages import Where, columns, decode_cursor, listing
from retinue.storage.sql import NOBODY
from retinue.storage.statements import Change, Insert, Query, Steps
from retinue.storage.tables import record_of, row_of

INSTANCES: frozenset[type] = frozenset({PutInstance, SaveInstance, AdoptInstance, ForgetInstances})
"""The intents that are decided here."""

_Stored = dict[str, InstanceRecord]


def instances(
    batch: Batch,
    asked: Sequence[tuple[int, Intent]],
    locked: dict[str, Execution],
    results: list[Result],
) -> Steps[None]:
    """Carry out what was asked, in the order it came; each row is written once."""
    named = {x.instance.instance_id for _, x in asked if not isinstance(x, ForgetInstances)}  # type: ignore[union-attr]
    stored: _Stored = {}
    if named:
        rows = yield Query("lock_instance", [(i,) for i in sorted(named)])
        stored = {i.instance_id: i for i in (record_of(InstanceRecord, row) for row in rows)}
    known = set(stored)
    changed: set[str] = set()
    for i, intent in asked:
        if isinstance(intent, ForgetInstances):
            gone = yield Query("forget_instances", [(intent.before, intent.limit)])
            results[i] = Swept(len(gone), len(gone) == intent.limit)
            continue
        results[i] = _decide(batch, intent, stored, locked)
        if isinstance(results[i], Ok):
            changed.add(intent.instance.instance_id)  # type: ignore[union-attr]
    new = [row_of(stored[i]) for i in sorted(changed - known)]
    if new:
        yield Insert("instance", new)
    old = [row_of(stored[i]) for i in sorted(changed & known)]
    if old:
        yield Change("update_instance", [(*row[1:], row[0]) for row in old])


def _decide(batch: Batch, intent: Intent, stored: _Stored, locked: dict[str, Execution]) -> Result:
    if isinstance(intent, AdoptInstance):
        return _adopt(batch, intent, stored, locked)
    assert isinstance(intent, PutInstance | SaveInstance)
    given = intent.instance
    had = stored.get(given.instance_id)
    if isinstance(intent, PutInstance):
        if had is not None:
            return Conflict("exists")
    elif had is None:
        return Rejected("not_found")
    elif had.worker != given.worker:
        return Conflict("fenced")
    elif given.state is not had.state and given.state not in EDGES[had.state]:
        return Conflict("illegal", {"from": had.state.value, "to": given.state.value})
    stored[given.instance_id] = given
    return Ok()


def _adopt(
    batch: Batch, intent: AdoptInstance, stored: _Stored, locked: dict[str, Execution]
) -> Result:
    had = stored.get(intent.instance.instance_id)
    if had is None or not intent.worker or had.worker != intent.instance.worker:
        return Conflict("fenced")
    if had.ended and intent.fence is None:
        return Conflict("ended")  # with an attempt that has not ended its output is still wanted
    execution: Execution | None = None
    if intent.fence is not None:
        held = fenced(locked, intent.fence)
        if isinstance(held, Conflict):
            return held
        if held.state is not State.RUNNING:
            return Conflict("fenced", {"state": held.state.value})
        execution = held
        execution.worker = intent.worker
        batch.changed[execution.id] = execution
    had.worker = intent.worker
    return Adopted(had, execution)


class InstanceReads:
    """The reads of instances; see the ``Store`` protocol for the contracts."""

    worker: str

    async def _fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run one query and return its rows. Each store brings its own."""
        raise NotImplementedError

    async def _count(self, table: str, query: Where) -> int:
        """Count rows. ``Bodies`` brings it."""
        raise NotImplementedError

    async def instance(self, instance_id: str, owner: str | None, /) -> InstanceRecord | None:
        """Return one instance."""
        query = Where()
        query.equal(instance_id=instance_id, owner=owner)
        rows = await self._fetch(f"SELECT {columns('instance')} FROM instance{query}", query.values)
        return record_of(InstanceRecord, rows[0]) if rows else None

    async def instances(self, where: InstanceFilter, page: Page, /) -> Listing[InstanceRecord]:
        """List instances, newest first."""
        query = Where()
        query.equal(owner=where.owner, agent_id=where.agent_id, execution_id=where.execution_id)
        if where.states:
            marks = ", ".join("?" * len(where.states))
            query.add(f"state IN ({marks})", *(state.value for state in where.states))
        if where.live:
            query.add("ended_at IS NULL")
        total = await self._count("instance", query)
        if page.cursor is not None:
            query.add("instance_id < ?", *decode_cursor(page.cursor, str))
        rows = await self._fetch(
            f"SELECT {columns('instance')} FROM instance{query} ORDER BY instance_id DESC LIMIT ?",
            [*query.values, page.limit + 1],
        )
        items = [record_of(InstanceRecord, row) for row in rows[: page.limit]]
        return listing(items, total, len(rows) > page.limit, lambda last: (last.instance_id,))

    async def ownerless(self, node: str, limit: int, /) -> list[InstanceRecord]:
        """Return instances that have not ended and whose worker is dead, oldest first."""
        rows = await self._fetch(
            f"SELECT {columns('instance', 'o.')} FROM instance o WHERE o.ended_at IS NULL"
            f" AND o.worker <> ? AND {NOBODY} AND (o.node = ? OR o.state <> 'lost')"
            " ORDER BY o.instance_id LIMIT ?",
            [self.worker, node, limit],
        )
        return [record_of(InstanceRecord, row) for row in rows]

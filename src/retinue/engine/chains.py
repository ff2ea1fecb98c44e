"""The walk over all chains: contracts in order, each with its session and its execution.

Contracts are read across sessions, so that many small sessions cost no more than few large ones.
What a page of them needs (executions, events, marks) is read for the whole page at once. A session
is compared as it was when its row was read; what is written or removed meanwhile is no fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from retinue.domain.contract import (
    GENESIS,
    Contract,
    ContractStatus,
    ContractType,
    body_hash,
    chain_hash,
    status_of,
)
from retinue.domain.execution import Execution
from retinue.domain.retention import CUT, GONE_ERASED, Checkpoint, Mark, told
from retinue.domain.seal import seal, seal_request
from retinue.domain.session import Session
from retinue.domain.strictjson import loads
from retinue.engine.replay import Marks, Replay
from retinue.engine.verdict import UNREADABLE, Broken, Fault, Progress, session_name, stored
from retinue.interfaces import Page, Store

_PAGE = 500
_SEALED = 33
Key = tuple[str, str]


class Chains:
    """One walk over the sessions (of one owner, or all) and their contracts."""

    def __init__(self, store: Store, progress: Progress, owner: str | None) -> None:
        self._store = store
        self._progress = progress
        self._owner = owner
        self._marks = Marks(store)
        self._replay = Replay(store, progress)
        self._context = _Context()

    async def run(self) -> None:
        """Walk.

        Raises:
            Broken: something does not fit.
        """
        sessions = self._sessions()
        current = await anext(sessions, None)
        skipped: Key | None = None
        async for row in self._contracts():
            key = (row.owner, row.session_id)
            while current is not None and current.key < key:
                await self._finish(current)
                current = await anext(sessions, None)
            if current is None or current.key != key:
                if key != skipped and await self._store.session(*key) is None:
                    raise Broken(session_name(*key), row.n, "the session's row is missing", row.id)
                skipped = key  # begun since we read the sessions
                continue
            await self._take(current, row)
        while current is not None:
            await self._finish(current)
            current = await anext(sessions, None)

    async def _sessions(self) -> AsyncIterator[_Chain]:
        page = Page(limit=_PAGE)
        while True:
            self._progress.at = ("session", 1, None)
            listing = await self._store.sessions(self._owner, page)
            points: dict[Key, Checkpoint] = {}
            if listing.items:
                first, last = listing.items[0], listing.items[-1]
                found = await self._store.checkpoints(_key(first), _key(last))
                points = {(p.owner, p.session_id): p for p in found}
            for session in listing.items:
                self._progress.sessions += 1
                point = points.get(_key(session))
                if point is not None:
                    await self._vouched(point)
                yield _Chain(session, point)
            if listing.next_cursor is None:
                return
            page = Page(limit=_PAGE, cursor=listing.next_cursor)

    async def _vouched(self, point: Checkpoint) -> None:
        """Compare a checkpoint with the row of the audit that it names."""
        name = session_name(point.owner, point.session_id)
        rows = await self._store.audit_rows([point.audit_n])
        if rows and rows[0].action == CUT:
            row, said = rows[0], loads(rows[0].detail)
            said.pop("from", None)
            if (row.owner, row.target, said) == (point.owner, point.session_id, told(point)):
                return
        raise Broken(name, point.n, "the checkpoint of its first contracts was changed")

    async def _contracts(self) -> AsyncIterator[Contract]:
        place = ("", "", 0)
        limit = _PAGE
        while True:
            try:
                rows = await self._store.contracts_after(place, self._owner, limit)
            except UNREADABLE:
                if limit == 1:
                    self._progress.at = (session_name(*place[:2]), place[2] + 1, None)
                    raise
                limit = 1  # one of the page: the walk comes to it, and ends there
                continue
            if not rows:
                return
            self._context = await self._look(rows)
            for row in rows:
                yield row
            place = (rows[-1].owner, rows[-1].session_id, rows[-1].n)
            await asyncio.sleep(0)

    async def _look(self, rows: Sequence[Contract]) -> _Context:
        """Read what the rows of a page need."""
        context = _Context()
        ids = {row.execution_id for row in rows if row.execution_id}
        try:
            found = await self._store.executions_of(sorted(ids)) if ids else []
        except UNREADABLE:
            found = []
            for execution_id in sorted(ids):
                try:
                    found.extend(await self._store.executions_of([execution_id]))
                except UNREADABLE as error:
                    context.unreadable[execution_id] = f"{type(error).__name__}: {error}"
        context.executions = {e.id: e for e in found}
        bare = {row.id for row in rows if row.execution_id is None and row.body is None}
        context.marks = await self._marks.of(sorted(ids | bare))
        answered = {row.execution_id for row in rows if row.type is ContractType.RESPONSE}
        ended = [e for e in found if e.id in answered]
        try:
            context.faults = await self._replay.faults(ended, context.marks)
        except UNREADABLE:
            for execution in ended:
                try:
                    context.faults |= await self._replay.faults([execution], context.marks)
                except UNREADABLE as error:
                    reason = f"a row cannot be read: {type(error).__name__}: {error}"
                    name = f"events of {execution.id}"
                    context.faults[execution.id] = Fault(name, 1, reason, execution.id)
        return context

    async def _take(self, chain: _Chain, row: Contract) -> None:
        if row.n > chain.session.n:
            if chain.n < chain.session.n:
                await self._gap(chain, row)
            return  # written while we read
        self._progress.contracts += 1
        self._progress.at = (chain.name, row.n, row.id)
        if row.n != chain.n + 1 and not await self._gap(chain, row):
            return
        chain.take(row, self._context)

    async def _gap(self, chain: _Chain, row: Contract) -> bool:
        """Look why contracts are missing before ``row``; say whether it is the next one now.

        Raises:
            Broken: they were not removed by retention.
        """
        for point in await self._store.checkpoints(chain.key, chain.key):
            if point.n > chain.n:
                chain.go_on(point)
                return row.n == chain.n + 1
        if row.n <= chain.n:
            return False  # removed since
        raise Broken(chain.name, chain.n + 1, f"row {chain.n + 1} is missing")

    async def _finish(self, chain: _Chain) -> None:
        session = chain.session
        if chain.n < session.n:
            for point in await self._store.checkpoints(chain.key, chain.key):
                if point.n > chain.n:
                    chain.go_on(point)
        if chain.n < session.n:
            raise Broken(chain.name, chain.n + 1, f"row {chain.n + 1} is missing")
        chain.finish()


def _key(session: Session) -> Key:
    return (session.owner, session.session_id)


class _Context:
    """What was read for a page of contracts."""

    def __init__(self) -> None:
        self.executions: dict[str, Execution] = {}
        self.unreadable: dict[str, str] = {}
        self.marks: dict[tuple[str, str], Mark] = {}
        self.faults: dict[str, Fault] = {}


class _Chain:
    """One session's chain while it is walked."""

    def __init__(self, session: Session, point: Checkpoint | None) -> None:
        self.session = session
        self.key = _key(session)
        self.name = session_name(*self.key)
        self.n = point.n if point is not None else 0
        self._previous = stored(point.hash) if point is not None else GENESIS
        self._counts = {
            status.value: getattr(point, status.value) if point is not None else 0
            for status in (
                ContractStatus.COMPLETED,
                ContractStatus.FAILED,
                ContractStatus.CANCELLED,
            )
        }
        self._latest = point.latest if point is not None else 0
        self._began = point.began if point is not None else None
        self._moved = False
        # Executions that have ended, and where their RESPONSE must come.
        self._ends: dict[str, int] = {}

    def go_on(self, point: Checkpoint) -> None:
        """Go on behind contracts that retention has removed while we read."""
        self.n, self._previous = point.n, stored(point.hash)
        self._moved = True

    def take(self, row: Contract, context: _Context) -> None:
        """Check the next contract.

        Raises:
            Broken: it does not fit.
        """
        name, n = self.name, row.n
        if row.body is not None:
            if body_hash(stored(row.body)) != stored(row.body_hash):
                raise Broken(name, n, "the body was changed", row.id)
        elif (row.execution_id or row.id, GONE_ERASED) not in context.marks:
            reason = "the body is gone, and the audit does not say who erased it"
            raise Broken(name, n, reason, row.id)
        if chain_hash(self._previous, row) != stored(row.hash):
            raise Broken(name, n, "the row was changed or moved", row.id)
        if row.execution_id is not None:
            self._execution(row, context)
        self.n, self._previous = n, stored(row.hash)
        self._latest = max(self._latest, row.at)
        if row.status is not None:
            self._counts[row.status.value] += 1
        if n == 1 and row.digest is not None:
            self._began = row.at

    def _execution(self, row: Contract, context: _Context) -> None:
        """Check that the row of the contract's execution says what the contract does."""
        execution_id = row.execution_id or ""
        execution = context.executions.get(execution_id)
        if execution is None:
            why = context.unreadable.get(execution_id)
            what = f"cannot be read: {why}" if why is not None else "is missing"
            raise Broken(self.name, row.n, f"its execution {execution_id} {what}", row.id)
        is_request = row.type is ContractType.REQUEST
        fits = self._asked(row, execution) if is_request else self._answered(row, execution)
        if not fits or (execution.owner, execution.session_id) != self.key:
            raise Broken(self.name, row.n, f"its execution {execution_id} was changed", row.id)
        if not is_request and execution_id in context.faults:
            fault = context.faults[execution_id]
            raise Broken(fault.chain, fault.n, fault.reason, row.id)

    def _asked(self, row: Contract, e: Execution) -> bool:
        if e.terminal and (e.response_n or 0) <= self.session.n:
            self._ends[e.id] = e.response_n or 0
        return (e.request_id, e.request_n, e.from_agent, e.capability, e.created_at) == (
            *(row.id, row.n, row.from_agent, row.capability, row.at),
        ) and (row.digest is None or stored(row.digest) == seal_request(e))

    def _answered(self, row: Contract, e: Execution) -> bool:
        self._ends.pop(e.id, None)
        if not e.terminal or status_of(e.state) is not row.status:
            return False
        sender = e.agent_id or "orchestrator"
        if (e.response_id, e.response_n, e.finished_at, sender) != (
            *(row.id, row.n, row.at, row.from_agent),
        ):
            return False
        digest = stored(row.digest) if row.digest is not None else b""
        return digest == (seal(e) if len(digest) == _SEALED else stored(e.digest))

    def finish(self) -> None:
        """Check the session's own row.

        Raises:
            Broken: it does not fit.
        """
        session, name = self.session, self.name
        if self._ends:
            first = min(self._ends, key=lambda i: self._ends[i])
            raise Broken(name, self._ends[first], f"execution {first} did not end there", first)
        if self._moved:
            return
        if self._previous != stored(session.head):
            raise Broken(name, self.n, "the session's head differs from its last row")
        for status, count in self._counts.items():
            if getattr(session, status) != count:
                said = f"the session counts {getattr(session, status)} {status}, there are {count}"
                raise Broken(name, self.n, said)
        if session.updated_at != self._latest:
            raise Broken(name, self.n, "when the session was last updated was changed")
        if self._began is not None and session.created_at != self._began:
            raise Broken(name, 1, "when the session began was changed")

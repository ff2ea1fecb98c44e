"""Verification: recompute every chain of the ledger and name the first row that does not fit.

What is checked: each session's contracts (hash, place, body, order, the head's count and hash),
each RESPONSE's digest against its execution's events, the audit chain, and the heads anchored in
it, so that a tail cut off together with its head shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from retinue.domain.audit import ANCHOR, audit_hash
from retinue.domain.contract import (
    GENESIS,
    Contract,
    ContractType,
    body_hash,
    chain_hash,
    status_of,
)
from retinue.domain.event import Event, chain_event
from retinue.domain.session import Session
from retinue.domain.strictjson import loads
from retinue.interfaces import Page, Store, Watched

_PAGE = 1000
_AHEAD = 250
_AHEAD_EVENTS = 5_000
_UNREADABLE = (TypeError, ValueError, KeyError, msgspec.MsgspecError)
"""What reading a row raises that holds no value of ours."""


class Fault(msgspec.Struct, frozen=True):
    """A row that does not fit: which chain, its place ``n`` in it, and what is wrong."""

    chain: str
    n: int
    reason: str
    id: str | None = None


class Verdict(msgspec.Struct, frozen=True):
    """What a verification found. ``fault`` is the first one; None means all chains hold."""

    sessions: int
    contracts: int
    events: int
    audits: int
    fault: Fault | None = None

    @property
    def ok(self) -> bool:
        """Whether every chain holds."""
        return self.fault is None


class _Broken(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


class Verification:
    """One pass over the ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.sessions = self.contracts = self.events = self.audits = 0
        # (owner, session) → {n: hash} that an anchor vouches for
        self._anchors: dict[tuple[str, str], dict[int, str]] = {}
        # Where we are, for a row that holds what no row of ours does.
        self._at: tuple[str, int, str | None] = ("session", 1, None)

    async def run(self, owner: str | None = None) -> Verdict:
        """Verify everything, or only one owner's sessions."""
        fault = None
        try:
            await self._audit()
            known: set[tuple[str, str]] = set()
            async for session in self._sessions(owner):
                known.add((session.owner, session.session_id))
                await self._session(session)
            for key, anchors in self._anchors.items():
                if key not in known and (owner is None or key[0] == owner):
                    raise _Broken(Fault(_name(*key), min(anchors), "the whole session is missing"))
        except _Broken as broken:
            fault = broken.fault
        except _UNREADABLE as error:
            chain, n, row_id = self._at
            reason = f"the row cannot be read: {type(error).__name__}: {error}"
            fault = Fault(chain, n, reason, row_id)
        return Verdict(self.sessions, self.contracts, self.events, self.audits, fault)

    async def _sessions(self, owner: str | None) -> AsyncIterator[Session]:
        page = Page(limit=_PAGE)
        while True:
            listing = await self._store.sessions(owner, page)
            for session in listing.items:
                yield session
            if listing.next_cursor is None:
                return
            page = Page(limit=_PAGE, cursor=listing.next_cursor)

    async def _audit(self) -> None:
        page = Page(limit=_PAGE)
        previous, n = GENESIS, 0
        while True:
            self._at = ("audit", n + 1, None)
            listing = await self._store.audit(page)
            for row in listing.items:
                n += 1
                self._at = ("audit", n, None)
                if row.n != n:
                    raise _Broken(Fault("audit", n, f"row {n} is missing"))
                if audit_hash(previous, row) != _bytes(row.hash):
                    raise _Broken(Fault("audit", n, "the row was changed or moved"))
                previous = _bytes(row.hash)
                self.audits += 1
                if row.action == ANCHOR:
                    for owner, session_id, at, digest in loads(row.detail)["heads"]:
                        self._anchors.setdefault((owner, session_id), {})[at] = digest
            if listing.next_cursor is None:
                break
            page = Page(limit=_PAGE, cursor=listing.next_cursor)
        end = await self._store.audit_head()
        if end != (n, previous):
            raise _Broken(Fault("audit", n + 1, "rows at the end are missing"))

    async def _session(self, session: Session) -> None:
        self.sessions += 1
        key = (session.owner, session.session_id)
        name = _name(*key)
        anchors = self._anchors.get(key, {})
        previous, n = GENESIS, 0
        while n < session.n:
            self._at = (name, n + 1, None)
            try:
                rows = await self._store.chain(*key, n, _PAGE)
            except _UNREADABLE:
                rows = await self._store.chain(*key, n, 1)  # one of the page; is it this one?
            await self._look_ahead(rows)
            for row in rows:
                if row.n > session.n:
                    break  # written while we read
                n += 1
                self._at = (name, n, row.id)
                previous = await self._contract(name, n, row, previous)
                vouched = anchors.pop(n, None)
                if vouched is not None and vouched != previous.hex():
                    raise _Broken(
                        Fault(name, n, "the chain differs from its anchor in the audit", row.id)
                    )
            if not rows:
                raise _Broken(Fault(name, n + 1, f"row {n + 1} is missing"))
            await asyncio.sleep(0)
        if previous != _bytes(session.head):
            raise _Broken(Fault(name, n, "the session's head differs from its last row"))
        if anchors and max(anchors) > n:
            raise _Broken(Fault(name, n + 1, "rows at the end are missing"))

    async def _contract(self, name: str, n: int, row: Contract, previous: bytes) -> bytes:
        self.contracts += 1
        if row.n != n:
            raise _Broken(Fault(name, n, f"row {n} is missing"))
        if row.body is not None and body_hash(_bytes(row.body)) != _bytes(row.body_hash):
            raise _Broken(Fault(name, n, "the body was changed", row.id))
        if chain_hash(previous, row) != _bytes(row.hash):
            raise _Broken(Fault(name, n, "the row was changed or moved", row.id))
        if row.type is ContractType.RESPONSE and row.execution_id is not None:
            await self._events(name, row)
        return _bytes(row.hash)

    async def _look_ahead(self, rows: Sequence[Contract]) -> None:
        """Read at once where the executions of a page of RESPONSEs stand, and their events.

        What cannot be read so (too many events, a damaged row) is read one by one later.
        """
        ids = [r.execution_id for r in rows if r.type is ContractType.RESPONSE and r.execution_id]
        self._ended: dict[str, Watched] = {}
        self._read: dict[str, list[Event]] = {}
        for start in range(0, len(ids), _AHEAD):
            some = ids[start : start + _AHEAD]
            try:
                self._ended.update({seen.id: seen for seen in await self._store.watch(some)})
                events = await self._store.events_of(some, _AHEAD_EVENTS)
            except _UNREADABLE:
                continue
            for event in events or ():
                self._read.setdefault(event.execution_id, []).append(event)

    async def _events(self, name: str, row: Contract) -> None:
        assert row.execution_id is not None
        digest, seq, name_of_events = GENESIS, 0, f"events of {row.execution_id}"
        ended = self._ended.get(row.execution_id)
        if ended is None or status_of(ended.state) is not row.status:
            raise _Broken(
                Fault(name, row.n, f"its execution {row.execution_id} does not stand so", row.id)
            )
        ahead = self._read.pop(row.execution_id, None)
        while True:
            self._at = (name_of_events, seq + 1, row.id)
            try:
                if ahead is not None:
                    events: Sequence[Event] = ahead
                else:
                    events = await self._store.events(row.execution_id, after=seq, limit=_PAGE)
            except _UNREADABLE:
                events = await self._store.events(row.execution_id, after=seq, limit=1)
            for event in events:
                seq += 1
                self._at = (name_of_events, seq, row.id)
                if event.seq != seq:
                    raise _Broken(Fault(name_of_events, seq, f"event {seq} is missing"))
                digest = chain_event(digest, seq, event.type.value, _bytes(event.data))
                self.events += 1
            if ahead is not None or not events:
                break
        if row.digest is None or digest != _bytes(row.digest):
            raise _Broken(
                Fault(
                    name_of_events,
                    seq,
                    f"they differ from the digest in contract {row.id} of {name}",
                    row.id,
                )
            )


def _bytes(value: bytes) -> bytes:
    """Return a stored value that must be bytes; SQLite keeps whatever was put there."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{type(value).__name__} where bytes belong")
    return bytes(value)


def _name(owner: str, session_id: str) -> str:
    return f"session {session_id} of {owner}"

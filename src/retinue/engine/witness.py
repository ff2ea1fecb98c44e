"""The audit chain, and what its rows say of other tables: anchors, cuts, keys, agents.

The rows are read as one stream, up to the head as it was at the start. What an anchor or a cut
vouches for is looked up row by row, so that nothing has to be kept in memory.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from retinue.domain.agent import StoredAgent
from retinue.domain.audit import ANCHOR, AuditRow, audit_hash
from retinue.domain.contract import GENESIS
from retinue.domain.principal import ApiKey
from retinue.domain.retention import CUT
from retinue.domain.strictjson import dumps, loads
from retinue.engine.verdict import Broken, Fault, Progress, session_name, stored
from retinue.interfaces import Page, Store

_PAGE = 1000
KEY_CREATE, KEY_REVOKE = "key.create", "key.revoke"
AGENT_REGISTER, AGENT_REMOVE = "agent.register", "agent.remove"


class Anchor(msgspec.Struct, frozen=True):
    """A row of the audit chain that somebody noted elsewhere: its number and its hash."""

    n: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.n}:{self.hash.hex()}"


def key_detail(key: ApiKey) -> dict[str, Any]:
    """Return what the audit says of a new key; not its hash, but what tells it from another."""
    return {
        "id": key.id,
        "name": key.name,
        "owner": key.owner,
        "role": key.role.value,
        "fingerprint": _fingerprint(key),
    }


def _fingerprint(key: ApiKey) -> str:
    return hashlib.sha256(f"{key.id}|{key.hash}".encode()).hexdigest()


def agent_detail(agent: StoredAgent, endpoint: str) -> dict[str, Any]:
    """Return what the audit says of a new registration: what it is, and what tells it apart."""
    fields = [agent.agent_id, agent.owner, agent.created_by, agent.driver, agent.created_at]
    told = dumps([*fields, agent.fingerprint.hex()]) + agent.definition
    digest = hashlib.sha256(told).hexdigest()
    return {"endpoint": endpoint, "registration": agent.id, "digest": digest}


class Witness:
    """One pass over the audit chain."""

    def __init__(self, store: Store, progress: Progress, owner: str | None) -> None:
        self._store = store
        self._progress = progress
        self._owner = owner
        self._created: dict[str, AuditRow] = {}
        self._revoked: dict[str, int] = {}
        self._registered: dict[str, AuditRow] = {}
        self.doubt: Fault | None = None
        """The first place where a session differs from the audit; its own chain may say more."""

    async def run(self, anchor: Anchor | None) -> None:
        """Walk the chain.

        Raises:
            Broken: a row of it does not fit, or ``anchor`` is not in it.
        """
        last, head = await self._store.audit_head()
        if anchor is not None and anchor.n > last:
            raise Broken("audit", last + 1, f"row {anchor.n}, which the anchor names, is missing")
        page = Page(limit=_PAGE)
        previous, n = GENESIS, 0
        while n < last:
            self._progress.at = ("audit", n + 1, None)
            listing = await self._store.audit(page)
            for row in listing.items[: last - n]:
                n += 1
                previous = self._row(n, row, previous)
                if anchor is not None and anchor.n == n and anchor.hash != previous:
                    raise Broken("audit", n, "the row is not the one that the anchor names")
                await self._said(row)
            if listing.next_cursor is None:
                break
            page = Page(limit=_PAGE, cursor=listing.next_cursor)
        if (n, previous) != (last, stored(head)):
            raise Broken("audit", n + 1, "rows at the end are missing")
        if anchor is not None and anchor.n == 0 and anchor.hash != GENESIS:
            raise Broken("audit", 0, "the row is not the one that the anchor names")

    def _row(self, n: int, row: AuditRow, previous: bytes) -> bytes:
        self._progress.at = ("audit", n, None)
        if row.n != n:
            raise Broken("audit", n, f"row {n} is missing")
        if audit_hash(previous, row) != stored(row.hash):
            raise Broken("audit", n, "the row was changed or moved")
        self._progress.audits += 1
        return stored(row.hash)

    async def _said(self, row: AuditRow) -> None:
        """Look at what the row vouches for."""
        if row.action == ANCHOR:
            await self._anchored(loads(row.detail)["heads"])
        elif row.action == CUT and self._owner in {None, row.owner}:
            await self._cut(row)
        elif row.action == KEY_CREATE and row.outcome == "ok":
            self._created[row.target.partition(" ")[0]] = row
        elif row.action == KEY_REVOKE and row.outcome == "ok":
            self._revoked[row.target] = row.at
        elif row.action == AGENT_REGISTER and row.outcome == "ok":
            self._registered[row.target] = row
        elif row.action == AGENT_REMOVE and row.outcome == "ok":
            self._registered.pop(row.target, None)

    async def _anchored(self, heads: list[list[Any]]) -> None:
        """Compare anchored heads with the contracts that stand there now."""
        places = {
            (owner, session_id, n): digest
            for owner, session_id, n, digest in heads
            if self._owner in {None, owner}
        }
        if self.doubt is not None or not places:
            return
        found = await self._store.hashes_at(list(places))
        for place, digest in places.items():
            there = found.get(place)
            if there is None:
                await self._missing(*place)
            elif stored(there).hex() != digest:
                self._doubt(*place, "the chain differs from its anchor in the audit")

    async def _missing(self, owner: str, session_id: str, n: int) -> None:
        """Look why an anchored contract is not there; that it was removed is no fault."""
        for point in await self._store.checkpoints((owner, session_id), (owner, session_id)):
            if point.n >= n:
                return
        session = await self._store.session(owner, session_id)
        if session is None:
            self._doubt(owner, session_id, n, "the whole session is missing")
        else:
            first = min(session.n + 1, n)
            self._doubt(owner, session_id, first, "rows at the end are missing")

    async def _cut(self, row: AuditRow) -> None:
        """Compare a cut with the checkpoint that stands there now."""
        said = loads(row.detail)
        key = (row.owner, row.target)
        for point in await self._store.checkpoints(key, key):
            if point.n > said["to"] or point.audit_n == row.n:
                return  # a later cut, or this one: the walk over the chain compares it
        self._doubt(*key, said["to"], "the checkpoint of its first contracts was changed")

    def _doubt(self, owner: str, session_id: str, n: int, reason: str) -> None:
        if self.doubt is None:
            self.doubt = Fault(session_name(owner, session_id), n, reason)

    async def keys(self) -> None:
        """Compare the API keys with what the audit says of them.

        Raises:
            Broken: one was changed, or put in or taken out behind the audit's back.
        """
        seen: set[str] = set()
        for key in await self._store.keys():
            row = self._created.get(key.id)
            seen.add(key.id)
            if row is None:
                if await self._is_new(key.id):
                    continue
                raise Broken("api keys", 0, "the audit does not say who made the key", key.id)
            said = loads(row.detail)
            if said and (said != key_detail(key) or row.at != key.created_at):
                raise Broken("api keys", row.n, "the key was changed", key.id)
            revoked_at = self._revoked.get(key.id)
            if key.revoked_at != revoked_at and not (
                revoked_at is None and await self._is_new(key.id)
            ):
                raise Broken("api keys", row.n, "when the key was revoked was changed", key.id)
        missing = self._created.keys() - seen
        if missing:
            first = min(missing)
            raise Broken("api keys", self._created[first].n, "the key is missing", first)

    async def agents(self) -> None:
        """Compare the agents that are registered with what the audit says of them.

        Raises:
            Broken: one was changed, or put in or taken out behind the audit's back.
        """
        there = {agent.agent_id: agent for agent in await self._store.agents()}
        for agent_id in sorted({*there, *self._registered}):
            agent, row = there.get(agent_id), self._registered.get(agent_id)
            reason = _unlike(agent, row)
            if reason is not None and not await self._is_new(agent_id):
                n = row.n if row is not None else 0
                raise Broken("registered agents", n, reason, agent_id)

    async def _is_new(self, key_id: str) -> bool:
        """Say whether rows that were written since our start say something of the key or agent."""
        last = self._progress.audits
        head, _ = await self._store.audit_head()
        rows = await self._store.audit_rows(range(last + 1, head + 1))
        return any(row.target.partition(" ")[0] == key_id for row in rows)


def _unlike(agent: StoredAgent | None, row: AuditRow | None) -> str | None:
    """Say how a registration differs from the audit; an earlier version wrote no digest there."""
    if row is None:
        return "the audit does not say who registered the agent"
    if agent is None:
        return "the agent is missing, and the audit does not say who removed it"
    said = loads(row.detail)
    told = agent_detail(agent, said.get("endpoint", ""))
    if any(said[name] != told[name] for name in ("registration", "digest") if name in said):
        return "the registration was changed"
    return None

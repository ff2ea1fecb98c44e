"""The record: read, verified, anchored, trimmed, forgotten."""

from __future__ import annotations

from typing import Any

import msgspec

from retinue.domain.audit import AuditRow
from retinue.domain.principal import Principal, Role
from retinue.domain.session import Session, check_session_id
from retinue.engine.compress import compress
from retinue.engine.erasure import Erasure, erase_session
from retinue.engine.ledger import Anchor, Verdict, Verification
from retinue.engine.retention import Policy, Pruned
from retinue.errors import NotFound, RetinueError, Unavailable
from retinue.interfaces import (
    ContractFilter,
    ContractView,
    Listing,
    Page,
)
from retinue.orchestrator.base import LOCAL_ADMIN, Desk


class Record(Desk):
    """What is kept of what was done."""

    async def contracts(
        self, where: ContractFilter, page: Page, principal: Principal = LOCAL_ADMIN
    ) -> Listing[ContractView]:
        """List contracts in chain order."""
        if where.session_id is not None:
            check_session_id(where.session_id)
        scoped = msgspec.structs.replace(where, owner=principal.owner)
        return await self._store.contracts(scoped, page)

    async def sessions(self, page: Page, principal: Principal = LOCAL_ADMIN) -> Listing[Session]:
        """List sessions by id."""
        return await self._store.sessions(principal.owner, page)

    async def session(self, session_id: str, principal: Principal = LOCAL_ADMIN) -> Session:
        """Return one session.

        Raises:
            NotFound: there is none of this owner.
        """
        check_session_id(session_id)
        session = await self._store.session(principal.owner, session_id)
        if session is None:
            raise NotFound(f"no session {session_id}")
        return session

    async def erase_session(self, session_id: str, principal: Principal = LOCAL_ADMIN) -> Erasure:
        """Erase every exchange of a session that has ended.

        Raises:
            NotFound: there is none of this owner.
            Forbidden: the caller is no admin.
        """
        await self.require(principal, Role.ADMIN, "session.erase", session_id)
        await self.session(session_id, principal)
        engine, owner = self._engine, principal.owner
        return await erase_session(
            self._store, engine.retention, owner, session_id, principal, engine.leavings
        )

    async def compress_session(
        self, session_id: str, intent: str | None = None, principal: Principal = LOCAL_ADMIN
    ) -> dict[str, Any]:
        """Return a memory block of a session, made from its contracts.

        MemAgent makes it when it is set and answers; else it is made here, and says so. Answers
        as ``POST /v1/compress`` does: ``compressed`` false, with the reason, when there is nothing
        to compress.

        Raises:
            Unavailable: the store does not answer.
        """
        check_session_id(session_id)
        answer = {"status": "ok", "session_id": session_id, "compressed": True, "error": None}
        memory = self._engine.memory
        try:
            block = await compress(self._store, principal.owner, session_id, intent, memory)
        except Unavailable:
            raise
        except RetinueError as error:
            return {
                **answer,
                "status": "error",
                "compressed": False,
                "memory_block": None,
                "error": error.message,
            }
        return {**answer, "memory_block": block}

    async def verify(
        self, principal: Principal = LOCAL_ADMIN, anchor: Anchor | None = None
    ) -> Verdict:
        """Verify the ledger: everything for an admin, else the caller's own sessions.

        ``anchor`` is one that ``anchor`` returned before: it must still be in the audit chain.
        """
        owner = None if principal.role is Role.ADMIN else principal.owner
        return await Verification(self._store).run(owner, anchor)

    async def anchor(self, principal: Principal = LOCAL_ADMIN) -> Anchor:
        """Anchor every session's head in the audit chain and return that chain's head.

        Kept where nobody who can write the store can change it, it shows later whether all was
        rewritten.

        Raises:
            Forbidden: the caller is no admin.
        """
        await self.require(principal, Role.ADMIN, "ledger.anchor")
        await self._engine.scheduler.resume()
        await self._engine.scheduler.anchor()
        n, head = await self._store.audit_head()
        return Anchor(n, bytes(head))

    async def prune(
        self, *, dry_run: bool = False, principal: Principal = LOCAL_ADMIN
    ) -> tuple[Policy, Pruned]:
        """Remove now what retention is to remove; ``dry_run`` only says what that would be.

        Raises:
            Forbidden: the caller is no admin.
        """
        await self.require(principal, Role.ADMIN, "ledger.prune")
        retention = self._engine.retention
        pruned = await (retention.trial() if dry_run else retention.round(whole=True))
        return retention.policy, pruned

    async def audit(self, page: Page, principal: Principal = LOCAL_ADMIN) -> Listing[AuditRow]:
        """List the audit chain.

        Raises:
            Forbidden: the caller is no admin.
        """
        await self.require(principal, Role.ADMIN, "audit.read")
        return await self._store.audit(page)

"""What all use cases share: who calls, what that caller may do, and the audit of it."""

from __future__ import annotations

from typing import TypeVar

from retinue.domain.audit import AuditDraft
from retinue.domain.ids import now_us
from retinue.domain.intent import Audit
from retinue.domain.principal import LOCAL, Principal, Role
from retinue.engine.core import Engine
from retinue.errors import Forbidden

T = TypeVar("T")
LOCAL_ADMIN = Principal("local", LOCAL, Role.ADMIN)


class Desk:
    """One desk of the orchestrator: its engine and store, and the refusals that are audited."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self.started_at = now_us()

    async def require(
        self, principal: Principal, role: Role, action: str, target: str = ""
    ) -> None:
        """Check that the caller's role covers ``role``.

        Raises:
            Forbidden: it does not; that is audited.
        """
        if not principal.role.covers(role):
            await self._forbid(principal, action, target)

    async def _forbid(self, principal: Principal, action: str, target: str) -> None:
        await self._audit(principal, action, target, outcome="forbidden")
        raise Forbidden(
            f"{action} needs a higher role than {principal.role.value}",
            details={"role": principal.role.value},
        )

    async def _audit(
        self,
        principal: Principal,
        action: str,
        target: str,
        outcome: str = "ok",
        detail: bytes = b"{}",
    ) -> None:
        draft = audited(principal, action, target, outcome, detail)
        await self._store.write(Audit(draft, now_us()))


def audited(
    principal: Principal, action: str, target: str, outcome: str = "ok", detail: bytes = b"{}"
) -> AuditDraft:
    """Return the audit row of something that ``principal`` did."""
    return AuditDraft(
        owner=principal.owner,
        actor=principal.name,
        action=action,
        target=target,
        outcome=outcome,
        detail=detail,
    )

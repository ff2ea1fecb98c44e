"""Who calls, and what they may do."""

from __future__ import annotations

from enum import StrEnum

import msgspec

LOCAL = "local"
"""The owner of everything while there is one local user."""


class Role(StrEnum):
    """A viewer reads, an operator also runs and cancels, an admin also manages keys and agents."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def covers(self, needed: Role) -> bool:
        """Say whether this role may do what ``needed`` may."""
        return _RANK[self] >= _RANK[needed]


_RANK = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}


class Principal(msgspec.Struct, frozen=True):
    """The authenticated caller. ``owner`` scopes everything it reads and writes."""

    name: str
    owner: str
    role: Role


class Authority(msgspec.Struct, frozen=True):
    """What a submitted task may do, whoever submits it.

    A call made by an agent carries its caller's owner, one step deeper, and names the caller as
    ``from_agent`` of the contract.
    """

    owner: str
    created_by: str
    from_agent: str = "orchestrator"
    parent_id: str | None = None
    depth: int = 0


class ApiKey(msgspec.Struct, kw_only=True):
    """A stored key: only the hash of the secret is kept."""

    id: str
    name: str
    owner: str
    role: Role
    hash: str
    created_at: int
    revoked_at: int | None = None

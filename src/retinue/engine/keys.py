"""API keys: hashed, shown once, revocable.

With no active key the one local user is admin; the first key makes every caller bring one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

from retinue.domain.audit import AuditDraft
from retinue.domain.ids import now_us, ulid
from retinue.domain.intent import PutKey, Rejected, RevokeKey
from retinue.domain.principal import ApiKey, Principal, Role
from retinue.domain.strictjson import dumps
from retinue.engine.witness import KEY_CREATE, KEY_REVOKE, key_detail
from retinue.errors import InvalidInput, NotFound, Unauthenticated
from retinue.interfaces import Store

PREFIX = "rtn_"
_REFRESH_SECONDS = 2.0


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Keys:
    """The keys of one store. Keys made by other processes are seen within two seconds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._active: list[ApiKey] = []
        self._read_at: float | None = None

    async def active(self) -> list[ApiKey]:
        """Return the keys that are not revoked."""
        now = time.monotonic()
        if self._read_at is None or now - self._read_at > _REFRESH_SECONDS:
            self._active = [key for key in await self._store.keys() if key.revoked_at is None]
            self._read_at = now
        return self._active

    async def authenticate(self, secret: str) -> Principal:
        """Return who the secret belongs to.

        Raises:
            Unauthenticated: nobody.
        """
        # The secret is 256 random bits: a plain hash of it cannot be searched. Every key is
        # compared, so that the time says nothing about which one was nearly right.
        given = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
        found: ApiKey | None = None
        for key in await self.active():
            if hmac.compare_digest(key.hash, given):
                found = key
        if found is None:
            raise Unauthenticated("this credential is not known, or was revoked")
        return Principal(found.name, found.owner, found.role)

    async def create(
        self, name: str, role: Role, owner: str, *, by: Principal
    ) -> tuple[ApiKey, str]:
        """Make a key; the secret is returned this once and stored only as its hash.

        Raises:
            InvalidInput: it is the first key and no admin's: nobody could make another one.
        """
        self._read_at = None
        if role is not Role.ADMIN and not any(k.role is Role.ADMIN for k in await self.active()):
            raise InvalidInput(
                "the first key must be an admin's (role admin): once there is a key, every caller"
                " needs one, and only an admin's makes more",
                details={"path": "$.role"},
            )
        secret = PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(
            id=ulid(), name=name, owner=owner, role=role, hash=_hash(secret), created_at=now_us()
        )
        draft = AuditDraft(
            owner=by.owner,
            actor=by.name,
            action=KEY_CREATE,
            target=f"{key.id} {name}",
            detail=dumps(key_detail(key)),
        )
        await self._store.write(PutKey(key, draft))
        self._read_at = None
        return key, secret

    async def revoke(self, key_id: str, *, by: Principal) -> None:
        """Revoke a key.

        Raises:
            NotFound: there is no such active key.
        """
        draft = AuditDraft(owner=by.owner, actor=by.name, action=KEY_REVOKE, target=key_id)
        result = await self._store.write(RevokeKey(key_id, now_us(), draft))
        if isinstance(result, Rejected):
            raise NotFound(f"no active key {key_id}")
        self._read_at = None

    async def all(self) -> list[ApiKey]:
        """Return all keys, revoked ones too."""
        return await self._store.keys()

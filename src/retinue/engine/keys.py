"""API keys: hashed, shown once, revocable.

With no active key the one local user is admin; the first key makes every caller bring one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time

from retinue.domain.audit import AuditDraft
from retinue.domain.ids import now_us, ulid
from retinue.domain.intent import PutKey, RevokeKey
from retinue.domain.principal import ApiKey, Principal, Role
from retinue.domain.result import Rejected
from retinue.domain.strictjson import dumps
from retinue.engine.witness import KEY_CREATE, KEY_REVOKE, key_detail
from retinue.errors import InvalidInput, NotFound, Unauthenticated
from retinue.interfaces import Store

PREFIX = "rtn_"
_FRESH_SECONDS = 1.0
_GOOD_SECONDS = 2.0


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Keys:
    """The keys of one store. Keys made by other processes are seen within two seconds.

    One look at the store serves all who ask meanwhile, and the next one begins before anybody has
    to wait for it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._active: list[ApiKey] = []
        self._read_at: float | None = None
        self._reading: asyncio.Task[None] | None = None
        self._changes = 0

    async def active(self) -> list[ApiKey]:
        """Return the keys that are not revoked."""
        while True:
            age = time.monotonic() - self._read_at if self._read_at is not None else _GOOD_SECONDS
            if age < _FRESH_SECONDS:
                return self._active
            reading = self._reading
            if reading is None:
                reading = self._reading = asyncio.create_task(self._read())
                # Who waits hears what went wrong; so does the next one to ask.
                reading.add_done_callback(lambda task: task.cancelled() or task.exception())
            if age < _GOOD_SECONDS:
                return self._active
            await asyncio.shield(reading)

    async def _read(self) -> None:
        try:
            began, changes = time.monotonic(), self._changes
            active = [key for key in await self._store.keys() if key.revoked_at is None]
            if changes == self._changes:
                self._active, self._read_at = active, began
        finally:
            self._reading = None

    def _changed(self) -> None:
        """Forget what is known, and what is being read just now."""
        self._changes += 1
        self._read_at = None

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
        self._changed()
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
        self._changed()
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
        self._changed()

    async def all(self) -> list[ApiKey]:
        """Return all keys, revoked ones too."""
        return await self._store.keys()

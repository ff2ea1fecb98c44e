"""Who calls: a credential becomes a principal.

A credential comes as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``. While no key is active
and the server listens on loopback only, a caller without one is the local admin.
"""

from __future__ import annotations

from retinue.domain.principal import Principal
from retinue.errors import Unauthenticated
from retinue.orchestrator import LOCAL_ADMIN, Orchestrator


class Access:
    """Authenticates the requests of one server."""

    def __init__(self, orchestrator: Orchestrator, *, loopback: bool) -> None:
        self._keys = orchestrator.keys
        self._loopback = loopback

    async def principal(self, headers: dict[bytes, bytes]) -> Principal:
        """Return who sent these headers.

        Raises:
            Unauthenticated: nobody known, or nobody although keys are active.
        """
        secret = _credential(headers)
        if secret is not None:
            return await self._keys.authenticate(secret)
        if self._loopback and not await self._keys.active():
            return LOCAL_ADMIN
        raise Unauthenticated


def _credential(headers: dict[bytes, bytes]) -> str | None:
    said = headers.get(b"authorization")
    if said is not None:
        scheme, _, secret = said.partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthenticated
        return secret.strip().decode("latin-1")
    key = headers.get(b"x-api-key")
    return key.decode("latin-1") if key is not None else None

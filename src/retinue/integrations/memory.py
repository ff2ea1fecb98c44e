"""MemAgent: compresses a session into a memory block.

MemAgent is told of a session (``POST /v1/session/init``) and then asked to compress it
(``POST /v1/session/{id}/compress``). It reads events from Trace by itself, passes contracts over,
and where it finds nothing summarises invented ones. So what happened goes along with both calls,
in the one field it is certain to read, ``intent``: first the caller's own, then the account.
"""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import quote

from retinue.domain.strictjson import dumps
from retinue.errors import PeerRefused
from retinue.integrations.http import HttpPeer, json_of
from retinue.interfaces import Health

INIT_SECONDS = 1.5
COMPRESS_SECONDS = 30.0
CREATED_BY = "retinue"
PREFIX = "session_"
_THERE_ALREADY = frozenset({409})


class MemAgent:
    """The MemAgent service at a URL."""

    name: ClassVar[str] = "memagent"

    def __init__(self, url: str, *, seconds: float = COMPRESS_SECONDS) -> None:
        self._http = HttpPeer("MemAgent", url)
        self._seconds = seconds

    async def compress(self, session_id: str, intent: str | None, told: str, /) -> dict[str, Any]:
        """Return MemAgent's block of a session: its ``compression``, and the block's id.

        Raises:
            PeerUnavailable: it does not answer, or cannot now.
            PeerRefused: it says no, or has compressed nothing.
        """
        name = session_id if session_id.startswith(PREFIX) else PREFIX + session_id
        whole = f"{intent}\n\n{told}" if intent else told
        await self._http.post(
            "/v1/session/init",
            dumps({"session_id": name, "intent": whole, "created_by": CREATED_BY}),
            seconds=INIT_SECONDS,
            also=_THERE_ALREADY,
        )
        answer = json_of(
            await self._http.post(
                f"/v1/session/{quote(name, safe='')}/compress",
                dumps({"intent": whole}),
                seconds=self._seconds,
            )
        )
        compression = answer.get("compression")
        if not isinstance(compression, dict) or not isinstance(compression.get("summary"), str):
            raise PeerRefused("MemAgent has compressed nothing")
        return {**compression, "memory_block_id": answer.get("memory_block_id")}

    async def check(self) -> Health:
        """Say whether MemAgent is well."""
        return await self._http.well("/v1/health", "/health")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

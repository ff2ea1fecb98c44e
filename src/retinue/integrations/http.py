"""How another service is called: over HTTP with JSON, within a time, and what its answers mean.

A redirect is not followed and no proxy of the environment is used: contracts go where the
settings say. A password in the URL is sent, and never shown.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec

from retinue.errors import PeerRefused, PeerUnavailable
from retinue.interfaces import Health

CHECK_SECONDS = 1.0
MOST_ANSWER = 1 << 20
_CONNECTIONS = 16
_MOST_SAID = 300
_MOST_DIGITS = 5

# What says that the service cannot now, whatever it is sent.
_LATER = frozenset({408, 421, 425, 429, 502, 503, 504})
# What says that this very request is wrong. Any other refusal (a credential, a path that is not
# there, a fault of the service's own) may be put right without us, so it is tried again.
_FOR_GOOD = frozenset({400, 406, 409, 410, 411, 412, 413, 414, 415, 422, 431, 451})


class HttpPeer:
    """One service, by its URL."""

    def __init__(self, name: str, url: str) -> None:
        where = httpx.URL(url)
        self.name = name
        self.url = str(where.copy_with(username=None, password=None)).rstrip("/")
        self._auth = (where.username, where.password) if where.userinfo else None
        self._client: httpx.AsyncClient | None = None

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                auth=self._auth,
                headers={"accept": "application/json", "accept-encoding": "identity"},
                limits=httpx.Limits(max_connections=_CONNECTIONS, keepalive_expiry=15.0),
                timeout=None,  # the whole exchange has one limit instead, see ``_ask``
                trust_env=False,
                follow_redirects=False,
            )
        return self._client

    async def post(
        self, path: str, body: bytes, *, seconds: float, also: frozenset[int] = frozenset()
    ) -> bytes:
        """POST a JSON body; return the answer's, which may be cut off at ``MOST_ANSWER``.

        A status of ``also`` is as good as one of success.

        Raises:
            PeerUnavailable: the service does not answer in time, or says that it cannot now.
            PeerRefused: it says no.
        """
        response, answer = await self._ask("POST", path, body, seconds)
        status = response.status_code
        if response.is_success or status in also:
            return answer
        message = f"{self.name} answered {status}"
        details: dict[str, Any] = {"status": status, "said": _text(answer)}
        if status in _LATER:
            details |= _retry_after(response.headers.get("retry-after", ""))
            raise PeerUnavailable(message, details=details)
        raise PeerRefused(message, details=details, for_good=status in _FOR_GOOD)

    async def well(self, *paths: str) -> Health:
        """Say whether the service is well: the first of ``paths`` that it has tells."""
        reason = ""
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                for path in paths:
                    response, _ = await self._ask("GET", path, None, CHECK_SECONDS)
                    if response.is_success:
                        return Health(healthy=True)
                    reason = reason or f"{self.name} answered {response.status_code} for {path}"
        except PeerUnavailable as error:
            reason = error.message
        except TimeoutError:
            reason = self._silent(CHECK_SECONDS)
        return Health(healthy=False, reason=reason)

    async def _ask(
        self, method: str, path: str, body: bytes | None, seconds: float
    ) -> tuple[httpx.Response, bytes]:
        headers = {"content-type": "application/json"} if body is not None else {}
        try:
            async with (
                asyncio.timeout(seconds),
                self._connected().stream(
                    method, self.url + path, content=body, headers=headers
                ) as response,
            ):
                return response, await _read(response)
        except (TimeoutError, httpx.TimeoutException):
            message = self._silent(seconds)
        except httpx.ConnectError:
            message = f"{self.name} cannot be reached at {self.url}"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            message = f"the connection to {self.name} broke ({type(error).__name__})"
        raise PeerUnavailable(message)

    def _silent(self, seconds: float) -> str:
        return f"{self.name} does not answer within {seconds:g} s"

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


async def _read(response: httpx.Response) -> bytes:
    got = b""
    async for part in response.aiter_bytes():
        got += part
        if len(got) > MOST_ANSWER:
            break  # the connection is closed with the rest unread
    return got[:MOST_ANSWER]


def _text(answer: bytes) -> str:
    return answer[:_MOST_SAID].decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _retry_after(wanted: str) -> dict[str, Any]:
    """Return how long the service wants to be let alone, when it says so in seconds."""
    sane = wanted.isdecimal() and len(wanted) <= _MOST_DIGITS
    return {"retry_after_ms": int(wanted) * 1000} if sane else {}


def json_of(answer: bytes) -> dict[str, Any]:
    """Return the JSON object that a service answered with; empty when it is none."""
    try:
        found = msgspec.json.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

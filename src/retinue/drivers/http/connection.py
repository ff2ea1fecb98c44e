"""Connections to one agent's service: a bounded pool over addresses that were judged first.

A name is resolved before each new connection, every address is judged, and the connection goes to
the very address that was: a name that leads elsewhere a moment later leads nowhere. ``Host`` and
the name in TLS stay the endpoint's.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import httpcore
import msgspec

from retinue.domain.egress import Endpoint, Policy
from retinue.errors import CommunicationError, InvalidResult

if TYPE_CHECKING:
    from retinue.drivers.http import Resolve

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 2.0
"""Shorter than any server's own patience: a connection that it is about to close is not used."""


@functools.cache
def _tls() -> ssl.SSLContext:
    """Return what verifies servers: reading the certificates takes a while, so once."""
    return httpcore.default_ssl_context()


class Response(msgspec.Struct, frozen=True):
    """An answer, wholly read."""

    status: int
    encoding: str
    body: bytes


class Connections:
    """The connections to one endpoint, one more than the agent's concurrency (for its health)."""

    def __init__(
        self, endpoint: Endpoint, resolve: Resolve, policy: Policy | None, *, most: int
    ) -> None:
        self._endpoint = endpoint
        self._closed = False
        self._room = asyncio.Semaphore(most + 1)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_tls() if endpoint.scheme == "https" else None,
            # Bounded by ``_room``: the pool itself loses count of a connection whose request is
            # cancelled before it begins, and closes good ones when only some may stay idle.
            max_connections=None,
            max_keepalive_connections=None,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_Dialer(resolve, policy),
        )

    async def exchange(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        *,
        most: int,
        truncate: bool = False,
    ) -> Response:
        """Send one request and return its answer, of ``most`` bytes.

        Raises:
            CommunicationError: not connected (then the outcome is ``not_started``), or broken.
            EgressDenied: the policy does not allow the address that the host has now.
            InvalidResult: the answer is longer; unless it may be truncated, or is no success.
        """
        if self._closed:
            raise CommunicationError("the agent was stopped", outcome="not_started")
        url = httpcore.URL(
            scheme=self._endpoint.scheme,
            host=self._endpoint.host,
            port=self._endpoint.port,
            target=self._endpoint.path + path,
        )
        sent = {"Host": self._endpoint.authority, "User-Agent": "retinue"} | headers
        try:
            async with (
                self._room,
                self._pool.stream(
                    method,
                    url,
                    headers=list(sent.items()),
                    content=body or None,
                    extensions={"timeout": {"connect": CONNECT_SECONDS}},
                ) as response,
            ):
                return await _read(response, most, truncate)
        except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout) as error:
            raise CommunicationError(
                f"no connection to the agent at {self._endpoint.url}: {_reason(error)}",
                outcome="not_started",
            ) from None
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
        ) as error:
            raise CommunicationError(
                f"the connection to the agent at {self._endpoint.url} broke: {_reason(error)}"
            ) from None

    async def close(self) -> None:
        """Close them all, and make no more."""
        self._closed = True
        await self._pool.aclose()


async def _read(response: httpcore.Response, most: int, truncate: bool) -> Response:
    encoding = ""
    for name, value in response.headers:
        if name.lower() == b"content-encoding":
            encoding = value.decode("latin-1").strip().lower()
    parts: list[bytes] = []
    total = 0
    success = response.status // 100 == 2  # noqa: PLR2004
    async for part in response.aiter_stream():
        parts.append(part)
        total += len(part)
        if total > most:
            if success and not truncate:
                raise InvalidResult(f"the agent's answer is larger than {most} bytes")
            break
    return Response(response.status, encoding, b"".join(parts)[:most])


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


class _Dialer(httpcore.AsyncNetworkBackend):
    """Resolves, judges, and connects to what was judged."""

    def __init__(self, resolve: Resolve, policy: Policy | None) -> None:
        self._resolve = resolve
        self._policy = policy
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of ``host`` that answers.

        Raises:
            EgressDenied: one of its addresses is not allowed.
        """
        seconds = timeout or CONNECT_SECONDS
        try:
            async with asyncio.timeout(seconds):
                addresses = await self._resolve(host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"{host} is not resolved in {seconds:g} s") from None
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved: {error}") from None
        if self._policy is not None:
            addresses = [str(address) for address in self._policy.check(host, addresses)]
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._plain.connect_tcp(
                    address, port, seconds / len(addresses), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

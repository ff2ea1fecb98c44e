"""The command line as a client of the HTTP API: requests, errors, and a stream that comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from retinue.errors import (
    CommunicationError,
    InvalidInput,
    Pending,
    RetinueError,
    Unavailable,
    error_from,
)

CONNECT_SECONDS = 5.0
LOOK_SECONDS = 3.0
SILENCE_SECONDS = 60.0
PAUSES = (0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 5.0, 5.0)
"""Seconds to wait before each further try to reach a server that went away."""
_NOTHING_MORE = 204
_OVERLOADED = 503
_WORKER = "retinue-worker"
TERMINAL = frozenset({"completed", "failed", "cancelled", "truncated"})


class _Over(Exception):
    """The execution has ended, and every event was seen."""


class Broken(CommunicationError):
    """The connection broke: what was asked may have been done."""


@contextmanager
def known(execution_id: str) -> Iterator[None]:
    """Have what stands between us and an accepted task said of the asking, not of the task.

    Raises:
        Pending: in place of what would have its reader send the task again.
    """
    try:
        yield
    except (CommunicationError, Unavailable) as error:
        raise Pending(
            f"{error.message}; the task was accepted as {execution_id}: ask for that instead of"
            f" sending it again (`retinue execution show {execution_id}`)",
            details={"execution_id": execution_id},
        ) from error


class Client:
    """A client of one server; ``local`` when that is this very process."""

    def __init__(self, http: httpx.AsyncClient, *, local: bool) -> None:
        self._http = http
        self.local = local
        self.url = str(http.base_url).rstrip("/")

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str, *, wait: bool = False, **query: Any) -> Any:
        """GET; parameters that are None are left out, ``wait`` lets the answer take its time.

        Raises:
            RetinueError: refused, or not reached.
        """
        given = {name: value for name, value in query.items() if value is not None}
        return await self._request("GET", path, wait=wait, params=given)

    async def post(
        self, path: str, body: Any = None, *, key: str | None = None, wait: bool = False
    ) -> Any:
        """POST; ``wait`` lets the answer take its time.

        ``key`` makes it safe to repeat, so it is, once, when the connection breaks.

        Raises:
            RetinueError: refused, or not reached.
        """
        headers = {"Idempotency-Key": key} if key is not None else {}
        options = {"json": body} if body is not None else {}
        try:
            return await self._request("POST", path, wait=wait, headers=headers, **options)
        except Broken as error:
            if key is None:
                raise
            broken = error
        try:
            return await self._request("POST", path, wait=wait, headers=headers, **options)
        except (Broken, Unavailable):
            raise Broken(
                f"{broken.message}, and whether the task was accepted is not known:"
                " `retinue execution list` shows it then"
            ) from None

    async def delete(self, path: str, *, wait: bool = False) -> Any:
        """DELETE; ``wait`` lets the answer take its time.

        Raises:
            RetinueError: refused, or not reached.
        """
        return await self._request("DELETE", path, wait=wait)

    async def serves(self, worker: str) -> bool:
        """Say whether this is the server that has its store open as ``worker``.

        One that accepts a connection and then takes its time, or has no room, is taken for it.
        """
        try:
            answer = await self._http.get("/v1/health", timeout=LOOK_SECONDS)
        except httpx.ReadTimeout:
            return True
        except httpx.TransportError:
            return False
        said = answer.headers.get(_WORKER)
        return said == worker if said is not None else answer.status_code == _OVERLOADED

    async def _request(self, method: str, path: str, *, wait: bool = False, **options: Any) -> Any:
        if wait:
            options["timeout"] = httpx.Timeout(SILENCE_SECONDS, read=None)
        try:
            response = await self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreached(error) from None
        if response.is_success:
            return _decoded(response.content) if response.content else None
        raise _refusal(response.status_code, response.content)

    def _unreached(self, error: httpx.TransportError) -> RetinueError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Unavailable(f"no server answers at {self.url}: is it running?")
        if isinstance(error, httpx.UnsupportedProtocol):
            return InvalidInput(f"{self.url} is no URL of a server")
        return Broken(f"the connection to {self.url} broke: {type(error).__name__}")

    async def events(
        self, execution_id: str, after: int = 0
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield an execution's events after number ``after``, the terminal one last.

        A connection that breaks is made again from the last event seen, so none is missed.

        Raises:
            RetinueError: refused, or the server stays away.
        """
        failures = 0
        while True:
            try:
                # Closed by name: who stops in the middle leaves no stream open behind it.
                async with aclosing(self._stream(execution_id, after)) as stream:
                    async for event in stream:
                        failures = 0
                        after = event["sequence"]
                        yield event
                        if event["eventType"] in TERMINAL:
                            return
                broken: RetinueError = CommunicationError(f"the stream from {self.url} ended early")
            except _Over:
                return
            except httpx.TransportError as error:
                broken = self._unreached(error)
            except RetinueError as error:
                if not error.retryable:
                    raise
                broken = error
            if failures == len(PAUSES):
                raise broken
            await asyncio.sleep(PAUSES[failures])
            failures += 1

    async def lines(self, path: str, **query: Any) -> AsyncIterator[Any]:
        """Yield what a stream of server-sent events brings, to its end.

        Raises:
            RetinueError: refused, or the connection breaks.
        """
        headers = {"Accept": "text/event-stream"}
        given = {name: value for name, value in query.items() if value is not None}
        try:
            async with self._http.stream("GET", path, headers=headers, params=given) as response:
                if not response.is_success:
                    raise _refusal(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        yield _decoded(line[5:].encode())
        except httpx.TransportError as error:
            raise self._unreached(error) from None

    async def _stream(self, execution_id: str, after: int) -> AsyncGenerator[dict[str, Any], None]:
        headers = {"Last-Event-ID": str(after)} if after else {}
        path = f"/v1/executions/{execution_id}/events"
        async with self._http.stream("GET", path, headers=headers) as response:
            if response.status_code == _NOTHING_MORE:
                raise _Over
            if not response.is_success:
                raise _refusal(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    yield _decoded(line[5:].encode())


def connect(url: str, api_key: str | None) -> Client:
    """Return a client of the server at ``url``."""
    loopback = urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}
    headers: Mapping[str, str] = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    http = httpx.AsyncClient(
        base_url=url,
        headers=headers,
        timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
        # A proxy of the environment is for the world, not for a server on this machine.
        trust_env=not loopback,
    )
    return Client(http, local=False)


def _decoded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise CommunicationError("the answer is not JSON: is this a Retinue server?") from None


def _refusal(status: int, content: bytes) -> RetinueError:
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if isinstance(body, dict) and "code" in body:
        return error_from(body)
    return CommunicationError(f"the server answered {status}: is this a Retinue server?")

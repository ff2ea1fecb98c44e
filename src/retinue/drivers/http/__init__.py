"""The ``http`` driver: an agent that is somebody else's HTTP service (specification 003).

A task is ``POST {endpoint}/execute``, a health check ``GET {endpoint}/health``, both signed.
Nothing is repeated here and no redirect is followed; the execution's deadline, which cancels the
call, is the only one it has once it is connected. What is known of the work when a call fails is
said with the failure: it did not start only if no connection was made.
"""

from __future__ import annotations

import asyncio
import http
import ipaddress
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from retinue.agent import data_of
from retinue.domain.agent import AgentDefinition, HttpConfig
from retinue.domain.egress import Endpoint, Policy, read
from retinue.domain.event import EventData, EventType
from retinue.domain.ids import ulid
from retinue.domain.signing import IDEMPOTENCY, SIGNATURE, TIMESTAMP, sign
from retinue.domain.strictjson import decode, dumps
from retinue.errors import (
    EgressDenied,
    ExecutionError,
    InvalidInput,
    InvalidResult,
    NotSupported,
    Outcome,
    RetinueError,
    SpawnFailed,
)
from retinue.interfaces import DriverContext, Features, Health, InstanceHandle, Job

if TYPE_CHECKING:
    from retinue.drivers.http.connection import Connections, Response

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Returns the addresses of a host."""

RESOLVE_SECONDS = 10.0
ENVELOPE_BYTES = 4096
"""What an answer may be longer than the result in it."""
MOST_REFUSAL = 4096
MOST_SHOWN = 500
_GATEWAY = frozenset(
    {
        http.HTTPStatus.BAD_GATEWAY,
        http.HTTPStatus.SERVICE_UNAVAILABLE,
        http.HTTPStatus.GATEWAY_TIMEOUT,
    }
)


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, each once, in the order to try them.

    Raises:
        OSError: it has none, or nobody answers.
    """
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


class HttpDriver:
    """Runs agents that answer over HTTP; ``config`` of the definition is an ``HttpConfig``."""

    name: ClassVar[str] = "http"
    features: ClassVar[Features] = Features(streams=False, there=True, registers=True)

    def __init__(self, policy: Policy, resolve: Resolve = resolve) -> None:
        self._policy = policy
        self._resolve = resolve

    async def check(self, agent: AgentDefinition, /) -> None:
        """Check that an API caller may have an agent at that endpoint.

        Raises:
            EgressDenied: it is no public place, or cannot be found.
        """
        endpoint = read(_config(agent).endpoint)
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                addresses = await self._resolve(endpoint.host, endpoint.port)
        except (OSError, UnicodeError):
            raise _not_found(endpoint.host) from None
        self._policy.check(endpoint.host, addresses)

    async def start(self, agent: AgentDefinition, context: DriverContext, /) -> HttpInstance:
        """Return the instance of an agent; nothing is connected yet.

        Raises:
            SpawnFailed: it cannot be called from this process.
        """
        config = _config(agent)
        if config.fault is not None:
            raise SpawnFailed(config.fault)
        try:
            endpoint = read(config.endpoint)
        except EgressDenied as error:
            raise SpawnFailed(error.message) from None
        # Only who has such agents pays for the client's import.
        from retinue.drivers.http.connection import Connections  # noqa: PLC0415

        connections = Connections(
            endpoint,
            self._resolve,
            None if config.trusted else self._policy,
            most=agent.concurrency,
        )
        return HttpInstance(agent, endpoint, config.secret, connections, context)


class HttpInstance:
    """One agent's service, as this process calls it."""

    def __init__(
        self,
        definition: AgentDefinition,
        endpoint: Endpoint,
        secret: str | None,
        connections: Connections,
        context: DriverContext,
    ) -> None:
        self.handle = InstanceHandle(definition.agent_id, ulid())
        self._endpoint = endpoint
        self._secret = secret
        self._connections = connections
        self._most = context.max_result_bytes

    @asynccontextmanager
    async def execute(self, job: Job, /) -> AsyncGenerator[AsyncIterator[EventData], None]:
        """Perform ``job``; see ``Instance``. Leaving it closes the connection."""
        async with aclosing(self._perform(job)) as events:
            yield events

    async def _perform(self, job: Job) -> AsyncGenerator[EventData, None]:
        execution = job.execution
        body = dumps(
            {
                "capability": execution.capability,
                "parameters": job.parameters if job.parameters is not None else {},
                "context": job.context if job.context is not None else {},
            }
        )
        answer = await self._connections.exchange(
            "POST",
            "/execute",
            self._headers(execution.id, body)
            | {"Retinue-Session": execution.session_id, "Retinue-Attempt": str(execution.attempt)},
            body,
            most=self._most + ENVELOPE_BYTES,
        )
        yield EventData(EventType.COMPLETED, {"result": data_of(_decoded(answer))})

    def _headers(self, execution_id: str, body: bytes) -> dict[str, str]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if body:
            headers |= {"Content-Type": "application/json", IDEMPOTENCY: execution_id}
        if self._secret is not None:
            now = int(time.time())
            headers[TIMESTAMP] = str(now)
            headers[SIGNATURE] = sign(self._secret, now, execution_id, body)
        return headers

    async def answer(self, question_id: str, answer: Any, /) -> None:
        """Refuse: nothing is asked over this protocol."""
        raise NotSupported("agents over HTTP ask no questions")

    async def ping(self) -> Health:
        """Ask the service; any 2xx is good."""
        try:
            answer = await self._connections.exchange(
                "GET", "/health", self._headers("", b""), b"", most=MOST_REFUSAL, truncate=True
            )
        except RetinueError as error:
            return Health(False, error.message)
        if _is_good(answer.status):
            return Health(True)
        return Health(False, f"GET /health answered {_phrase(answer.status)}")

    async def stop(self, grace: float, /) -> None:
        """Close all connections."""
        await self._connections.close()


def _config(agent: AgentDefinition) -> HttpConfig:
    if not isinstance(agent.config, HttpConfig):
        raise SpawnFailed(f"{agent.agent_id}: {agent.config!r} is no HttpConfig")
    return agent.config


def _not_found(host: str) -> EgressDenied:
    return EgressDenied(
        f"the endpoint is refused: {host} cannot be resolved", details={"path": "$.endpoint"}
    )


def _decoded(answer: Response) -> Any:
    """Return what the agent answered.

    Raises:
        ExecutionError: its status says that it failed.
        InvalidResult: it is too large, or no JSON.
    """
    if not _is_good(answer.status):
        text = answer.body[:MOST_SHOWN].decode("utf-8", "replace")
        raise ExecutionError(
            f"the agent answered {_phrase(answer.status)}",
            details={"status": answer.status, "answer": text},
            outcome=_outcome(answer.status),
        )
    if answer.encoding not in {"", "identity"}:
        raise InvalidResult(f"the agent's answer is {answer.encoding}, which was not asked for")
    try:
        return decode(answer.body)
    except InvalidInput as error:
        reason = error.message.replace("the body", "it", 1)
        raise InvalidResult(f"the agent's answer is not JSON: {reason}") from None


def _is_good(status: int) -> bool:
    return http.HTTPStatus.OK <= status < http.HTTPStatus.MULTIPLE_CHOICES


def _outcome(status: int) -> Outcome:
    """Say what a status tells of the work.

    A gateway's word says nothing of the agent behind it, and a redirect may be the answer of one
    that did the work already.
    """
    if status < http.HTTPStatus.BAD_REQUEST or status in _GATEWAY:
        return "unknown"
    return "failed"


def _phrase(status: int) -> str:
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)

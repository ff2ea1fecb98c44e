"""What this service is, whether it is well, and how much is in it."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Literal

import msgspec
from starlette.responses import Response

from retinue import __version__
from retinue.domain.ids import iso, now_us
from retinue.errors import RetinueError
from retinue.interfaces import Backlog
from retinue.orchestrator import Orchestrator
from retinue.server.records import Time, when
from retinue.server.routing import Call, Operation, encode
from retinue.settings import Settings, without_password

SERVICE = "retinue"
INTERFACE_VERSION = "1.0.0"
HEALTH_SECONDS = 2.0
WORKER = "retinue-worker"
"""The header that tells commands on this machine whose server answered (``cli.client``)."""


class ServiceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The service: `version` is the interface's, `release` the program's."""

    service: str
    version: str
    release: str
    endpoints: list[str]
    docs: dict[str, str]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether tasks can be taken."""

    service: str
    status: Literal["healthy", "unhealthy", "draining"]
    version: str


class OrchestratorStatus(msgspec.Struct, frozen=True, kw_only=True):
    """This process. `worker` is its identity in the store."""

    service: str
    version: str
    uptime_s: float
    started_at: Time
    worker: str


class AgentCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The agents; `registered` are their ids."""

    total: int
    by_status: dict[str, int]
    registered: list[str]


class ContractCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The caller's contracts."""

    total_sessions: int
    total_contracts: int
    by_status: dict[str, int]


class IntegrationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Another service. `healthy` is null while it is not used."""

    enabled: bool
    url: str
    healthy: bool | None


class SinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A service that every contract is sent to. `healthy` is null while it is not used.

    `backlog` counts contracts it has still to take, `failing` the sessions whose last delivery
    failed, `parked` the contracts it would not take. `failures` counts failed deliveries since
    the start; `last_error` is the latest that is not made good yet.
    """

    enabled: bool
    url: str
    healthy: bool | None
    backlog: int
    failing: int
    parked: int
    failures: int
    last_error: str | None
    last_error_at: Time | None


class Integrations(msgspec.Struct, frozen=True, kw_only=True):
    """`all_healthy`: nothing that is used is ill."""

    memagent: IntegrationStatus
    trace: SinkStatus
    all_healthy: bool


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How much is in the system."""

    orchestrator: OrchestratorStatus
    agents: AgentCounts
    contracts: ContractCounts
    integrations: Integrations


async def service_info(call: Call) -> bytes:
    """Say what this service is and where its documentation is."""
    operations: tuple[Operation, ...] = call.scope["app"].operations
    return encode(
        ServiceInfo(
            service=SERVICE,
            version=INTERFACE_VERSION,
            release=__version__,
            endpoints=[f"{operation.method} {operation.path}" for operation in operations],
            docs={"swagger": "/docs", "redoc": "/redoc", "openapi": "/openapi.json"},
        )
    )


async def health(call: Call) -> Response:
    """Say whether tasks can be taken: the store answers, and the server is not shutting down.

    Needs no credential.
    """
    status: Literal["healthy", "unhealthy", "draining"] = "healthy"
    if call.orchestrator.draining:
        status = "draining"
    else:
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await call.orchestrator.health()
        except (RetinueError, TimeoutError):
            status = "unhealthy"
    body = encode(Health(service=SERVICE, status=status, version=__version__))
    well = status == "healthy"
    headers = {WORKER: call.orchestrator.worker} | ({} if well else {"retry-after": "1"})
    return Response(
        body,
        HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE,
        media_type="application/json",
        headers=headers,
    )


async def status(call: Call) -> bytes:
    """Count agents, sessions and contracts, and look after the integrations."""
    orchestrator = call.orchestrator
    counts, integrations = await asyncio.gather(
        orchestrator.status(call.principal), _integrations(orchestrator, call.door.settings)
    )
    uptime = (now_us() - orchestrator.started_at) / 1_000_000
    return encode(
        Status(
            orchestrator=OrchestratorStatus(
                service=SERVICE,
                version=__version__,
                uptime_s=round(uptime, 3),
                started_at=iso(orchestrator.started_at),
                worker=orchestrator.worker,
            ),
            agents=msgspec.convert(counts["agents"], AgentCounts),
            contracts=msgspec.convert(counts["contracts"], ContractCounts),
            integrations=integrations,
        )
    )


async def _integrations(orchestrator: Orchestrator, settings: Settings) -> Integrations:
    used = await orchestrator.integrations()
    memagent, trace = used.get("memagent"), used.get("trace")
    waiting = trace.backlog if trace is not None and trace.backlog is not None else Backlog()
    return Integrations(
        memagent=IntegrationStatus(
            enabled=memagent is not None,
            url=without_password(settings.memagent_url),
            healthy=memagent.healthy if memagent is not None else None,
        ),
        trace=SinkStatus(
            enabled=trace is not None,
            url=without_password(settings.trace_url),
            healthy=trace.healthy if trace is not None else None,
            backlog=waiting.contracts,
            failing=waiting.failing,
            parked=waiting.parked,
            failures=trace.failures if trace is not None else 0,
            last_error=waiting.error,
            last_error_at=when(waiting.failed_at),
        ),
        all_healthy=all(integration.healthy for integration in used.values()),
    )


OPERATIONS = (
    Operation(method="GET", path="/v1/", endpoint=service_info, tag="service", gives=ServiceInfo),
    Operation(
        method="GET",
        path="/v1/health",
        endpoint=health,
        tag="service",
        gives=Health,
        also={503: Health},
        public=True,
    ),
    Operation(method="GET", path="/v1/status", endpoint=status, tag="service", gives=Status),
)

"""Workers: programs whose processes stand ready for tasks."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec

from retinue.orchestrator.pools import PoolView
from retinue.server.routing import Call, Operation, encode

MOST_PROCESSES = 1000


class WorkerList(msgspec.Struct, frozen=True):
    """All workers of this server."""

    workers: list[PoolView]
    total: int


class ScaleBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many processes; `min_processes` of them run even when idle (unset: all)."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"processes": 4}

    processes: Annotated[int, msgspec.Meta(ge=0, le=MOST_PROCESSES)]
    min_processes: Annotated[int, msgspec.Meta(ge=0, le=MOST_PROCESSES)] | None = None


class RestartBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long work in progress may take, in ms (unset: as configured); then it is ended."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"drain_timeout_ms": 10_000}

    drain_timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=86_400_000)] | None = None


class ShutdownBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The payload of the worker protocol's `shutdown`; `timeout_ms` unset: as configured."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"reason": "graceful", "timeout_ms": 5000}

    operation: Literal["shutdown"] = "shutdown"
    reason: str | None = None
    timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=86_400_000)] | None = None


class ShutdownReply(msgspec.Struct, frozen=True, kw_only=True):
    """The worker is being shut down."""

    status: Literal["shutting_down"]
    worker: PoolView


async def list_workers(call: Call) -> bytes:
    """List the workers: programs whose processes stand ready, and perform the agents they announce.

    Those of other servers of the same database are not among them.
    """
    found = await call.orchestrator.pools()
    return encode(WorkerList(found, len(found)))


async def get_worker(call: Call) -> bytes:
    """Get one worker and its processes."""
    return encode(await call.orchestrator.pool(call.path_params["name"]))


async def scale_worker(call: Call) -> bytes:
    """Have another number of processes; what is too many ends once its work is done.

    It holds until the server is started again.
    """
    body = await call.record(ScaleBody)
    name = call.path_params["name"]
    return encode(
        await call.orchestrator.scale_pool(name, body.processes, body.min_processes, call.principal)
    )


async def restart_worker(call: Call) -> bytes:
    """Replace every process, one by one: another is started first, and work in progress ends first.

    A worker that has failed begins anew.
    """
    body = await call.record(RestartBody)
    wait = body.drain_timeout_ms
    return encode(
        await call.orchestrator.restart_pool(
            call.path_params["name"], wait / 1000 if wait is not None else None, call.principal
        )
    )


async def deploy_worker(call: Call) -> bytes:
    """Replace every process of a worker by its new version, one by one, or keep the old one.

    The new version is what `retinue.yaml` says of the worker now, and its program as it is now.
    Work in progress ends where it runs; later work goes to the new version. If one of its processes
    does not become ready, or ends before all have been replaced, the version before takes over
    again. `rollout` says how it goes. 409 while another one is under way, 422 when the file is not
    valid.
    """
    body = await call.record(RestartBody)
    wait = body.drain_timeout_ms
    return encode(
        await call.orchestrator.deploy_pool(
            call.path_params["name"], wait / 1000 if wait is not None else None, call.principal
        )
    )


async def shut_down_worker(call: Call) -> bytes:
    """Shut a worker's processes down: nothing new is taken, what runs may finish in `timeout_ms`.

    It has none until it is scaled up again; tasks for its agents are refused as unavailable.
    """
    body = await call.record(ShutdownBody)
    wait = body.timeout_ms
    view = await call.orchestrator.shut_down_pool(
        call.path_params["name"], wait / 1000 if wait is not None else None, call.principal
    )
    return encode(ShutdownReply(status="shutting_down", worker=view))


OPERATIONS = (
    Operation(
        method="GET", path="/v1/workers", endpoint=list_workers, tag="workers", gives=WorkerList
    ),
    Operation(
        method="GET", path="/v1/workers/{name}", endpoint=get_worker, tag="workers", gives=PoolView
    ),
    Operation(
        method="POST",
        path="/v1/workers/{name}/scale",
        endpoint=scale_worker,
        tag="workers",
        body=ScaleBody,
        gives=PoolView,
        errors=(507,),
    ),
    Operation(
        method="POST",
        path="/v1/workers/{name}/restart",
        endpoint=restart_worker,
        tag="workers",
        body=RestartBody,
        gives=PoolView,
        errors=(507,),
    ),
    Operation(
        method="POST",
        path="/v1/workers/{name}/deploy",
        endpoint=deploy_worker,
        tag="workers",
        body=RestartBody,
        gives=PoolView,
        errors=(409, 507),
    ),
    Operation(
        method="POST",
        path="/v1/workers/{name}/shutdown",
        endpoint=shut_down_worker,
        tag="workers",
        body=ShutdownBody,
        gives=ShutdownReply,
        errors=(507,),
    ),
)

"""The application: every operation, behind the gate, described in OpenAPI."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route as PlainRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from retinue import __version__
from retinue.orchestrator import Orchestrator
from retinue.server import (
    agents,
    bench,
    contracts,
    docs,
    executions,
    info,
    instances,
    invocations,
    keys,
    ledger,
    orchestrate,
    parked,
    questions,
    queue,
    sessions,
    workers,
)
from retinue.server.admission import Admission
from retinue.server.auth import Access
from retinue.server.gate import Gate
from retinue.server.openapi import SECURITY, Schemas, describe, words
from retinue.server.orchestrate import TaskBody
from retinue.server.routing import Door, Operation, Patience, Route
from retinue.settings import Settings

OPERATIONS: tuple[Operation, ...] = (
    *orchestrate.OPERATIONS,
    *executions.OPERATIONS,
    *invocations.OPERATIONS,
    *queue.OPERATIONS,
    *info.OPERATIONS,
    *agents.OPERATIONS,
    *instances.OPERATIONS,
    *workers.OPERATIONS,
    *contracts.OPERATIONS,
    *sessions.OPERATIONS,
    *parked.OPERATIONS,
    *questions.OPERATIONS,
    *keys.OPERATIONS,
    *ledger.OPERATIONS,
)
_TAGS = [
    {"name": "tasks", "description": "Have work done, and follow it."},
    {"name": "invocations", "description": "The same in the words of the worker protocol."},
    {"name": "agents", "description": "Who can be asked."},
    {"name": "instances", "description": "The processes that agents are."},
    {"name": "workers", "description": "Programs whose processes stand ready for tasks."},
    {"name": "record", "description": "What happened: sessions, contracts, the ledger."},
    {"name": "questions", "description": "What running work asks of a person."},
    {"name": "administration", "description": "API keys and the audit chain."},
    {"name": "service", "description": "The service itself."},
]


class Switch:
    """Finds a route without parameters in one look; the router tries all others in turn."""

    def __init__(self, router: APIRouter) -> None:
        self._router = router
        self._apps: dict[tuple[str, str], ASGIApp] = {
            (method, route.path): route.app
            for route in router.routes
            if isinstance(route, Route) and not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        app = self._apps.get((scope["method"], scope["path"]), self._router)
        try:
            await app(scope, receive, send)
        except HTTPException as problem:
            if problem.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
                # The router names the methods of the first of the path's routes only.
                problem.headers = {"Allow": ", ".join(self._allowed(scope["path"]))}
            raise

    def _allowed(self, path: str) -> list[str]:
        """Return the methods of ``path``: of the routes that spell it, else of those that match."""
        routes = [r for r in self._router.routes if isinstance(r, PlainRoute | Route)]
        spelt = [route for route in routes if route.path == path]
        matching = spelt or [route for route in routes if route.path_regex.match(path)]
        return sorted({method for route in matching for method in route.methods or ()})


class Application(FastAPI):
    """FastAPI for the routes and their document; the layers around them are ours alone."""

    def __init__(self, door: Door, hosts: tuple[str, ...]) -> None:
        super().__init__(
            title="Retinue",
            version=info.INTERFACE_VERSION,
            summary="A durable runtime for AI agents.",
            description=f"Version {info.INTERFACE_VERSION} of the interface, served by Retinue"
            f" {__version__}.",
            license_info={"name": "MIT", "identifier": "MIT"},
            openapi_tags=_TAGS,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        self.door = door
        self.hosts = hosts
        self.operations = OPERATIONS
        self._schemas = Schemas(OPERATIONS)
        for operation in OPERATIONS:
            self._add(operation)
        self.router.routes.extend(docs.ROUTES)
        for path in ("/", "/v1"):
            self.router.routes.append(PlainRoute(path, _home, include_in_schema=False))

    def _add(self, operation: Operation, *, shown: bool = True) -> None:
        summary, description = words(operation)
        self.router.add_api_route(
            operation.path,
            operation.guarded(),
            methods=[operation.method],
            status_code=operation.status,
            response_model=None,
            response_class=JSONResponse if operation.gives is not None else Response,
            tags=[operation.tag],
            summary=summary,
            description=description,
            operation_id=operation.endpoint.__name__,
            include_in_schema=shown,
            openapi_extra=describe(operation, self._schemas) if shown else None,
            route_class_override=Route,
        )

    def add_echo(self) -> None:
        """Serve ``POST /bench/echo``, which stands in no document."""
        self._add(
            Operation(
                method="POST",
                path="/bench/echo",
                endpoint=bench.echo,
                tag="tasks",
                body=TaskBody,
            ),
            shown=False,
        )

    def build_middleware_stack(self) -> ASGIApp:
        """Return the gate around the routes; nothing else stands between them and the server."""
        settings = self.door.settings
        return Gate(
            Switch(self.router),
            hosts=self.hosts,
            origins=settings.allowed_origins,
            most_bytes=settings.max_body_bytes,
            admission=Admission(
                most_requests=settings.max_requests,
                most_streams=settings.max_streams,
                most_bytes=settings.max_held_bytes,
            ),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. FastAPI's own telemetry, which costs each one, is left out."""
        scope["app"] = self
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        await self.middleware_stack(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, with the records' own schemas."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            components.setdefault("schemas", {}).update(self._schemas.components)
            components["securitySchemes"] = SECURITY
        return super().openapi()


async def _home(_: Request) -> Response:
    return RedirectResponse("/v1/")


def create_app(
    orchestrator: Orchestrator,
    settings: Settings,
    *,
    loopback: bool,
    patience: Patience | None = None,
    bench_echo: bool = False,
) -> FastAPI:
    """Return the application that serves ``orchestrator``.

    Args:
        orchestrator: of a started system.
        settings: its settings.
        loopback: whether only this machine can reach the server: then, while there is no API
            key, a caller without one is the local admin.
        patience: how long streams wait.
        bench_echo: also serve ``POST /bench/echo``, the hot route without a store.
    """
    access = Access(orchestrator, loopback=loopback)
    door = Door(orchestrator, settings, access, patience or Patience())
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    app = Application(door, (host, *settings.allowed_hosts))
    if bench_echo:
        app.add_echo()
    return app

"""Agents: who can be asked, how each is doing, and registering one that answers over HTTP."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from starlette.responses import Response

from retinue.domain.agent import AGENT_ID_PATTERN, Capability, Registration
from retinue.domain.egress import MOST_URL
from retinue.domain.policy import Delivery
from retinue.orchestrator import AgentView
from retinue.server.records import Word
from retinue.server.routing import Call, Operation, encode

MOST_CAPABILITIES = 256
Text = Annotated[str, msgspec.Meta(max_length=10_000)]


class AgentList(msgspec.Struct, frozen=True):
    """All registered agents."""

    agents: list[AgentView]
    total: int


class CapabilityBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something the agent can do.

    `parameters` are names and types (`{"text": "string"}`; a `?` behind the type makes one
    optional) or a JSON Schema of an object; without them anything is taken.
    """

    name: Word
    description: Text = ""
    parameters: dict[str, Any] | None = None


class RegisterBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An agent that answers `POST {endpoint}/execute` and `GET {endpoint}/health`.

    `timeout` (seconds) is the limit of a task that brings none of its own. `delivery` other than
    at_most_once says that the agent recognises a repeated task by its `Idempotency-Key`.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "agent_id": "translator_001",
        "name": "Translator",
        "endpoint": "https://agents.example.org/translator",
        "capabilities": [{"name": "translate", "parameters": {"text": "string", "to": "string?"}}],
    }

    agent_id: Annotated[str, msgspec.Meta(pattern=f"^{AGENT_ID_PATTERN}$")]
    name: Word
    endpoint: Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_URL)]
    capabilities: Annotated[
        list[CapabilityBody], msgspec.Meta(min_length=1, max_length=MOST_CAPABILITIES)
    ]
    description: Text = ""
    version: Word = "1"
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 16
    timeout: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 300.0
    delivery: Delivery = Delivery.AT_MOST_ONCE


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """A registered agent. `secret` signs our calls to it; it is shown this once."""

    status: str
    agent_id: str
    message: str
    secret: str


async def list_agents(call: Call) -> bytes:
    """List the agents.

    `status` is available, busy, offline or error.
    """
    agents = await call.orchestrator.agents()
    return encode(AgentList(agents, len(agents)))


async def get_agent(call: Call) -> bytes:
    """Get one agent, by its id or its name."""
    return encode(await call.orchestrator.agent(call.path_params["agent_id"]))


async def register_agent(call: Call) -> bytes:
    """Register an agent that answers over HTTP.

    It outlives this server, and other servers of the same database have it within seconds. Its
    endpoint must be on the public Internet, or on a host or network that `egress_allow` names.
    """
    body = await call.record(RegisterBody)
    wanted = Registration(
        agent_id=body.agent_id,
        name=body.name,
        endpoint=body.endpoint,
        capabilities=tuple(
            Capability(name=c.name, description=c.description, parameters=c.parameters)
            for c in body.capabilities
        ),
        description=body.description,
        version=body.version,
        concurrency=body.concurrency,
        timeout_us=max(int(body.timeout * 1_000_000), 1),
        delivery=body.delivery,
    )
    agent, secret = await call.orchestrator.register_remote(wanted, call.principal)
    return encode(
        Registered(
            status="registered",
            agent_id=agent.agent_id,
            message=f"Agent {agent.agent_id} is registered; keep its secret, it is shown this once",
            secret=secret,
        )
    )


async def remove_agent(call: Call) -> Response:
    """Remove an agent that was registered.

    What it runs goes on; no new task goes to it. An agent of the server's own code or
    configuration cannot be removed (409).
    """
    await call.orchestrator.remove_remote(call.path_params["agent_id"], call.principal)
    return Response(status_code=204)


OPERATIONS = (
    Operation(method="GET", path="/v1/agents", endpoint=list_agents, tag="agents", gives=AgentList),
    Operation(
        method="POST",
        path="/v1/agents/register",
        endpoint=register_agent,
        tag="agents",
        body=RegisterBody,
        gives=Registered,
        status=201,
        errors=(409, 507),
    ),
    Operation(
        method="GET",
        path="/v1/agents/{agent_id}",
        endpoint=get_agent,
        tag="agents",
        gives=AgentView,
    ),
    Operation(
        method="DELETE",
        path="/v1/agents/{agent_id}",
        endpoint=remove_agent,
        tag="agents",
        status=204,
        errors=(409, 507),
    ),
)

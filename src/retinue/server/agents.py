"""Agents: who can be asked, and how each is doing."""

from __future__ import annotations

import msgspec

from retinue.orchestrator import AgentView
from retinue.server.routing import Call, Operation, encode


class AgentList(msgspec.Struct, frozen=True):
    """All registered agents."""

    agents: list[AgentView]
    total: int


async def list_agents(call: Call) -> bytes:
    """List the agents.

    `status` is available, busy, offline or error.
    """
    agents = await call.orchestrator.agents()
    return encode(AgentList(agents, len(agents)))


async def get_agent(call: Call) -> bytes:
    """Get one agent, by its id or its name."""
    return encode(await call.orchestrator.agent(call.path_params["agent_id"]))


OPERATIONS = (
    Operation(method="GET", path="/v1/agents", endpoint=list_agents, tag="agents", gives=AgentList),
    Operation(
        method="GET",
        path="/v1/agents/{agent_id}",
        endpoint=get_agent,
        tag="agents",
        gives=AgentView,
    ),
)

"""An agent's definition: what it can do, how it is run, and how its failures are met."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from retinue.domain.policy import BreakerPolicy, BusyPolicy, Delivery, RatePolicy, RetryPolicy
from retinue.domain.supervision import PoolPolicy
from retinue.errors import InvalidInput

AGENT_ID_PATTERN = r"[A-Za-z0-9_.:-]{1,64}"
ORCHESTRATOR = "orchestrator"
"""What contracts call Retinue itself, where no agent sends or is sent something."""

_AGENT_ID = re.compile(AGENT_ID_PATTERN + r"\Z")


def check_agent_id(agent_id: str) -> str:
    """Return ``agent_id`` when it is one.

    Raises:
        InvalidInput: it does not match ``[A-Za-z0-9_.:-]{1,64}``, or is what contracts call us.
    """
    if _AGENT_ID.match(agent_id) is None:
        raise InvalidInput(f"agent_id {agent_id!r} must match {AGENT_ID_PATTERN}")
    if agent_id == ORCHESTRATOR:
        raise InvalidInput(f"agent_id {agent_id!r} is what contracts call Retinue itself")
    return agent_id


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """A named operation and the JSON Schema of its parameters (None: anything)."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None


class AgentDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """What the registry knows of an agent.

    ``concurrency`` bounds its running executions in this process, each of which may use ``memory``
    bytes (0: nobody knows, and it is not counted); ``timeout_us`` is the deadline
    of a task that brings none, ``on_busy`` likewise. ``rate`` bounds how often it is called; more
    tasks wait. ``cache_seconds`` is how long its results may stand for equal tasks (0: not at all).
    ``config`` is the driver's own. ``nodes`` are the names that it streams under (none: one, with
    its id). ``pool`` is for drivers whose instances live long; where it is None one instance
    performs all that may run at one time. ``queue`` bounds its waiting tasks (None: as the system
    does).
    """

    agent_id: str
    name: str
    description: str = ""
    version: str = "1"
    driver: str = "python"
    config: Any = None
    capabilities: tuple[Capability, ...] = ()
    nodes: tuple[str, ...] = ()
    concurrency: int = 64
    memory: int = 0
    timeout_us: int = 300_000_000
    delivery: Delivery = Delivery.AT_MOST_ONCE
    retry: RetryPolicy = RetryPolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    rate: RatePolicy | None = None
    cache_seconds: float = 0.0
    on_busy: BusyPolicy = BusyPolicy.PARALLEL
    pool: PoolPolicy | None = None
    queue: int | None = None


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that answers over HTTP, as it is registered (specification 003).

    The fields after ``version`` say how it is run; they mean what ``AgentDefinition`` says.
    """

    agent_id: str
    name: str
    endpoint: str
    capabilities: tuple[Capability, ...]
    description: str = ""
    version: str = "1"
    concurrency: int = 16
    timeout_us: int = 300_000_000
    delivery: Delivery = Delivery.AT_MOST_ONCE
    max_attempts: int = 3


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver of HTTP agents needs: ``config`` of their definitions.

    ``trusted`` says that the operator named the endpoint, so that the egress policy does not
    apply. ``fault`` says why the agent cannot be called from this process, if it cannot.
    """

    endpoint: str
    secret: str | None
    trusted: bool = False
    fault: str | None = None

    def __repr__(self) -> str:
        return f"HttpConfig({self.endpoint!r})"


class StoredAgent(msgspec.Struct, frozen=True, kw_only=True):
    """A registration as the store keeps it; rows are never deleted.

    ``id`` is the registration's own, a ULID. ``revision`` counts the registrations of one agent id
    from 1; at most one of them is not removed. ``definition`` is the ``Registration`` as JSON.
    ``fingerprint`` is that of the agent's secret, which is not stored (see ``domain.signing``).
    """

    id: str
    agent_id: str
    revision: int
    owner: str
    created_by: str
    driver: str
    definition: bytes
    fingerprint: bytes
    created_at: int
    removed_at: int | None = None
    removed_by: str | None = None


def definition_of_remote(given: Registration, config: HttpConfig) -> AgentDefinition:
    """Return the definition of an agent that answers over HTTP."""
    return AgentDefinition(
        agent_id=given.agent_id,
        name=given.name,
        description=given.description,
        version=given.version,
        driver="http",
        config=config,
        capabilities=given.capabilities,
        concurrency=given.concurrency,
        timeout_us=given.timeout_us,
        delivery=given.delivery,
        retry=RetryPolicy(max_attempts=given.max_attempts),
    )

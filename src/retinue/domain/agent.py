"""An agent's definition: what it can do, how it is run, and how its failures are met."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from retinue.domain.policy import BreakerPolicy, BusyPolicy, Delivery, RatePolicy, RetryPolicy
from retinue.errors import InvalidInput

AGENT_ID_PATTERN = r"[A-Za-z0-9_.:-]{1,64}"
_AGENT_ID = re.compile(AGENT_ID_PATTERN + r"\Z")


def check_agent_id(agent_id: str) -> str:
    """Return ``agent_id`` when it is one.

    Raises:
        InvalidInput: it does not match ``[A-Za-z0-9_.:-]{1,64}``.
    """
    if _AGENT_ID.match(agent_id) is None:
        raise InvalidInput(f"agent_id {agent_id!r} must match {AGENT_ID_PATTERN}")
    return agent_id


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """A named operation and the JSON Schema of its parameters (None: anything)."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None


class AgentDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """What the registry knows of an agent.

    ``concurrency`` bounds its running executions in this process; ``timeout_us`` is the deadline
    of a task that brings none, ``on_busy`` likewise. ``rate`` bounds how often it is called; more
    tasks wait. ``cache_seconds`` is how long its results may stand for equal tasks (0: not at all).
    ``config`` is the driver's own.
    """

    agent_id: str
    name: str
    description: str = ""
    version: str = "1"
    driver: str = "python"
    config: Any = None
    capabilities: tuple[Capability, ...] = ()
    concurrency: int = 64
    timeout_us: int = 300_000_000
    delivery: Delivery = Delivery.AT_MOST_ONCE
    retry: RetryPolicy = RetryPolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    rate: RatePolicy | None = None
    cache_seconds: float = 0.0
    on_busy: BusyPolicy = BusyPolicy.PARALLEL

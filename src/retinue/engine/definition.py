"""From an author's Agent to the definition that the registry keeps."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from retinue.agent import Agent
from retinue.domain.agent import AgentDefinition, Capability
from retinue.domain.policy import BreakerPolicy, BusyPolicy, Delivery, RatePolicy, RetryPolicy
from retinue.engine.schema import parameters_schema
from retinue.errors import InvalidInput

E = TypeVar("E", bound=StrEnum)


def definition_of(agent: Agent) -> AgentDefinition:
    """Return the definition of a Python agent.

    Raises:
        InvalidInput: an option or a capability's parameters are not valid.
    """
    if not isinstance(agent, Agent):
        raise InvalidInput(f"{agent!r} is not an Agent: subclass retinue.Agent")
    default = AgentDefinition(agent_id=agent.agent_id, name=agent.name)
    given = agent.options
    return AgentDefinition(
        agent_id=agent.agent_id,
        name=agent.name,
        description=agent.description,
        version=given.version,
        config=agent,
        capabilities=tuple(
            Capability(
                name=c.name,
                description=c.description,
                parameters=parameters_schema(c.parameters),
            )
            for c in agent.get_capabilities()
        ),
        nodes=given.nodes,
        concurrency=given.concurrency or default.concurrency,
        timeout_us=int(given.timeout * 1_000_000) if given.timeout else default.timeout_us,
        delivery=word_of(Delivery, "delivery", given.delivery) or default.delivery,
        on_busy=word_of(BusyPolicy, "on_busy", given.on_busy) or default.on_busy,
        retry=RetryPolicy(
            max_attempts=given.max_attempts or default.retry.max_attempts,
            waits_ms=(
                given.retry_waits_ms if given.retry_waits_ms is not None else default.retry.waits_ms
            ),
        ),
        breaker=BreakerPolicy(
            failure_threshold=given.failure_threshold or default.breaker.failure_threshold,
            reset_timeout_ms=given.reset_timeout_ms or default.breaker.reset_timeout_ms,
        ),
        rate=RatePolicy(per_minute=given.rate_per_minute) if given.rate_per_minute else None,
        cache_seconds=given.cache_seconds or default.cache_seconds,
    )


def word_of(words: type[E], option: str, given: str | None) -> E | None:
    """Return the one of ``words`` that is given, if any is.

    Raises:
        InvalidInput: it is none of them.
    """
    try:
        return words(given) if given else None
    except ValueError:
        known = ", ".join(word.value for word in words)
        raise InvalidInput(f"{option} {given!r} is not one of {known}") from None

"""What the ``stdio`` driver is told of a worker, and the agents that its ready frame makes."""

from __future__ import annotations

from typing import Any

import msgspec

from retinue.agent import Options
from retinue.domain.agent import AgentDefinition, Capability
from retinue.domain.policy import BreakerPolicy, BusyPolicy, Delivery, RatePolicy, RetryPolicy
from retinue.errors import SpawnFailed
from retinue.process.quarters import ProcessConfig
from retinue.wire.envelope import LINE_BYTES
from retinue.wire.payloads import Card, Ready

_YEAR = 366 * 86_400.0
_BOUNDS: dict[str, tuple[float, float]] = {
    "concurrency": (1, 1_000_000),
    "timeout": (0.001, _YEAR),
    "max_attempts": (1, 1_000),
    "failure_threshold": (1, 1_000_000_000),
    "reset_timeout_ms": (0, _YEAR * 1000),
    "rate_per_minute": (1, 1_000_000_000),
    "cache_seconds": (0, _YEAR),
}
"""What a worker may say of its agents: what it sets beyond that could not be kept to."""
TIMEOUT_SECONDS = 30.0
"""The deadline of a task for an agent of a worker, where nobody set one (specification 000)."""


class WorkerConfig(ProcessConfig, frozen=True, kw_only=True):
    """A command line, and what holds for the agents it brings.

    ``agents`` have to be among those it announces. ``timeout``, ``delivery`` and ``max_attempts``
    are the operator's and come before what the worker says of its agents. A line may have
    ``line_bytes``; after more than ``max_bad_lines`` in a row that are no frames it is ended. With
    ``frame_log`` every frame is in its log.
    """

    agents: tuple[str, ...] = ()
    timeout: float | None = None
    delivery: Delivery | None = None
    max_attempts: int | None = None
    line_bytes: int = LINE_BYTES
    max_bad_lines: int = 10_000
    frame_log: bool = False


def offers_of(worker: AgentDefinition, config: WorkerConfig, ready: Ready) -> list[AgentDefinition]:
    """Return the agents that a worker announces.

    Raises:
        SpawnFailed: one that it must have is missing, or what it says of one is not valid.
    """
    cards = ready.cards()
    missing = [name for name in config.agents if name not in cards]
    if missing:
        raise SpawnFailed(
            f"{worker.agent_id} does not have the agent {', '.join(missing)}",
            details={"missing": missing, "agents": sorted(cards)},
        )
    return [_offer(worker, config, card) for card in cards.values()]


def _offer(worker: AgentDefinition, config: WorkerConfig, card: Card) -> AgentDefinition:
    default = AgentDefinition(agent_id=card.name, name=card.name)
    try:
        given = msgspec.convert(card.options, Options)
        delivery = config.delivery or Delivery(given.delivery or default.delivery)
        on_busy = BusyPolicy(given.on_busy or default.on_busy)
        _check(given)
    except (msgspec.ValidationError, ValueError) as error:
        raise SpawnFailed(f"{worker.agent_id}: the options of {card.name}: {error}") from None
    timeout = config.timeout or given.timeout or TIMEOUT_SECONDS
    waits, base = given.retry_waits_ms, default.retry
    return msgspec.structs.replace(
        default,
        description=card.description,
        nodes=tuple(card.nodes),
        version=card.version,
        driver=worker.driver,
        config=config,
        capabilities=tuple(
            Capability(name=c.name, description=c.description, parameters=c.parameters)
            for c in card.capabilities
        )
        or (Capability(name=card.name, description=card.description),),
        timeout_us=int(timeout * 1_000_000),
        delivery=delivery,
        on_busy=on_busy,
        retry=RetryPolicy(
            max_attempts=config.max_attempts or given.max_attempts or base.max_attempts,
            waits_ms=waits if waits is not None else base.waits_ms,
        ),
        breaker=BreakerPolicy(
            failure_threshold=given.failure_threshold or default.breaker.failure_threshold,
            reset_timeout_ms=given.reset_timeout_ms or default.breaker.reset_timeout_ms,
        ),
        rate=RatePolicy(per_minute=given.rate_per_minute) if given.rate_per_minute else None,
        cache_seconds=given.cache_seconds or default.cache_seconds,
        queue=worker.queue,
    )


def _check(given: Options) -> None:
    for name, (least, most) in _BOUNDS.items():
        value = getattr(given, name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name} is from {least:g} to {most:g}")
    if any(not 0 <= wait <= _YEAR * 1000 for wait in given.retry_waits_ms or ()):
        raise ValueError("retry_waits_ms are from 0 to a year")


def announced(payload: dict[str, Any]) -> Ready | None:
    """Return what a control frame announces; None: it is no ready frame.

    Raises:
        SpawnFailed: it is one, and not valid.
    """
    if payload.get("status") != "ready":
        return None
    try:
        return msgspec.convert(payload, Ready)
    except msgspec.ValidationError as error:
        raise SpawnFailed(f"its ready frame is not valid: {error}") from None

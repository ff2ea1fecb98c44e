"""Routing: the least loaded agent that may be called, in constant time."""

import time

from retinue.domain.agent import AgentDefinition, Capability
from retinue.domain.policy import BreakerPolicy
from retinue.engine.entry import Entry
from retinue.engine.registry import Registry
from retinue.interfaces import Instance


async def never() -> Instance:
    raise AssertionError


def fleet(count: int) -> tuple[Registry, list[Entry]]:
    registry = Registry()
    entries = [
        registry.add(
            AgentDefinition(
                agent_id=f"a{n}",
                name=f"a{n}",
                capabilities=(Capability(name="work"),),
                concurrency=2,
                breaker=BreakerPolicy(failure_threshold=1, reset_timeout_ms=40),
            ),
            never,
        )
        for n in range(count)
    ]
    return registry, entries


def chosen(registry: Registry) -> Entry:
    entry = registry.route("work", None).entry
    assert entry is not None
    return entry


def test_work_spreads_evenly_and_then_waits() -> None:
    registry, entries = fleet(5)
    for _ in range(10):
        registry.slots.take(chosen(registry))
    assert {entry.running for entry in entries} == {2}
    assert registry.route("work", None).entry is None
    registry.slots.give(entries[3])
    assert chosen(registry) is entries[3]


def test_agents_that_may_not_be_called_rest_until_their_time() -> None:
    registry, entries = fleet(5)
    for entry in entries[:4]:
        entry.breaker.failed(entry.breaker.admit(), time.monotonic())
    assert {chosen(registry).agent_id for _ in range(10)} == {"a4"}
    registry.slots.take(entries[4], 2)
    assert registry.route("work", None).entry is None
    while entries[0].breaker.wait(time.monotonic()) > 0:
        time.sleep(0.001)
    back = chosen(registry)
    assert back in entries[:4]
    back.breaker.admit()
    registry.slots.take(back)
    others = {chosen(registry).agent_id for _ in range(10)}
    assert back.agent_id not in others  # its one probe is out


def test_a_closed_circuit_is_chosen_again_as_soon_as_its_work_ends() -> None:
    registry, entries = fleet(2)
    entries[0].breaker.failed(entries[0].breaker.admit(), time.monotonic())
    assert chosen(registry) is entries[1]
    registry.slots.take(entries[0])
    entries[0].breaker.succeeded(entries[0].breaker.admit())
    registry.slots.give(entries[0])
    registry.slots.take(entries[1])
    assert chosen(registry) is entries[0]

"""Rate, cache and budget, as agents and callers meet them."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retinue import Context, Options, Orchestrator, Runtime, Settings, capability
from retinue.domain.budget import Limit
from retinue.domain.event import EventType
from retinue.domain.execution import State, Task
from retinue.domain.principal import Principal, Role
from retinue.domain.strictjson import loads
from retinue.errors import RateLimited, ShuttingDown
from retinue.interfaces import Page

ANN = Principal("ann", "ann", Role.OPERATOR)


def task(name: str, budget: Limit | None = None, **parameters: object) -> Task:
    return Task(session_id="s", capability=name, parameters=parameters, budget=budget)


# -- rate --------------------------------------------------------------------------------------


async def test_an_agent_is_not_called_more_often_than_it_may(orchestrator: Orchestrator) -> None:
    called: list[float] = []

    @capability(options=Options(rate_per_minute=1200))
    async def paced() -> int:
        called.append(time.monotonic())
        return len(called)

    orchestrator.register_agent(paced)
    (entry,) = orchestrator._engine.registry
    assert entry.rate is not None
    entry.rate.take(time.monotonic(), entry.rate.free(time.monotonic()) - 2)
    began = time.monotonic()
    async with asyncio.timeout(20):
        replies = await asyncio.gather(*(orchestrator.perform(task("paced")) for _ in range(12)))
    assert all(reply.success for reply in replies)
    for place, at in enumerate(called):
        assert place + 1 <= 2 + (at - began) * 20 + 1
    # All were accepted; those the rate did not allow yet waited in the queue.
    assert called[-1] - began >= 0.4


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[Orchestrator]:
    settings = Settings(
        data_dir=tmp_path, examples=False, entry_points=False, rate_limit_per_minute=5
    )
    async with Runtime(settings) as orchestrator:
        yield orchestrator


async def test_a_caller_that_submits_too_much_is_refused_and_others_are_not(
    limited: Orchestrator,
) -> None:
    @capability()
    async def outer(context: Context) -> object:
        return [await context.call("inner") for _ in range(10)]

    @capability()
    async def inner() -> int:
        return 1

    limited.register_agent(outer)
    limited.register_agent(inner)
    # What agents have others do is not the caller's own pace.
    assert (await limited.perform(task("outer"))).success
    results = await asyncio.gather(
        *(limited.perform(task("inner")) for _ in range(50)), return_exceptions=True
    )
    refused = [r for r in results if isinstance(r, RateLimited)]
    assert len(refused) == 46
    assert all(0 < error.details["retry_after_ms"] <= 12_001 for error in refused)
    assert (await limited.perform(task("inner"), ANN)).success


async def test_a_repeated_key_is_answered_whatever_the_pace_and_while_it_stops(
    limited: Orchestrator,
) -> None:
    @capability()
    async def inner() -> int:
        return 1

    limited.register_agent(inner)
    first = Task(session_id="s", capability="inner", parameters={}, idempotency_key="k")
    done = await limited.perform(first)
    for _ in range(4):
        await limited.perform(task("inner"))
    with pytest.raises(RateLimited):
        await limited.perform(task("inner"))
    assert (await limited.perform(first)).execution_id == done.execution_id
    limited._engine.intake.closed = True
    assert (await limited.perform(first)).data == b"1"
    with pytest.raises(ShuttingDown):
        await limited.perform(task("inner"))


# -- cache -------------------------------------------------------------------------------------


async def test_equal_tasks_are_answered_without_the_agent(orchestrator: Orchestrator) -> None:
    runs: list[str] = []

    @capability(options=Options(cache_seconds=60))
    async def slow(word: str) -> str:
        runs.append(word)
        if word == "bad":
            raise RuntimeError("no")
        return word.upper()

    orchestrator.register_agent(slow)
    replies = [await orchestrator.perform(task("slow", word=w)) for w in ("a", "a", "b")]
    assert [reply.data for reply in replies] == [b'"A"', b'"A"', b'"B"']
    assert runs == ["a", "b"]
    (events,) = [batch async for batch in orchestrator.follow(replies[1].execution_id)]
    assert loads(events[-1].data)["cached"] is True
    # Never across owners, and never a failure.
    await orchestrator.perform(task("slow", word="a"), ANN)
    assert runs == ["a", "b", "a"]
    for _ in range(2):
        assert not (await orchestrator.perform(task("slow", word="bad"))).success
    assert runs[3:] == ["bad", "bad"]


async def test_a_run_with_effects_stands_for_no_other(orchestrator: Orchestrator) -> None:
    runs: list[str] = []

    @capability(options=Options(cache_seconds=60))
    async def doing(how: str, context: Context) -> str:
        runs.append(how)
        if how == "tool":
            context.tool_call("rm", {"path": "x"})
        elif how == "agent":
            await context.call("other")
        return how

    @capability()
    async def other() -> int:
        return 1

    orchestrator.register_agent(doing)
    orchestrator.register_agent(other)
    for how in ("tool", "tool", "agent", "agent"):
        assert (await orchestrator.perform(task("doing", how=how))).success
    assert runs == ["tool", "tool", "agent", "agent"]


# -- budget ------------------------------------------------------------------------------------


@capability(options=Options(delivery="idempotent", max_attempts=3, retry_waits_ms=(1,)))
async def spend(cents: list[int], context: Context) -> int:
    """Spend money, step by step; a 0 fails the attempt."""
    for count, amount in enumerate(cents):
        if amount == 0 and context.attempt == 1:
            raise RuntimeError("again")
        context.spend(cost_usd=amount / 100, output_tokens=amount)
        await asyncio.sleep(0.001)
        if amount > 1000:
            pytest.fail(f"step {count} went on")
    return sum(cents)


async def test_past_its_budget_a_task_ends_and_is_not_repeated(orchestrator: Orchestrator) -> None:
    orchestrator.register_agent(spend)
    limit = Limit(max_cost_usd=0.10)
    reply = await orchestrator.perform(task("spend", limit, cents=[4, 4, 4, 9999]))
    assert reply.error is not None
    assert (reply.error["code"], reply.error["details"]["limit"]) == (
        "E_BUDGET_EXCEEDED",
        "max_cost_usd 0.1",
    )
    execution = await orchestrator.execution(reply.execution_id)
    assert (execution.state, execution.attempt) == (State.FAILED, 1)
    within = await orchestrator.perform(task("spend", limit, cents=[5, 5]))
    assert within.success
    events = [e async for batch in orchestrator.follow(within.execution_id) for e in batch]
    assert [e.type for e in events] == [EventType.USAGE, EventType.USAGE, EventType.COMPLETED]
    assert loads(events[-1].data)["usage"]["output_tokens"] == 10
    assert (await orchestrator.agent("spend")).status == "available"


async def test_what_an_earlier_attempt_spent_is_spent(orchestrator: Orchestrator) -> None:
    orchestrator.register_agent(spend)
    # 8 cents, a failure, 8 cents again: more than 10 although no attempt spent as much.
    reply = await orchestrator.perform(task("spend", Limit(max_tokens=10), cents=[8, 0]))
    assert reply.error is not None
    assert reply.error["code"] == "E_BUDGET_EXCEEDED"
    assert (await orchestrator.execution(reply.execution_id)).attempt == 2


async def test_children_spend_their_parents_budget(orchestrator: Orchestrator) -> None:
    seen: list[int] = []

    @capability()
    async def boss(context: Context) -> object:
        while len(seen) < 5:
            seen.append(await context.call("spend", {"cents": [3]}))
        return len(seen)

    orchestrator.register_agent(spend)
    orchestrator.register_agent(boss)
    reply = await orchestrator.perform(task("boss", Limit(max_cost_usd=0.10)))
    assert reply.error is not None
    assert reply.error["code"] == "E_BUDGET_EXCEEDED"
    assert seen == [3, 3, 3]
    listing = await orchestrator.questions(Page())
    assert listing.items == []


async def test_what_is_no_usage_fails_the_task(orchestrator: Orchestrator) -> None:
    @capability()
    async def cheat(context: Context) -> None:
        context.spend(cost_usd=-5)
        await asyncio.sleep(30)

    orchestrator.register_agent(cheat)
    reply = await orchestrator.orchestrate("s", {"capability": "cheat"})
    assert "usage" in reply["error"]

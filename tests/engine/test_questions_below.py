"""Questions that an agent's own callees ask: whoever waits above is told, and has the time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from retinue import Context, Orchestrator, Runtime, capability
from retinue.domain.event import Event
from retinue.domain.execution import Execution, State, Task
from retinue.domain.strictjson import loads
from retinue.errors import Conflict
from retinue.interfaces import ExecutionFilter, Page

SECONDS = 20


@capability()
async def asks(context: Context, timeout: float = 60.0) -> Any:
    """Ask a person."""
    return await context.ask("Which one?", timeout=timeout)


@capability()
async def calls(context: Context, levels: int = 1) -> Any:
    """Have somebody ask, so many levels below."""
    if levels == 1:
        return await context.call("asks", {})
    return await context.call("calls", {"levels": levels - 1})


@pytest.fixture(autouse=True)
def agents(orchestrator: Orchestrator) -> None:
    orchestrator.register_agent(asks)
    orchestrator.register_agent(calls)


def task(capability: str = "calls", timeout_ms: int | None = None, **parameters: Any) -> Task:
    deadline = timeout_ms * 1000 if timeout_ms is not None else None
    return Task(session_id="s", capability=capability, parameters=parameters, deadline_us=deadline)


async def until(look: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(SECONDS):
        while not (seen := await look()):
            await asyncio.sleep(0.002)
    return seen


async def asked(orchestrator: Orchestrator) -> str:
    async def look() -> Any:
        return (await orchestrator.questions(Page())).items

    return str((await until(look))[0].id)


async def ended(orchestrator: Orchestrator, execution_id: str) -> tuple[Execution, Event]:
    async with asyncio.timeout(SECONDS):
        events = [e async for some in orchestrator.follow(execution_id) for e in some]
    return await orchestrator.execution(execution_id), events[-1]


async def child_of(orchestrator: Orchestrator, execution_id: str) -> str:
    async def look() -> Any:
        found = (await orchestrator.executions(ExecutionFilter(), Page())).items
        return [e.id for e in found if e.parent_id == execution_id]

    return str((await until(look))[0])


# -- who cannot wait ---------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 3])
async def test_who_cannot_wait_hears_of_a_question_from_below(
    orchestrator: Orchestrator, levels: int
) -> None:
    async with asyncio.timeout(SECONDS):
        reply = await orchestrator.perform(task(levels=levels), until_asked=True)
    assert reply.state is not State.COMPLETED
    assert reply.error is not None
    assert reply.error["code"] == "E_HUMAN_INPUT_REQUIRED"
    details = reply.error["details"]
    assert details["prompt"] == "Which one?"
    assert details["execution_id"] != reply.execution_id  # who asks, not who was asked for
    await orchestrator.answer(details["question_id"], "this")
    _, event = await ended(orchestrator, reply.execution_id)
    assert loads(event.data)["result"] == "this"


async def test_who_comes_later_hears_of_a_question_that_is_open_below(
    orchestrator: Orchestrator,
) -> None:
    accepted = await orchestrator.submit(task())
    question = await asked(orchestrator)
    async with asyncio.timeout(SECONDS):
        reply = await orchestrator.reply(accepted, until_asked=True)
    assert reply.error is not None
    assert reply.error["details"]["question_id"] == question
    await orchestrator.answer(question, "this")
    async with asyncio.timeout(SECONDS):
        reply = await orchestrator.reply(accepted, until_asked=True)
    assert (reply.state, reply.data) == (State.COMPLETED, b'"this"')


# -- deadlines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 3])
async def test_the_deadlines_above_stand_still_while_somebody_is_asked(
    orchestrator: Orchestrator, levels: int
) -> None:
    accepted = await orchestrator.submit(task(timeout_ms=1000, levels=levels))
    question = await asked(orchestrator)
    await asyncio.sleep(1.3)  # longer than its deadline, which stands still meanwhile
    assert (await orchestrator.execution(accepted.execution_id)).state is State.RUNNING
    await orchestrator.answer(question, "this")
    execution, event = await ended(orchestrator, accepted.execution_id)
    assert (execution.state, loads(event.data)["result"]) == (State.COMPLETED, "this")


@pytest.mark.parametrize("how", ["answered", "expired", "cancelled", "given up"])
async def test_the_deadline_runs_on_once_nobody_asks_any_more(
    orchestrator: Orchestrator, how: str
) -> None:
    @capability()
    async def endless(context: Context) -> Any:
        call = context.call("asks", {"timeout": 0.05 if how == "expired" else 60.0})
        try:
            await asyncio.wait_for(call, 0.5 if how == "given up" else 60)
        except Exception:
            pass
        await asyncio.Event().wait()

    orchestrator.register_agent(endless)
    accepted = await orchestrator.submit(task("endless", timeout_ms=1000))
    if how in {"answered", "cancelled"}:
        question = await asked(orchestrator)
        await asyncio.sleep(1.1)
        if how == "answered":
            await orchestrator.answer(question, "this")
        else:
            await orchestrator.cancel(await child_of(orchestrator, accepted.execution_id))
    execution, _ = await ended(orchestrator, accepted.execution_id)
    assert execution.state is State.TIMED_OUT


async def test_two_that_ask_below_both_hold_the_deadline(orchestrator: Orchestrator) -> None:
    @capability()
    async def both(context: Context) -> list[Any]:
        return list(await asyncio.gather(context.call("asks", {}), context.call("asks", {})))

    orchestrator.register_agent(both)
    accepted = await orchestrator.submit(task("both", timeout_ms=1000))

    async def two() -> Any:
        found = (await orchestrator.questions(Page())).items
        return found if len(found) == 2 else None

    first, second = await until(two)
    await orchestrator.answer(first.id, 1)
    await asyncio.sleep(1.3)
    assert (await orchestrator.execution(accepted.execution_id)).state is State.RUNNING
    await orchestrator.answer(second.id, 2)
    execution, event = await ended(orchestrator, accepted.execution_id)
    assert execution.state is State.COMPLETED
    assert sorted(loads(event.data)["result"]) == [1, 2]


# -- ends --------------------------------------------------------------------------------------


async def test_what_runs_below_ends_with_who_ran_out_of_time(orchestrator: Orchestrator) -> None:
    running = asyncio.Event()

    @capability()
    async def endless() -> None:
        running.set()
        await asyncio.Event().wait()

    @capability()
    async def patient(context: Context) -> Any:
        return await context.call("endless", {})

    orchestrator.register_agent(endless)
    orchestrator.register_agent(patient)
    accepted = await orchestrator.submit(task("patient", timeout_ms=300))
    async with asyncio.timeout(SECONDS):
        await running.wait()
    child = await child_of(orchestrator, accepted.execution_id)
    execution, _ = await ended(orchestrator, accepted.execution_id)
    assert execution.state is State.TIMED_OUT
    below, event = await ended(orchestrator, child)
    assert below.state is State.CANCELLED
    assert "ran out of time" in loads(event.data)["by"]


async def test_a_question_two_levels_below_is_closed_with_who_was_cancelled(
    orchestrator: Orchestrator,
) -> None:
    accepted = await orchestrator.submit(task(levels=2))
    question = await asked(orchestrator)
    await orchestrator.cancel(accepted.execution_id)

    async def closed() -> bool:
        return not (await orchestrator.questions(Page())).items

    await until(closed)
    with pytest.raises(Conflict, match="lost"):
        await orchestrator.answer(question, "too late")


async def test_stopping_does_not_wait_for_people_below(runtime: Runtime) -> None:
    orchestrator = runtime.orchestrator
    await orchestrator.submit(task(levels=2))
    await asked(orchestrator)
    async with asyncio.timeout(SECONDS):
        await runtime.stop(grace=600)

"""Specification 000's Python form, with and without an event loop."""

import asyncio
import threading
from typing import Any

import pytest

from retinue import Agent, AgentCapability, Context, Options, capability
from retinue.errors import (
    AgentNotFound,
    ExecutionError,
    InvalidInput,
    RetinueError,
    ShuttingDown,
    Timeout,
)
from retinue.fleet import BlockingFleet, Fleet, Invoked, Said
from retinue.wire.payloads import Asking


class Echo(Agent):
    def __init__(self) -> None:
        super().__init__("echo", "Echo")

    async def execute(self, task: dict[str, Any]) -> Any:
        return task["parameters"]

    def get_capabilities(self) -> list[AgentCapability]:
        return [AgentCapability("echo")]


@capability()
async def tell(context: Context, words: int = 3) -> str:
    context.spend(input_tokens=3, output_tokens=4)
    for n in range(words):
        context.text(f"{n} ", node="story")
        await asyncio.sleep(0.06)  # longer than pieces are gathered for
    return "told"


@capability()
async def ask(context: Context, prompt: str = "Proceed?") -> Any:
    return await context.ask(prompt, {"type": "string"})


@capability()
async def fail() -> None:
    raise ValueError("boom")


@capability()
async def never() -> None:
    await asyncio.sleep(3600)


@capability(options=Options(delivery="idempotent", retry_waits_ms=(0,)))
async def shaky(context: Context) -> str:
    context.text(f"try {context.attempt}")
    await asyncio.sleep(0.06)
    if context.attempt == 1:
        raise ConnectionError("again")
    return "held"


AGENTS = (Echo(), tell, ask, fail, never, shaky)


@pytest.mark.requirement("000.manager-api")
async def test_agents_are_started_invoked_and_shut_down() -> None:
    fleet = await Fleet.start(*AGENTS)
    done = await fleet.invoke("echo", [["What is the weather?"]], timeout_ms=30_000)
    assert (done.result, done.success) == ([["What is the weather?"]], True)
    client = fleet.client("Echo")
    assert (await client.invoke({"a": 1}, metadata={"session_id": "s"})).result == {"a": 1}
    execution = await fleet.orchestrator.execution((await client.invoke(1)).invoke_id)
    assert execution.session_id == fleet.session_id
    handle = await client.invoke_async("later")
    assert (await handle.result()).result == "later"
    assert (await fleet.handle(handle.invoke_id).result()).result == "later"
    told = await fleet.invoke("tell", {"words": 1})
    assert told.tokens_used == 7
    assert told.duration_ms >= 60
    with pytest.raises(AgentNotFound):
        fleet.client("nobody")
    with pytest.raises(AgentNotFound):
        await fleet.invoke("nobody")
    with pytest.raises(InvalidInput):
        await fleet.invoke("tell", {"words": "many"})
    with pytest.raises(ExecutionError, match="boom"):
        await fleet.invoke("fail")
    with pytest.raises(Timeout, match=r"Agent invocation timed out after 100ms") as late:
        await fleet.invoke("never", timeout_ms=100)
    assert late.value.details["agent_state"] == "processing"
    hanging = await fleet.invoke_async("never")
    await hanging.cancel()
    with pytest.raises(RetinueError):
        await hanging.result()
    assert await fleet.shutdown()
    assert await fleet.shutdown()
    with pytest.raises(ShuttingDown):
        await fleet.invoke("echo", 1)


@pytest.mark.requirement("000.manager-api")
async def test_a_person_is_asked_and_answers() -> None:
    async with await Fleet.start(*AGENTS) as fleet:
        handle = await fleet.invoke_async("ask", {"prompt": "Well?"})
        step = await handle.next_step()
        assert isinstance(step, Asking)
        assert (step.invoke_id, step.prompt) == (handle.invoke_id, "Well?")
        assert await fleet.pending_human_inputs(handle.invoke_id) == [step]
        for wrong in ((handle.invoke_id, "x"), ("x", step.input_id)):
            with pytest.raises(InvalidInput):
                await fleet.provide_human_input(*wrong, "yes")
        with pytest.raises(InvalidInput):
            await fleet.provide_human_input(step.invoke_id, step.input_id, 7)
        await fleet.provide_human_input(step.invoke_id, step.input_id, "yes")
        with pytest.raises(InvalidInput):
            await fleet.provide_human_input(step.invoke_id, step.input_id, "no")
        assert (await handle.result()).result == "yes"
        last = await handle.next_step()
        assert isinstance(last, Invoked)
        assert await fleet.pending_human_inputs() == []


class Heard:
    """Callbacks that remember."""

    def __init__(self) -> None:
        self.chunks: list[Said] = []
        self.complete: list[Invoked] = []
        self.errors: list[RetinueError] = []

    def chunk(self, said: Said) -> None:
        self.chunks.append(said)

    async def completed(self, done: Invoked) -> None:
        await asyncio.sleep(0)
        self.complete.append(done)

    def callbacks(self, **more: Any) -> dict[str, Any]:
        mine = {
            "on_chunk": self.chunk,
            "on_complete": self.completed,
            "on_error": self.errors.append,
        }
        return {**mine, **more}


@pytest.mark.requirement("000.manager-api")
async def test_callbacks_hear_the_pieces_and_one_end() -> None:
    async with await Fleet.start(*AGENTS) as fleet:
        heard = Heard()
        done = await fleet.invoke_streaming("tell", {"words": 3}, **heard.callbacks())
        assert "".join(said.text for said in heard.chunks) == "0 1 2 "
        assert {said.node_name for said in heard.chunks} == {"story"}
        assert len(heard.chunks) > 1
        assert heard.complete == [done]
        assert heard.errors == []
        heard = Heard()
        assert await fleet.invoke_streaming("fail", **heard.callbacks()) is None
        assert (heard.complete, len(heard.errors)) == ([], 1)
        assert "boom" in heard.errors[0].message
        heard = Heard()
        await fleet.invoke_streaming("nobody", **heard.callbacks())
        assert [type(error) for error in heard.errors] == [AgentNotFound]
        with pytest.raises(ExecutionError, match="boom"):
            await fleet.invoke_streaming("fail")
        heard = Heard()
        await fleet.invoke_streaming("shaky", **heard.callbacks())
        pieces = [(said.text, said.node_name, said.is_reset) for said in heard.chunks]
        assert pieces == [("try 1", "shaky", False), ("try 2", "shaky", True)]


@pytest.mark.requirement("000.callback-errors")
async def test_a_callback_that_raises_harms_nobody() -> None:
    def raising(_: Any) -> None:
        raise KeyError("mine")

    async with await Fleet.start(*AGENTS) as fleet:
        heard, other = Heard(), Heard()
        done, _ = await asyncio.gather(
            fleet.invoke_streaming("tell", {"words": 3}, **heard.callbacks(on_chunk=raising)),
            fleet.invoke_streaming("tell", {"words": 3}, **other.callbacks()),
        )
        assert done is not None
        assert done.result == "told"  # it went on to its end
        assert heard.complete == []
        assert len(heard.errors) == 1
        error = heard.errors[0]
        assert error.details["callback"] == "on_chunk"
        assert error.details["frame"]["text"] == "0 "
        assert isinstance(error.__cause__, KeyError)
        assert len(other.complete) == 1
        assert other.errors == []
        heard = Heard()
        await fleet.invoke_streaming("echo", 1, **heard.callbacks(on_complete=raising))
        assert heard.errors == []
        await fleet.invoke_streaming("fail", on_error=raising)
        assert (await fleet.invoke("echo", 1)).result == 1


@pytest.mark.requirement("000.manager-api")
def test_without_an_event_loop() -> None:
    before = threading.active_count()
    with BlockingFleet(*AGENTS) as fleet:
        assert fleet.invoke("echo", [["x"]]).result == [["x"]]
        invoke_id = fleet.invoke_async("ask")
        step = fleet.next_step(invoke_id)
        assert isinstance(step, Asking)
        assert fleet.pending_human_inputs() == [step]
        fleet.provide_human_input(invoke_id, step.input_id, "yes")
        assert fleet.result(invoke_id).result == "yes"
        heard = Heard()
        fleet.invoke_streaming("tell", {"words": 1}, **heard.callbacks())
        assert [said.text for said in heard.chunks] == ["0 "]
        with pytest.raises(ExecutionError, match="boom"):
            fleet.invoke("fail")
    assert fleet.shutdown()
    assert threading.active_count() == before
    with pytest.raises(ShuttingDown):
        fleet.invoke("echo")


def test_a_fleet_that_cannot_start_leaves_nothing() -> None:
    before = threading.active_count()
    with pytest.raises(RetinueError):
        BlockingFleet(Echo(), Echo())
    assert threading.active_count() == before

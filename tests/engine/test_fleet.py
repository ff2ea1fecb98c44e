"""Specification 000's Python form, with and without an event loop."""

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from retinue import Agent, AgentCapability, Context, Options, Settings, capability
from retinue.errors import (
    AgentNotFound,
    ExecutionError,
    InvalidInput,
    RetinueError,
    ShuttingDown,
    SpawnFailed,
    Timeout,
)
from retinue.fleet import BlockingFleet, Fleet, Invoked, Said
from retinue.settings import WorkerReference
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
    assert (await fleet.invoke("echo", None)).result is None
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
    for name in vars(Fleet):  # none of its methods is missing
        assert name.startswith("_") or hasattr(BlockingFleet, name)
    with BlockingFleet.start(*AGENTS) as fleet:
        assert fleet.invoke("echo", [["x"]]).result == [["x"]]
        asked = fleet.invoke_async("ask")
        invoke_id = asked.invoke_id
        step = asked.next_step()
        assert isinstance(step, Asking)
        assert fleet.next_step(invoke_id) == step
        assert fleet.pending_human_inputs() == [step]
        fleet.provide_human_input(invoke_id, step.input_id, "yes")
        assert asked.result().result == fleet.result(invoke_id).result == "yes"
        echo = fleet.client("Echo")
        assert echo.invoke(None).result is None
        assert fleet.handle(echo.invoke_async(7).invoke_id).result().result == 7
        hanging = fleet.invoke_async("never")
        hanging.cancel()
        with pytest.raises(RetinueError):
            hanging.result()
        with pytest.raises(AgentNotFound):
            fleet.client("nobody")
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


WORKER = Path(__file__).with_name("misbehaving.py")


@pytest.mark.requirement("000.start", "000.module")
@pytest.mark.parametrize(
    ("command", "more", "why"),
    [
        (("/absent",), {}, "worker w: cannot start /absent: /absent does not exist"),
        (("sh", "-c", "echo why >&2; exit 3"), {},
         "worker w: the worker exited 3 before it was ready: why"),
        ((sys.executable, str(WORKER), "start=refuse"), {}, "worker w: no module x"),
        ((sys.executable, str(WORKER), "start=silent"), {"startup_timeout": 0.3},
         "worker w: it was not ready within 0.3 s"),
        ((sys.executable, str(WORKER)), {"agents": ("other",)},
         "worker w: w does not have the agent other"),
    ],
)  # fmt: skip
async def test_a_worker_that_does_not_get_ready_is_an_error_of_start(
    tmp_path: Path, command: tuple[str, ...], more: dict[str, Any], why: str
) -> None:
    worker = WorkerReference(driver="stdio", name="w", command=command, **more)
    settings = Settings(data_dir=tmp_path, examples=False, entry_points=False, agents=(worker,))
    with pytest.raises(SpawnFailed) as caught:
        await Fleet.start(settings=settings)
    assert caught.value.message == why


async def test_relative_directories_are_this_process_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = (sys.executable, WORKER.name)
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / WORKER.name).write_text(WORKER.read_text())
    worker = WorkerReference(driver="stdio", name="w", command=command, work_dir=Path("programs"))
    settings = Settings(data_dir=Path("d"), examples=False, entry_points=False, agents=(worker,))
    async with await Fleet.start(settings=settings) as fleet:
        seen = (await fleet.invoke("it", {"do": "env"})).result
    assert seen["cwd"] == str(tmp_path / "programs")
    assert seen["env"]["HOME"] == str(tmp_path / "d" / "processes" / "worker-w" / "home")


async def test_what_still_runs_at_the_end_is_not_said_to_be_not_started() -> None:
    fleet = await Fleet.start(*AGENTS)
    running = asyncio.create_task(fleet.invoke("never"))
    while not fleet.orchestrator._engine.attempts.running:
        await asyncio.sleep(0.001)
    assert not await fleet.shutdown(10)
    with pytest.raises(ShuttingDown) as caught:
        await running
    assert (caught.value.retryable, caught.value.outcome) == (False, "unknown")

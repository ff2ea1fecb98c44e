"""One task, from the caller to the agent and back, and what the ledger holds of it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from retinue import (
    Agent,
    AgentCapability,
    Context,
    Options,
    Orchestrator,
    Runtime,
    Settings,
    capability,
)
from retinue.agent import current
from retinue.domain.contract import ContractType
from retinue.domain.execution import Execution, State, Task
from retinue.domain.strictjson import loads
from retinue.errors import AgentFailed, AgentNotFound, Conflict, InvalidInput, RetinueError
from retinue.interfaces import ContractFilter, ContractView, ExecutionFilter, Page


class MyAgent(Agent):
    """Specification 003's example, imports changed only."""

    def __init__(self) -> None:
        super().__init__(
            agent_id="my_agent_001", name="My Custom Agent", description="Does custom things"
        )

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        wanted = task["capability"]
        parameters = task["parameters"]
        if wanted == "my_capability":
            return {"success": True, "data": self.process(parameters)}
        return {"success": False, "error": f"Unknown capability: {wanted}"}

    def process(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return {"seen": parameters["param1"]}

    def get_capabilities(self) -> list[AgentCapability]:
        return [
            AgentCapability(
                name="my_capability",
                description="My custom capability",
                parameters={"param1": "string"},
            )
        ]


async def contracts(orchestrator: Orchestrator, session_id: str) -> list[ContractView]:
    listing = await orchestrator.contracts(ContractFilter(session_id=session_id), Page(1000))
    return listing.items


async def executions(orchestrator: Orchestrator, session_id: str) -> list[Execution]:
    listing = await orchestrator.executions(ExecutionFilter(session_id=session_id), Page(1000))
    return listing.items


@pytest.mark.requirement("003.agent-class", "003.python-api", "000.embedded")
async def test_the_specifications_agent_runs_in_process() -> None:
    async with Runtime() as orchestrator:
        orchestrator.register_agent(MyAgent())
        reply = await orchestrator.orchestrate(
            session_id="s", task={"capability": "my_capability", "parameters": {"param1": "value"}}
        )
        assert reply["success"] is True
        assert reply["data"] == {"seen": "value"}
        assert reply["agent_id"] == "my_agent_001"
        request, response = await contracts(orchestrator, "s")
        assert request.contract.id == reply["contract_id"]
        assert request.contract.type is ContractType.REQUEST
        assert response.contract.type is ContractType.RESPONSE
        assert response.contract.body == b'{"seen":"value"}'
        with pytest.raises(Conflict, match="my_agent_001"):
            orchestrator.register_agent(MyAgent())
        block = await orchestrator.compress_session("s", "why")
        assert block["compressed"] is True
        assert block["memory_block"]["capabilities"] == {"my_capability": 1}
        assert block["memory_block"]["intent"] == "why"
        assert (await orchestrator.compress_session("other"))["compressed"] is False


@pytest.mark.requirement("003.contract-flow")
async def test_request_is_stored_before_the_agent_starts_and_response_before_the_reply(
    runtime: Runtime,
) -> None:
    orchestrator = runtime.orchestrator
    seen: list[int] = []

    @capability()
    async def look() -> int:
        found = await contracts(orchestrator, "flow")
        seen.append(len(found))
        assert found[-1].contract.type is ContractType.REQUEST
        return len(found)

    orchestrator.register_agent(look)
    reply = await orchestrator.orchestrate("flow", {"capability": "look"})
    assert reply["data"] == 1
    assert seen == [1]
    first, second = await contracts(orchestrator, "flow")
    assert (first.contract.n, second.contract.n) == (1, 2)
    assert first.contract.id < second.contract.id
    assert (await orchestrator.verify()).ok


class Failing(Agent):
    """Fails in the way its task names."""

    def __init__(self) -> None:
        super().__init__("failing", "Failing")

    async def execute(self, task: dict[str, Any]) -> Any:
        how = task["parameters"]["how"]
        deep: Any = []
        for _ in range(200):
            deep = [deep]
        results: dict[str, Any] = {
            "says": {"success": False, "error": "no luck"},
            "set": {1, 2},
            "bytes": b"x",
            "nan": float("nan"),
            "nul": "a\0b",
            "surrogate": "\ud800",
            "object": object(),
            "deep": deep,
            "keys": {1: 2},
            "huge": "x" * (100 << 20),
            "many": ["x" * 1000] * 100_000,
            "digits": 10**5000,
            "fine": {"success": True, "data": "ok"},
        }
        if how == "raises":
            raise ValueError("broken")
        if how == "cancels":
            raise asyncio.CancelledError
        return results[how]

    def get_capabilities(self) -> list[AgentCapability]:
        return [AgentCapability("fail", parameters={"how": "string"})]


@pytest.mark.requirement("003.agent-failure")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "ValueError: broken"),
        ("says", "no luck"),
        ("cancels", "the agent cancelled itself"),
        ("set", "not JSON"),
        ("bytes", "not JSON"),
        ("nan", "NaN"),
        ("nul", "NUL"),
        ("surrogate", "surrogate"),
        ("object", "not JSON"),
        ("deep", "nested deeper"),
        ("keys", "not a string"),
        ("huge", "larger than"),
        ("many", "larger than"),
        ("digits", "digits"),
    ],
)
async def test_an_agent_that_fails_leaves_a_typed_failure_and_is_available_again(
    orchestrator: Orchestrator, how: str, message: str
) -> None:
    orchestrator.register_agent(Failing())
    reply = await orchestrator.orchestrate("s", {"capability": "fail", "parameters": {"how": how}})
    assert reply["success"] is False
    assert reply["agent_id"] == "failing"
    assert message in reply["error"]
    assert reply["error_info"]["code"] == "E_INTERNAL"
    _, response = await contracts(orchestrator, "s")
    assert response.contract.status == "failed"
    assert message.encode() in (response.contract.body or b"")
    (agent,) = await orchestrator.agents()
    assert agent.status == "available"
    assert (agent.running, agent.tasks_failed) == (0, 1)
    task = {"capability": "fail", "parameters": {"how": "fine"}}
    assert (await orchestrator.orchestrate("s", task))["data"] == "ok"
    assert (await orchestrator.verify()).ok


@pytest.mark.requirement("003.agent-failure")
async def test_agents_that_never_return_end_at_their_deadline(orchestrator: Orchestrator) -> None:
    release = threading.Event()

    @capability(options=Options(timeout=0.1))
    async def forever() -> None:
        await asyncio.Event().wait()

    @capability(options=Options(timeout=0.1))
    async def stubborn() -> None:
        while not release.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue

    @capability(options=Options(timeout=0.1))
    def blocked() -> None:
        release.wait()

    for agent in (forever, stubborn, blocked):
        orchestrator.register_agent(agent)
    try:
        for name in ("forever", "stubborn", "blocked"):
            reply = await orchestrator.orchestrate("s", {"capability": name})
            assert reply["error_info"]["code"] == "E_TIMEOUT"
            assert reply["error"] == "Agent invocation timed out after 100ms"
            assert (await orchestrator.agent(name)).running == 0
        states = {e.capability: e.state for e in await executions(orchestrator, "s")}
        assert set(states.values()) == {State.TIMED_OUT}
        assert {e.outcome for e in await executions(orchestrator, "s")} == {"unknown"}
    finally:
        release.set()


async def test_too_many_calls_that_never_return_fail_the_agent_not_the_process(
    orchestrator: Orchestrator,
) -> None:
    release = threading.Event()

    @capability(options=Options(timeout=0.05, failure_threshold=1000))
    def blocked() -> None:
        release.wait()

    orchestrator.register_agent(blocked)
    try:
        before = threading.active_count()
        for _ in range(16):
            await orchestrator.orchestrate("s", {"capability": "blocked"})
        reply = await orchestrator.orchestrate("s", {"capability": "blocked"})
        assert reply["error_info"]["code"] == "E_MODULE_LOAD"
        assert "never returned" in reply["error"]
        # two more: the store starts its readers when they are first needed
        assert threading.active_count() <= before + 18
    finally:
        release.set()

    async def recovered() -> bool:
        reply = await orchestrator.orchestrate("s", {"capability": "blocked"})
        return bool(reply["success"])

    async with asyncio.timeout(10):
        while not await recovered():
            await asyncio.sleep(0.01)


@pytest.mark.requirement("003.no-agent")
async def test_an_unknown_capability_is_refused_and_recorded(orchestrator: Orchestrator) -> None:
    with pytest.raises(AgentNotFound) as caught:
        await orchestrator.orchestrate("s", {"capability": "fly"})
    assert caught.value.message == "No agent available for capability: fly"
    request, response = await contracts(orchestrator, "s")
    assert request.contract.id == caught.value.details["contract_id"]
    assert request.state is State.FAILED
    assert b"No agent available for capability: fly" in (request.answered or b"")
    assert response.contract.status == "failed"
    assert await executions(orchestrator, "s") == []
    assert (await orchestrator.verify()).ok


@pytest.mark.requirement("003.capability-parameters")
@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({}, "param1"),
        ({"param1": 7}, "param1"),
        ({"param1": "x", "extra": 1}, "extra"),
        (["x"], "parameters"),
        (None, "parameters"),
    ],
)
async def test_parameters_that_do_not_fit_are_refused_by_name(
    orchestrator: Orchestrator, parameters: Any, named: str
) -> None:
    orchestrator.register_agent(MyAgent())
    with pytest.raises(InvalidInput, match=named):
        await orchestrator.orchestrate(
            "s", {"capability": "my_capability", "parameters": parameters}
        )
    assert await contracts(orchestrator, "s") == []


async def test_a_function_becomes_an_agent_with_a_schema_of_its_types(
    orchestrator: Orchestrator,
) -> None:
    @capability()
    def repeat(text: str, times: int = 2) -> str:
        """Repeat a text."""
        return text * times

    orchestrator.register_agent(repeat)
    listed = (await orchestrator.agent("repeat")).capabilities[0]
    assert listed["description"] == "Repeat a text."
    assert listed["parameters"]["properties"] == {
        "text": {"type": "string"},
        "times": {"type": "integer", "default": 2},
    }
    reply = await orchestrator.orchestrate(
        "s", {"capability": "repeat", "parameters": {"text": "ab"}}
    )
    assert reply["data"] == "abab"
    with pytest.raises(InvalidInput, match=r"\$\.parameters\.times"):
        await orchestrator.orchestrate(
            "s", {"capability": "repeat", "parameters": {"text": "ab", "times": "x"}}
        )


@pytest.mark.requirement("003.parallel")
async def test_slots_bound_what_runs_at_one_time(orchestrator: Orchestrator) -> None:
    running = {"five": 0, "one": 0}
    most = {"five": 0, "one": 0}

    async def work(name: str) -> None:
        running[name] += 1
        most[name] = max(most[name], running[name])
        await asyncio.sleep(0.1)
        running[name] -= 1

    @capability(options=Options(concurrency=5))
    async def five() -> None:
        await work("five")

    @capability(options=Options(concurrency=1))
    async def one() -> None:
        await work("one")

    orchestrator.register_agent(five)
    orchestrator.register_agent(one)
    began = time.monotonic()
    await asyncio.gather(
        *(orchestrator.orchestrate("s", {"capability": "five"}) for _ in range(10))
    )
    # Ten tasks of 0.1 s on five slots: two rounds, with room for a slow machine.
    assert time.monotonic() - began < 0.9
    assert most["five"] == 5
    await asyncio.gather(*(orchestrator.orchestrate("s", {"capability": "one"}) for _ in range(4)))
    assert most["one"] == 1


@pytest.mark.requirement("003.parallel")
async def test_blocking_agents_run_in_parallel_too(orchestrator: Orchestrator) -> None:
    barrier = threading.Barrier(3, timeout=10)

    @capability()
    def meet() -> int:
        return barrier.wait()

    orchestrator.register_agent(meet)
    replies = await asyncio.gather(
        *(orchestrator.orchestrate("s", {"capability": "meet"}) for _ in range(3))
    )
    assert sorted(r["data"] for r in replies) == [0, 1, 2]


class Named(Agent):
    """Answers with its own id; holds the slot while the gate is shut."""

    def __init__(self, agent_id: str, gate: asyncio.Event, concurrency: int = 2) -> None:
        super().__init__(agent_id, agent_id)
        self.options = Options(concurrency=concurrency)
        self.gate = gate

    async def execute(self, task: dict[str, Any]) -> str:
        await self.gate.wait()
        return self.agent_id

    def get_capabilities(self) -> list[AgentCapability]:
        return [AgentCapability("who")]


@pytest.mark.requirement("003.routing")
async def test_the_least_loaded_agent_is_chosen(runtime: Runtime) -> None:
    orchestrator = runtime.orchestrator
    gate = asyncio.Event()
    for name in ("a", "b", "c"):
        orchestrator.register_agent(Named(name, gate))
    async with asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(orchestrator.orchestrate("s", {"capability": "who"}))
            for _ in range(6)
        ]
        async with asyncio.timeout(10):
            while len(runtime.engine.attempts.running) < 6:
                await asyncio.sleep(0.001)
        assert {a.agent_id: a.running for a in await orchestrator.agents()} == {
            "a": 2,
            "b": 2,
            "c": 2,
        }
        assert {a.status for a in await orchestrator.agents()} == {"busy"}
        gate.set()
    assert sorted(t.result()["data"] for t in waiting) == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.requirement("003.routing")
async def test_registering_and_removing_changes_routing_at_once(
    orchestrator: Orchestrator,
) -> None:
    gate = asyncio.Event()
    gate.set()
    with pytest.raises(AgentNotFound):
        await orchestrator.orchestrate("s", {"capability": "who"})
    orchestrator.register_agent(Named("a", gate))
    assert (await orchestrator.orchestrate("s", {"capability": "who"}))["data"] == "a"
    orchestrator.register_agent(Named("b", gate))
    await orchestrator.remove_agent("a")
    assert (await orchestrator.orchestrate("s", {"capability": "who"}))["data"] == "b"
    await orchestrator.remove_agent("b")
    with pytest.raises(AgentNotFound):
        await orchestrator.orchestrate("s", {"capability": "who"})


@pytest.mark.requirement("003.agent-to-agent")
async def test_an_agent_calls_another_in_its_session(orchestrator: Orchestrator) -> None:
    @capability()
    async def double(n: int) -> int:
        return 2 * n

    @capability()
    async def quadruple(n: int, context: Context) -> int:
        half = await context.call("double", {"n": n})
        return int(await context.call("double", {"n": half}))

    @capability()
    def from_a_thread(n: int) -> int:
        context = current()
        return int(context.run(context.call("double", {"n": n})))

    for agent in (double, quadruple, from_a_thread):
        orchestrator.register_agent(agent)
    reply = await orchestrator.orchestrate("s", {"capability": "quadruple", "parameters": {"n": 3}})
    assert reply["data"] == 12
    views = await contracts(orchestrator, "s")
    pairs = [(v.contract.type.value, v.contract.from_agent, v.contract.to_agent) for v in views]
    assert pairs == [
        ("REQUEST", "orchestrator", "quadruple"),
        ("REQUEST", "quadruple", "double"),
        ("RESPONSE", "double", "quadruple"),
        ("REQUEST", "quadruple", "double"),
        ("RESPONSE", "double", "quadruple"),
        ("RESPONSE", "quadruple", "orchestrator"),
    ]
    parent = next(e for e in await executions(orchestrator, "s") if e.depth == 0)
    assert {e.parent_id for e in await executions(orchestrator, "s") if e.depth} == {parent.id}
    reply = await orchestrator.orchestrate(
        "t", {"capability": "from_a_thread", "parameters": {"n": 3}}
    )
    assert reply["data"] == 6


async def test_a_waiting_parent_gives_up_its_slot(orchestrator: Orchestrator) -> None:
    @capability(options=Options(concurrency=1))
    async def countdown(n: int, context: Context) -> int:
        return n if n == 0 else int(await context.call("countdown", {"n": n - 1})) + 1

    orchestrator.register_agent(countdown)
    async with asyncio.timeout(20):
        replies = await asyncio.gather(
            *(
                orchestrator.orchestrate("s", {"capability": "countdown", "parameters": {"n": 3}})
                for _ in range(3)
            )
        )
    assert [r["data"] for r in replies] == [3, 3, 3]
    assert (await orchestrator.agent("countdown")).running == 0


async def test_agents_that_call_each_other_for_ever_are_stopped(
    orchestrator: Orchestrator,
) -> None:
    @capability()
    async def loop(context: Context) -> Any:
        return await context.call("loop")

    orchestrator.register_agent(loop)
    reply = await orchestrator.orchestrate("s", {"capability": "loop"})
    assert reply["success"] is False
    assert "levels deep" in reply["error"]


async def test_a_caller_that_goes_away_does_not_end_the_execution(
    orchestrator: Orchestrator,
) -> None:
    started = asyncio.Event()
    gate = asyncio.Event()

    @capability()
    async def work() -> str:
        started.set()
        await gate.wait()
        return "done"

    orchestrator.register_agent(work)
    caller = asyncio.create_task(orchestrator.orchestrate("s", {"capability": "work"}))
    await started.wait()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    gate.set()
    (execution,) = await executions(orchestrator, "s")
    async for _ in orchestrator.follow(execution.id):
        pass
    assert (await orchestrator.execution(execution.id)).state is State.COMPLETED


async def test_an_agent_with_several_capabilities_wants_to_be_told_which(
    orchestrator: Orchestrator,
) -> None:
    class Two(MyAgent):
        def get_capabilities(self) -> list[AgentCapability]:
            return [AgentCapability("x"), AgentCapability("y")]

    orchestrator.register_agent(Two())
    with pytest.raises(InvalidInput, match="x, y"):
        await orchestrator.perform(Task(session_id="s", agent_id="my_agent_001", parameters={}))
    with pytest.raises(AgentNotFound, match="no capability z"):
        await orchestrator.perform(
            Task(session_id="s", agent_id="My Custom Agent", capability="z", parameters={})
        )
    assert issubclass(InvalidInput, RetinueError)


class _Odd(BaseException):
    """No Exception."""


@pytest.mark.requirement("003.agent-failure")
@pytest.mark.parametrize(
    "error",
    [
        ValueError("file \udcff missing"),
        ValueError("a\0b"),
        ValueError("x" * 10_000_000),
        AgentFailed("x", details={"a": object()}),
        _Odd("odd"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("blocking", [False, True])
async def test_whatever_an_agent_raises_ends_its_execution_only(
    orchestrator: Orchestrator, error: BaseException, blocking: bool
) -> None:
    if blocking:

        @capability("raises")
        def raises() -> None:
            raise error

        orchestrator.register_agent(raises)
    else:

        @capability("raises")
        async def raises_async() -> None:
            raise error

        orchestrator.register_agent(raises_async)
    async with asyncio.timeout(20):
        reply = await orchestrator.orchestrate("s", {"capability": "raises"})
    assert reply["success"] is False
    assert len(reply["error"]) < 20_000
    assert (await orchestrator.agent("raises")).running == 0
    assert (await orchestrator.verify()).ok


async def test_a_parent_is_not_repeated_because_its_child_was_refused(
    orchestrator: Orchestrator,
) -> None:
    runs: list[int] = []

    @capability(options=Options(failure_threshold=1))
    async def broken() -> None:
        raise ValueError("broken")

    @capability(options=Options(retry_waits_ms=(1,)))
    async def parent(context: Context) -> None:
        runs.append(1)
        await context.call("broken")

    orchestrator.register_agent(broken)
    orchestrator.register_agent(parent)
    await orchestrator.orchestrate("s", {"capability": "broken"})
    reply = await orchestrator.orchestrate("s", {"capability": "parent"})
    assert reply["error_info"]["code"] == "E_CIRCUIT_OPEN"
    assert runs == [1]


async def test_parallel_calls_give_up_one_slot_and_take_one_back(
    orchestrator: Orchestrator,
) -> None:
    running: list[int] = []
    most = 0

    @capability()
    async def child() -> int:
        await asyncio.sleep(0.02)
        return 1

    @capability(options=Options(concurrency=1))
    async def parent(context: Context) -> int:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        running.pop()
        found = await asyncio.gather(*(context.call("child") for _ in range(4)))
        forgotten = asyncio.create_task(context.call("child"))
        await asyncio.sleep(0)
        assert not forgotten.done()
        return sum(found)

    orchestrator.register_agent(child)
    orchestrator.register_agent(parent)
    replies = await asyncio.gather(
        *(orchestrator.orchestrate("s", {"capability": "parent"}) for _ in range(5))
    )
    assert [r["data"] for r in replies] == [4] * 5
    async with asyncio.timeout(10):
        while any(a.running for a in await orchestrator.agents()):
            await asyncio.sleep(0.005)
    assert {a.running for a in await orchestrator.agents()} == {0}
    assert most == 1


async def test_an_endless_stream_stops_at_the_limit(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, examples=False, entry_points=False, max_result_bytes=100_000
    )

    @capability()
    async def endless() -> AsyncIterator[str]:
        while True:
            yield "x" * 1000

    async with Runtime(settings) as orchestrator:
        orchestrator.register_agent(endless)
        reply = await orchestrator.orchestrate("s", {"capability": "endless"})
    assert "larger than 100000 bytes" in reply["error"]


async def test_who_cancels_a_parent_cancels_its_children(orchestrator: Orchestrator) -> None:
    started = asyncio.Event()

    @capability()
    async def child() -> None:
        started.set()
        await asyncio.Event().wait()

    @capability()
    async def parent(context: Context) -> None:
        await context.call("child")

    orchestrator.register_agent(child)
    orchestrator.register_agent(parent)
    accepted = await orchestrator.submit(Task(session_id="s", capability="parent", parameters={}))
    await started.wait()
    await orchestrator.cancel(accepted.execution_id)
    async with asyncio.timeout(10):
        while {e.state for e in await executions(orchestrator, "s")} != {State.CANCELLED}:
            await asyncio.sleep(0.005)
    assert {a.running for a in await orchestrator.agents()} == {0}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (lambda context: context.progress("planning"), "'planning' is no number"),
        (lambda context: context.progress(10, {"step": 1}), "{'step': 1} is no text"),
        (lambda context: context.text(None), "text(content) takes a text, not None"),
        (lambda context: context.text(b"x" * 200), "…"),
    ],
)
async def test_what_cannot_be_streamed_is_refused_where_it_is_said(
    orchestrator: Orchestrator, words: Callable[[Context], None], said: str
) -> None:
    @capability()
    async def tell(context: Context) -> str:
        words(context)
        return "never"

    orchestrator.register_agent(tell)
    accepted = await orchestrator.submit(Task(session_id="s", capability="tell", parameters={}))
    events = [e async for page in orchestrator.follow(accepted.execution_id) for e in page]
    assert [e.type.value for e in events] == ["failed"]
    failure = loads(events[-1].data)
    assert failure["error"].startswith("TypeError: ")
    assert said in failure["error"]
    assert len(failure["error"]) < 250

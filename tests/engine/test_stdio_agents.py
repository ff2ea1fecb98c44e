"""Agents of the SDK in workers: they stream, ask people, have others work, and are cancelled."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.process.rig import alive, marked, until

from retinue import Runtime, Settings
from retinue.domain.execution import State, Task
from retinue.interfaces import Page
from retinue.settings import WorkerReference

EXAMPLES = Path(__file__).parents[2] / "examples" / "workers"
AGENTS = """
import asyncio, os
from retinue import Context, Options, capability
from retinue.sdk import serve

@capability(options=Options(failure_threshold=1000))
async def echo(text: str) -> dict:
    return {"text": text, "pid": os.getpid()}

@capability(options=Options(nodes=("plan", "write")))
async def story(context: Context) -> str:
    context.text("first ", node="plan")
    context.text("draft ", node="write")
    context.text("final ", node="write", reset=True)
    context.progress(50, "half")
    context.spend(input_tokens=3, output_tokens=4)
    return "told"

@capability(options=Options(delivery="at_least_once", retry_waits_ms=(1,)))
async def careful(context: Context) -> list:
    answer = await context.ask("really?", {"type": "string"})
    if context.attempt == 1:
        os.kill(os.getpid(), 9)
    return [answer, context.attempt]

@capability()
async def boss(context: Context, size: int = 0) -> dict:
    return await context.call("echo", {"text": "x" * size})

@capability()
async def slow(context: Context) -> None:
    context.text("begun")
    await asyncio.sleep(1000)

@capability()
def blocking(text: str, context: Context) -> dict:
    context.text("in a thread ")
    return context.run(context.call("echo", {"text": text}))

@capability()
async def refuse(path: str) -> None:
    raise RuntimeError("no " + path)

serve(echo, story, careful, boss, slow, blocking, refuse)
"""


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start a system with a worker; stop it and see that nothing is left."""
    systems: list[Runtime] = []

    async def start(*command: str, **more: Any) -> Runtime:
        program = tmp_path / "worker.py"
        program.write_text(AGENTS)
        worker = WorkerReference(
            driver="stdio", name="w", command=command or (sys.executable, str(program)), **more
        )
        settings = Settings(data_dir=tmp_path, examples=False, entry_points=False, agents=(worker,))
        systems.append(Runtime(settings))
        await systems[-1].start()
        return systems[-1]

    yield start
    for system in systems:
        await system.stop(grace=0)
        assert marked(system.keeper.scope) == []


async def run(system: Runtime, capability: str, **parameters: Any) -> Any:
    task = Task(session_id="s", capability=capability, parameters=parameters)
    reply = await system.orchestrator.perform(task)
    assert reply.error is None, reply.error
    return json.loads(reply.data or b"null")


async def test_agents_register_themselves_with_their_schemas_and_options(started: Any) -> None:
    system = await started(agents=("echo", "boss"))
    found = {agent.agent_id: agent for agent in await system.orchestrator.agents()}
    assert set(found) == {"echo", "story", "careful", "boss", "slow", "blocking", "refuse"}
    (echo,) = found["echo"].capabilities
    assert echo["parameters"]["required"] == ["text"]
    assert found["echo"].concurrency == 30
    task = Task(session_id="s", capability="echo", parameters={"text": 7})
    with pytest.raises(Exception, match="text"):
        await system.orchestrator.perform(task)


async def test_what_it_says_is_in_the_record_node_by_node(started: Any) -> None:
    system = await started()
    accepted = await system.orchestrator.submit(
        Task(session_id="s", capability="story", parameters={})
    )
    events = [
        (event.type.value, json.loads(event.data))
        async for batch in system.orchestrator.follow(accepted.execution_id)
        for event in batch
    ]
    assert events[:5] == [
        ("content_chunk", {"content": "first ", "node_name": "plan"}),
        ("content_chunk", {"content": "draft ", "node_name": "write"}),
        ("content_chunk", {"content": "final ", "node_name": "write", "is_reset": True}),
        ("progress", {"percentage": 50, "message": "half"}),
        ("usage", {"input_tokens": 3, "output_tokens": 4, "cost_usd": 0.0}),
    ]
    assert events[-1][0] == "completed"


async def test_an_answer_outlives_the_process_that_asked(started: Any) -> None:
    system = await started(process_pool_size=1)
    work = asyncio.create_task(run(system, "careful"))
    while not (asked := (await system.orchestrator.questions(Page())).items):
        await asyncio.sleep(0.002)
    assert asked[0].prompt == "really?"
    await system.orchestrator.answer(asked[0].id, "yes")
    assert await work == ["yes", 2]
    assert (await system.orchestrator.questions(Page())).items == []


async def test_it_has_others_work_and_large_things_pass_in_pieces(started: Any) -> None:
    system = await started()
    assert (await run(system, "boss", size=3))["text"] == "xxx"
    assert len((await run(system, "boss", size=900_000))["text"]) == 900_000
    assert (await run(system, "blocking", text="t"))["text"] == "t"
    task = Task(session_id="s", capability="refuse", parameters={"path": "way"})
    reply = await system.orchestrator.perform(task)
    assert reply.error is not None
    assert reply.error["code"] == "E_INTERNAL"
    assert "no way" in reply.error["message"]


async def test_cancelling_ends_it_and_the_process_stays(started: Any) -> None:
    system = await started(process_pool_size=1)
    pid = (await run(system, "echo", text="a"))["pid"]
    accepted = await system.orchestrator.submit(
        Task(session_id="s", capability="slow", parameters={})
    )
    async for batch in system.orchestrator.follow(accepted.execution_id):
        if any(event.type == "content_chunk" for event in batch):
            await system.orchestrator.cancel(accepted.execution_id)
    execution = await system.orchestrator.execution(accepted.execution_id)
    assert execution.state is State.CANCELLED
    (member,) = system.engine.pools._known("w").pool.members.values()
    instance: Any = member.instance
    await until(lambda: instance.pipe.late == 1)  # what the worker said of its cancelled request
    assert instance.pipe.reader.counts == {}
    assert (await run(system, "echo", text="b"))["pid"] == pid


async def test_stopping_the_system_lets_running_work_end(started: Any) -> None:
    system = await started(process_pool_size=1)
    work = [asyncio.create_task(run(system, "echo", text=str(n))) for n in range(20)]
    await asyncio.sleep(0)
    await asyncio.gather(*work)
    assert await system.stop(grace=5)


@pytest.mark.requirement("000.stress")
async def test_ten_thousand_at_once_none_lost_none_crossed(started: Any) -> None:
    system = await started(process_pool_size=3, request_queue_size=20_000)
    found = await asyncio.gather(*(run(system, "echo", text=str(n)) for n in range(10_000)))
    assert [one["text"] for one in found] == [str(n) for n in range(10_000)]
    view = system.engine.pools.view("w")
    assert (view.requests, view.errors, view.started) == (10_000, 0, 3)


def living(system: Runtime) -> list[int]:
    live = system.engine.instances.live.values()
    return [one.process.pid for one in live if one.process is not None and alive(one.process.pid)]


async def test_processes_killed_at_random_lose_no_task_that_bears_repeats(started: Any) -> None:
    system = await started(
        process_pool_size=3, delivery="at_least_once", max_attempts=100, max_restarts=1000
    )
    work = [asyncio.create_task(run(system, "echo", text=str(n))) for n in range(100)]
    for _ in range(5):
        before = system.engine.pools.view("w").requests
        await until(lambda: living(system))
        os.kill(living(system)[0], signal.SIGKILL)
        await until(
            lambda before=before: (
                system.engine.pools.view("w").requests > before  # type: ignore[misc]
                or all(task.done() for task in work)
            )
        )
    assert [one["text"] for one in await asyncio.gather(*work)] == [str(n) for n in range(100)]


@pytest.mark.parametrize(
    ("command", "agent"),
    [
        (("node", str(EXAMPLES / "node_worker.mjs")), "echo"),
        (("sh", str(EXAMPLES / "shell_worker.sh")), "echo"),
    ],
)
async def test_workers_in_other_languages_serve_a_pool(
    started: Any, command: tuple[str, ...], agent: str
) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    system = await started(*command, process_pool_size=2)
    tasks = [Task(session_id="s", agent_id=agent, parameters={"text": f"n{n}"}) for n in range(20)]
    replies = await asyncio.gather(*map(system.orchestrator.perform, tasks))
    assert [reply.error for reply in replies] == [None] * 20
    assert all(f"n{n}" in (reply.data or b"").decode() for n, reply in enumerate(replies))


CALLERS = """
import asyncio
from retinue import Context, capability
from retinue.sdk import serve

now = most = 0

@capability()
async def inner(n: int) -> int:
    global now, most
    now += 1
    most = max(most, now)
    await asyncio.sleep(0.01)
    now -= 1
    return n

@capability()
async def outer(n: int, context: Context) -> int:
    return await context.call("inner", {"n": n})

@capability()
async def down(context: Context, left: int = 1000) -> int:
    try:
        return 1 + await context.call("down", {"left": left - 1}) if left else 0
    except Exception as error:
        return 1 if "deep" in str(error) else -1000

@capability()
async def both(n: int, context: Context) -> int:
    async def twice() -> int:
        return sum([await context.call("inner", {"n": n}) for _ in range(2)])
    return sum(await asyncio.gather(twice(), twice()))

@capability()
async def peak() -> int:
    return most

serve(inner, outer, down, both, peak)
"""


@pytest.fixture
def callers(tmp_path: Path) -> tuple[str, str]:
    program = tmp_path / "callers.py"
    program.write_text(CALLERS)
    return sys.executable, str(program)


async def test_more_callers_than_places_that_wait_for_the_same_pool_all_end(
    started: Any, callers: tuple[str, str]
) -> None:
    system = await started(*callers)  # 3 processes, 10 at once each
    calls = [asyncio.create_task(run(system, "outer", n=n)) for n in range(40)]
    assert await asyncio.gather(*calls) == list(range(40))
    (view,) = system.engine.pools.views()
    assert (view.in_flight, view.waiting) == (0, 0)


async def test_one_that_calls_itself_needs_one_place_however_deep(
    started: Any, callers: tuple[str, str]
) -> None:
    system = await started(*callers, process_pool_size=1, max_concurrent_requests=2)
    depths = await asyncio.gather(*(run(system, "down") for _ in range(6)))
    assert depths == [17] * 6  # the depth's limit ends it, nothing else


async def test_who_waits_for_others_leaves_its_place_and_never_more_than_the_limit_work(
    started: Any, callers: tuple[str, str]
) -> None:
    system = await started(*callers, process_pool_size=1, max_concurrent_requests=2)
    calls = (run(system, capability, n=1) for capability in ("both", "outer") * 10)
    assert await asyncio.gather(*calls) == [4, 1] * 10
    assert await run(system, "peak") <= 2
    pool = system.engine.pools._known("w").pool
    (member,) = pool.members.values()
    assert (member.in_flight, member.lent, pool._turns) == (0, 0, {})
    assert {entry.running for entry in system.engine.registry} == {0}

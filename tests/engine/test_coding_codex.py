"""Codex's app-server: what goes wrong with one thread is its own; a broken server is ended."""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.engine.coding_rig import Program
from tests.engine.test_coding import Start, data, found, logs, run, started, task, text
from tests.process.rig import alive, marked, until

from retinue.domain.execution import State

__all__ = ["started"]
Make = Callable[[str], Program]
ODD = """
def work(thread, turn, prompt):
    say(thread, "hi")
    if prompt == "waits":
        while not os.path.exists(os.environ["HOME"] + "/go"): time.sleep(0.01)
    elif prompt == "item":
        tell("item/started", thread, item="a string")
    elif prompt == "turn":
        tell("turn/completed", thread, turn="a string")
    elif prompt == "error":
        tell("error", thread, error="boom", willRetry=True)
    elif prompt == "usage":
        tell("thread/tokenUsage/updated", thread, turnId=turn, tokenUsage={"total": [1]})
    elif prompt == "text":
        say(thread, 5)
    elif prompt == "plan":
        tell("turn/plan/updated", thread, plan={"a": float("inf")})
    elif prompt == "deep":
        deep = '{"a":' * 700 + "1" + "}" * 700
        raw('{"method":"item/started","params":{"threadId":"%s","item":{"id":"c","arguments":%s,'
            '"type":"mcpToolCall","tool":"x"}}}' % (thread, deep))
    elif prompt == "twice":
        item = {"id": "c", "type": "commandExecution", "command": "ls", "exitCode": 0}
        for _ in range(2):
            tell("item/completed", thread, item=item)
        say(thread, None)
    elif prompt == "odd":
        put({"id": [1], "method": "foo", "params": {}})
        put({"id": {"a": 1}, "result": 1})
        put({"id": True, "result": {}})
        put({"method": "x", "params": {"threadId": ["t"]}})
    done(thread, turn)


serve(work)
"""


@pytest.fixture
def program(tmp_path: Path) -> Make:
    return lambda body: Program(tmp_path, "codex", body)


@pytest.mark.parametrize("odd", ["item", "turn", "error", "usage", "text"])
async def test_an_odd_message_fails_its_own_thread_only(
    started: Start, program: Make, odd: str
) -> None:
    system = await started("codex", **program(ODD).given, silence_seconds=5, stop_seconds=1)
    other = asyncio.create_task(run(system, "codex", "waits", "other"))
    await until(lambda: system.keeper.children)
    answer, _ = await run(system, "codex", odd)
    assert answer.error is not None
    assert answer.error["code"] == "E_STREAM_BROKEN"
    assert "codex cannot be understood" in answer.error["message"]
    (system.settings.data_dir / "processes" / "agent-codex" / "home" / "go").touch()
    answer, events = await other
    assert answer.error is None
    assert text(events) == "hi"
    assert len(system.keeper.children) == 1


@pytest.mark.parametrize("prompt", ["deep", "twice", "odd", "plan"])
async def test_what_is_only_strange_fails_nothing(
    started: Start, program: Make, prompt: str
) -> None:
    system = await started("codex", **program(ODD).given, stop_seconds=1)
    answer, events = await run(system, "codex", prompt)
    assert answer.error is None
    assert text(events) == "hi"
    assert len(found(events, "tool_call")) == (prompt in {"deep", "twice"})
    assert len(found(events, "tool_result")) == (prompt == "twice")


async def test_a_line_that_is_too_long_is_told_to_every_thread(
    started: Start, program: Make
) -> None:
    long = program(
        """
        def work(thread, turn, prompt):
            item = {"id": "c", "type": "commandExecution", "command": "cat x"}
            tell("item/started", thread, item=item)
            tell("item/completed", thread, item=item | {"aggregatedOutput": "y" * 9_000_000})
            done(thread, turn)
        serve(work)
        """
    )
    system = await started("codex", **long.given)
    answer, events = await run(system, "codex", "x")
    assert answer.error is None
    assert "bytes was refused: at most 8388608 are read" in logs(events)


async def test_a_server_that_ends_is_one_failure_however_many_turns_it_had(
    started: Start, program: Make
) -> None:
    ends = program(
        """
        def work(thread, turn, prompt):
            say(thread, "hi")
            if prompt == "ends":
                os._exit(3)
            if prompt == "quick":
                done(thread, turn)
        serve(work)
        """
    )
    system = await started("codex", **ends.given, concurrency=20)
    running = [asyncio.create_task(run(system, "codex", "waits", f"s{n}")) for n in range(12)]
    await until(lambda: ends.seen.count("turn/start") == 12)
    answers = [await run(system, "codex", "ends", "last"), *await asyncio.gather(*running)]
    assert all(answer.error is not None for answer, _ in answers)
    answer, _ = await run(system, "codex", "quick")
    assert answer.error is None  # its circuit is closed


async def test_nothing_works_on_after_its_server_could_not_be_heard(
    started: Start, program: Make
) -> None:
    shut = program(
        """
        def work(thread, turn, prompt):
            say(thread, "hi")
            if prompt == "shut":
                os.close(1)
        serve(work)
        time.sleep(1000)
        """
    )
    system = await started("codex", **shut.given, stop_seconds=0.5)
    other = asyncio.create_task(run(system, "codex", "waits", "other"))
    await until(lambda: "waits" in shut.seen)
    (child,) = system.keeper.children.values()
    for answer, _ in (await run(system, "codex", "shut"), await other):
        assert answer.error is not None
        assert answer.error["message"] == "codex app-server has closed its output"
    assert not alive(child.pid)


async def test_a_server_that_is_not_wanted_ends_though_a_turn_never_got_its_thread(
    started: Start, program: Make
) -> None:
    stalls = program(
        """
        def work(thread, turn, prompt):
            say(thread, "hi")
            if prompt == "quick":
                done(thread, turn)
        serve(work, resume=lambda number, thread: None, heed=False)
        """
    )
    system = await started("codex", **stalls.given, stop_seconds=0.3)
    await run(system, "codex", "quick")
    for session, heard in (("s", "thread/resume"), ("other", "other words")):
        accepted = await system.orchestrator.submit(task("codex", "other words", session))
        await until(functools.partial(stalls.heard, heard))
        await system.orchestrator.cancel(accepted.execution_id)
        async for _ in system.orchestrator.follow(accepted.execution_id):
            pass
        execution = await system.orchestrator.execution(accepted.execution_id)
        assert execution.state is State.CANCELLED
    await until(lambda: not marked(system.keeper.scope))


async def test_waiting_in_its_queue_is_no_silence(started: Start) -> None:
    system = await started(
        "codex", concurrency=5, environment={"FAKE_OVERLOAD": "1"}, silence_seconds=0.8
    )
    prompt = "[[slow 5 0.1]][[say done]]"
    answers = await asyncio.gather(*(run(system, "codex", prompt, f"s{n}") for n in range(5)))
    assert [data(answer)[-4:] for answer, _ in answers] == ["done"] * 5

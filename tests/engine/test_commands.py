"""Agents that are command lines: how a task goes in, what comes out, and what is left: nothing."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.process.rig import alive, marked, until

from retinue import Orchestrator, Runtime, Settings
from retinue.domain.event import Event
from retinue.domain.execution import State, Task
from retinue.errors import InvalidInput
from retinue.interfaces import ExecutionFilter, Page
from retinue.orchestrator import Reply
from retinue.process.log import read_log
from retinue.settings import CommandReference

PYTHON = (sys.executable, "-I", "-S", "-u", "-c")
SEEN = "import json, os, sys; print(json.dumps([sys.argv[1:], sys.stdin.read()]))"
ENVIRONMENT = "import json, os; print(json.dumps([dict(os.environ), os.getcwd()]))"
DEAF = "trap '' TERM INT; setsid sleep 1000 & echo $! $$; cat >/dev/null; while :; do sleep 1; done"
LINES = r"""
printf '{"type":"thought_update","content":"hm"}\n'
printf '{"type":"output","content":"part "}\nplain text\n'
printf '{"type":"progress_update","percentage":50}\n'
printf '{"type":"usage","input_tokens":3,"output_tokens":4}\n'
printf '{"type":"status_update","status":"x"}\n'
printf '{"type":"tool_call","name":"ls"}\n{"bad": NaN}\n\377\0\n'
"""


MUCH = """yes '{"type":"output","content":"0123456789"}' | head -c 9000000; echo;"""
LONG = """head -c 1500000 /dev/zero | tr '\\0' x; echo"""
LONG_SAID = "without a result line; refused: a line of 1500001 bytes; max_line_mb allows 1048576"


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start a system with commands; stop it and see that nothing is left."""
    systems: list[Runtime] = []

    async def start(*commands: CommandReference, **more: Any) -> Runtime:
        settings = Settings(
            data_dir=tmp_path, examples=False, entry_points=False, agents=commands, **more
        )
        system = Runtime(settings)
        await system.start()
        systems.append(system)
        return system

    yield start
    for system in systems:
        await system.stop(grace=0)
        assert marked(system.keeper.scope) == []


def command(*argv: str, name: str = "it", **more: Any) -> CommandReference:
    return CommandReference(driver="command", agent_id=name, command=argv, **more)


def shell(script: str, **more: Any) -> CommandReference:
    return command("sh", "-c", script, **more)


async def run(system: Runtime, prompt: str = "do it", **more: Any) -> tuple[Reply, list[Event]]:
    task = Task(session_id="s", agent_id="it", parameters={"prompt": prompt}, **more)
    answer = await system.orchestrator.perform(task)
    return answer, list(await system.store.events(answer.execution_id))


def data(answer: Reply) -> Any:
    assert answer.error is None, answer.error
    return json.loads(answer.data or b"null")


def kinds(events: list[Event]) -> list[str]:
    return [str(event.type) for event in events if event.type != "attempt_started"]


async def test_the_prompt_goes_in_and_the_output_is_the_result(started: Any) -> None:
    system = await started(command("wc", "-w"))
    answer, _ = await run(system, "four words are here")
    assert data(answer).strip() == "4"
    (view,) = await system.orchestrator.agents()
    assert (view.agent_id, view.driver, view.status) == ("it", "command", "available")
    with pytest.raises(InvalidInput, match='"prompt" is a required property'):
        await system.orchestrator.orchestrate("s", {"agent_id": "it", "capability": "it"})


@pytest.mark.parametrize(
    ("prompt", "argv", "stdin"),
    [
        ("stdin", [], "--flag 'x'; $HOME"),
        ("argument", ["--", "--flag 'x'; $HOME"], ""),
    ],
)
async def test_a_task_is_one_text_and_never_an_option_or_a_script(
    started: Any, prompt: Any, argv: list[str], stdin: str
) -> None:
    system = await started(command(*PYTHON, SEEN, prompt=prompt, output="json"))
    answer, events = await run(system, "--flag 'x'; $HOME")
    assert data(answer) == [argv, stdin]
    assert kinds(events) == ["completed"]


async def test_the_whole_task_can_go_in_as_json(started: Any) -> None:
    whole = command(*PYTHON, SEEN, prompt="json", output="json")
    system = await started(whole, command(*PYTHON, SEEN, name="text"))
    answer, _ = await run(system, "ü\n", context={"a": 1}, intent="why")
    _, stdin = data(answer)
    assert stdin.endswith("\n")
    assert json.loads(stdin) == {
        "capability": "it",
        "parameters": {"prompt": "ü\n"},
        "context": {"a": 1},
        "intent": "why",
        "session_id": "s",
        "execution_id": answer.execution_id,
    }
    task = Task(session_id="s", agent_id="text", parameters={"prompt": "task"}, context={"a": 1})
    answer = await system.orchestrator.perform(task)
    assert json.loads(data(answer))[1] == '{"a":1}\n\ntask'


@pytest.mark.requirement("001.workdir")
async def test_it_sees_its_own_directories_and_only_what_is_declared(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_API_KEY", "secret")
    (tmp_path / "mine").mkdir()
    own = command(*PYTHON, ENVIRONMENT, output="json", environment={"GIVEN": "yes"})
    system = await started(own)
    answer, _ = await run(system)
    seen, cwd = data(answer)
    root = tmp_path / "processes" / "agent-it"
    assert (seen["HOME"], cwd) == (str(root / "home"), str(root / "work"))
    assert Path(seen["TMPDIR"]).parent == root / "tmp"
    assert not await asyncio.to_thread(Path(seen["TMPDIR"]).exists)
    assert (seen["GIVEN"], seen["PATH"]) == ("yes", os.environ["PATH"])
    assert "CANARY_API_KEY" not in seen
    await system.stop()
    system = await started(own.model_copy(update={"work_dir": tmp_path / "mine"}))
    assert data((await run(system))[0])[1] == str(tmp_path / "mine")
    await system.stop()
    system = await started(own.model_copy(update={"work_dir": tmp_path / "absent"}))
    answer, _ = await run(system)
    assert answer.error is not None
    assert answer.error["code"] == "E_MODULE_LOAD"
    assert "absent does not exist" in answer.error["message"]


async def test_text_streams_while_it_runs(started: Any) -> None:
    system: Runtime = await started(shell("echo first; read x; echo $x; printf 'half\\377'"))
    task = Task(session_id="s", agent_id="it", parameters={"prompt": "second\n"})
    accepted = await system.orchestrator.submit(task)
    texts = [
        json.loads(event.data)["content"]
        async for events in system.orchestrator.follow(accepted.execution_id)
        for event in events
        if event.type == "content_chunk"
    ]
    assert "".join(texts) == "first\nsecond\nhalf\N{REPLACEMENT CHARACTER}"


async def test_json_lines_are_events_and_the_result_line_is_the_outcome(started: Any) -> None:
    end = """printf '{"type":"result","result":{"ok":true}}\\n'; exit 1"""
    system = await started(shell(LINES + end, output="json-lines"))
    answer, events = await run(system)
    assert data(answer) == {"ok": True}
    assert kinds(events) == [
        *("thinking", "content_chunk", "progress", "usage", "progress", "tool_call"),
        *("content_chunk", "completed"),
    ]
    texts = [json.loads(e.data)["content"] for e in events if e.type == "content_chunk"]
    assert texts[0] == "part plain text\n"
    assert texts[1] == '{"bad": NaN}\n' + "\N{REPLACEMENT CHARACTER}" * 2 + "\n"
    usage = json.loads(events[-1].data)["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (3, 4)


@pytest.mark.parametrize(
    ("script", "output", "code", "part"),
    [
        ("echo 'bad thing' >&2; exit 3", "text", "E_INTERNAL", "sh exited 3: bad thing"),
        ("kill -9 $$", "text", "E_STREAM_BROKEN", "was ended by SIGKILL"),
        ("exit 0", "json-lines", "E_INTERNAL", "without a result line"),
        ("echo '{}'", "json-lines", "E_INTERNAL", "without a result line"),
        ("exit 4", "json-lines", "E_INTERNAL", "exited 4"),
        ("""echo '{"type":"error","message":"no way"}'""", "json-lines", "E_INTERNAL", "way"),
        ("""echo '{"type":"result","is_error":1,"error":"n"}'""", "json-lines", "E_INTERNAL", "n"),
        ("echo '{'", "json", "E_INTERNAL", "no result"),
        ("echo '[NaN]'", "json", "E_INTERNAL", "no result"),
        ("yes | head -c 3000000", "text", "E_INTERNAL", "larger than 2000000 bytes (max_result"),
        (MUCH + """echo '{"type":"result"}'""", "json-lines", "E_INTERNAL", "larger than 2000000"),
        (LONG, "json-lines", "E_INTERNAL", LONG_SAID),
        (LONG + "; exit 3", "json-lines", "E_INTERNAL", "sh exited 3; refused: a line of 1500001"),
    ],
)  # fmt: skip
async def test_every_way_to_fail_is_a_typed_error(
    started: Any, script: str, output: Any, code: str, part: str
) -> None:
    system = await started(shell(script, output=output), max_result_bytes=2_000_000)
    answer, _ = await run(system)
    assert answer.error is not None
    assert answer.state is State.FAILED
    assert answer.error["code"] == code
    assert part in answer.error["message"]


async def test_text_is_bounded_only_where_it_is_the_result(started: Any) -> None:
    end = """echo '{"type":"result","result":1}'"""
    system = await started(
        shell(MUCH + end, output="json-lines", name="it"), max_result_bytes=1_000_000
    )
    answer, events = await run(system)
    assert data(answer) == 1
    said = sum(len(json.loads(e.data)["content"]) for e in events if e.type == "content_chunk")
    assert said > 1_000_000


async def test_a_long_line_may_be_allowed(started: Any) -> None:
    script = """printf '{"type":"result","result":"'; head -c 1500000 /dev/zero | tr '\\0' x
    echo '"}'"""
    system = await started(shell(script, output="json-lines", max_line_mb=2))
    assert data((await run(system))[0]) == "x" * 1_500_000


async def test_who_reads_lines_from_an_open_stdin_is_given_one(started: Any) -> None:
    system = await started(shell('read -r line; echo "got $line"', stdin_open=True))
    answer, _ = await run(system, "a prompt without an end")
    assert data(answer) == "got a prompt without an end\n"


async def test_a_program_that_is_not_there_is_said_and_may_come_later(
    started: Any, tmp_path: Path
) -> None:
    system = await started(command(str(tmp_path / "later")))
    answer, _ = await run(system)
    assert answer.error is not None
    assert answer.error["code"] == "E_MODULE_LOAD"
    assert "does not exist" in answer.error["message"]
    (tmp_path / "later").write_text("#!/bin/sh\necho here\n")
    (tmp_path / "later").chmod(0o755)
    answer, _ = await run(system)
    assert data(answer) == "here\n"


async def test_what_it_was_given_is_not_repeated_in_errors(started: Any) -> None:
    secret = {"API_KEY": "canary-1234"}
    cut = "printf \"$API_KEY%1995s.\" ''"  # its beginning is not among what is quoted
    system = await started(
        shell('echo "bad key $API_KEY" >&2; exit 1', environment=secret),
        shell(cut + " >&2; exit 1", environment=secret, name="cut"),
    )
    answer, _ = await run(system)
    assert answer.error is not None
    assert "canary" not in json.dumps(answer.error)
    task = Task(session_id="s", agent_id="cut", parameters={"prompt": "x"})
    answer = await system.orchestrator.perform(task)
    assert answer.error is not None
    assert "1234" not in json.dumps(answer.error)
    assert "canary" not in json.dumps(system.settings.shown())


async def test_cancel_stops_it_step_by_step_and_leaves_nothing(started: Any) -> None:
    heeds = shell("trap 'echo saved >saved; exit 0' INT; echo $$; while :; do sleep 0.01; done",
                  interrupt="INT")  # fmt: skip
    system = await started(heeds, shell(DEAF, name="deaf", stop_seconds=0.3))
    for agent_id in ("it", "deaf"):
        task = Task(session_id="s", agent_id=agent_id, parameters={"prompt": "x"})
        accepted = await system.orchestrator.submit(task)
        pids: list[int] = []
        async for events in system.orchestrator.follow(accepted.execution_id):
            for event in events:
                if event.type == "content_chunk":
                    pids = [int(pid) for pid in json.loads(event.data)["content"].split()]
                    begun = time.monotonic()
                    await system.orchestrator.cancel(accepted.execution_id)
        assert time.monotonic() - begun < 3
        execution = await system.orchestrator.execution(accepted.execution_id)
        assert execution.state is State.CANCELLED
        assert pids
        assert not any(map(alive, pids))
    saved = system.settings.data_dir / "processes" / "agent-it" / "work" / "saved"
    assert saved.read_text() == "saved\n"


async def test_a_deadline_ends_it_and_a_limit_is_named(started: Any) -> None:
    large = "x = bytearray(200 << 20)\nimport time; time.sleep(1000)"
    system = await started(
        shell("sleep 1000", timeout=0.3, stop_seconds=0.2),
        command(*PYTHON, large, name="large", max_memory_mb=60),
    )
    answer, _ = await run(system)
    assert answer.state is State.TIMED_OUT
    answer = await system.orchestrator.perform(
        Task(session_id="s", agent_id="large", parameters={"prompt": ""})
    )
    assert answer.error is not None
    assert "was ended by its limit_memory" in answer.error["message"]
    assert answer.error["details"]["reason"] == "limit_memory"


async def test_many_run_side_by_side_and_the_log_is_there_afterwards(started: Any) -> None:
    system = await started(shell("cat; echo to stderr >&2", concurrency=10))
    answers = await asyncio.gather(*(run(system, f"task {n}") for n in range(30)))
    assert [data(answer) for answer, _ in answers] == [f"task {n}" for n in range(30)]
    await asyncio.to_thread(system.keeper.logs.settle)
    last = answers[-1][0].execution_id
    logs = system.settings.data_dir / "processes" / "agent-it" / "logs" / f"{last}-1"
    assert read_log(logs, "stdout") == b"task 29"
    assert read_log(logs, "stderr") == b"to stderr\n"
    assert list((logs.parents[1] / "tmp").iterdir()) == []


async def test_it_is_let_finish_after_its_result_and_not_for_ever(started: Any) -> None:
    result = """echo '{"type":"result","result":1}'"""
    saves = shell(f"{result}; sleep 0.2; echo saved >saved", output="json-lines")
    lives = shell(f"{result}; exec sleep 1000", name="lives", output="json-lines")
    system = await started(saves, lives)
    assert data((await run(system))[0]) == 1
    assert (system.settings.data_dir / "processes/agent-it/work/saved").read_text() == "saved\n"
    task = Task(session_id="s", agent_id="lives", parameters={"prompt": ""})
    begun = time.monotonic()
    assert data(await system.orchestrator.perform(task)) == 1
    assert time.monotonic() - begun < 6


async def test_stopping_the_system_stops_its_processes(started: Any) -> None:
    system = await started(shell(DEAF, stop_seconds=0.2))
    accepted = await system.orchestrator.submit(
        Task(session_id="s", agent_id="it", parameters={"prompt": ""})
    )
    await until(lambda: len(marked(system.keeper.scope)) >= 2)
    await system.stop(grace=0)
    assert marked(system.keeper.scope) == []
    assert system.keeper.children == {}
    assert accepted.execution_id


async def executions(orchestrator: Orchestrator) -> list[State]:
    listing = await orchestrator.executions(ExecutionFilter(), Page(1000))
    return [execution.state for execution in listing.items]


async def test_a_keeper_that_is_killed_fails_what_ran_and_the_next_task_runs(started: Any) -> None:
    system = await started(shell("read x; [ $x = go ] && exit 0; exec sleep 1000"))
    running = asyncio.create_task(run(system, "stay\n"))
    await until(lambda: len(system.keeper.children) == 1)
    os.kill(system.keeper.pid, 9)
    answer, _ = await running
    assert answer.error is not None
    assert answer.error["code"] == "E_STREAM_BROKEN"
    answer, _ = await run(system, "go\n")
    assert answer.success
    assert sorted(await executions(system.orchestrator)) == [State.COMPLETED, State.FAILED]

"""Coding CLIs that do what nobody expects: each costs its own turn at most, and it is said."""

import asyncio
import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.engine.coding_rig import Program
from tests.engine.test_coding import (
    Start,
    data,
    found,
    logs,
    question,
    run,
    started,
    task,
    text,
)
from tests.process.rig import marked, until

from retinue import Runtime, Settings
from retinue.domain.event import Event
from retinue.domain.execution import State
from retinue.errors import Conflict
from retinue.interfaces import Page
from retinue.settings import CodingReference
from retinue.testing.coding_agent import install

__all__ = ["started"]
Make = Callable[[str, str], Program]


@pytest.fixture
def program(tmp_path: Path) -> Make:
    return lambda kind, body: Program(tmp_path, kind, body)


def streamed(events: list[Event]) -> str:
    """Return the text that counts, as a reader of the events has it in the end."""
    whole = ""
    for event in found(events, "content_chunk"):
        whole = ("" if event.get("is_reset") else whole) + event["content"]
    return whole


async def ended(system: Runtime, execution_id: str) -> list[Event]:
    async for _ in system.orchestrator.follow(execution_id):
        pass
    return list(await system.store.events(execution_id))


# -- questions ---------------------------------------------------------------------------------


async def test_leave_is_not_given_any_more_once_a_task_is_cancelled(
    started: Start, program: Make
) -> None:
    late = program(
        "claude",
        """
        hear(); init(); start("m"); say("on")
        hear()                                     # the interrupt
        ask("late", "Bash", {"command": "touch x"})
        hear()
        result("", is_error=True, terminal_reason="aborted_tools")
        """,
    )
    system = await started("claude", **late.given, approvals="allow")
    accepted = await system.orchestrator.submit(task("claude", "x"))
    async for events in system.orchestrator.follow(accepted.execution_id):
        if text(list(events)):
            await system.orchestrator.cancel(accepted.execution_id)
    await until(lambda: '"late"' in late.seen)
    assert '"behavior":"deny"' in late.seen
    assert '"behavior":"allow"' not in late.seen


@pytest.mark.parametrize("kind", ["claude", "codex"])
async def test_a_question_that_is_taken_back_is_closed_and_the_next_one_asked(
    started: Start, program: Make, kind: str
) -> None:
    bodies = {
        "claude": """
            hear(); init()
            ask("R1", "Bash", {"command": "one"})
            while not os.path.exists(os.environ["HOME"] + "/go"): time.sleep(0.01)
            out({"type": "control_cancel_request", "request_id": "R1"})
            ask("R2", "Bash", {"command": "two"})
            result(hear()["response"]["request_id"])
            """,
        "codex": """
            def work(thread, turn, prompt):
                def ask(key, command):
                    given = {"threadId": thread, "turnId": turn, "command": command}
                    method = "item/commandExecution/requestApproval"
                    put({"id": key, "method": method, "params": given})
                ask("R1", "one")
                while not os.path.exists(os.environ["HOME"] + "/go"): time.sleep(0.01)
                tell("serverRequest/resolved", thread, requestId="R1")
                ask("R2", "two")
                while '"R2"' not in open(os.environ["SEEN"]).read(): time.sleep(0.01)
                tell("item/completed", thread,
                     item={"id": "m", "type": "agentMessage", "text": "R2"})
                done(thread, turn)
            serve(work)
            """,
    }
    asks = program(kind, bodies[kind])
    system = await started(kind, **asks.given)
    running = asyncio.create_task(run(system, kind, "x"))
    first = await question(system)
    assert "one" in first.prompt
    (system.settings.data_dir / "processes" / f"agent-{kind}" / "home" / "go").touch()
    while (second := await question(system)).id == first.id:
        await asyncio.sleep(0.01)
    assert "two" in second.prompt
    with pytest.raises(Conflict, match="withdrawn already"):
        await system.orchestrator.answer(first.id, True)
    await system.orchestrator.answer(second.id, True)
    answer, events = await running
    assert data(answer) == "R2"
    assert '"R1"' not in asks.seen
    assert f"{kind} does not ask any more" in logs(events)
    assert len(found(events, "input_required")) == 2
    verified = await system.store.question(first.id, None)
    assert verified is not None
    assert verified.state == "withdrawn"


async def test_silence_after_a_question_was_taken_back_is_silence(
    started: Start, program: Make
) -> None:
    silent = program(
        "claude",
        """
        hear(); init()
        ask("R1", "Bash", {"command": "one"})
        while not os.path.exists(os.environ["HOME"] + "/go"): time.sleep(0.01)
        out({"type": "control_cancel_request", "request_id": "R1"})
        hear()
        """,
    )
    system = await started("claude", **silent.given, silence_seconds=0.5, stop_seconds=0.5)
    running = asyncio.create_task(run(system, "claude", "x"))
    await question(system)
    (system.settings.data_dir / "processes" / "agent-claude" / "home" / "go").touch()
    answer, _ = await running
    assert answer.error is not None
    assert "has said nothing for" in answer.error["message"]
    assert (await system.store.questions(None, Page(10))).items == []


async def test_acp_is_told_that_nobody_answers_when_its_turn_is_cancelled(
    started: Start, program: Make
) -> None:
    waits = program(
        "acp",
        """
        prompt = prompted()
        ask(7, ["allow_once"]); ask("7", ["allow_once"])
        answers = [m["id"] for m in (hear(), hear(), hear()) if "result" in m
                   and m["result"]["outcome"] == {"outcome": "cancelled"}]
        LOG.write(f"cancelled {answers}")
        answer(prompt, {"stopReason": "cancelled"})
        """,
    )
    system = await started("acp", **waits.given)
    running = asyncio.create_task(run(system, "acp", "x"))
    asked = await question(system)
    await system.orchestrator.cancel(asked.execution_id)
    answer, _ = await running
    assert answer.state is State.CANCELLED
    await until(lambda: "cancelled [7, '7']" in waits.seen)


@pytest.mark.parametrize(
    ("allowed", "options", "chosen"),
    [
        (True, ["allow_always", "allow_once", "reject_once"], "id-allow_once"),
        (True, ["allow_always", "reject_once", "reject_always"], "id-reject_once"),
        (False, ["allow_always", "allow_once", "reject_always"], "id-reject_always"),
        (True, ["allow_always"], None),
    ],
)
async def test_a_yes_is_for_once_and_a_no_is_a_no(
    started: Start, program: Make, allowed: bool, options: list[str], chosen: str | None
) -> None:
    asks = program(
        "acp",
        f"""
        prompt = prompted()
        ask(7, {options!r})
        say(json.dumps(hear()["result"]["outcome"]))
        answer(prompt, {{"stopReason": "end_turn"}})
        """,
    )
    system = await started("acp", **asks.given, approvals="allow" if allowed else "deny")
    answer, events = await run(system, "acp", "x")
    said = json.loads(data(answer))
    assert said.get("optionId") == chosen
    assert ("offered for good only" in logs(events)) is (allowed and chosen != "id-allow_once")


async def test_what_was_allowed_goes_back_as_it_was_written(started: Start, program: Make) -> None:
    given = r'{"content":"a\u0000b \ud83d c","n":12345678901234567890123,"e":1e400,"f":1.0}'
    asks = program(
        "claude",
        f"""
        hear(); init()
        raw('{{"type":"control_request","request_id":"R","request":{{"subtype":"can_use_tool",'
            '"tool_name":"Write","input":' + {given!r} + '}}}}')
        hear(); result("")
        """,
    )
    system = await started("claude", **asks.given, approvals="allow")
    await run(system, "claude", "x")
    assert f'"updatedInput":{given}' in asks.seen


async def test_all_that_would_be_allowed_is_shown(started: Start, program: Make) -> None:
    asks = program(
        "claude",
        """
        hear(); init()
        ask("1", "Bash", {"command": "echo harmless #" + " " * 4100 + "\\n rm -rf /precious"})
        ask("2", "mcp__db__run", {"command": "select 1", "sql": "drop\\ntable: x", "n": 3})
        ask("3", "Write", {"file_path": "f", "content": "y" * 50_000})
        result(json.dumps([bool(hear()) for _ in range(3)]))
        """,
    )
    system = await started("claude", **asks.given)
    running = asyncio.create_task(run(system, "claude", "x"))
    prompts = []
    for _ in range(3):
        asked = await question(system)
        prompts.append(asked.prompt)
        await system.orchestrator.answer(asked.id, True)
    await running
    assert prompts[0].endswith("\n rm -rf /precious")
    assert "\ncommand: select 1\nsql: drop\n    table: x\nn: 3" in prompts[1]
    assert "file_path: f" in prompts[2]
    cut = 50_000 - prompts[2].removeprefix("May").count("y")
    assert f"({cut} of 50000 characters are not shown)" in prompts[2]
    assert 0 < cut < 50_000


# -- text --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["claude", "codex"])
async def test_what_a_cut_stream_had_said_is_taken_back(started: Start, kind: str) -> None:
    system = await started(kind)
    prompt = "[[say kept,]][[tool ls {}]][[say part]][[cut]][[say part and whole]]"
    answer, events = await run(system, kind, prompt)
    assert data(answer) == "part and whole"
    assert text(events) != streamed(events) == "kept,part and whole"
    resets = [e["content"] for e in found(events, "content_chunk") if e.get("is_reset")]
    assert resets == ["kept,"]


async def test_a_reply_that_was_not_streamed_is_said(started: Start) -> None:
    system = await started("claude")
    for prompt, said in (
        ("[[say one,]][[tool ls {}]][[whole two]]", "one,two"),
        ("[[say one,]][[tool ls {}]][[say part]][[whole two]]", "one,two"),
    ):
        answer, events = await run(system, "claude", prompt)
        assert data(answer) == "two"
        assert streamed(events) == said


async def test_a_prompt_is_a_task_and_never_a_command_of_the_programs(started: Start) -> None:
    before = {"claude": " ", "codex": "", "gemini": "Task:\n", "opencode": "Task:\n"}
    system = await started(*before)
    for kind, mark in before.items():
        answer, _ = await run(system, kind, "/clear everything")
        home = system.settings.data_dir / "processes" / f"agent-{kind}" / "home"
        (kept,) = home.glob(f".fake-{kind}/*.json")
        assert json.loads(kept.read_text()) == [f"{mark}/clear everything"]
        assert data(answer).endswith("/clear everything")


# -- what it says wrongly ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        '{"type":"stream_event","event":{"type":"content_block_delta","delta":{"text":5}}}',
        '{"type":"stream_event","event":"x"}',
        '{"type":"assistant","message":{"id":"a","content":["text"]}}',
    ],
)
async def test_a_message_that_is_none_ends_the_turn_at_once(
    started: Start, program: Make, line: str
) -> None:
    odd = program("claude", f"hear(); init(); raw({line!r}); hear()")
    system = await started("claude", **odd.given, stop_seconds=0.5)
    async with asyncio.timeout(10):
        answer, _ = await run(system, "claude", "x")
    assert answer.error is not None
    assert answer.error["code"] == "E_STREAM_BROKEN"
    assert "claude cannot be understood" in answer.error["message"]


async def test_a_last_line_that_is_too_long_is_named_as_the_reason(
    started: Start, program: Make
) -> None:
    long = program("claude", 'hear(); init(); result("x" * 9_000_000)')
    system = await started("claude", **long.given)
    answer, events = await run(system, "claude", "x")
    assert answer.error is not None
    said = "bytes was refused: at most 8388608 are read, what it said is lost"
    assert said in answer.error["message"]
    assert said in logs(events)


@pytest.mark.parametrize("depth", [70, 600])
async def test_deep_arguments_of_a_tool_do_not_fail_a_task(
    started: Start, program: Make, depth: int
) -> None:
    deep = program(
        "claude",
        f"""
        hear(); init()
        given = '{{"a":' * {depth} + '"\\\\u0000"' + "}}" * {depth}
        raw('{{"type":"assistant","message":{{"id":"m","content":[{{"type":"tool_use","id":"t",'
            '"name":"B","input":' + given + '}}]}}}}')
        out({{"type": "user", "message": {{"content": [
            {{"type": "tool_result", "tool_use_id": "t", "content": "r"}}]}}}})
        result("done")
        """,
    )
    system = await started("claude", **deep.given)
    answer, events = await run(system, "claude", "x")
    assert data(answer) == "done"
    (called,) = found(events, "tool_call")
    assert "nested deeper than" in json.dumps(called)


# -- credentials -------------------------------------------------------------------------------

SECRET = "sk-ant-canary-42"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("claude", 'hear(); init(); result("API Error: 401 bad " + K, is_error=True)'),
        (
            "claude",
            """
            hear(); init()
            out({"type": "system", "subtype": "api_retry", "attempt": K, "error_status": K})
            ask("R", "Bash", {"command": K})
            hear(); start("m"); say(K[:5]); say(K[5:] + " is it")
            whole("m", {"type": "tool_use", "id": "t", "name": "Bash", "input": {"c": K}})
            out({"type": "user", "message": {"content": [
                {"type": "tool_result", "tool_use_id": "t", "content": "KEY=" + K}]}})
            result(K)
            """,
        ),
        (
            "acp",
            """
            number = hear()["id"]
            error = {"code": -32000, "message": "bad key " + K, "data": {"k": K}}
            out({"jsonrpc": "2.0", "id": number, "error": error}); hear()
            """,
        ),
        (
            "codex",
            """
            def work(thread, turn, prompt):
                tell("error", thread, willRetry=True, error={"message": "again " + K})
                error = {"message": "401 " + K, "codexErrorInfo": {"k": K}}
                done(thread, turn, "failed", error=error)
            serve(work)
            """,
        ),
    ],
)
async def test_no_credential_is_recorded_whatever_repeats_it(
    started: Start, program: Make, kind: str, body: str
) -> None:
    tells = program(kind, 'K = os.environ["API_KEY"]\n' + textwrap.dedent(body))
    tells.environment["API_KEY"] = SECRET
    system = await started(kind, **tells.given, question_seconds=0.1)
    answer, events = await run(system, kind, "x")
    recorded = b"".join(event.data for event in events) + (answer.data or b"")
    assert b"canary" not in recorded + json.dumps(answer.error).encode()
    assert b"***" in recorded
    if found(events, "content_chunk"):
        assert text(events) == "*** is it"


# -- sessions ----------------------------------------------------------------------------------


async def test_a_task_that_is_cancelled_while_it_begins_anew_leaves_nothing_running(
    started: Start, program: Make
) -> None:
    lost = program(
        "claude",
        """
        if "--resume" in sys.argv:
            sys.stderr.write("No conversation found with session ID: x\\n")
            sys.exit(1)
        init()
        if "quick" in hear()["message"]["content"]:
            result("quick")
        else:
            hear()
        """,
    )
    system = await started("claude", **lost.given, stop_seconds=0.5)
    await run(system, "claude", "quick")
    for number in range(8):
        accepted = await system.orchestrator.submit(task("claude", "go"))
        async for events in system.orchestrator.follow(accepted.execution_id):
            if "begins anew" in logs(list(events)):
                await asyncio.sleep(number * 0.002)
                await system.orchestrator.cancel(accepted.execution_id)
        execution = await system.orchestrator.execution(accepted.execution_id)
        assert execution.state is State.CANCELLED
        assert marked(system.keeper.scope) == []


@pytest.mark.parametrize("kind", ["acp", "codex"])
async def test_a_session_that_cannot_be_had_just_now_is_kept(
    started: Start, program: Make, kind: str
) -> None:
    busy = program(
        kind,
        """
        while (m := hear()) is not None:
            method, number = m.get("method"), m.get("id")
            home = os.environ["HOME"]
            result = {"protocolVersion": 1, "agentCapabilities": {"loadSession": True},
                      "sessionId": "S", "thread": {"id": "S"}, "turn": {"id": "t"},
                      "stopReason": "end_turn"}
            if method in {"thread/resume", "session/load"} and os.path.exists(home + "/busy"):
                error = {"code": -32603, "message": "it is locked, try again"}
                out({"jsonrpc": "2.0", "id": number, "error": error})
                os.remove(home + "/busy")
                continue
            if number is not None:
                out({"jsonrpc": "2.0", "id": number, "result": result})
            if method == "turn/start":
                turn = {"id": "t", "status": "completed"}
                out({"method": "turn/completed", "params": {"threadId": "S", "turn": turn}})
        """,
    )
    system = await started(kind, **busy.given)
    await run(system, kind, "x")
    (system.settings.data_dir / "processes" / f"agent-{kind}" / "home" / "busy").touch()
    answer, events = await run(system, kind, "x")
    assert answer.error is None  # it was tried again
    assert "could not go on with its session S, which is kept" in logs(events)
    assert [log["resumed"] for log in found(events, "log") if "resumed" in log] == [True]


async def test_a_session_that_cannot_be_recorded_is_said_and_hides_nothing(
    started: Start, program: Make
) -> None:
    fails = program("claude", 'hear(); init(); start("m"); say("x"); sys.exit(4)')
    system = await started("claude", **fails.given)
    sessions = system.settings.data_dir / "processes" / "agent-claude" / "sessions"
    sessions.parent.mkdir(parents=True, exist_ok=True)
    sessions.write_text("a file")
    answer, events = await run(system, "claude", "x")
    assert answer.error is not None
    assert "exited 4" in answer.error["message"]
    assert "cannot be kept" in logs(events)


# -- the simple form -----------------------------------------------------------------------------


async def test_gemini_may_speak_before_it_says_who_it_is(started: Start, program: Make) -> None:
    early = program(
        "gemini",
        """
        sys.stdin.read()
        out({"type": "message", "role": "assistant", "content": "early"})
        out({"type": "result", "status": "success"})
        """,
    )
    system = await started("gemini", form="once", **early.given)
    assert data((await run(system, "gemini", "x"))[0]) == "early"


async def test_a_step_that_opencode_does_not_end_is_no_end(started: Start, program: Make) -> None:
    half = program(
        "opencode",
        """
        sys.stdin.read()
        def line(kind, **part):
            out({"type": kind, "sessionID": "ses", "part": part})
        line("text", text="a"); line("step_finish", reason="stop", tokens={}, cost=0)
        line("step_start"); line("text", text="half of")
        """,
    )
    system = await started("opencode", form="once", **half.given)
    answer, _ = await run(system, "opencode", "x")
    assert answer.error is not None
    assert "before its turn had ended" in answer.error["message"]


# -- several servers -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["claude", "codex", "acp"])
async def test_a_session_that_another_server_has_begins_anew_and_says_so(
    tmp_path: Path, postgres_url: str, kind: str
) -> None:
    agent = {"driver": kind, "agent_id": kind, "command": (install(tmp_path, kind)[kind],)}
    unknown = []
    for server, session in (("one", "s"), ("one", "s"), ("two", "s"), ("two", "new")):
        settings = Settings(
            data_dir=tmp_path / server,
            database_url=postgres_url,
            examples=False,
            entry_points=False,
            agents=(CodingReference.model_validate(agent),),
        )
        system = Runtime(settings)
        await system.start()
        answer, events = await run(system, kind, "[[seen]]", session)
        await system.stop(grace=1)
        told = "is not known on this server: it begins anew" in logs(events)
        unknown.append((json.loads(data(answer))["turns_before"], told))
    assert unknown == [(0, False), (1, False), (0, True), (0, False)]

"""Coding CLIs as agents: what they say becomes events, what they ask a question, and how they end.

The CLIs are ``retinue.testing.coding_agent``, which speaks as the real ones do, well and badly.
"""

import asyncio
import json
import re
import time
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.process.rig import alive, marked, until

from retinue import Runtime, Settings
from retinue.domain.budget import Limit
from retinue.domain.event import Event
from retinue.domain.execution import State, Task
from retinue.domain.principal import LOCAL
from retinue.errors import (
    AgentFailed,
    Conflict,
    ExecutionError,
    ProviderBusy,
    ProviderError,
    RetinueError,
)
from retinue.interfaces import InstanceFilter, Job, Page
from retinue.orchestrator import Reply
from retinue.settings import CodingReference
from retinue.testing.coding_agent import install

SPOKEN = ("claude", "codex", "gemini", "opencode", "acp")
ONCE = ("codex", "gemini", "opencode")
FORMS = [(kind, "session") for kind in SPOKEN] + [(kind, "once") for kind in ONCE]
Start = Callable[..., Awaitable[Runtime]]


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Start]:
    """Start a system with coding agents; stop it and see that nothing is left."""
    systems: list[Runtime] = []
    programs = install(tmp_path / "bin")

    async def start(*kinds: str, system: dict[str, Any] | None = None, **more: Any) -> Runtime:
        agents = [
            CodingReference.model_validate(
                {"driver": kind, "agent_id": kind, "command": (programs[kind],)} | more
            )
            for kind in kinds
        ]
        settings = Settings(
            data_dir=tmp_path / "data",
            examples=False,
            entry_points=False,
            agents=tuple(agents),
            **(system or {}),
        )
        runtime = Runtime(settings)
        await runtime.start()
        systems.append(runtime)
        return runtime

    yield start
    for runtime in systems:
        await runtime.stop(grace=0)
    assert [pid for runtime in systems for pid in marked(runtime.keeper.scope)] == []


def task(kind: str, prompt: str, session: str = "s", **more: Any) -> Task:
    return Task(session_id=session, agent_id=kind, parameters={"prompt": prompt}, **more)


async def run(
    system: Runtime, kind: str, prompt: str, session: str = "s", **more: Any
) -> tuple[Reply, list[Event]]:
    answer = await system.orchestrator.perform(task(kind, prompt, session, **more))
    return answer, list(await system.store.events(answer.execution_id))


def data(answer: Reply) -> Any:
    assert answer.error is None, answer.error
    return json.loads(answer.data or b"null")


def found(events: list[Event], kind: str) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in events if event.type == kind]


def text(events: list[Event]) -> str:
    return "".join(event["content"] for event in found(events, "content_chunk"))


def logs(events: list[Event]) -> str:
    return "\n".join(event["message"] for event in found(events, "log"))


async def question(system: Runtime) -> Any:
    """Return the open question, once there is one."""
    while not (items := (await system.store.questions(None, Page(10))).items):
        await asyncio.sleep(0.01)
    return items[0]


# -- what it says ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "form"), FORMS)
async def test_what_it_says_and_does_becomes_events(started: Start, kind: str, form: str) -> None:
    system = await started(kind, form=form)
    script = '[[think hm]][[say first]][[tool ls {"cmd": "ls"}]][[usage 7 3]][[say done]]'
    answer, events = await run(system, kind, script)
    assert data(answer) == "done"
    assert text(events) == "firstdone"
    if (kind, form) != ("gemini", "once"):  # it does not show thoughts
        assert "".join(e["content"] for e in found(events, "thinking")) == "hm"
    (called,), (result,) = found(events, "tool_call"), found(events, "tool_result")
    assert called["tool_call_id"] == result["tool_call_id"]
    assert called["tool_name"] == result["tool_name"]
    assert (result["result"], result["is_error"]) == ("ls ran", False)
    usage = json.loads(events[-1].data)["usage"]
    assert usage["output_tokens"] == 8
    begun = found(events, "log")[0]
    assert begun["native_session"]
    assert begun["resumed"] is False
    version = {"claude": "2.1.329", "codex": "0.169.0", "gemini": "0.61.0"}
    assert begun["version"] == version.get(kind, "1.18.33" if kind == "opencode" else "1.0.0")
    assert "not a version that was tested" not in logs(events)


@pytest.mark.parametrize("kind", SPOKEN)
async def test_text_streams_while_it_works(started: Start, kind: str) -> None:
    system = await started(kind)
    prompt = '[[say early]][[ask go {"cmd": "x"}]][[say late]]'
    accepted = await system.orchestrator.submit(task(kind, prompt))
    seen = ""
    async for events in system.orchestrator.follow(accepted.execution_id):
        seen += text(list(events))
        for event in found(list(events), "input_required"):
            assert seen == "early"
            await system.orchestrator.answer(event["question_id"], True)
    assert seen == "earlylate"


async def test_a_task_reaches_it_as_text_and_nothing_else(started: Start) -> None:
    system = await started(*SPOKEN)
    prompt = "--flag 'x'; $HOME \n" + "ü" * 200_000
    for kind in SPOKEN:
        answer, _ = await run(system, kind, prompt, context="before")
        assert data(answer) == f"before\n\n{prompt}".strip()


@pytest.mark.parametrize(("kind", "form"), FORMS)
async def test_it_sees_its_own_world_only(
    started: Start, kind: str, form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IS_SANDBOX", "yes")
    monkeypatch.setenv("CANARY_API_KEY", "canary-1")
    environment = {"GIVEN": "canary-2"}
    system = await started(kind, form=form, environment=environment)
    answer, _ = await run(system, kind, "[[seen]]")
    seen = json.loads(data(answer))
    assert not {"IS_SANDBOX", "CANARY_API_KEY"} & seen["environment"].keys()
    root = tmp_path / "data" / "processes" / f"agent-{kind}"
    assert seen["environment"]["HOME"] == str(root / "home")
    assert seen["environment"]["GIVEN"] == "canary-2"
    assert seen["cwd"] == str(root / "work")
    assert Path(seen["environment"]["TMPDIR"]).parent == root / "tmp"
    assert "[[seen]]" not in " ".join(seen["argv"])
    await system.stop(grace=1)
    assert list((root / "tmp").iterdir()) == []


@pytest.mark.requirement("001.backend-claude")
async def test_what_claude_is_started_with(started: Start) -> None:
    more = {"model": "m", "system_prompt": "be kind", "max_turns": 9, "max_cost_usd": 2.5}
    system = await started("claude", **more, deny=["Read", "Bash(rm *)"])
    answer, _ = await run(system, "claude", "[[seen]]", budget=Limit(max_cost_usd=1.5))
    seen = json.loads(data(answer))
    assert seen["argv"] == [
        *("-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"),
        *("--include-partial-messages", "--permission-prompt-tool", "stdio", "--model", "m"),
        *("--append-system-prompt", "be kind", "--max-turns", "9", "--max-budget-usd", "1.5"),
        *("--setting-sources", "user", "--disallowedTools", "Read", "Bash(rm *)"),
    ]
    assert seen["environment"]["CLAUDE_CODE_DISABLE_BACKGROUND_TASKS"] == "1"
    answer, events = await run(system, "claude", "[[seen]]")
    argv = json.loads(data(answer))["argv"]
    at = argv.index("--resume")
    assert argv[at + 1] == found(events, "log")[0]["native_session"]
    await system.stop(grace=1)
    system = await started("claude", trust_project=True)
    answer, _ = await run(system, "claude", "[[seen]]")
    assert "--setting-sources" not in json.loads(data(answer))["argv"]


@pytest.mark.parametrize(
    ("kind", "form", "expected"),
    [
        ("opencode", "once", ["run", "--format", "json", "-m", "m"]),
        ("opencode", "session", ["acp"]),
        ("gemini", "once", ["-m", "m", "-o", "stream-json"]),
        ("gemini", "session", ["--acp", "-m", "m"]),
        ("acp", "session", []),
    ],
)
async def test_what_the_others_are_started_with(
    started: Start, kind: str, form: str, expected: list[str]
) -> None:
    system = await started(kind, form=form, model="m")
    answer, _ = await run(system, kind, "[[seen]]")
    assert json.loads(data(answer))["argv"] == expected


@pytest.mark.parametrize("form", ["session", "once"])
async def test_opencodes_leave_is_ours_whatever_else_its_environment_has(
    started: Start, form: str
) -> None:
    given = {"provider": {"x": {}}, "permission": {"*": "allow", "bash": "allow", "mcp_*": "deny"}}
    environment = {
        "OPENCODE_CONFIG_CONTENT": json.dumps(given),
        "OPENCODE_PERMISSION": '{"edit": "allow"}',
        "OPENCODE_DISABLE_PROJECT_CONFIG": "0",
    }
    more = {"form": form, "approvals": "deny", "allow": ["fetch"], "model": "m"}
    system = await started("opencode", environment=environment, **more)
    answer, _ = await run(system, "opencode", "[[seen]]")
    seen = json.loads(data(answer))["environment"]
    content = json.loads(seen["OPENCODE_CONFIG_CONTENT"])
    assert content["provider"] == {"x": {}}
    assert content["model"] == "m"
    no = "ask" if form == "session" else "deny"  # a refusal that shows, where somebody can be asked
    assert content["permission"] == json.loads(seen["OPENCODE_PERMISSION"])
    assert content["permission"] == {
        **{"bash": no, "edit": no, "webfetch": "allow", "websearch": "allow"},
        **{"codesearch": "allow", "mcp_*": "deny"},
    }
    assert seen["OPENCODE_DISABLE_PROJECT_CONFIG"] == "1"


@pytest.mark.parametrize("form", ["session", "once"])
@pytest.mark.parametrize(
    ("name", "content", "runs"),
    [
        ("inner/.opencode/plugin/x.js", "", True),
        (".opencode/plugins/x.ts", "", True),
        ("opencode.jsonc", '{ // mine\n "plugin" : ["x"]}', True),
        (".opencode/opencode.json", '{"plugins": []}', True),
        ("opencode.jsonc", '{"plugin" /* a */ : ["x"]}', True),
        ("opencode.json", '{"plu\\u0067in": ["x"]}', True),
        ("opencode.json", '{"a": "b" "plugin": ["x"]', True),
        ("opencode.json", '{"model": "x"}', False),
        (
            "opencode.jsonc",
            '{"model": "// \\"plugin\\": ", // plugin\n "a": [1, /* x */ ], }',
            False,
        ),
        ("../opencode.json", '{"plugin": ["of nobody who works here"]}', False),
    ],
)
async def test_opencode_is_not_started_on_plugins_of_a_repository_it_does_not_trust(
    started: Start, form: str, name: str, content: str, runs: bool, tmp_path: Path
) -> None:
    repository = tmp_path / "outer" / "repository"
    (repository / ".git").mkdir(parents=True)
    work = repository / "inner"
    for file in (repository / name, work / "x"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    system = await started("opencode", form=form, work_dir=work)
    answer, _ = await run(system, "opencode", "[[say hi]]")
    if runs:
        assert answer.error is not None
        assert answer.error["code"] == "E_MODULE_LOAD"
        assert Path(name).name in answer.error["message"]
        await system.stop(grace=1)
        system = await started("opencode", form=form, work_dir=work, trust_project=True)
        answer, _ = await run(system, "opencode", "[[say hi]]")
    assert data(answer) == "hi"


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(("kind", "form"), [f for f in FORMS if f[0] in {"codex", "gemini"}])
async def test_a_repository_is_trusted_when_that_is_said(
    started: Start, kind: str, form: str, trusted: bool, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"trust_project": trusted, "form": form, "work_dir": tmp_path}
    environment = {"GEMINI_CLI_TRUST_WORKSPACE": str(not trusted).lower()}
    system = await started(kind, environment=environment, **more)
    answer, _ = await run(system, kind, "[[seen]]")
    seen = json.loads(data(answer))
    if kind == "gemini":
        assert seen["environment"]["GEMINI_CLI_TRUST_WORKSPACE"] == str(trusted).lower()
        return
    told = tomllib.loads(next(word for word in seen["argv"] if word.startswith("projects=")))
    level = {"trust_level": "trusted" if trusted else "untrusted"}
    assert told["projects"][str(tmp_path)] == told["projects"][str(tmp_path.parent)] == level


# -- what it asks ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SPOKEN)
@pytest.mark.parametrize("allowed", [True, False])
async def test_leave_is_asked_of_a_person(started: Start, kind: str, allowed: bool) -> None:
    system = await started(kind)
    prompt = '[[ask execute {"cmd": "rm x"}]][[say after]]'
    running = asyncio.create_task(run(system, kind, prompt))
    asked = await question(system)
    assert asked.kind == "approval"
    assert asked.prompt.startswith("May it use ")
    await system.orchestrator.answer(asked.id, allowed)
    answer, events = await running
    assert data(answer) == "after"
    (result,) = found(events, "tool_result")
    assert result["is_error"] is not allowed


@pytest.mark.parametrize("kind", SPOKEN)
async def test_the_policy_answers_what_it_names(started: Start, kind: str) -> None:
    tool = {"claude": "Bash", "codex": "shell"}.get(kind, "execute")
    asks = '[[ask TOOL {"cmd": "x"}]][[say after]]'.replace("TOOL", tool)
    system = await started(kind, approvals="deny", allow=["[Bse][ahx]*"])
    _, events = await run(system, kind, asks)
    assert [r["is_error"] for r in found(events, "tool_result")] == [False]
    await system.stop(grace=1)
    system = await started(kind, approvals="allow", deny=[tool])
    _, events = await run(system, kind, asks)
    assert [r["is_error"] for r in found(events, "tool_result")] == [True]
    assert "refused by the agent's policy" in logs(events)


async def test_nobody_answers_in_time_and_that_is_a_no(started: Start) -> None:
    system = await started("claude", question_seconds=0.2)
    answer, events = await run(system, "claude", "[[ask Bash {}]][[say after]]")
    assert data(answer) == "after"
    assert [r["is_error"] for r in found(events, "tool_result")] == [True]
    assert "nobody answered in time" in logs(events)


@pytest.mark.parametrize("kind", SPOKEN)
async def test_cancelled_while_it_asks(started: Start, kind: str) -> None:
    system = await started(kind)
    running = asyncio.create_task(run(system, kind, "[[ask Bash {}]][[say after]]"))
    asked = await question(system)
    await system.orchestrator.cancel(asked.execution_id)
    answer, _ = await running
    assert answer.state is State.CANCELLED
    assert data((await run(system, kind, "[[say again]]"))[0]) == "again"


# -- its sessions ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "form"), FORMS)
async def test_its_session_goes_on_with_ours_and_after_a_restart(
    started: Start, kind: str, form: str
) -> None:
    system = await started(kind, form=form)
    seen = [json.loads(data((await run(system, kind, "[[seen]]"))[0])) for _ in range(2)]
    assert [one["turns_before"] for one in seen] == [0, 1]
    other, _ = await run(system, kind, "[[seen]]", "another")
    assert json.loads(data(other))["turns_before"] == 0
    await system.stop(grace=1)
    system = await started(kind, form=form)
    answer, events = await run(system, kind, "[[seen]]")
    assert json.loads(data(answer))["turns_before"] == 2
    assert found(events, "log")[0]["resumed"] is True


@pytest.mark.parametrize(("kind", "form"), [*FORMS[:5], ("gemini", "once")])
async def test_a_session_that_it_lost_is_said_and_begins_anew(
    started: Start, kind: str, form: str, tmp_path: Path
) -> None:
    system = await started(kind, form=form)
    await run(system, kind, "[[say one]]")
    await system.stop(grace=1)
    home = tmp_path / "data" / "processes" / f"agent-{kind}" / "home"
    for file in home.glob(".fake-*/*"):
        file.unlink()
    system = await started(kind, form=form)
    answer, events = await run(system, kind, "[[seen]]")
    assert json.loads(data(answer))["turns_before"] == 0
    assert "begins anew" in logs(events)


@pytest.mark.parametrize("kind", ["claude", "codex", "acp"])
async def test_a_turn_that_was_cut_off_is_gone_on_with(started: Start, kind: str) -> None:
    system = await started(kind)
    running = asyncio.create_task(run(system, kind, "[[say on]][[hang 60]]"))
    while not (held := await system.store.held()):
        await asyncio.sleep(0.01)
    async for events in system.orchestrator.follow(held[0].execution_id):
        if text(list(events)):
            break
    await system.stop(grace=0)
    answer, _ = await running
    assert answer.error is not None
    system = await started(kind)
    answer, events_of = await run(system, kind, "[[seen]]")
    assert json.loads(data(answer))["turns_before"] == 1
    assert found(events_of, "log")[0]["resumed"] is True


@pytest.mark.parametrize("kind", SPOKEN)
async def test_a_flood_is_all_there_and_in_order(started: Start, kind: str) -> None:
    system = await started(kind)
    answer, events = await run(system, kind, "[[slow 20000 0]][[say .]]")
    assert answer.error is None
    assert text(events) == "".join(f"{n} " for n in range(20_000)) + "."
    assert len(events) < 2_000


async def test_two_turns_of_a_session_follow_one_another(started: Start) -> None:
    system = await started("claude", "codex")
    for kind in ("claude", "codex"):
        answers = await asyncio.gather(*(run(system, kind, "[[seen]]") for _ in range(4)))
        before = [json.loads(data(answer))["turns_before"] for answer, _ in answers]
        assert sorted(before) == [0, 1, 2, 3]


# -- what it costs -----------------------------------------------------------------------------


async def test_what_a_session_cost_before_is_not_charged_again(started: Start) -> None:
    system = await started("claude", max_cost_usd=0.5)
    answer, events = await run(system, "claude", "[[cost 0.25]][[say a]]")
    assert sum(u["cost_usd"] for u in found(events, "usage")) == pytest.approx(0.25)
    answer, events = await run(system, "claude", "[[cost 0.75]][[say b]]", "other")
    assert answer.error is not None
    assert answer.error["code"] == "E_BUDGET_EXCEEDED"
    native = system.engine.registry  # the session remembers what it has cost
    assert native is not None


async def test_what_a_codex_thread_used_before_is_not_this_tasks_usage(started: Start) -> None:
    system = await started("codex", form="once")
    for _ in range(3):
        answer, events = await run(system, "codex", "[[usage 10 5]][[say x]]")
        assert data(answer) == "x"
        (usage,) = found(events, "usage")
        assert (usage["input_tokens"], usage["output_tokens"]) == (10, 5)
    await system.stop(grace=1)
    system = await started("codex", form="once")
    answer, _ = await run(system, "codex", "[[usage 9 5]]", budget=Limit(max_tokens=20))
    assert answer.error is None


async def test_gemini_that_took_all_its_turns_is_out_of_budget(started: Start) -> None:
    system = await started("gemini", form="once", max_turns=1)
    answer, _ = await run(system, "gemini", "[[fail FatalTurnLimitedError]]")
    assert answer.error is not None
    assert answer.error["code"] == "E_BUDGET_EXCEEDED"
    assert "max_turns 1" in answer.error["message"]


@pytest.mark.parametrize(("kind", "form"), [("claude", "session"), ("codex", "session")])
async def test_turns_and_tokens_are_bounded(started: Start, kind: str, form: str) -> None:
    system = await started(kind, form=form, max_turns=2)
    calls = '[[tool ls {"cmd": "ls"}]]'
    assert data((await run(system, kind, calls + "[[say ok]]"))[0]) == "ok"
    answer, _ = await run(system, kind, calls * 3 + "[[hang 30]]")
    assert answer.error is not None
    assert answer.error["code"] == "E_BUDGET_EXCEEDED"
    answer, _ = await run(
        system, kind, f"[[usage 90 20]]{calls}[[hang 30]]", budget=Limit(max_tokens=100)
    )
    assert answer.error is not None
    assert answer.error["code"] == "E_BUDGET_EXCEEDED"


# -- how it ends -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "form"), FORMS)
async def test_cancel_stops_the_work(started: Start, kind: str, form: str) -> None:
    system = await started(kind, form=form)
    accepted = await system.orchestrator.submit(task(kind, "[[say on]][[spawn]][[hang 60]]"))
    async for events in system.orchestrator.follow(accepted.execution_id):
        if text(list(events)):
            begun = time.monotonic()
            await system.orchestrator.cancel(accepted.execution_id)
    assert time.monotonic() - begun < 5
    execution = await system.orchestrator.execution(accepted.execution_id)
    assert execution.state is State.CANCELLED
    server = 1 if (kind, form) == ("codex", "session") else 0  # for the next task
    await until(lambda: len(marked(system.keeper.scope)) == server)


@pytest.mark.parametrize("kind", ["claude", "codex", "acp"])
async def test_one_that_heeds_nothing_is_ended_all_the_same(started: Start, kind: str) -> None:
    system = await started(kind, stop_seconds=0.3)
    prompt = "[[deaf]][[spawn]][[say on]][[slow 600 0.1]]"
    accepted = await system.orchestrator.submit(task(kind, prompt))
    async for events in system.orchestrator.follow(accepted.execution_id):
        if text(list(events)):
            await system.orchestrator.cancel(accepted.execution_id)
    await until(lambda: not marked(system.keeper.scope))
    assert data((await run(system, kind, "[[say again]]", "other"))[0]) == "again"


@pytest.mark.parametrize(
    ("prompt", "code", "part"),
    [
        ("[[say x]][[exit 3]]", "E_INTERNAL", "exited 3 before its turn had ended: as scripted"),
        ("[[say x]][[vanish]]", "E_INTERNAL", "exited 0"),
        ("[[fail no way]]", "E_INTERNAL", ""),
    ],
)
@pytest.mark.parametrize("kind", SPOKEN)
async def test_every_way_to_fail_is_a_typed_error(
    started: Start, kind: str, prompt: str, code: str, part: str
) -> None:
    system = await started(kind)
    answer, _ = await run(system, kind, prompt)
    assert answer.error is not None
    assert answer.state is State.FAILED
    assert answer.error["code"] == code
    assert part.replace("before its turn had ended", "") in answer.error["message"].replace(
        "before its turn had ended", ""
    ).replace("while it was needed", "")
    assert data((await run(system, kind, "[[say again]]"))[0]) == "again"


@pytest.mark.parametrize(("kind", "form"), [(k, f) for k, f in FORMS if f == "once"])
async def test_a_run_that_fails_says_why(started: Start, kind: str, form: str) -> None:
    system = await started(kind, form=form)
    for prompt, part in (
        ("[[exit 3]]", "exited 3"),
        ("[[vanish]]", "exited 0"),
        ("[[fail no way]]", "no way"),
    ):
        answer, _ = await run(system, kind, prompt)
        assert answer.error is not None
        assert part in answer.error["message"]


async def raised(system: Runtime, kind: str, prompt: str) -> RetinueError:
    """Return what a turn of the driver's own raises, as it is raised."""
    answer, _ = await run(system, kind, "[[say x]]")
    execution = await system.store.execution(answer.execution_id, None)
    entry = system.engine.registry.by_id(kind)
    assert execution is not None
    assert entry is not None
    instance = await entry.ready()
    try:
        async with instance.execute(Job(execution, {"prompt": prompt}, None, None)) as events:
            async for _ in events:
                pass
    except RetinueError as error:
        return error
    raise AssertionError("the turn ended well")


@pytest.mark.requirement("001.errors")
@pytest.mark.parametrize(("kind", "form"), FORMS)
async def test_a_provider_that_refuses_is_a_provider_error(
    started: Start, kind: str, form: str
) -> None:
    system = await started(kind, form=form)
    said = "API Error: 529" if kind == "claude" else "529"
    error = await raised(system, kind, f"[[fail {said}]]")
    assert type(error) is ProviderBusy
    assert isinstance(error, ExecutionError)
    assert (error.code, error.kind, error.retryable) == ("E_INTERNAL", "provider_error", True)
    assert error.outcome == "failed"
    assert error.details["status"] == 529  # the provider's own word
    refused = await raised(system, kind, f"[[fail {said.replace('529', '401')}]]")
    assert (type(refused), refused.details["status"]) == (ProviderError, 401)
    assert refused.retryable is False
    reply, _ = await run(system, kind, f"[[fail {said}]]")
    assert reply.error is not None
    assert reply.error["message"] == error.message


@pytest.mark.requirement("001.errors")
async def test_an_agent_that_fails_or_breaks_off_is_no_providers_fault(started: Start) -> None:
    system = await started("claude")
    failed = await raised(system, "claude", "[[fail no way]]")
    assert (type(failed), failed.retryable) == (AgentFailed, False)
    broken = await raised(system, "claude", "[[exit 3]]")
    assert (type(broken), broken.outcome) == (ExecutionError, "unknown")


@pytest.mark.parametrize("kind", SPOKEN)
async def test_noise_is_kept_apart_and_long_lines_are_refused(started: Start, kind: str) -> None:
    system = await started(kind)
    prompt = "[[noise {not json]][[big 9000000]][[spill 300000]][[retry 2]][[say done]]"
    answer, events = await run(system, kind, prompt)
    assert data(answer) == "done"
    if kind != "codex":  # nobody's of its many threads
        assert "not a message: {not json" in logs(events)
    assert re.search(r"a line of 90000\d\d bytes was refused: at most 8388608", logs(events))
    if kind in {"claude", "codex"}:
        assert [log["retry"] for log in found(events, "log") if "retry" in log]


@pytest.mark.parametrize("kind", ["claude", "codex", "acp"])
async def test_silence_is_not_health(started: Start, kind: str) -> None:
    system = await started(kind, silence_seconds=0.4, stop_seconds=1)
    answer, _ = await run(system, kind, "[[say x]][[hang 60]]")
    assert answer.error is not None
    assert answer.error["code"] == "E_STREAM_BROKEN"
    assert "has said nothing for" in answer.error["message"]


@pytest.mark.parametrize("kind", SPOKEN)
async def test_a_tool_that_has_leave_runs_shows_and_is_not_silence(
    started: Start, kind: str
) -> None:
    tool = {"claude": "Bash", "codex": "shell"}.get(kind, "execute")
    system = await started(kind, approvals="deny", allow=[tool], silence_seconds=0.5)
    ask = json.dumps({"cmd": "make", "command": "make", "seconds": 1.5})
    accepted = await system.orchestrator.submit(task(kind, f"[[ask {tool} {ask}]][[say done]]"))
    seen: list[Event] = []
    async for events in system.orchestrator.follow(accepted.execution_id):
        seen += events
        if found(list(events), "tool_call"):
            assert not found(seen, "tool_result")  # it shows while it runs
    assert seen[-1].type == "completed", seen[-1].data
    (called,) = found(seen, "tool_call")
    assert "make" in json.dumps(called["arguments"])
    assert len(found(seen, "tool_result")) == 1


async def test_the_result_is_the_end_whatever_comes_after_it(started: Start) -> None:
    system = await started("claude", stop_seconds=0.5)
    begun = time.monotonic()
    answer, events = await run(system, "claude", "[[linger]][[twice]][[say done]]")
    assert time.monotonic() - begun < 2
    assert data(answer) == "done"
    assert len(found(events, "completed")) == 1
    await until(lambda: not marked(system.keeper.scope))


async def test_a_version_that_is_not_known_is_said(started: Start) -> None:
    system = await started(*SPOKEN, environment={"FAKE_VERSION": "9.1"})
    for kind in SPOKEN:
        answer, events = await run(system, kind, "[[say x]]")
        assert data(answer) == "x"
        doubted = f"{kind} 9.1 is not a version that was tested" in logs(events)
        assert doubted is (kind != "acp")


async def test_another_version_of_the_protocol_is_refused(started: Start) -> None:
    system = await started("acp", environment={"FAKE_ACP_VERSION": "2"})
    answer, _ = await run(system, "acp", "[[say x]]")
    assert answer.error is not None
    assert "speaks ACP 2" in answer.error["message"]


async def test_what_it_was_given_is_not_repeated(started: Start) -> None:
    system = await started("claude", environment={"KEY": "canary-1234", "LONG": "e" * 750})
    # It is on stderr three times; what may be quoted of that begins in the middle of the first.
    answer, _ = await run(system, "claude", "[[spill 2250]][[exit 2]]")
    assert answer.error is not None
    assert answer.error["details"]["stderr"].startswith("*********")
    assert "eeee" not in answer.error["details"]["stderr"]
    answer, _ = await run(system, "claude", "[[noise canary-1234]][[exit 2]]")
    assert answer.error is not None
    stored = await system.store.events(answer.execution_id)
    assert b"canary" not in b"".join(
        event.data for event in stored if event.type in {"log", "failed"}
    )
    assert "canary" not in json.dumps(system.settings.shown())


async def test_a_program_that_is_not_there_says_what_to_install(
    started: Start, tmp_path: Path
) -> None:
    system = await started("claude", command=(str(tmp_path / "claude"),))
    answer, _ = await run(system, "claude", "x")
    assert answer.error is not None
    assert answer.error["code"] == "E_MODULE_LOAD"
    assert "npm install -g @anthropic-ai/claude-code" in answer.error["message"]


# -- codex: many threads in one process ----------------------------------------------------------


async def test_many_threads_share_one_server_and_an_overload_is_a_queue(started: Start) -> None:
    system = await started("codex", concurrency=50, environment={"FAKE_OVERLOAD": "8"})
    runs = (run(system, "codex", "[[say hi]][[hang 0.05]]", f"s{n}") for n in range(50))
    answers = await asyncio.gather(*runs)
    assert [data(answer) for answer, _ in answers] == ["hi"] * 50
    assert len(system.keeper.children) == 1


async def test_cancelled_before_its_turn_has_begun(started: Start) -> None:
    overloaded = {"FAKE_OVERLOAD": "0"}
    system = await started("codex", environment=overloaded, stop_seconds=0.3)
    running = asyncio.create_task(run(system, "codex", "[[say never]]"))
    while not (held := await system.store.held()):
        await asyncio.sleep(0.01)
    async for events in system.orchestrator.follow(held[0].execution_id):
        if found(list(events), "log"):
            await system.orchestrator.cancel(held[0].execution_id)
    answer, _ = await running
    assert answer.state is State.CANCELLED
    await until(lambda: not marked(system.keeper.scope))  # it could have begun all the same


async def test_a_server_of_many_threads_is_followed_by_another(
    started: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.drivers.coding.codex.MOST_THREADS", 3)
    system = await started("codex")
    stays = asyncio.create_task(run(system, "codex", '[[ask x {"cmd": "x"}]][[say stayed]]'))
    asked = await question(system)
    for n in range(5):
        assert data((await run(system, "codex", "[[say hi]]", f"s{n}"))[0]) == "hi"
    assert len(system.keeper.children) == 2
    await system.orchestrator.answer(asked.id, True)
    assert data((await stays)[0]) == "stayed"
    await until(lambda: len(system.keeper.children) == 1)


async def test_a_server_that_dies_fails_its_turns_and_another_one_starts(started: Start) -> None:
    system = await started("codex")
    running = [
        asyncio.create_task(run(system, "codex", "[[say on]][[hang 60]]", f"s{n}"))
        for n in range(3)
    ]
    await until(lambda: len(system.keeper.children) == 1)
    (child,) = system.keeper.children.values()
    await until(lambda: child.stdout.counts.lines > 12)
    child.kill()
    for answer, _ in await asyncio.gather(*running):
        assert answer.error is not None
        assert answer.error["code"] == "E_STREAM_BROKEN"
    assert data((await run(system, "codex", "[[say again]]"))[0]) == "again"
    assert not alive(child.pid)


async def test_owners_do_not_share_sessions(started: Start) -> None:
    system = await started("claude")
    await run(system, "claude", "[[say x]]")
    sessions = system.settings.data_dir / "processes" / "agent-claude" / "sessions"
    (kept,) = [json.loads(file.read_text()) for file in sessions.iterdir()]
    assert kept["owner"] == LOCAL


# -- its processes, on record --------------------------------------------------------------------


async def processes(system: Runtime) -> list[Any]:
    """Return what ``retinue agent ps`` shows."""
    return list((await system.orchestrator.instances(InstanceFilter(live=True), Page())).items)


@pytest.mark.parametrize("kind", ["claude", "gemini"])
async def test_a_turns_process_is_on_record_before_it_runs_and_to_its_end(
    started: Start, kind: str
) -> None:
    system = await started(kind)
    accepted = await system.orchestrator.submit(task(kind, "[[say hi]] [[ask go]] [[say bye]]"))
    asked = await question(system)
    (shown,) = await processes(system)
    assert (shown.agent_id, shown.state, shown.status) == (kind, "busy", "running")
    assert shown.waiting_for == "input"
    assert (shown.execution_id, shown.executions) == (
        accepted.execution_id,
        [accepted.execution_id],
    )
    assert alive(shown.pid)
    assert shown.memory_mb > 1
    assert shown.stdin is False  # it is the protocol's
    with pytest.raises(Conflict, match="no stdin that is open"):
        await system.orchestrator.tell_instance(shown.instance_id, b"no JSON")
    await system.orchestrator.answer(asked.id, True)
    async for _ in system.orchestrator.follow(accepted.execution_id):
        pass
    while await processes(system):
        await asyncio.sleep(0.02)
    ended = await system.orchestrator.instance(shown.instance_id)
    assert (ended.state, ended.execution_id) == ("stopped", accepted.execution_id)
    assert ended.status == "completed"
    log = await system.orchestrator.log_of(shown.instance_id)
    assert "bye" in log["stdout"]


async def test_one_that_breaks_off_has_failed_and_one_that_is_stopped_has_not(
    started: Start,
) -> None:
    system = await started("claude")
    broken, _ = await run(system, "claude", "[[exit 3]]")
    where = InstanceFilter(execution_id=broken.execution_id)
    (view,) = (await system.orchestrator.instances(where, Page())).items
    assert (view.state, view.exit_code, view.reason) == ("failed", 3, "exited 3")
    running = asyncio.create_task(run(system, "claude", "[[say on]] [[hang 200]]"))
    while not (shown := await processes(system)):
        await asyncio.sleep(0.02)
    await system.orchestrator.stop_instance(shown[0].instance_id)
    stopped, _ = await running
    assert stopped.state is State.CANCELLED
    ended = await system.orchestrator.instance(shown[0].instance_id)
    assert ended.state == "stopped"
    assert "stopped by" in (ended.reason or "")


async def test_codexs_server_shows_the_turns_of_all_its_threads(started: Start) -> None:
    system = await started("codex")
    prompt = "[[say on]] [[ask go]]"
    ids = [
        (await system.orchestrator.submit(task("codex", prompt, session))).execution_id
        for session in "ab"
    ]
    asked: list[Any] = []
    while len(asked) < 2:
        asked = list((await system.store.questions(None, Page(10))).items)
        await asyncio.sleep(0.02)
    (server,) = await processes(system)
    assert server.status == "running"
    assert sorted(server.executions) == sorted(ids)
    for one in asked:
        await system.orchestrator.answer(one.id, True)
    while (await processes(system))[0].executions:
        await asyncio.sleep(0.02)
    (idle,) = await processes(system)
    assert (idle.instance_id, idle.status) == (server.instance_id, "idle")
    await system.orchestrator.stop_instance(server.instance_id)
    assert await processes(system) == []
    assert data((await run(system, "codex", "[[say again]]"))[0]) == "again"


async def shown_reason(system: Runtime, part: str) -> str:
    """Return why the one process stands as it does, once that has something in it."""
    while True:
        for one in await processes(system):
            if one.reason is not None and part in one.reason:
                assert one.status == "running"
                return str(one.reason)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", ["claude", "codex", "opencode"])
async def test_one_that_says_nothing_or_tries_again_shows_on_record_and_in_the_stream(
    started: Start, kind: str
) -> None:
    system = await started(kind, silence_seconds=1.6)
    prompt = "[[say on]] [[hang 1]] [[say off]] [[retry 1]] [[hang 0.3]] [[say done]]"
    running = asyncio.create_task(run(system, kind, prompt))
    assert "has said nothing for 1 s" in await shown_reason(system, "nothing")
    if kind != "opencode":  # it tries again without a word
        again = await shown_reason(system, "retry" if kind == "claude" else "Reconnecting")
        assert "nothing" not in again
    answer, events = await running
    assert data(answer).endswith("done")
    (quiet,) = [log for log in found(events, "log") if "silent_seconds" in log]
    assert quiet["level"] == "warning"
    listed = (await system.orchestrator.instances(InstanceFilter(agent_id=kind), Page())).items
    assert [one.reason for one in listed if one.reason and "nothing" in one.reason] == []


async def test_one_that_a_person_pauses_is_not_called_silent(started: Start) -> None:
    system = await started("claude", silence_seconds=2)
    running = asyncio.create_task(run(system, "claude", "[[say on]] [[hang 1.5]] [[say off]]"))
    while not (shown := [p for p in await processes(system) if p.status == "running"]):
        await asyncio.sleep(0.005)
    await system.orchestrator.pause_instance(shown[0].instance_id)
    done, _ = await asyncio.wait({running}, timeout=2.5)
    assert not done
    await system.orchestrator.resume_instance(shown[0].instance_id)
    answer, _ = await running
    assert data(answer).endswith("off")

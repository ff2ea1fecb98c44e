"""The real coding CLIs, driven through the whole system against a fake model on this machine."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from tests.engine.test_coding import data, found, logs, question, run, text
from tests.engine.test_coding_breaks import streamed
from tests.live.conftest import Start, relayed, watched
from tests.live.programs import HERE
from tests.live.relay import outside
from tests.process.rig import marked, needs_sandbox, until

from retinue.domain.execution import State
from retinue.testing.model_server import ModelServer

pytestmark = [pytest.mark.timeout(240)]
TOOLS = {
    "codex": ("exec_command", {"cmd": "COMMAND"}),
    "gemini": ("run_shell_command", {"command": "COMMAND", "description": "it"}),
    "claude": ("Bash", {"command": "COMMAND", "description": "it"}),
    "opencode": ("bash", {"command": "COMMAND", "description": "it"}),
}
TOOL = {"codex": "shell", "gemini": "execute", "claude": "Bash", "opencode": "execute"}
RESULT = {"codex": "shell"}


def runs(kind: str, command: str) -> str:
    """Return the step that has a CLI's model ask for a shell command."""
    name, given = TOOLS[kind]
    arguments = {key: command if v == "COMMAND" else v for key, v in given.items()}
    return f"[[tool {name} {json.dumps(arguments)}]]"


def work(system: Any, kind: str) -> Path:
    found: Path = system.settings.data_dir / "processes" / f"agent-{kind}" / "work"
    return found


@pytest.mark.requirement("001.backend-claude", "001.backend-opencode", "001.backend-more")
async def test_it_says_thinks_and_uses_tools_with_leave(started: Start, kind: str) -> None:
    system = await started(kind)
    prompt = (
        f"[[think hm]] [[say before]] {runs(kind, 'echo seen > made; echo hello')} [[say done]]"
    )
    running = asyncio.create_task(run(system, kind, prompt))
    asked = await question(system)
    assert asked.kind == "approval"
    assert not (work(system, kind) / "made").exists()
    await system.orchestrator.answer(asked.id, True)
    answer, events = await running
    assert data(answer).strip() == "done"
    assert (work(system, kind) / "made").read_text() == "seen\n"
    assert text(events).split() == ["before", "done"]
    if kind != "opencode":  # it takes no reasoning of this provider
        assert "hm" in "".join(e["content"] for e in found(events, "thinking"))
    (called,) = found(events, "tool_call")
    (result,) = found(events, "tool_result")
    assert called["tool_call_id"] == result["tool_call_id"]
    assert called["tool_name"] == TOOL[kind]
    assert "echo hello" in json.dumps(called["arguments"])
    assert result["is_error"] is False
    usage = json.loads(events[-1].data).get("usage")
    if kind != "opencode":
        assert usage["input_tokens"] == 20
        assert usage["output_tokens"] == 10
    if kind == "claude":
        assert usage["cost_usd"] > 0
    begun = found(events, "log")[0]
    assert begun["native_session"]
    assert "not a version that was tested" not in logs(events)


async def test_no_leave_no_effect(started: Start, kind: str) -> None:
    system = await started(kind, approvals="deny")
    answer, events = await run(system, kind, f"{runs(kind, 'touch made')} [[say done]]")
    assert not (work(system, kind) / "made").exists()
    assert "refused by the agent's policy" in logs(events)
    if kind != "opencode":  # it ends its turn when it is refused
        assert data(answer).strip() == "done"


READS = {
    "codex": ("exec_command", {"cmd": "cat FILE"}),
    "gemini": ("read_file", {"file_path": "FILE"}),
    "claude": ("Read", {"file_path": "FILE"}),
    "opencode": ("read", {"filePath": "FILE"}),
}
DENY = {"codex": "shell", "gemini": "read", "claude": "R*d", "opencode": "read"}


@pytest.mark.parametrize("denied", [False, True])
async def test_what_is_denied_is_denied_where_it_asks_nobody(
    started: Start, kind: str, denied: bool, models: ModelServer
) -> None:
    system = await started(kind, approvals="allow", deny=[DENY[kind]] if denied else [])
    work(system, kind).mkdir(parents=True, exist_ok=True)
    (work(system, kind) / "a.txt").write_text("secret-of-a")
    name, given = READS[kind]
    file = str(work(system, kind) / "a.txt")
    arguments = {key: value.replace("FILE", file) for key, value in given.items()}
    answer, _ = await run(system, kind, f"[[tool {name} {json.dumps(arguments)}]] [[say done]]")
    assert data(answer).strip() == "done"
    assert ("secret-of-a" in json.dumps([r.body for r in models.requests])) is not denied


@pytest.mark.parametrize("approvals", [None, "allow"])
async def test_the_simple_form_does_what_leave_allows(
    started: Start, kind: str, approvals: str | None
) -> None:
    if kind == "claude":
        pytest.skip("it has none")
    leave = {} if approvals is None else {"approvals": approvals}
    system = await started(kind, form="once", **leave)
    step = runs(kind, "echo seen > made")
    answer, _ = await run(system, kind, f"{step} [[say done]]")
    assert (work(system, kind) / "made").exists() is (approvals == "allow")
    assert data(answer).strip() == "done"
    if kind == "codex":
        return  # it knows no single tools
    await system.stop(grace=5)
    tool = {"gemini": "run_shell_command", "opencode": "execute"}[kind]
    turned = {"approvals": "allow", "deny": [tool]} if approvals else {"allow": [tool]}
    system = await started(kind, form="once", agent_id="other", **turned)
    await run(system, "other", f"{step} [[say done]]")
    assert (work(system, "other") / "made").exists() is (approvals is None)


def brings(kind: str, repository: Path) -> Path:
    """Put settings into a repository that run programs; return what those leave."""
    ran = repository / "ran"
    touch = {"command": "/bin/sh", "args": ["-c", f"touch {ran}; sleep 1"]}
    hook = [{"matcher": "*", "hooks": [{"type": "command", "command": f"touch {ran}"}]}]
    files: dict[str, Any] = {
        "claude": {
            ".claude/settings.json": {
                "hooks": {"SessionStart": hook},
                "permissions": {"allow": ["Bash"]},
                "enableAllProjectMcpServers": True,
            },
            ".mcp.json": {"mcpServers": {"x": touch}},
        },
        "gemini": {".gemini/settings.json": {"mcpServers": {"x": touch}}},
        "opencode": {
            "opencode.json": {
                "mcp": {"x": {"type": "local", "command": [touch["command"], *touch["args"]]}},
                "permission": {"bash": "allow"},
                "agent": {"build": {"permission": {"bash": "allow"}}},
            },
        },
        "codex": {
            ".codex/config.toml": f"""[mcp_servers.x]
command = "/bin/sh"
args = ["-c", "touch {ran}; sleep 1"]
"""
        },
    }
    (repository / ".git").mkdir(parents=True)
    for name, content in files[kind].items():
        file = repository / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return ran


@pytest.mark.parametrize("form", ["session", "once"])
@pytest.mark.parametrize("trusted", [False, True])
async def test_settings_of_a_repository_count_when_it_is_trusted(
    started: Start, kind: str, trusted: bool, form: str, tmp_path: Path
) -> None:
    if form == "once" and kind == "claude":
        pytest.skip("it has none")
    repository = tmp_path / "repository"
    ran = brings(kind, repository)
    more = {"approvals": "deny", "trust_project": trusted, "form": form}
    system = await started(kind, work_dir=repository, **more)
    await run(system, kind, f"{runs(kind, 'touch made')} [[say done]]")
    assert ran.exists() is trusted
    if not trusted:
        assert not (repository / "made").exists()


async def test_plugins_of_a_repository_run_when_it_is_trusted_and_else_nothing_does(
    started: Start, kind: str, tmp_path: Path
) -> None:
    if kind != "opencode":
        pytest.skip("the others have settings only")
    repository = tmp_path / "repository"
    plugin, ran = repository / ".opencode/plugin/x.js", repository / "ran"
    plugin.parent.mkdir(parents=True)
    write = f"""import fs from "fs"\nfs.writeFileSync({json.dumps(str(ran))}, "")\n"""
    plugin.write_text(f"{write}export const X = async () => ({{}})\n")
    for trusted in (False, True):
        system = await started(kind, work_dir=repository, approvals="deny", trust_project=trusted)
        answer, _ = await run(system, kind, f"{runs(kind, 'touch made')} [[say done]]")
        assert ran.exists() is trusted
        if not trusted:
            assert answer.error is not None
            assert "set trust_project" in answer.error["message"]
            await system.stop(grace=1)


async def test_cancel_stops_the_turn_and_its_tools(started: Start, kind: str) -> None:
    system = await started(kind, approvals="allow")
    prompt = f"[[say on]] {runs(kind, 'echo x > made; exec sleep 300')} [[say never]]"
    running = asyncio.create_task(run(system, kind, prompt))
    made = work(system, kind) / "made"
    await until(made.exists, 60)
    (execution,) = await system.store.held()
    begun = time.monotonic()
    await system.orchestrator.cancel(execution.execution_id)
    answer, _ = await running
    assert answer.state is State.CANCELLED
    assert time.monotonic() - begun < 10
    await until(lambda: not sleeping(system))


def sleeping(system: Any) -> list[int]:
    """Return the tools that still sleep."""
    here = []
    for pid in marked(system.keeper.scope):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if line.startswith(b"sleep\x00300"):
            here.append(pid)
    return here


async def test_cancelled_while_the_model_speaks(started: Start, kind: str) -> None:
    system = await started(kind)
    running = asyncio.create_task(run(system, kind, "[[say on]] [[hang 200]]"))
    await until(lambda: bool(system.store), 1)
    while not (held := await system.store.held()):
        await asyncio.sleep(0.05)
    id_ = held[0].execution_id
    async for events in system.orchestrator.follow(id_):
        if text(list(events)):
            begun = time.monotonic()
            await system.orchestrator.cancel(id_)
    answer, _ = await running
    assert answer.state is State.CANCELLED
    assert time.monotonic() - begun < 10


async def test_its_session_goes_on_and_after_a_restart(
    started: Start, kind: str, models: ModelServer
) -> None:
    system = await started(kind)
    await run(system, kind, "[[say one]]")
    await run(system, kind, "[[say two]]")
    await run(system, kind, "[[say else]]", session="another")
    await system.stop(grace=5)
    system = await started(kind)
    answer, events = await run(system, kind, "[[say three]]")
    assert data(answer).strip() == "three"
    assert found(events, "log")[0]["resumed"] is True, logs(events)
    last = json.dumps([r for r in models.requests if "[[say three]]" in r.prompt][-1].body)
    assert "[[say one]]" in last
    assert "[[say two]]" in last


async def test_a_model_that_refuses_is_a_failure_that_says_so(started: Start, kind: str) -> None:
    if kind == "opencode":
        pytest.skip("it tries again for ever and says nothing: see silence_seconds")
    system = await started(kind)
    answer, _ = await run(system, kind, "[[http 401]]")
    assert answer.error is not None
    assert "401" in answer.error["message"], answer.error
    assert answer.error["retryable"] is False


async def test_one_error_of_the_model_is_tried_again(started: Start, kind: str) -> None:
    system = await started(kind)
    answer, _ = await run(system, kind, "[[httponce 529]] [[say well]]")
    assert data(answer).strip() == "well"


@pytest.mark.parametrize("prompt", ["/help [[say A]]", " /clear [[say A]]"])
async def test_a_prompt_is_for_the_model_whatever_it_begins_with(
    started: Start, kind: str, prompt: str
) -> None:
    system = await started(kind)
    answer, _ = await run(system, kind, prompt)
    assert data(answer).strip() == "A"


async def test_a_stream_that_is_cut_is_taken_back(started: Start, kind: str) -> None:
    if kind in {"gemini", "opencode"}:
        pytest.skip("gemini gives up; opencode repeats itself, and nothing tells that from text")
    system = await started(kind, approvals="allow")
    step = runs(kind, "true")
    prompt = f"[[say one]] {step} [[say two]] [[hang 0.3]] [[cutonce]] [[say three]]"
    answer, events = await run(system, kind, prompt)
    assert data(answer).strip() == "two three"
    assert text(events).split() == ["one", "two", "one", "two", "three"]
    assert streamed(events).split() == ["one", "two", "three"]


async def test_a_reply_that_could_not_be_streamed_is_said(started: Start, kind: str) -> None:
    if kind != "claude":
        pytest.skip("only claude asks again for an answer as a whole")
    system = await started(kind, approvals="allow")
    prompt = f"[[say one]] {runs(kind, 'true')} [[say two]] [[cut]]"
    answer, events = await run(system, kind, prompt)
    assert data(answer).strip() == "two"
    assert streamed(events).split() == ["one", "two"]


async def test_it_connects_to_this_machine_only(started: Start, kind: str, tmp_path: Path) -> None:
    if kind == "opencode":
        pytest.skip("it tries to fetch a plugin: see the sandbox without a way out")
    path, log = watched(kind, tmp_path)
    system = await started(kind, path=path)
    answer, _ = await run(system, kind, "[[say hi]]")
    assert data(answer).strip() == "hi"
    await system.stop(grace=5)
    lines = [line for file in log.iterdir() for line in file.read_text().splitlines()]
    asked = re.findall(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', "\n".join(lines))
    seen = {address for pair in asked for address in pair if address}
    assert seen
    assert seen <= {"127.0.0.1", "::1"}, sorted(seen)


@needs_sandbox
@pytest.mark.requirement("001.sandbox")
@pytest.mark.parametrize("form", ["session", "once"])
async def test_in_a_sandbox_it_works_and_writes_nothing_else(
    started: Start, kind: str, form: str, tmp_path: Path
) -> None:
    if form == "once" and kind != "codex":
        pytest.skip("only codex has a sandbox of its own, which each form turns off")
    system = await started(kind, approvals="allow", sandbox={"read": [HERE]}, form=form)
    out = tmp_path / "outside"
    step = runs(kind, f"touch {out}; echo seen > made")
    answer, events = await run(system, kind, f"{step} [[say done]]")
    assert data(answer).strip() == "done"
    assert len(found(events, "tool_result")) == 1
    assert (work(system, kind) / "made").read_text() == "seen\n"
    assert not out.exists()
    answer, events = await run(system, kind, f"{runs(kind, 'touch again')} [[say two]]")
    assert data(answer).strip() == "two"
    assert (work(system, kind) / "again").exists()
    assert found(events, "log")[0]["resumed"] is True, logs(events)


@needs_sandbox
@pytest.mark.requirement("001.network-isolation")
async def test_in_a_network_of_its_own_it_needs_a_model_and_nothing_else(
    started: Start, kind: str, models: ModelServer, tmp_path: Path
) -> None:
    path, file = relayed(kind, models, tmp_path)
    box = {"network": "loopback", "read": [HERE.parent, HERE, tmp_path]}
    with outside(file, models.port):
        system = await started(kind, path=path, approvals="allow", sandbox=box)
        step = runs(kind, "cat /proc/net/dev > devices")
        answer, _ = await run(system, kind, f"{step} [[say hi]]")
        assert data(answer).strip() == "hi"
    devices = (work(system, kind) / "devices").read_text()
    assert re.findall(r"(\w+):", devices) == ["lo"]
    assert len(models.requests) >= 2


async def test_the_simple_form(started: Start, kind: str) -> None:
    if kind == "claude":
        pytest.skip("it has none")
    system = await started(kind, form="once", approvals="allow")
    answer, events = await run(system, kind, "[[say one]]")
    assert data(answer).strip() == "one"
    assert found(events, "log")[0]["version"] is not None
    answer, events = await run(system, kind, f"{runs(kind, 'echo hello')} [[say two]]")
    assert data(answer).strip() == "two"
    if kind != "opencode":
        assert [u["input_tokens"] for u in found(events, "usage")] == [20]  # of this task alone
    (result,) = found(events, "tool_result")
    assert "hello" in str(result["result"])
    assert found([e for e in events if e.type == "log"], "log")[0]["resumed"] is True


async def test_turns_and_cost_are_bounded(started: Start, kind: str) -> None:
    if kind == "opencode":
        pytest.skip("it does not say how often the model replied")
    system = await started(kind, max_turns=1, approvals="allow")
    prompt = f"{runs(kind, 'echo a')} {runs(kind, 'echo b')} [[say done]]"
    answer, _ = await run(system, kind, prompt)
    assert answer.error is not None
    assert answer.error["code"] == "E_BUDGET_EXCEEDED"
    if kind == "gemini":
        await system.stop(grace=5)
        system = await started(kind, max_turns=1, approvals="allow", form="once", agent_id="one")
        answer, _ = await run(system, "one", prompt)
        assert answer.error is not None
        assert answer.error["code"] == "E_BUDGET_EXCEEDED"
    if kind == "claude":
        await system.stop(grace=5)
        system = await started(kind, max_cost_usd=0.0001, approvals="allow", agent_id="poor")
        answer, _ = await run(system, "poor", f"{prompt} [[usage 900 900]]")
        assert answer.error is not None
        assert answer.error["code"] == "E_BUDGET_EXCEEDED"


@pytest.mark.requirement("001.live-cli")
async def test_many_sessions_of_one_codex(started: Start, kind: str) -> None:
    if kind != "codex":
        pytest.skip("one process per turn")
    system = await started(kind, concurrency=60)
    answers = await asyncio.gather(
        *(run(system, kind, "[[say hi]] [[slow 10 0.1]]", f"s{n}") for n in range(60))
    )
    assert [data(answer).split()[0] for answer, _ in answers] == ["hi"] * 60
    assert len(system.keeper.children) == 1

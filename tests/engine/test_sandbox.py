"""Commands of ``retinue.yaml`` that are shut in or limited: what they reach, and what is said."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.process.rig import marked, needs_sandbox

from retinue import Runtime, Settings
from retinue.domain.execution import Task
from retinue.orchestrator import Reply
from retinue.settings import CommandReference, SandboxReference

PYTHON = (sys.executable, "-I", "-S", "-u", "-c")
LOOK = r"""
import json, os, sys
data = sys.argv[1]
found = {}
for path in (os.environ["HOME"], os.environ["TMPDIR"], os.getcwd(), data, "/etc", data + "/../x"):
    found[path] = os.access(path, os.W_OK)
print(json.dumps([found, sorted(os.listdir(data)), sys.stdin.read()]))
"""


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    systems: list[Runtime] = []

    async def start(*commands: CommandReference, **more: Any) -> Runtime:
        settings = Settings(
            data_dir=tmp_path / "data",
            examples=False,
            entry_points=False,
            agents=commands,
            **more,
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


async def run(system: Runtime, agent_id: str = "it", prompt: str = "do it") -> Reply:
    task = Task(session_id="s", agent_id=agent_id, parameters={"prompt": prompt})
    return await system.orchestrator.perform(task)


@needs_sandbox
@pytest.mark.requirement("001.sandbox")
async def test_a_command_in_a_sandbox_has_its_directories_and_never_the_store(
    started: Any, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    data = tmp_path / "data"
    look = command(
        *(*PYTHON, LOOK, str(data)), output="json", work_dir=tmp_path / "work", sandbox=True
    )
    system = await started(look)
    answer = await run(system)
    assert answer.error is None, answer.error
    writable, names, prompt = json.loads(answer.data or b"null")
    home, tmp, work, *others = writable.items()
    assert (home[1], tmp[1], work) == (True, True, (str(tmp_path / "work"), True))
    assert [able for _, able in others] == [False, False, False]
    assert names == ["processes"]  # what holds its own directories, and nothing of the store
    assert "retinue.db" in await asyncio.to_thread(os.listdir, data)
    assert prompt == "do it"


@needs_sandbox
async def test_a_sandbox_is_described_in_the_file(started: Any, tmp_path: Path) -> None:
    box = SandboxReference(network="none", write=(Path("shared"),), hide=(Path("secret"),))
    for name in ("shared", "secret"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret" / "key").touch()
    script = f"echo 1 >{tmp_path}/shared/x; ls {tmp_path}/secret; ls /sys/class/net | wc -l"
    given = command("sh", "-c", script, sandbox=box).at(tmp_path)
    assert isinstance(given.sandbox, SandboxReference)
    assert given.sandbox.write == (tmp_path / "shared",)
    answer = await run(await started(given))
    assert answer.error is None, answer.error
    assert (tmp_path / "shared" / "x").exists()
    assert "key" not in str(answer.data)


async def test_where_there_is_no_sandbox_the_task_is_refused(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    system = await started(command("/bin/sh", "-c", "touch ran", sandbox=True))
    answer = await run(system)
    assert answer.error is not None
    assert answer.error["code"] == "E_MODULE_LOAD"
    assert "install bubblewrap" in answer.error["message"]
    work = tmp_path / "data" / "processes" / "agent-it" / "work"
    assert await asyncio.to_thread(os.listdir, work) == []


LIMITS: dict[str, tuple[dict[str, Any], str]] = {
    "limit_memory": (
        {"max_memory_mb": 60},
        "x = bytearray(200 << 20)\nimport time; time.sleep(1000)",
    ),
    "limit_runtime": ({"max_runtime_seconds": 0.3}, "import time; time.sleep(1000)"),
    "limit_processes": (
        {"max_processes": 4},
        "import subprocess as s; p = [s.Popen(['sleep', '1000']) for _ in range(8)]; p[0].wait()",
    ),
    "limit_open_files": (
        {"max_open_files": 32},
        "import os, time\ntry:\n while True: os.dup(0)\nexcept OSError: time.sleep(1000)",
    ),
}


@pytest.mark.requirement("001.limits")
@pytest.mark.parametrize("boxed", [False, pytest.param(True, marks=needs_sandbox)])
@pytest.mark.parametrize("limit", LIMITS)
async def test_past_a_limit_the_execution_fails_and_names_it(
    started: Any, limit: str, boxed: bool
) -> None:
    limits, source = LIMITS[limit]
    within = "import os; fds = [os.dup(0) for _ in range(20)]; print('fine')"
    system = await started(
        command(*PYTHON, source, **limits, sandbox=boxed),
        command(*PYTHON, within, name="within", **{**limits, "max_runtime_seconds": 60}),
    )
    answer = await run(system)
    assert answer.error is not None
    assert answer.error["details"]["reason"] == limit
    assert f"was ended by its {limit}" in answer.error["message"]
    assert (await run(system, "within")).data == b'"fine\\n"'

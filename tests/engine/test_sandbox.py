"""Agents of ``retinue.yaml`` that are shut in or limited: what they reach, and what is said."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.process.rig import marked, needs_sandbox

from retinue import Runtime, Settings
from retinue.domain.execution import Task
from retinue.orchestrator import Reply
from retinue.settings import (
    CodingReference,
    CommandReference,
    SandboxReference,
    WorkerReference,
    load,
)
from retinue.testing.coding_agent import install

Given = CommandReference | CodingReference | WorkerReference

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

    async def start(*agents: Given, **more: Any) -> Runtime:
        settings = Settings(
            data_dir=tmp_path / "data",
            examples=False,
            entry_points=False,
            agents=agents,
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
@pytest.mark.requirement("001.sandbox")
async def test_who_works_beside_the_settings_does_not_change_them(tmp_path: Path) -> None:
    attack = (
        "cat retinue.yaml .env; for f in retinue.yaml .env; do echo 'port: 1' >>$f; rm -f $f;"
        " echo x >new; mv new $f; done; mv .retinue gone; mkdir .retinue; touch own; echo done"
    )
    agents = [
        {"driver": "command", "agent_id": "it", "command": ["sh", "-c", attack], "work_dir": "."}
    ]
    for given in agents:
        given["sandbox"] = True  # type: ignore[assignment]
    text = json.dumps({"examples": False, "entry_points": False, "agents": agents})
    (tmp_path / "retinue.yaml").write_text(text)
    system = Runtime(load(None, {"PATH": os.environ["PATH"]}, tmp_path))
    await system.start()
    try:
        answer = await run(system)
    finally:
        await system.stop(grace=0)
    assert answer.error is None, answer.error
    assert answer.data == b'"done\\n"'
    assert (tmp_path / "retinue.yaml").read_text() == text
    assert (tmp_path / ".env").read_bytes() == b""
    assert (tmp_path / ".retinue" / "retinue.db").exists()
    assert (tmp_path / "own").exists()


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


WORKER = r"""
import os, socket
from pathlib import Path
from retinue import capability
from retinue.sdk import serve


def tried(do):
    try:
        do()
    except OSError as error:
        return type(error).__name__
    return "yes"


@capability()
async def probe(outside: str, store: str, port: int) -> dict:
    return {
        "outside": tried(Path(outside).touch),
        "own": [tried((Path(os.environ[d]) / "x").touch) for d in ("HOME", "TMPDIR")],
        "work": tried(Path("x").touch),
        "store": tried(Path(store).read_bytes),
        "connect": tried(lambda: socket.create_connection(("127.0.0.1", port), 5).close()),
        "pid": os.getpid(),
    }


serve(probe)
"""


TOOLS = (Path(__file__).parents[2], Path(sys.prefix))
"""Where our programs are: in /tmp, perhaps, where a sandbox sees only what it is told."""


def seeing(box: SandboxReference | bool) -> SandboxReference | bool:
    if box is False:
        return False
    named = SandboxReference() if box is True else box
    return named.model_copy(update={"read": TOOLS})


@pytest.fixture
def server() -> Iterator[int]:
    """A port of this machine on which somebody answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        yield port


@needs_sandbox
@pytest.mark.requirement("001.sandbox", "001.network-isolation")
@pytest.mark.parametrize(
    ("box", "writes", "connects"),
    [
        (False, "yes", "yes"),
        (True, "OSError", "yes"),
        (SandboxReference(network="loopback"), "OSError", "ConnectionRefusedError"),
        (SandboxReference(network="none"), "OSError", "OSError"),
    ],
)
async def test_a_worker_in_a_sandbox_writes_its_directories_and_reaches_what_it_may(
    started: Any,
    tmp_path: Path,
    elsewhere: Path,
    server: int,
    box: Any,
    writes: str,
    connects: str,
) -> None:
    argv = (sys.executable, "-c", WORKER)
    given = WorkerReference(
        driver="stdio", name="w", command=argv, process_pool_size=1, sandbox=seeing(box)
    )
    system = await started(given)
    parameters = {
        "outside": str(elsewhere / "outside"),
        "store": str(tmp_path / "data" / "retinue.db"),
        "port": server,
    }
    for _ in range(2):
        task = Task(session_id="s", agent_id="probe", parameters=parameters)
        answer = await system.orchestrator.perform(task)
        assert answer.error is None, answer.error
        found = json.loads(answer.data or b"")
        assert (found["own"], found["work"]) == (["yes", "yes"], "yes")
        assert (found["outside"], found["connect"]) == (writes, connects)
        assert found["store"] == ("FileNotFoundError" if box else "yes")
        assert (found["pid"] < 10) is bool(box)  # a pid namespace of its own
    assert (elsewhere / "outside").exists() is not bool(box)


@needs_sandbox
@pytest.mark.requirement("001.sandbox", "001.network-isolation")
@pytest.mark.parametrize("kind", ["claude", "codex", "gemini"])
@pytest.mark.parametrize(
    ("box", "writes", "connects"),
    [
        (False, "yes", "yes"),
        (True, "OSError", "yes"),
        (SandboxReference(network="loopback"), "OSError", "ConnectionRefusedError"),
        (SandboxReference(network="none"), "OSError", "OSError"),
    ],
)
async def test_a_coding_cli_in_a_sandbox_writes_its_directories_and_reaches_what_it_may(
    started: Any,
    tmp_path: Path,
    elsewhere: Path,
    server: int,
    kind: Any,
    box: Any,
    writes: str,
    connects: str,
) -> None:
    program = install(tmp_path / "bin", kind)[kind]
    (tmp_path / "work").mkdir()
    given = CodingReference.model_validate(
        {
            "driver": kind,
            "command": (program,),
            "work_dir": tmp_path / "work",
            "sandbox": seeing(box),
        }
    )
    system = await started(given)
    prompt = f"[[write {elsewhere}/outside]] [[write mine]] [[connect {server}]]"
    answer = await run(system, kind, prompt)
    assert answer.error is None, answer.error
    said = json.loads(answer.data or b"")
    assert said.split() == ["write:", writes, "write:", "yes", "connect:", connects]
    assert (elsewhere / "outside").exists() is not bool(box)
    assert (tmp_path / "work" / "mine").exists()
    # Its session is in its HOME, which it may write: another turn goes on with it.
    answer = await run(system, kind, "[[seen]]")
    assert json.loads(json.loads(answer.data or b""))["turns_before"] == 1


def test_the_paths_of_every_sandbox_are_those_of_the_file(tmp_path: Path) -> None:
    box = SandboxReference(write=(Path("shared"),), hide=(Path("../secret"), Path("~/.ssh")))
    given = (
        command("x", sandbox=box),
        WorkerReference(driver="stdio", name="w", command=("x",), sandbox=box),
        CodingReference.model_validate({"driver": "claude", "sandbox": box.model_dump()}),
    )
    for agent in given:
        found = agent.at(tmp_path).sandbox
        assert isinstance(found, SandboxReference)
        assert found.write == (tmp_path / "shared",)
        assert found.hide == (tmp_path / "../secret", Path.home() / ".ssh")


@needs_sandbox
async def test_what_a_sandbox_may_write_has_to_be_there(started: Any, tmp_path: Path) -> None:
    box = SandboxReference(write=(tmp_path / "absent",))
    program = install(tmp_path / "bin", "claude")["claude"]
    given = CodingReference.model_validate(
        {"driver": "claude", "command": (program,), "sandbox": box.model_dump()}
    )
    agents = (command("true", sandbox=box), given)
    system = await started(*agents)
    for agent in agents:
        answer = await run(system, agent.agent_id)
        assert answer.error is not None
        assert answer.error["code"] == "E_MODULE_LOAD"
        assert answer.error["message"].endswith(
            f"may write {tmp_path}/absent, which does not exist"
        )


async def test_nothing_runs_outside_the_sandbox_it_was_to_have(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{WORKER}")
    program = install(tmp_path / "bin", "claude")["claude"]
    monkeypatch.setenv("PATH", str(tmp_path))
    argv = (sys.executable, str(tmp_path / "worker.py"))
    system = await started(
        WorkerReference(driver="stdio", name="w", command=argv, sandbox=True, max_restarts=0),
        CodingReference.model_validate(
            {"driver": "claude", "command": (program,), "sandbox": True}
        ),
    )
    answer = await run(system, "claude")
    assert answer.error is not None
    assert answer.error["code"] == "E_MODULE_LOAD"
    assert "install bubblewrap" in answer.error["message"]
    (pool,) = system.engine.pools.views()
    assert pool.state == "failed"
    assert "install bubblewrap" in (pool.reason or "")
    assert not (tmp_path / "ran").exists()
    assert not system.keeper.children


async def test_what_an_agent_was_given_is_not_in_its_log(started: Any, tmp_path: Path) -> None:
    secret = "canary-0123456789"
    program = install(tmp_path / "bin", "claude")["claude"]
    says = "import os, sys\nprint(os.environ['KEY'], file=sys.stderr, flush=True)\n"
    (tmp_path / "worker.py").write_text(says + WORKER)
    argv = (sys.executable, str(tmp_path / "worker.py"))
    given = {"environment": {"KEY": secret}}
    system = await started(
        WorkerReference.model_validate({"driver": "stdio", "name": "w", "command": argv} | given),
        CodingReference.model_validate({"driver": "claude", "command": (program,)} | given),
    )
    answer = await run(system, "claude", "[[seen]]")
    assert "***" in str(answer.data)  # it has it, and said so
    await asyncio.to_thread(system.keeper.logs.settle)
    logs = [p for p in (tmp_path / "data").glob("processes/*/logs/*/std*") if p.is_file()]
    kept = {p: p.read_text() for p in logs}
    assert {p.parts[-4] for p, text in kept.items() if "***" in text} == {
        "worker-w",
        "agent-claude",
    }
    assert not any(secret in text for text in kept.values())


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

"""Agents that are shut in: what they see, what they may write, whom they reach."""

import asyncio
import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.process.rig import alive, needs_sandbox, until

from retinue.errors import SpawnFailed
from retinue.keeper.tree import stat as process
from retinue.keeper.tree import tree
from retinue.process import (
    AgentConfig,
    AgentHandle,
    AgentSignal,
    Backend,
    GracefulShutdown,
    LocalProcessRunner,
    ProcessRunnerConfig,
    ResourceLimits,
    Sandbox,
)
from retinue.process.link import Command
from retinue.process.sandbox import boxed, private

LOOK = r"""
import json, os, sys
outside, server = sys.argv[-1].split()
def writes(path):
    try:
        with open(path, "a") as file: file.write("x")
        return True
    except OSError: return False
def signals(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return True
status = dict(line.split(":\t", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "outside": writes(outside),
    "machine": [path for path in ("/", "/etc", "/usr", "/var", "/run",
        "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity", "/sys/kernel/mm/ksm/run")
        if os.access(path, os.W_OK)],
    "work": writes("mine"), "tmp": os.access(os.environ.get("TMPDIR", "/tmp"), os.W_OK),
    "signals": signals(int(server)), "pids": [p for p in os.listdir("/proc") if p.isdigit()],
    "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1],
    "privileges": status["NoNewPrivs"].strip() + status["CapEff"].strip(),
    "run": sorted(set(os.listdir("/run")) - {"systemd", "current-system"}),
}))
"""
CONNECT = r"""
import socket, sys, threading
def reach(port):
    try: socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError as error: return type(error).__name__
    return "connected"
own = socket.create_server(("127.0.0.1", 0))
print(reach(int(sys.argv[-1])), reach(own.getsockname()[1]))
"""


def program(source: str, prompt: Any = "argument") -> Backend:
    return Backend(command=(sys.executable, "-I", "-S", "-u", "-c", source), prompt=prompt)


def shell(script: str) -> Backend:
    return Backend(command=("sh", "-c", script), prompt="none")


CATALOGUE = {
    "look": program(LOOK),
    "connect": program(CONNECT),
    "sleep": shell("exec sleep 1000"),
    "trap": shell("trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.01; done"),
    "deaf": shell("trap '' TERM; setsid sleep 1000 & echo $$; while :; do sleep 0.01; done"),
    "killed": shell("kill -9 $$"),
    "leaves": shell("setsid sleep 1000 & exit 3"),
}


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[LocalProcessRunner]:
    (tmp_path / "work").mkdir()
    config = ProcessRunnerConfig(working_dir=tmp_path / "work")
    async with LocalProcessRunner.with_config(config, catalogue=CATALOGUE) as found:
        yield found


def agent(backend: str, task: str = "", sandbox: Sandbox | bool = True) -> AgentConfig:
    return AgentConfig(name=backend, model_backend=backend, task=task, sandbox=sandbox)


async def seen(handle: AgentHandle) -> Any:
    line = await asyncio.wait_for(handle.next_stdout(), 30)
    assert line is not None, await handle.next_stderr()
    return json.loads(line)


@needs_sandbox
@pytest.mark.requirement("001.sandbox")
async def test_one_in_a_sandbox_writes_its_directory_and_touches_nothing_else(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    task = f"{tmp_path / 'outside'} {os.getpid()}"
    found = await seen(await runner.spawn(agent("look", task)))
    assert found == {
        "outside": True,  # its /tmp is its own: see below
        "machine": [],
        "work": True,
        "tmp": True,
        "signals": False,
        "pids": ["1", "2"],
        "fds": [0, 1, 2],
        "privileges": "1" + "0" * 16,
        "run": [],
    }
    assert os.listdir(tmp_path) == ["work"]  # nothing came out
    assert (tmp_path / "work" / "mine").read_text() == "x"
    free = await seen(await runner.spawn(agent("look", task, sandbox=False)))
    assert free["signals"]
    assert free["outside"]
    assert len(free["pids"]) > 2


@needs_sandbox
@pytest.mark.requirement("001.sandbox")
async def test_no_socket_of_the_host_is_reached(
    runner: LocalProcessRunner, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = elsewhere / "shared"
    shared.mkdir()
    places = [tmp_path / "s", elsewhere / "s", shared / "s"]
    monkeypatch.setattr("retinue.process.sandbox._SOCKET_SECONDS", 0.0)
    reach = """
import socket, sys
for path in sys.argv[-1].split():
    with socket.socket(socket.AF_UNIX) as sock:
        print(sock.connect_ex(path) == 0, end=" ")
"""
    runner.catalogue["reach"] = program(reach)
    with ExitStack() as stack:
        for place in places:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(str(place))
            server.listen()
        task = " ".join(map(str, places))
        for network in ("none", "host"):
            box = Sandbox(network=network, read=(str(shared),))
            handle = await runner.spawn(agent("reach", task, box))
            # The last one was named by the operator.
            assert await handle.next_stdout() == b"False False True ", await handle.next_stderr()
        free = await runner.spawn(agent("reach", task, sandbox=False))
        assert await free.next_stdout() == b"True True True "


@needs_sandbox
@pytest.mark.requirement("001.sandbox")
async def test_credentials_of_its_user_are_not_seen_unless_they_are_named(
    runner: LocalProcessRunner, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    secret = [".ssh/id", ".config/gcloud/it", ".netrc", ".npmrc", ".codex/auth.json"]
    for name in (*secret, ".cargo/bin/tool", ".config/editor"):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_text(name)
    look = "cd; for f in .ssh/id .config/*/it .netrc .npmrc .codex/* .cargo/bin/* .config/editor;"
    runner.catalogue["look"] = shell(f"{look} do cat $f 2>/dev/null; echo -n ' '; done")
    handle = await runner.spawn(agent("look"))
    assert (await handle.next_stdout() or b"").split() == [b".cargo/bin/tool", b".config/editor"]
    box = Sandbox(read=(str(elsewhere / ".npmrc"),))
    handle = await runner.spawn(agent("look", sandbox=box))
    assert b".npmrc" in (await handle.next_stdout() or b"").split()
    # One that lives in that home needs what it logged in with, and nothing else.
    box = Sandbox(write=(str(elsewhere),))
    made = boxed(
        Command(path="/bin/x", argv=("x",), env={}, cwd="/"),
        box.within(Sandbox(hide=private({"HOME": str(elsewhere)}))),
        "bwrap",
        (str(elsewhere),),
    )
    assert f"{elsewhere}/.codex/auth.json" not in made.argv
    assert f"{elsewhere}/.ssh" in made.argv


@needs_sandbox
async def test_what_is_guarded_can_be_neither_written_nor_replaced(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    app = tmp_path / "work" / "deep" / "app"
    app.mkdir(parents=True)
    (app / "given").write_text("ours")
    guard = tuple(str(app / name) for name in ("given", "absent"))
    runner.catalogue["break"] = shell(
        "cd deep/app; cat given absent || echo they cannot be read;"
        " for f in given absent; do echo x >$f; rm -f $f; mv $f y; done;"
        " cd ../..; mv deep/app deep/other; mv deep else; touch deep/app/mine; echo done"
    )
    handle = await runner.spawn(agent("break", sandbox=Sandbox(guard=guard)))
    assert await handle.next_stdout() == b"done\n", await handle.next_stderr()
    assert (app / "given").read_text() == "ours"
    assert (app / "absent").read_bytes() == b""
    assert (app / "absent").stat().st_mode & 0o200  # for whoever it belongs to
    assert (app / "mine").exists()
    assert sorted(os.listdir(app)) == ["absent", "given", "mine"]


async def test_a_link_to_what_is_guarded_is_refused_where_it_could_be_replaced(
    tmp_path: Path,
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "given").touch()
    (work / "link").symlink_to("../real")
    command = Command(path="/bin/x", argv=("x",), env={}, cwd=str(work))
    box = Sandbox(guard=(str(work / "link" / "given"),))
    with pytest.raises(SpawnFailed, match=r"symbolic link link leads to .*given"):
        boxed(command, box, "bwrap", (str(work),))
    boxed(command, box, "bwrap", ())


@needs_sandbox
async def test_what_it_may_write_and_not_see_is_named(
    runner: LocalProcessRunner, tmp_path: Path
) -> None:
    for name in ("more", "secret", "secret/shared"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret" / "key").write_text("canary")
    (tmp_path / "file").write_text("canary")
    (tmp_path / "link").symlink_to("more")
    runner.catalogue["peek"] = shell(
        f"cd {tmp_path}; echo 1 >more/x; echo 1 >secret/shared/x; cat file;"
        " echo 1 >secret/new 2>/dev/null || ls secret"
    )
    box = Sandbox(
        write=(str(tmp_path / "link"), str(tmp_path / "secret" / "shared")),
        hide=(str(tmp_path / "secret"), str(tmp_path / "file"), str(tmp_path / "absent")),
    )
    handle = await runner.spawn(agent("peek", sandbox=box))
    assert [line.raw async for line in handle.output()] == [b"shared\n"]
    assert (tmp_path / "more" / "x").exists()
    assert (tmp_path / "secret" / "shared" / "x").exists()
    assert sorted(os.listdir(tmp_path / "secret")) == ["key", "shared"]


@needs_sandbox
@pytest.mark.requirement("001.network-isolation")
@pytest.mark.parametrize(
    ("network", "host", "own"),
    [
        ("host", "connected", "connected"),
        ("loopback", "ConnectionRefusedError", "connected"),
        ("none", "OSError", "OSError"),
    ],
)
async def test_a_network_is_the_hosts_its_own_or_none(
    runner: LocalProcessRunner, network: Any, host: str, own: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        handle = await runner.spawn(agent("connect", port, Sandbox(network=network)))
        assert await handle.next_stdout() == f"{host} {own}\n".encode(), await handle.next_stderr()


@needs_sandbox
async def test_signals_reach_the_agent_and_not_what_holds_it(runner: LocalProcessRunner) -> None:
    trap = await runner.spawn(agent("trap"))
    assert await trap.next_stdout() == b"ready\n"
    assert (await GracefulShutdown(5).shutdown(trap)).step == "signal"
    assert await trap.next_stdout() == b"caught\n"
    assert (await trap.wait()).code == 7
    sleep = await runner.spawn(agent("sleep"))
    await until(lambda: len(tree([sleep.pid])) == 3)
    metrics = await sleep.metrics()
    assert 0 < metrics.memory_mb < 30
    assert await sleep.pause()
    await sleep.look(0.0)
    assert await sleep.resume()
    assert await sleep.signal(AgentSignal.TERMINATE)
    assert (await sleep.wait()).code == 128 + signal.SIGTERM
    killed = await runner.spawn(agent("killed"))
    assert (await killed.wait()).signal == signal.SIGKILL


@needs_sandbox
async def test_nothing_of_a_sandbox_is_left_however_it_ends(runner: LocalProcessRunner) -> None:
    deaf = await runner.spawn(agent("deaf"))
    assert await deaf.next_stdout() == b"2\n"
    whole = tree([deaf.pid])
    assert len(whole) >= 4
    begun = time.monotonic()
    stopped = await GracefulShutdown(0.2).shutdown(deaf)
    assert (stopped.step, stopped.clean) == ("kill", True)
    assert time.monotonic() - begun < 2.2
    assert not any(map(alive, whole))
    leaves = await runner.spawn(agent("leaves"))
    assert (await leaves.wait()).code == 3
    again = await runner.spawn(agent("deaf"))
    await again.next_stdout()
    whole = tree([again.pid])
    await again.kill()
    assert not any(map(alive, whole))


@needs_sandbox
async def test_a_sandbox_dies_with_its_keeper(runner: LocalProcessRunner) -> None:
    handle = await runner.spawn(agent("deaf"))
    await handle.next_stdout()
    whole, leader = tree([handle.pid]), process(handle.pid)
    assert leader is not None
    os.kill(leader.parent, signal.SIGKILL)
    assert (await handle.wait()).reason == "lost"
    assert await until(lambda: not any(map(alive, whole))) < 2


@needs_sandbox
async def test_limits_hold_in_a_sandbox(tmp_path: Path) -> None:
    limits = ResourceLimits(max_processes=3, max_memory_mb=100)
    config = ProcessRunnerConfig(working_dir=tmp_path, limits=limits)
    many = "sleep 1000 & sleep 1000 &"
    catalogue = {
        "three": shell("sleep 0.4 & sleep 0.4 & wait; exit 4"),
        "four": shell(f"{many} {many} wait"),
        "large": program("x = bytearray(200 << 20)\nimport time; time.sleep(1000)", "none"),
    }
    async with LocalProcessRunner.with_config(config, catalogue=catalogue) as runner:
        assert (await (await runner.spawn(agent("three"))).wait()).code == 4
        assert (await (await runner.spawn(agent("four"))).wait()).reason == "limit_processes"
        assert (await (await runner.spawn(agent("large"))).wait()).reason == "limit_memory"


@pytest.mark.requirement("001.sandbox")
async def test_a_host_without_bubblewrap_refuses_and_says_what_to_install(
    runner: LocalProcessRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runner.catalogue["absolute"] = Backend(command=("/bin/sleep", "1000"), prompt="none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpawnFailed, match=r"no such command .*apt-get install bubblewrap"):
        await runner.spawn(agent("absolute"))
    # What bwrap says where user namespaces are forbidden.
    refuses = tmp_path / "bwrap"
    refuses.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n"
    )
    refuses.chmod(refuses.stat().st_mode | stat.S_IXUSR)
    for _ in range(2):
        with pytest.raises(SpawnFailed, match="No permissions to create new namespace"):
            await runner.spawn(agent("absolute"))
    assert await runner.list_agents() == []


def test_the_arguments_name_each_path_after_its_parents(tmp_path: Path) -> None:
    for name in ("data", "data/home", "data/db"):
        (tmp_path / name).mkdir()
    command = Command(path="/bin/x", argv=("x", "--", "it"), env={}, cwd=str(tmp_path))
    box = Sandbox(network="loopback", hide=(str(tmp_path / "data"), str(tmp_path / "data/db")))
    made = boxed(command, box, "/usr/bin/bwrap", (str(tmp_path / "data/home"), str(tmp_path)))
    words = " ".join(made.argv)
    assert made.path == "/usr/bin/bwrap"
    assert "--unshare-net" in made.argv
    assert (
        f"--bind {tmp_path} {tmp_path} --tmpfs {tmp_path}/data"
        f" --bind {tmp_path}/data/home {tmp_path}/data/home" in words
    )
    assert f"{tmp_path}/data/db" not in words
    assert f"--remount-ro {tmp_path}/data --chdir {tmp_path} -- /bin/x -- it" in words
    assert words.index("--ro-bind / /") < words.index("--bind ")


async def test_what_retinue_runs_from_is_not_an_agents_to_change(tmp_path: Path) -> None:
    environment = tmp_path / ".venv"
    (environment / "bin").mkdir(parents=True)
    plain = Command(path="/bin/sh", argv=("sh", "-c", "true"), env={}, cwd=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retinue.process.sandbox._OURS", (str(environment), "/usr"))
        argv = " ".join(boxed(plain, Sandbox(), "/usr/bin/bwrap", [str(tmp_path)]).argv)
    assert f"--bind {tmp_path} {tmp_path} " in argv
    assert f"--ro-bind {environment} {environment} " in argv
    assert "--ro-bind /usr /usr" not in argv  # nobody can write there anyway


async def test_a_socket_that_may_be_gone_in_a_moment_does_not_matter(elsewhere: Path) -> None:
    plain = Command(path="/bin/sh", argv=("sh", "-c", "true"), env={}, cwd="/")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(elsewhere / "s"))
        server.listen()
        assert str(elsewhere / "s") not in boxed(plain, Sandbox(), "/usr/bin/bwrap", []).argv

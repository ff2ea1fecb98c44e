"""``retinue agent ps | logs | pause | resume | signal | stop | attach``: real processes of both."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.cli.conftest import COMMANDS, SECONDS, Place, Server
from tests.process.rig import alive

AGENTS: list[dict[str, Any]] = [
    {
        "agent_id": "talk",
        "command": ["sh", "-c", "printf 'on\\033[31m\\n'; echo e >&2; sleep 1000"],
    },
    {"agent_id": "echo", "command": ["cat"], "stdin_open": True},
]


@pytest.fixture
def server(place: Place) -> Iterator[Server]:
    agents = [{"driver": "command", "stop_seconds": 0.5, **agent} for agent in AGENTS]
    common = {"examples": False, "entry_points": False, "grace_seconds": 1}
    place.write("retinue.yaml", json.dumps({**common, "agents": agents}))
    with place.serve() as server:
        yield server


def begin(server: Server, agent_id: str) -> str:
    task = {"session_id": "s", "agent_id": agent_id, "parameters": {"prompt": "hello\n"}}
    execution_id: str = server.post("/v1/executions", task)["execution_id"]
    return execution_id


def until(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_an_agents_process_is_shown_heard_and_ended(place: Place, server: Server) -> None:
    execution_id = begin(server, "talk")
    until(lambda: place.call("agent", "logs", "talk").out)
    (shown,) = place.call("agent", "ps", "--json").json["instances"]
    assert (shown["agent_id"], shown["status"]) == ("talk", "running")
    table = place.call("agent", "ps").out.splitlines()
    assert table[0].split()[:4] == ["INSTANCE_ID", "AGENT_ID", "PID", "STATUS"]
    assert table[1].split()[:4] == [shown["instance_id"], "talk", str(shown["pid"]), "running"]
    for which in ("talk", shown["instance_id"], execution_id):
        done = place.call("agent", "logs", which)
        assert (done.code, done.out, done.err) == (0, "on\n", "e\n")
    cut = place.call("agent", "logs", "talk", "--tail", "2")
    assert cut.out == "m\n"
    assert "stdout: 6 bytes before this are not shown" in cut.err
    assert place.call("agent", "logs", "talk", "--json").json["stdout"] == "on\x1b[31m\n"
    following = place.start("agent", "logs", "-f", "talk")
    assert following.stdout is not None
    assert following.stdout.readline() == "on\n"

    assert place.call("agent", "pause", "talk").out == f"{shown['instance_id']} is paused\n"
    assert place.call("agent", "ps", "--json").json["instances"][0]["status"] == "paused"
    assert place.call("agent", "resume", "talk", "--json").json["state"] == "busy"
    assert place.call("agent", "signal", "talk", "SIGCONT", "--tree").out == "2 processes got it\n"
    done = place.call("agent", "signal", "talk", "NOPE")
    assert (done.code, "signal" in done.err) == (2, True)
    assert place.call("agent", "stop", "talk").out == f"{shown['instance_id']} is stopped\n"
    assert not alive(shown["pid"])
    assert following.wait(SECONDS) == 0
    following.communicate()

    assert place.call("agent", "ps").err == "there are none\n"
    (ended,) = place.call("agent", "ps", "-a", "--json").json["instances"]
    assert (ended["status"], ended["reason"]) == ("terminated", "stopped by local")
    assert place.call("agent", "logs", "talk").out == "on\n"
    assert place.call("agent", "signal", "talk", "TERM").out == "it has ended: nobody got it\n"
    assert server.stop() == 0
    # The store says it without a server, too; what acts needs one.
    assert place.retinue("agent", "ps", "-a", "--json").json["instances"][0] == ended
    assert "no server runs here" in place.retinue("agent", "ps", "-a").err
    assert place.retinue("agent", "logs", "talk").out == "on\n"
    done = place.retinue("agent", "stop", "talk")
    assert (done.code, "needs a running server" in done.err) == (1, True)


@pytest.mark.requirement("001.recover")
def test_without_a_server_nothing_is_said_to_run(place: Place, server: Server) -> None:
    begin(server, "talk")
    until(lambda: place.call("agent", "logs", "talk").out)
    (shown,) = place.call("agent", "ps", "--json").json["instances"]
    assert place.call("agent", "ps").err == ""
    assert server.stop(signal.SIGKILL) != 0
    until(lambda: not alive(shown["pid"]))
    done = place.call("agent", "ps")
    assert "no server runs here" in done.err
    assert done.out.splitlines()[1].split()[3] == "lost"
    (lost,) = place.call("agent", "ps", "--json").json["instances"]
    assert (lost["status"], lost["reason"], lost["health"]) == (
        *("lost", "no server supervises it"),
        None,
    )
    assert [moved["status"] for moved in lost["timeline"]] == ["initializing", "running"]


def test_which_one_must_be_clear(place: Place, server: Server) -> None:
    done = place.call("agent", "logs", "talk")
    assert (done.code, "has no process" in done.err) == (2, True)
    begin(server, "talk")
    begin(server, "talk")
    until(lambda: place.call("agent", "ps", "--json").json["total"] == 2)
    done = place.call("agent", "stop", "talk")
    assert (done.code, "has 2 processes" in done.err) == (1, True)


@pytest.mark.requirement("001.attach")
def test_another_terminal_is_attached(place: Place, server: Server) -> None:
    begin(server, "echo")
    until(lambda: place.call("agent", "logs", "echo").out == "hello\n")
    attached = subprocess.Popen(
        [str(COMMANDS / "retinue"), "agent", "attach", "echo"],
        cwd=place.directory,
        env=place.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert attached.stdin is not None
    assert attached.stdout is not None
    assert attached.stdout.readline() == "hello\n"
    for line in ("one\n", "two\n", "x" * 300_000 + "\n"):
        attached.stdin.write(line)
        attached.stdin.flush()
        assert attached.stdout.readline() == line
    out, err = attached.communicate(timeout=SECONDS)  # the end of our input is the end of its
    assert (attached.returncode, out) == (0, ""), err
    assert err.endswith(" is stopped\n")


def test_who_only_watches_is_told(place: Place, server: Server) -> None:
    begin(server, "talk")
    until(lambda: place.call("agent", "logs", "talk").out)
    attached = place.start("agent", "attach", "talk")
    assert attached.stdout is not None
    assert attached.stdout.readline() == "on\n"
    place.call("agent", "stop", "talk")
    _, err = attached.communicate(timeout=SECONDS)
    assert attached.returncode == 0
    assert "has no stdin that is open" in err
    assert err.endswith(" is stopped: stopped by local\n")

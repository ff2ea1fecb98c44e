"""Agents' processes over HTTP: listed, measured, listened to, paused, signalled, stopped, told."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.process.rig import alive
from tests.server.conftest import Served
from tests.server.test_access import make_key

from retinue.settings import CommandReference

PYTHON = (sys.executable, "-I", "-S", "-u", "-c")
ECHO = "import sys\nfor line in sys.stdin: print('heard', line, end='', flush=True)"
TALK = "printf 'begun\\n'; printf 'oops\\n' >&2; cat >/dev/null; sleep 1000"
BUSY = (
    "import os, time\nx = bytearray(80 << 20)\n"
    "pid = os.fork()\nprint('begun', flush=True)\n"
    "while time.process_time() < 1.0: pass\n"
    "time.sleep(1000)"
)
HALVES = (
    "import os, sys\nsys.stdin.readline()\nos.write(1, b'a\\xc3')\nsys.stdin.readline()\n"
    "os.write(1, b'\\xbcz\\xc3')"
)
ENDS = """
read -r how; printf '{"type":"thinking","content":"hm"}\\n{"type":"output","content":"x"}\\n'
head -c 1100000 /dev/zero | tr '\\0' x; echo
case $how in
good) echo '{"type":"result","result":1}'; exit 1;;
bad) echo '{"type":"result","is_error":true,"error":"it was no use"}';;
mute) ;;
esac
"""
MILD = (
    "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\n"
    "print('one\\ntwo\\nthree', flush=True)\ntime.sleep(1000)"
)
MISSING = ("skipped", "dropped")
SECONDS = 20.0


def command(agent_id: str, *argv: str, **more: Any) -> CommandReference:
    return CommandReference(driver="command", agent_id=agent_id, command=argv, **more)


AGENTS = (
    command("talk", "sh", "-c", TALK, stop_seconds=0.5),
    command("echo", *PYTHON, ECHO, stdin_open=True),
    command("busy", *PYTHON, BUSY, stop_seconds=0.5, output="json-lines"),
    command("halves", *PYTHON, HALVES, stdin_open=True),
    command("deaf", "sh", "-c", "trap '' TERM; printf x; sleep 1000 & wait", stop_seconds=0.2),
    command("ends", "sh", "-c", ENDS, output="json-lines", stop_seconds=0.5),
    command("mild", *PYTHON, MILD),
    command("quiet", *PYTHON, ECHO, stdin_open=True, stall_seconds=0.3),
    command("stopper", "sh", "-c", "cat >/dev/null; kill -STOP $PPID; exec sleep 1000"),
    command("done", "sh", "-c", "printf out; printf err >&2; exit 3"),
)


class Caller:
    """A caller of one server."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def begin(self, agent_id: str, prompt: str = "x") -> tuple[str, dict[str, Any]]:
        """Submit a task; return its execution, and its instance once that runs."""
        task = {"session_id": "s", "agent_id": agent_id, "parameters": {"prompt": prompt}}
        answer = self.client.post("/v1/executions", json=task)
        assert answer.status_code == 202, answer.text
        execution_id = answer.json()["execution_id"]
        return execution_id, self.until(
            lambda: self.of(execution_id), lambda i: i is not None and i["started_at"]
        )

    def of(self, execution_id: str) -> Any:
        found = self.get("/v1/instances", execution_id=execution_id)["instances"]
        return found[0] if found else None

    def get(self, path: str, **query: Any) -> Any:
        answer = self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def until(self, look: Callable[[], Any], holds: Callable[[Any], Any]) -> Any:
        deadline = time.monotonic() + SECONDS
        while not holds(found := look()):
            assert time.monotonic() < deadline, found
            time.sleep(0.01)
        return found

    def instance(self, i: dict[str, Any]) -> Any:
        return self.get(f"/v1/instances/{i['instance_id']}")

    def log(self, i: dict[str, Any], **query: Any) -> Any:
        return self.get(f"/v1/instances/{i['instance_id']}/log", **query)


@pytest.fixture
def served(start: Callable[..., Served]) -> Served:
    return start(agents=AGENTS)


@pytest.fixture
def caller(served: Served) -> Iterator[Caller]:
    with served.client() as client:
        yield Caller(client)


def test_a_process_is_shown_from_its_start_to_after_its_end(caller: Caller) -> None:
    execution_id, i = caller.begin("talk")
    assert (i["agent_id"], i["driver"], i["state"], i["status"]) == (
        *("talk", "command", "busy"),
        "running",
    )
    assert (i["execution_id"], i["attempt"], i["waiting_for"], i["ended_at"]) == (
        *(execution_id, 1),
        *(None, None),
    )
    assert alive(i["pid"])
    caller.until(lambda: caller.log(i), lambda log: log["stdout"] and log["stderr"])
    assert caller.get("/v1/instances", live="true")["total"] == 1
    stopped = caller.post(f"/v1/instances/{i['instance_id']}/stop")
    assert (stopped["state"], stopped["status"], stopped["exit_signal"]) == (
        *("stopped", "terminated"),
        signal.SIGTERM,
    )
    assert stopped["reason"] == "stopped by local"
    assert not alive(i["pid"])
    assert caller.get(f"/v1/executions/{execution_id}")["state"] == "cancelled"
    assert caller.log(i) == {
        "instance_id": i["instance_id"],
        "stdout": "begun\n",
        "stderr": "oops\n",
        **dict.fromkeys(
            ("stdout_skipped", "stderr_skipped", "stdout_dropped", "stderr_dropped"), 0
        ),
    }
    end = caller.log(i, tail=3)
    assert (end["stdout"], end["stdout_skipped"]) == ("un\n", 3)
    again = caller.instance(i)
    assert again["uptime_secs"] == stopped["uptime_secs"] > 0
    assert again["messages_received"] == 1
    assert caller.get("/v1/instances", live="true")["total"] == 0
    assert caller.get("/v1/instances", state="stopped,failed", agent_id="talk")["total"] == 1
    # Stopped again: nothing happens.
    assert caller.post(f"/v1/instances/{i['instance_id']}/stop") == again
    caller.post(f"/v1/instances/{i['instance_id']}/pause", status=409)


@pytest.mark.requirement("001.status")
@pytest.mark.parametrize(
    ("how", "status", "reason", "code"),
    [
        ("good", "completed", None, 1),
        ("bad", "failed", "it was no use", 0),
        ("mute", "failed", "the command ended without a result line; refused: a line of", 0),
    ],
)
def test_its_own_last_word_says_how_it_ended(
    caller: Caller, how: str, status: str, reason: str | None, code: int
) -> None:
    execution_id, _ = caller.begin("ends", f"{how}\n")
    i = caller.until(
        lambda: caller.of(execution_id), lambda i: i["ended_at"] and i["status"] == status
    )
    assert i["exit_code"] == code
    assert (i["reason"] or "").startswith(reason or "")
    assert (i["refused_lines"], i["refused_bytes"]) == (1, 1_100_001)
    moves = [(moved["status"], moved["at"]) for moved in i["timeline"]]
    assert [word for word, _ in moves][:4] == ["initializing", "running", "thinking", "running"]
    assert moves[-1][0] == status
    assert [at for _, at in moves] == sorted(at for _, at in moves)
    assert i["timeline"][-1]["reason"] == i["reason"]
    assert (i["health"], i["last_output_secs"]) == (None, None)


@pytest.mark.requirement("001.status")
def test_one_that_is_ended_is_terminated_whatever_it_exits_with(caller: Caller) -> None:
    execution_id, i = caller.begin("mild")
    caller.until(lambda: caller.instance(i), lambda i: i["messages_received"] == 3)
    caller.post(f"/v1/executions/{execution_id}/cancel")
    i = caller.until(lambda: caller.instance(i), lambda i: i["ended_at"])
    assert (i["status"], i["exit_code"], i["reason"]) == ("terminated", 0, "cancelled by local")
    assert (i["messages_sent"], i["messages_received"]) == (1, 3)
    task = {"session_id": "s", "agent_id": "mild", "parameters": {"prompt": "x"}}
    late = caller.client.post("/v1/executions", json={**task, "timeout_ms": 300}).json()
    i = caller.until(lambda: caller.of(late["execution_id"]), lambda i: i and i["ended_at"])
    assert (i["status"], i["reason"]) == ("terminated", "Agent invocation timed out after 300ms")


@pytest.mark.requirement("001.health")
def test_a_silent_one_is_called_stalled(caller: Caller) -> None:
    _, i = caller.begin("quiet")
    i = caller.until(lambda: caller.instance(i), lambda i: i["health"] == "stalled")
    assert i["status"] == "running"
    assert i["last_output_secs"] > 0.3
    assert i["last_event_secs"] > 0.3
    assert i["busy_secs"] > 0.3
    caller.post(f"/v1/instances/{i['instance_id']}/stdin", {"text": "more\n"}, status=204)
    caller.until(lambda: caller.instance(i), lambda i: i["health"] == "healthy")
    # Time in which it may not say anything does not count.
    path = f"/v1/instances/{i['instance_id']}"
    caller.post(f"{path}/pause")
    i = caller.until(lambda: caller.instance(i), lambda i: i["last_output_secs"] > 0.5)
    assert (i["status"], i["health"]) == ("paused", "healthy")
    assert caller.post(f"{path}/resume")["health"] == "healthy"


@pytest.mark.requirement("001.health")
def test_one_that_somebody_else_stopped_is_shown_so_and_goes_on(caller: Caller) -> None:
    _, i = caller.begin("talk")
    path = f"/v1/instances/{i['instance_id']}"
    caller.post(f"{path}/signal", {"signal": "STOP", "tree": True})
    i = caller.until(lambda: caller.instance(i), lambda i: i["status"] == "paused")
    assert (i["health"], i["reason"]) == ("unresponsive", "stopped by a signal")
    resumed = caller.post(f"{path}/resume")
    assert (resumed["status"], resumed["health"], resumed["reason"]) == ("running", "healthy", None)
    caller.until(lambda: state_of(i["pid"]), lambda state: state != "T")
    words = [moved["status"] for moved in caller.instance(i)["timeline"]]
    assert words == ["initializing", "running", "paused", "running"]


@pytest.mark.requirement("001.pause")
def test_while_it_is_paused_its_deadline_stands_still(caller: Caller) -> None:
    task = {"session_id": "s", "agent_id": "echo", "parameters": {"prompt": "x"}}
    asked = caller.client.post("/v1/executions", json={**task, "timeout_ms": 2000}).json()
    execution_id = asked["execution_id"]
    i = caller.until(lambda: caller.of(execution_id), lambda i: i and i["started_at"])
    path = f"/v1/instances/{i['instance_id']}"
    caller.post(f"{path}/pause")
    i = caller.until(lambda: caller.instance(i), lambda i: i["uptime_secs"] > 2.5)
    assert i["status"] == "paused"
    caller.post(f"{path}/resume")
    caller.post(f"{path}/stdin", {"close": True}, status=204)
    done = caller.until(
        lambda: caller.get(f"/v1/executions/{execution_id}"), lambda e: e["finished_at"]
    )
    assert (done["state"], done["result"]) == ("completed", "heard x\n")
    # It runs again from there.
    asked = caller.client.post("/v1/executions", json={**task, "timeout_ms": 500}).json()
    execution_id = asked["execution_id"]
    i = caller.until(lambda: caller.of(execution_id), lambda i: i and i["started_at"])
    for word in ("pause", "resume"):
        caller.post(f"/v1/instances/{i['instance_id']}/{word}")
    done = caller.until(
        lambda: caller.get(f"/v1/executions/{execution_id}"), lambda e: e["finished_at"]
    )
    assert done["state"] == "timed_out"


def test_how_it_failed_is_kept(caller: Caller) -> None:
    execution_id, _ = caller.begin("done")
    i = caller.until(lambda: caller.of(execution_id), lambda i: i["ended_at"])
    assert (i["state"], i["status"], i["exit_code"]) == ("failed", "failed", 3)
    assert i["reason"] == "exited 3"
    log = caller.until(lambda: caller.log(i), lambda log: log["stderr"])
    assert (log["stdout"], log["stderr"]) == ("out", "err")


def test_pages_are_of_the_callers_own(caller: Caller, served: Served) -> None:
    made = [caller.begin("done")[1]["instance_id"] for _ in range(3)]
    first = caller.get("/v1/instances", limit=2)
    second = caller.get("/v1/instances", limit=2, cursor=first["next_cursor"])
    seen = [i["instance_id"] for i in (*first["instances"], *second["instances"])]
    assert (seen, first["total"], second["next_cursor"]) == (made[::-1], 3, None)
    with served.client(make_key(caller.client, "root", "admin")) as admin:
        bob = make_key(admin, "bob", "operator", "bob")
    with served.client(bob) as client:
        assert client.get("/v1/instances").json()["total"] == 0
        for path in ("", "/log"):
            assert client.get(f"/v1/instances/{made[0]}{path}").status_code == 404
        for word in ("pause", "resume", "stop"):
            assert client.post(f"/v1/instances/{made[0]}/{word}").status_code == 404


def test_only_operators_act(caller: Caller, served: Served) -> None:
    _, i = caller.begin("talk")
    with served.client(make_key(caller.client, "root", "admin")) as admin:
        eve = make_key(admin, "eve", "viewer")
    path = f"/v1/instances/{i['instance_id']}"
    with served.client(eve) as client:
        assert client.get(path).json()["pid"] == i["pid"]
        assert client.get(f"{path}/log").status_code == 200
        for word, body in (
            ("pause", None),
            ("resume", None),
            ("stop", None),
            ("signal", {"signal": "KILL"}),
            ("stdin", {"text": "x"}),
        ):
            answer = client.post(f"{path}/{word}", json=body)
            assert (answer.status_code, answer.json()["code"]) == (403, "E_FORBIDDEN"), word
    assert alive(i["pid"])


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_paused_one_stands_and_goes_on(caller: Caller) -> None:
    _, i = caller.begin("busy")
    caller.until(lambda: caller.log(i), lambda log: log["stdout"].count("begun") == 2)
    path = f"/v1/instances/{i['instance_id']}"
    paused = caller.post(f"{path}/pause")
    assert (paused["state"], paused["status"], paused["reason"]) == ("paused", "paused", "paused")
    caller.until(lambda: state_of(i["pid"]), lambda state: state == "T")
    assert caller.post(f"{path}/pause")["state"] == "paused"
    before = caller.instance(i)["cpu_secs"]
    assert caller.instance(i)["cpu_secs"] == before
    assert caller.post(f"{path}/resume")["state"] == "busy"
    caller.until(lambda: state_of(i["pid"]), lambda state: state != "T")
    # One that is paused can be stopped.
    caller.post(f"{path}/pause")
    assert caller.post(f"{path}/stop")["state"] == "stopped"
    assert not alive(i["pid"])


@pytest.mark.requirement("001.metrics")
def test_the_whole_tree_is_measured_and_its_last_values_stay(caller: Caller) -> None:
    _, i = caller.begin("busy")
    # Two processes, a second of CPU and 80 MiB each (the memory of the second is the first's,
    # counted as the kernel does: once per process).
    used = caller.until(lambda: caller.instance(i), lambda i: i["cpu_secs"] >= 1.9)
    assert used["cpu_secs"] == pytest.approx(2.0, rel=0.2)
    assert used["memory_mb"] == pytest.approx(2 * 90, rel=0.2)
    assert used["processes"] == 2
    assert (used["messages_sent"], used["messages_received"]) == (1, 2)
    assert used["cpu_usage"] == pytest.approx(
        used["cpu_secs"] / used["uptime_secs"] * 100, rel=0.01
    )
    listed = caller.get("/v1/instances")["instances"][0]
    assert listed["cpu_secs"] >= used["cpu_secs"]
    caller.post(f"/v1/instances/{i['instance_id']}/stop")
    after = caller.instance(i)
    assert after["cpu_secs"] >= used["cpu_secs"]
    assert after["memory_mb"] == after["peak_memory_mb"] >= used["memory_mb"]
    assert after["processes"] == 0
    assert after == caller.instance(i)


def test_a_signal_reaches_it_and_an_ended_one_gets_none(caller: Caller) -> None:
    _, i = caller.begin("deaf")
    path = f"/v1/instances/{i['instance_id']}"
    caller.until(lambda: caller.log(i), lambda log: log["stdout"])
    assert caller.post(f"{path}/signal", {"signal": "Terminate"})["delivered"] == 1
    assert caller.post(f"{path}/signal", {"signal": "TERM", "tree": True})["delivered"] == 2
    assert alive(i["pid"])
    assert caller.post(f"{path}/signal", {"signal": "Kill"})["delivered"] == 1
    ended = caller.until(lambda: caller.instance(i), lambda i: i["ended_at"])
    assert (ended["state"], ended["status"], ended["exit_signal"]) == ("failed", "terminated", 9)
    assert caller.post(f"{path}/signal", {"signal": "INT"})["delivered"] == 0
    caller.post(f"{path}/signal", {"signal": "nope"}, status=422)
    caller.post("/v1/instances/01ARZ3NDEKTSV4RRFFQ69G5FAV/stop", status=404)


@pytest.mark.requirement("001.attach")
def test_what_it_says_is_followed_and_it_can_be_told_more(caller: Caller) -> None:
    execution_id, i = caller.begin("echo", "first")
    assert i["stdin"] is True
    path = f"/v1/instances/{i['instance_id']}"
    heard = ""
    said = iter(["second\n", "third\n"])
    accept = {"accept": "text/event-stream"}
    with caller.client.stream("GET", f"{path}/log", headers=accept) as stream:
        caller.post(f"{path}/stdin", {"text": next(said)}, status=204)
        for line in stream.iter_lines():
            if not line.startswith("data:"):
                continue
            piece = json.loads(line[5:])
            assert piece["stream"] == "stdout"
            heard += piece["text"]
            if heard.endswith("second\n"):
                caller.post(f"{path}/stdin", {"text": next(said)}, status=204)
            elif heard.endswith("third\n"):
                caller.post(f"{path}/stdin", {"close": True}, status=204)
    assert heard == "heard first\nheard second\nheard third\n"
    ended = caller.until(lambda: caller.instance(i), lambda i: i["ended_at"])
    assert (ended["state"], ended["exit_code"], ended["stdin"]) == ("stopped", 0, False)
    assert ended["status"] == "completed"
    caller.post(f"{path}/stdin", {"text": "x"}, status=409)
    result = caller.until(
        lambda: caller.get(f"/v1/executions/{execution_id}"), lambda e: e["finished_at"]
    )
    assert result["result"] == heard


def test_a_character_in_two_writes_is_one_to_who_follows(caller: Caller) -> None:
    _, i = caller.begin("halves")
    path = f"/v1/instances/{i['instance_id']}"
    texts = []
    accept = {"accept": "text/event-stream"}
    with caller.client.stream("GET", f"{path}/log", headers=accept) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                texts.append(json.loads(line[5:])["text"])
                if texts == ["a"]:  # the first half of the next is there, too
                    caller.post(f"{path}/stdin", {"text": "go on\n"}, status=204)
    assert "".join(texts) == "aüz\N{REPLACEMENT CHARACTER}"


def test_one_without_an_open_stdin_is_not_told(caller: Caller) -> None:
    _, i = caller.begin("talk")
    caller.until(lambda: caller.instance(i), lambda i: not i["stdin"])
    caller.post(f"/v1/instances/{i['instance_id']}/stdin", {"text": "x"}, status=409)


@pytest.mark.requirement("001.max-concurrent")
def test_what_waits_says_where_and_for_what(caller: Caller) -> None:
    # Four run at a time.
    running = [caller.begin("talk") for _ in range(4)]
    task = {"session_id": "s", "agent_id": "talk", "parameters": {"prompt": "x"}}
    queued = [caller.client.post("/v1/executions", json=task).json() for _ in range(3)]
    shown = [caller.get(f"/v1/executions/{e['execution_id']}") for e in queued]
    assert [e["state"] for e in shown] == ["queued"] * 3
    assert [e["place"] for e in shown] == [0, 1, 2]
    for e in shown:
        assert e["waits_for"].startswith("4 executions of its agents run"), e["waits_for"]
    assert "place" not in caller.get(f"/v1/executions/{running[0][0]}")
    assert caller.get("/v1/instances", live="true")["total"] == 4
    caller.post(f"/v1/instances/{running[0][1]['instance_id']}/stop")
    path = f"/v1/executions/{queued[0]['execution_id']}"
    caller.until(lambda: caller.get(path), lambda e: e["state"] == "running")
    second = caller.get(f"/v1/executions/{queued[1]['execution_id']}")
    assert (second["place"], second["state"]) == (0, "queued")


def test_an_agent_that_stops_the_keeper_ends_all_of_them_and_no_question_waits(
    caller: Caller, served: Served
) -> None:
    talk, other = caller.begin("talk")
    stopper, _ = caller.begin("stopper")
    for execution_id in (talk, stopper):
        look = partial(caller.get, f"/v1/executions/{execution_id}")
        ended = caller.until(look, lambda e: e["state"] not in {"queued", "running"})
        assert (ended["state"], ended["outcome"]) == ("failed", "unknown")
        assert "was lost: its keeper was killed: it was stopped" in ended["error"]["message"]
        assert ended["error"]["details"]["reason"] == "lost"
    assert caller.instance(other)["reason"] == "lost"
    caller.until(lambda: alive(other["pid"]), lambda lives: not lives)
    _, again = caller.begin("talk")  # another keeper has begun
    assert caller.post(f"/v1/instances/{again['instance_id']}/stop")["state"] == "stopped"

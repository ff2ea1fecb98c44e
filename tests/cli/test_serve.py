"""``retinue serve``: what it says, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.cli.conftest import SECONDS, Place, Server, in_steps

mark = pytest.mark


def test_the_banner_says_where_it_is_and_what_to_try(served: Server) -> None:
    said = served.banner
    assert served.url.startswith("http://127.0.0.1:")
    assert f"{served.url}/docs" in said
    assert f"{served.place.directory}/.retinue/retinue.db" in said
    assert "agent_example_001  echo, uppercase" in said
    assert "retinue run survey_repository path=.\n" in said
    assert "--follow" in said
    assert "curl -X POST" in said
    assert len(said.splitlines()) <= 20


@mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(place: Place, number: int) -> None:
    with place.serve("--no-examples") as server:
        assert "agents    none" in server.banner
        assert server.stop(number) == 0
    assert "Traceback" not in server.log
    assert (place.directory / ".retinue" / "retinue.lock").read_text() == ""


def test_it_takes_the_time_that_running_work_needs(place: Place) -> None:
    with place.serve() as server:
        words = ("run", "summarize_text", "text=One. Two.", "pause_ms=700", "--follow")
        running = in_steps(place, *words, until="One.")
        assert server.stop() == 0
        out, err = running.communicate(timeout=SECONDS)
        assert (running.returncode, out) == (0, " Two.\n"), err


@mark.requirement("003.env")
def test_a_busy_port_is_named(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = place.call("serve", ORCHESTRATOR_PORT=port)
        assert done.code == 1
        assert done.err.startswith(f"error E_SETTINGS: cannot listen on 127.0.0.1:{port}")
        assert "--port 0" in done.err
        assert not (place.directory / ".retinue").exists()
        assert place.call("serve", "--port", port, ORCHESTRATOR_PORT="0").code == 1


def test_a_second_server_is_refused_and_led_to_the_first(served: Server) -> None:
    pid = str(served.process.pid)
    done = served.place.call("serve", "--port", "0")
    assert done.code == 1
    assert done.err.startswith("error E_STORE_LOCKED")
    assert pid in done.err
    assert served.url in done.err
    done = served.place.call("serve", "--port", served.url.rpartition(":")[2])
    assert done.code == 1
    assert f"process {pid} serves this very store at {served.url}" in done.err


@mark.parametrize(
    ("text", "environment", "said"),
    [
        ("prot: 1\n", {}, "there is no setting prot; did you mean port?"),
        ("port: high\n", {}, 'retinue.yaml: port is "high"'),
        ("", {"RETINUE_QEUE_BOUND": "1"}, "did you mean RETINUE_QUEUE_BOUND?"),
        ("", {"ORCHESTRATOR_PORT": "high"}, 'ORCHESTRATOR_PORT is "high"'),
        ("", {"TRACE_URL": "nowhere"}, "TRACE_URL"),
    ],
)
@mark.requirement("003.env")
def test_wrong_settings_are_named(
    place: Place, text: str, environment: dict[str, str], said: str
) -> None:
    place.write("retinue.yaml", text)
    done = place.call("serve", **environment)
    assert done.code == 2
    assert done.err.startswith("error E_SETTINGS: ")
    assert said in done.err


def test_agents_that_cannot_be_loaded_are_named(place: Place) -> None:
    place.write("retinue.yaml", "agents: ['nowhere:Agent']\n")
    done = place.retinue("serve", "--port", "0")
    assert done.code == 2
    assert "nowhere:Agent" in done.err
    assert "No module named 'nowhere'" in done.err


def test_other_machines_need_a_key_to_exist(place: Place) -> None:
    done = place.call("serve", "--host", "0.0.0.0", "--port", "0")
    assert done.code != 0
    assert "no API key" in done.err
    secret = place.call("key", "create", "me", "--role", "admin").out.strip()
    with place.serve("--host", "0.0.0.0"):
        done = place.call("agent")
        assert done.code == 1
        assert done.err.startswith("error E_UNAUTHENTICATED")
        assert place.call("agent", RETINUE_API_KEY=secret).code == 0
        assert place.call("agent", RETINUE_API_KEY="rtn_wrong").code == 1


def test_another_place_for_the_store(place: Place) -> None:
    with place.serve("--data-dir", "elsewhere") as server:
        assert f"--url {server.url}" in server.banner
        assert (place.directory / "elsewhere" / "retinue.db").exists()
    with place.serve("--database-url", "sqlite:///other.db") as server:
        assert f"sqlite:///{place.directory}/other.db" in server.banner
    with place.serve(DATABASE_URL="sqlite://"):
        pass
    assert not (place.directory / ".retinue").exists()


def test_what_a_crash_left_is_reported(place: Place) -> None:
    with place.serve() as server:
        words = ("summarize_text", "text=One is. Two is.", "pause_ms=60000", "--follow")
        running = in_steps(place, "run", *words, until="One")
        server.stop(signal.SIGKILL)
    with place.serve() as server:
        assert (
            "recovered after a crash: 0 queued again, 1 failed (outcome unknown)" in server.banner
        )
    running.kill()
    running.communicate(timeout=SECONDS)


def test_a_follower_comes_back_to_a_restarted_server(place: Place) -> None:
    """The survey may be repeated, so it goes on after the crash; the client sees that."""
    port = _free_port()
    place.write(
        "gate.py",
        "import asyncio, pathlib\n"
        "from retinue import Context, Options, capability\n"
        "@capability(options=Options(delivery='idempotent'))\n"
        "async def wait(context: Context) -> str:\n"
        "    context.text(f'attempt {context.attempt}.')\n"
        "    while not pathlib.Path('go').exists():\n"
        "        await asyncio.sleep(0.05)\n"
        "    return 'through'\n",
    )
    place.write("retinue.yaml", "agents: ['gate:wait']\n")
    with place.serve(ORCHESTRATOR_PORT=port) as server:
        running = in_steps(place, "run", "wait", "--follow", until="attempt 1.")
        server.stop(signal.SIGKILL)
    place.write("go", "")
    with place.serve(ORCHESTRATOR_PORT=port):
        out, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 0, err
    assert "attempt 2." in out
    assert "· attempt 2: starts over" in err


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


@mark.requirement("001.json-logs")
def test_json_logs_are_lines_of_json_and_nothing_else(place: Place) -> None:
    place.write(
        "noisy.py",
        "import logging, sys, threading, warnings\n"
        "from retinue import capability\n"
        "@capability()\n"
        "async def noise(text: str) -> str:\n"
        "    logging.getLogger('noisy').warning('two\\nlines \\x00 %s', text)\n"
        "    warnings.warn('be warned')\n"
        "    thread = threading.Thread(target=lambda: 1 / 0)\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "    raise ValueError(text)\n",
    )
    place.write("retinue.yaml", "agents: ['noisy:noise']\n")
    with place.serve(RETINUE_LOG_FORMAT="json", RETINUE_LOG_LEVEL="debug") as server:
        body = {"session_id": "s", "capability": "noise", "parameters": {"text": "sk-1234567890"}}
        reply = server.post("/v1/orchestrate", body)
        assert reply["success"] is False
    assert server.banner == ""
    assert "1234567890" not in server.log
    found = [json.loads(line) for line in server.log.splitlines()]
    for line in found:
        assert line.keys() >= {"time", "level", "logger", "message", "trace_id", "span_id"}
    own = [line for line in found if line["logger"] == "noisy"]
    assert [line["message"] for line in own] == ["two\nlines \x00 sk-***"]
    assert own[0]["execution_id"] == reply["execution_id"]
    assert own[0]["session_id"] == "s"
    assert own[0]["agent_id"] == "noise"
    failure = [line for line in found if line["message"].startswith("execution failed")]
    assert "ValueError" in failure[0]["exception"]
    assert any("ZeroDivisionError" in line.get("exception", "") for line in found)
    assert any(line["logger"] == "py.warnings" for line in found)
    assert found[-1]["message"] == "stopped"


@mark.requirement("001.json-logs")
def test_a_start_that_fails_is_a_line_of_json_too(served: Server) -> None:
    for words in (["--port", "0"], ["--port", served.url.rpartition(":")[2]]):
        done = served.place.retinue("serve", *words, RETINUE_LOG_FORMAT="json")
        assert done.code == 1
        (line,) = [json.loads(line) for line in done.err.splitlines()]
        assert line["level"] == "error"
        assert served.url in line["message"]


@mark.requirement("001.json-logs")
def test_the_log_level_is_settable(place: Place) -> None:
    with place.serve("--no-examples", RETINUE_LOG_LEVEL="error") as server:
        pass
    assert server.log == ""


def test_agents_come_from_the_file_and_from_packages(place: Place) -> None:
    source = "from retinue import capability\n@capability()\ndef {0}() -> str:\n    return '{0}'\n"
    place.write("beside.py", source.format("named"))
    place.write("retinue.yaml", "agents: ['beside:named']\n")
    site = place.directory / "site"
    package = site / "packaged-1.0.dist-info"
    package.mkdir(parents=True)
    (site / "packaged.py").write_text(source.format("offered"))
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[retinue.agents]\nit = packaged:offered\n")
    done = place.retinue("run", "named")
    assert done.json == "named"
    done = place.retinue("run", "offered", PYTHONPATH=str(site))
    assert done.json == "offered"
    done = place.retinue("run", "offered", PYTHONPATH=str(site), RETINUE_ENTRY_POINTS="false")
    assert done.code == 2


@mark.requirement("003.agent-class")
def test_a_class_is_registered_by_the_file_or_by_a_package(place: Place) -> None:
    place.write(
        "my_agents.py",
        "from retinue import Agent, AgentCapability\n"
        "class MyAgent(Agent):\n"
        "    def __init__(self, agent_id='my_agent_001'):\n"
        "        super().__init__(agent_id=agent_id, name='Mine', description='Mine')\n"
        "    async def execute(self, task):\n"
        "        return {'success': True, 'data': task['parameters']}\n"
        "    def get_capabilities(self):\n"
        "        return [AgentCapability('my_capability', 'Mine', {'param1': 'string'})]\n",
    )
    package = place.directory / "mine-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[retinue.agents]\nmine = my_agents:MyAgent\n")
    place.write(
        "retinue.yaml",
        "agents: [{agent: 'my_agents:MyAgent', arguments: {agent_id: by_file}}]\nexamples: false\n",
    )
    listing = place.retinue("agent", "--json", PYTHONPATH=str(place.directory)).json
    assert [agent["agent_id"] for agent in listing["agents"]] == ["by_file", "my_agent_001"]
    done = place.retinue("run", "by_file", "param1=value")
    assert done.json == {"param1": "value"}
    place.write("retinue.yaml", "agents: ['my_agents:MyAgent', 'my_agents:MyAgent']\n")
    done = place.retinue("run", "my_capability", "param1=value")
    assert done.code == 1
    assert done.err.startswith("error E_CONFLICT: an agent with the id my_agent_001")


@mark.requirement("003.example-agent")
def test_the_fleet_is_there_by_default(served: Server) -> None:
    task = {"session_id": "s", "capability": "uppercase", "parameters": {"text": "hi"}}
    reply = served.post("/v1/orchestrate", task)
    assert (reply["data"], reply["agent_id"]) == ({"result": "HI"}, "agent_example_001")
    shown = served.place.call("agent", "show", "Example Agent", "--json").json
    assert shown["agent_id"] == "agent_example_001"


def test_the_store_is_whole_after_a_normal_end(place: Place) -> None:
    with place.serve() as server:
        task = {"session_id": "s", "capability": "echo", "parameters": {"text": "hi"}}
        assert server.post("/v1/orchestrate", task)["success"]
    store = Path(place.directory, ".retinue", "retinue.db")
    with closing(sqlite3.connect(store)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_help_is_quick(place: Place) -> None:
    """CPU seconds of the whole process; the least of several, for machines that are busy."""
    times = []
    for _ in range(5):
        before = os.times()
        done = place.retinue("--help")
        after = os.times()
        assert done.code == 0
        for word in ("serve", "run", "agent", "execution", "ledger", "doctor"):
            assert word in done.out
        times.append(
            after.children_user
            - before.children_user
            + after.children_system
            - before.children_system
        )
    assert min(times) < 0.3, times

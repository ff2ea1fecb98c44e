"""``retinue doctor`` finds what stands in the way, and says what to do."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from tests.cli.conftest import Place, Server

from retinue import Settings
from retinue.cli import doctor, door


def found(place: Place, *words: str, **environment: str) -> dict[str, dict[str, str]]:
    done = place.call("doctor", "--json", *words, **environment)
    findings = done.json["findings"]
    assert done.code == any(finding["state"] == "fail" for finding in findings)
    return {finding["subject"]: finding for finding in findings}


def test_a_good_place_is_good(place: Place) -> None:
    lines = found(place, ORCHESTRATOR_PORT="0")
    assert {line["state"] for line in lines.values()} <= {"ok", "warn"}
    assert lines.keys() == {
        "python", "sqlite", "settings", "data", "space", "store", "port", "access",
        "claude", "codex", "gemini", "opencode",
    }  # fmt: skip
    assert not (place.directory / ".retinue").exists()
    done = place.call("doctor", ORCHESTRATOR_PORT="0")
    assert done.out.startswith("ok    python      3.")


def test_a_server_that_runs_is_seen(served: Server) -> None:
    port = served.url.rpartition(":")[2]
    lines = found(served.place, ORCHESTRATOR_PORT=port)
    assert lines["store"]["text"] == f"process {served.process.pid} serves it at {served.url}"
    assert lines["port"]["state"] == "ok"


def test_what_is_wrong_is_said_with_advice(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        lines = found(place, ORCHESTRATOR_PORT=str(taken.getsockname()[1]))
    assert lines["port"]["state"] == "fail"
    assert "ORCHESTRATOR_PORT" in lines["port"]["advice"]
    place.write("retinue.yaml", "agents: ['nowhere:X', 'wrong:Y']\n")
    place.write("wrong.py", "Y = 5\n")
    done = place.call("doctor", ORCHESTRATOR_PORT="0")
    assert done.code == 1
    assert "nowhere:X" in done.out
    assert "wrong:Y' is int, not an Agent" in done.out
    place.write("retinue.yaml", "prot: 1\n")
    assert "did you mean port" in found(place)["settings"]["text"]


@pytest.mark.parametrize(
    ("agents", "more", "said"),
    [
        ([{"concurrency": 1000, "max_memory_mb": 1_000_000}], {}, "do not fit this machine"),
        ([{"max_memory_mb": 200}], {"max_agents_memory_mb": 100}, "max_agents_memory_mb"),
        ([{}, {}], {}, "is registered already"),
    ],
)
def test_what_serve_refuses_is_refused(
    place: Place, agents: list[dict[str, object]], more: dict[str, object], said: str
) -> None:
    named = [{"driver": "command", "agent_id": "a", "command": ["cat"], **a} for a in agents]
    place.write("retinue.yaml", json.dumps({"agents": named, "examples": False, **more}))
    line = found(place, ORCHESTRATOR_PORT="0")["agents"]
    assert line["state"] == "fail"
    assert said in line["text"]
    refused = place.retinue("serve", ORCHESTRATOR_PORT="0")
    assert refused.code != 0
    assert line["text"] in refused.err
    assert not (place.directory / ".retinue" / "signing.key").exists()


def test_a_root_that_is_not_there_is_said(place: Place) -> None:
    place.write("retinue.yaml", "survey_root: gone\n")
    done = place.call("doctor")
    assert done.code == 0
    assert "warn  survey" in done.out
    assert "gone is not a directory" in done.out


def test_a_file_in_the_way_is_said(place: Place) -> None:
    place.write("taken", "")
    lines = found(place, ORCHESTRATOR_PORT="0", RETINUE_DATA_DIR="taken/below")
    assert lines["data"]["state"] == "fail"
    assert "is not a directory" in lines["data"]["text"]
    (place.directory / ".retinue").mkdir()
    place.write(".retinue/retinue.db", "no database" * 1000)
    assert found(place, ORCHESTRATOR_PORT="0")["store"]["state"] == "fail"


def test_other_machines_and_a_store_that_is_away(place: Place) -> None:
    lines = found(
        place, ORCHESTRATOR_PORT="0", RETINUE_HOST="0.0.0.0",
        DATABASE_URL="postgresql://me:hidden@127.0.0.1:9/x",
    )  # fmt: skip
    assert lines["access"]["state"] == "warn"
    assert "key create" in lines["access"]["advice"]
    assert lines["store"]["state"] == "fail"
    assert "hidden" not in str(lines)


def test_postgresql_that_answers_is_ok(place: Place, postgres_url: str) -> None:
    lines = found(place, ORCHESTRATOR_PORT="0", DATABASE_URL=postgres_url)
    assert lines["store"]["state"] == "ok"


def test_a_directory_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(place: Path) -> float:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(doctor, "_sync_ms", refuse)
    (finding,) = doctor._data(Settings(data_dir=tmp_path))
    assert (finding.state, "cannot be written to" in finding.text) == ("fail", True)


@pytest.mark.parametrize(("free", "state"), [(1 << 40, "ok"), (1 << 29, "warn"), (1, "fail")])
def test_space_and_speed_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1, 1, free))
    monkeypatch.setattr(doctor, "_sync_ms", lambda _: 200.0)
    speed, space = doctor._data(Settings(data_dir=tmp_path))
    assert (speed.state, space.state) == ("warn", state)


@pytest.mark.parametrize(
    ("program", "state", "part"),
    [
        ("sh", "ok", "tool can do tool, by /"),
        ("no-such-cli", "fail", "tool: cannot start no-such-cli: no such command on the PATH (/"),
    ],
)
def test_the_program_of_a_command_is_looked_for(
    place: Place, program: str, state: str, part: str
) -> None:
    agent = f"{{driver: command, agent_id: tool, command: [{program}]}}"
    (place.directory / "retinue.yaml").write_text(f"agents: [{agent}]\n")
    line = found(place, ORCHESTRATOR_PORT="0")["agent"]
    assert line["state"] == state
    assert line["text"].startswith(part)


@pytest.mark.parametrize(
    ("agent", "subject"),
    [
        ("{driver: command, agent_id: tool, command: [/bin/sh]", "agent"),
        ("{driver: stdio, name: tool, command: [/bin/sh]", "agent"),
        ("{driver: acp, agent_id: tool, command: [/bin/sh]", "acp"),
    ],
)
def test_a_sandbox_is_looked_for(place: Place, agent: str, subject: str) -> None:
    text = f"agents: [{agent}, sandbox: {{network: none}}}}]\n"
    (place.directory / "retinue.yaml").write_text(text)
    line = found(place, ORCHESTRATOR_PORT="0", PATH="/nowhere")[subject]
    assert line["state"] == "fail"
    assert "apt-get install bubblewrap" in line["text"]


def test_agents_that_could_change_what_the_next_start_reads_are_named(place: Place) -> None:
    agents: list[dict[str, object]] = [
        {"agent_id": "free", "work_dir": "."},
        {"agent_id": "boxed", "work_dir": ".", "sandbox": True},
        {"agent_id": "elsewhere", "work_dir": "own"},
    ]
    (place.directory / "own").mkdir()
    commands: list[object] = [{"driver": "command", "command": ["true"], **a} for a in agents]
    place.write("retinue.yaml", json.dumps({"agents": commands}))
    done = place.call("doctor", ORCHESTRATOR_PORT="0")
    assert "free is in no sandbox and works where retinue.yaml can be changed" in done.out
    assert "boxed" not in done.out.split("in no sandbox", 1)[1]
    assert "elsewhere is in" not in done.out
    place.write("mine.py", "from retinue import capability\n@capability()\ndef it() -> str: ...\n")
    place.write("retinue.yaml", json.dumps({"agents": [*commands, "mine:it"]}))
    done = place.call("doctor", ORCHESTRATOR_PORT="0")
    assert f"boxed may write {place.directory}, from where agents of this" in done.out


def test_nothing_is_imported_from_beside_the_settings_unless_they_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    agent = {"driver": "command", "agent_id": "it", "command": ["true"], "work_dir": "."}
    for agents, imported in (([agent], False), ([agent, "mine:it"], True)):
        (tmp_path / "retinue.yaml").write_text(json.dumps({"agents": agents}))
        door.prepared(None)
        assert (str(tmp_path) in sys.path) is imported

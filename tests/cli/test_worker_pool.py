"""``retinue worker list | scale | restart | deploy``, against a running server."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.cli.conftest import SECONDS, Place, Server

PROGRAM = Path(__file__).parents[1] / "engine" / "misbehaving.py"


def configure(place: Place, *words: str, **more: object) -> None:
    worker = {
        "driver": "stdio",
        "name": "w",
        "command": [sys.executable, "-I", "-S", str(PROGRAM), *words],
        "process_pool_size": 1,
        **more,
    }
    common = {"examples": False, "entry_points": False, "grace_seconds": 1}
    place.write("retinue.yaml", json.dumps({**common, "agents": [worker]}))


@pytest.fixture
def server(place: Place) -> Iterator[Server]:
    configure(place)
    with place.serve() as server:
        yield server


@pytest.mark.requirement("000.scale")
def test_a_worker_is_listed_scaled_and_restarted(place: Place, server: Server) -> None:
    assert "worker w is run by" in place.call("doctor").out
    table = place.call("worker", "list").out.splitlines()
    assert table[1].split()[:3] == ["w", "ready", "ready"]
    scaled = place.call("worker", "scale", "w", "2")
    assert (scaled.code, scaled.out) == (0, "w has 2 to 2 processes\n")
    deadline = time.monotonic() + SECONDS
    while len(place.call("worker", "list", "--json").json["workers"][0]["instances"]) < 2:
        assert time.monotonic() < deadline
    assert place.call("worker", "restart", "w").code == 0
    missing = place.call("worker", "scale", "x", "2")
    assert missing.code != 0
    assert "no pool x" in missing.err


@pytest.mark.requirement("000.deploy-update")
def test_what_the_file_says_now_is_deployed_or_taken_back(place: Place, server: Server) -> None:
    configure(place, "agents=it,other", environment={"COLOUR": "green"}, process_pool_size=2)
    done = place.call("worker", "deploy", "w")
    assert (done.code, done.out) == (0, "w is at version 2\n")
    ran = place.call("run", "other", "do=env", "--json").json
    assert ran["data"]["env"]["COLOUR"] == "green"
    place.write("stopper", "")
    configure(place, f"stopper={place.directory / 'stopper'}")
    failed = place.call("worker", "deploy", "w")
    assert (failed.code, failed.out) == (1, "")
    assert "version 3 of w was taken back: the worker exited 4" in failed.err
    assert "version 2 is at work" in failed.err
    row = place.call("worker", "list").out.splitlines()[1].split()
    assert row[:5] == ["w", "ready", "ready", "ready", "2"]
    assert place.call("run", "other", "--json").code == 0
    place.write("retinue.yaml", "agents: [{driver: stdio, name: w}]\n")
    wrong = place.call("worker", "deploy", "w", "--url", server.url)
    assert "E_SETTINGS" in wrong.err
    assert "command" in wrong.err
    assert httpx.post(f"{server.url}/v1/workers/w/deploy", json={}).status_code == 422


def test_a_process_is_shown_with_what_it_works_on(place: Place, server: Server) -> None:
    held = {"do": "hold", "file": str(place.directory / "go")}
    task = {"session_id": "s", "agent_id": "it", "parameters": held}
    ids = [server.post("/v1/executions", task)["execution_id"] for _ in range(3)]
    deadline = time.monotonic() + SECONDS
    while len((row := place.call("agent", "ps", "--json").json["instances"][0])["executions"]) < 3:
        assert time.monotonic() < deadline
    assert sorted(row["executions"]) == sorted(ids)
    shown = place.call("agent", "ps").out.splitlines()[1]
    assert "running" in shown.split()
    assert f"{row['execution_id']} +2" in shown
    (place.directory / "go").touch()
    while place.call("agent", "ps", "--json").json["instances"][0]["status"] != "idle":
        assert time.monotonic() < deadline
    assert ids[0] not in place.call("agent", "ps").out


def test_without_a_server_it_is_said_why_a_worker_has_no_agents(place: Place) -> None:
    configure(place, command=["sh", "-c", "echo 'no module x' >&2; exit 4"])
    done = place.retinue("run", "it")
    assert done.code == 2
    why = "worker w did not get ready: the worker exited 4 before it was ready: no module x"
    assert done.err.splitlines()[0] == why
    assert "there is no capability or agent it" in done.err

"""What waits, from the command line: seen, moved, done again; with a server and without one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.cli.conftest import Place

AGENTS = """\
from pathlib import Path
import asyncio
from retinue import Options, capability

@capability(options=Options(concurrency=1))
async def until(path: str) -> str:
    while not Path(path).exists():
        await asyncio.sleep(0.01)
    return path

@capability(options=Options(delivery="idempotent", max_attempts=2, retry_waits_ms=(1,)))
async def needs(path: str) -> str:
    if not Path(path).exists():
        raise ValueError("it is not there")
    return path
"""


@pytest.fixture
def working(place: Place) -> Place:
    """A directory whose agents wait for files, and need them."""
    place.write("waiting.py", AGENTS)
    place.write("retinue.yaml", "examples: false\nagents: ['waiting:until', 'waiting:needs']\n")
    return place


def file(place: Place) -> str:
    return f"path={place.directory / 'file'}"


@pytest.mark.requirement("003.queue")
def test_what_waits_is_seen_and_moved(working: Place) -> None:
    with working.serve():
        begun = working.start("run", "until", file(working))
        ids: list[str] = []
        while not ids:
            listed = working.call("execution", "list", "--state", "running", "--json").json
            ids = [row["execution_id"] for row in listed["executions"]]
        waiting = [working.start("run", "until", file(working)) for _ in range(2)]
        queued: list[str] = []
        while len(queued) < 2:
            listed = working.call("execution", "list", "--state", "queued", "--json").json
            queued = [row["execution_id"] for row in listed["executions"]]
        places = []
        for one in queued:
            found = working.call("execution", "show", one, "--json").json
            places.append(found["place"])
            assert "1 executions of its agents run" in found["waits_for"]
        assert sorted(places) == [0, 1]
        shown = working.call("queue")
        head, line = shown.out.splitlines()
        assert head.split() == ["QUEUE_KEY", "READY", "IN_TURN", "SCHEDULED", "OLDEST_AT"]
        assert line.split()[:4] == ["cap:until", "2", "0", "0"]
        later = working.call("run", "until", file(working), "--at", "2035-01-01T06:00")
        assert later.code == 0
        scheduled = later.out.split()[0]
        assert later.out == f"{scheduled} is scheduled\n"
        both = working.call("execution", "--state", "queued", "--state", "scheduled", "--json")
        assert both.json["total"] == 3
        moved = working.call("execution", "prioritize", queued[0], "-7")
        assert moved.out == f"{queued[0]} is queued with priority -7\n"
        moved = working.call("execution", "prioritize", scheduled, "7", "--json")
        assert (moved.json["state"], moved.json["priority"]) == ("scheduled", 7)
        refused = working.call("execution", "prioritize", ids[0], "1")
        assert refused.code == 1
        assert "it does not wait any more" in refused.err
        assert working.call("execution", "prioritize", queued[0], "1001").code == 2
        assert working.call("execution", "cancel", scheduled).out.endswith("is cancelled\n")
        working.write("file", "")
        for process in (begun, *waiting):
            process.communicate(timeout=60)
            assert process.returncode == 0
    assert working.call("queue", "--json").json["queues"] == []


def test_a_dead_letter_is_done_again(working: Place) -> None:
    failed = working.call("run", "needs", file(working))
    assert failed.code == 1
    letters = working.call("execution", "--dead-letter", "--json").json
    (old,) = letters["executions"]
    assert (old["reason"], old["attempt"]) == ("dead_letter", 2)
    again = working.call("execution", "retry", old["execution_id"])
    assert again.code == 1
    assert again.out.endswith("is failed\n")
    working.write("file", "")
    again = working.call("execution", "retry", old["execution_id"], "--json")
    assert again.code == 0
    assert (again.json["state"], again.json["retry_of"]) == ("completed", old["execution_id"])
    refused = working.call("execution", "retry", again.json["execution_id"])
    assert refused.code == 1
    assert "is completed" in refused.err
    (working.directory / "file").unlink()
    with working.serve():
        accepted = working.call("execution", "retry", old["execution_id"]).out
        execution_id, _, state = accepted.split()
        assert state in {"running", "queued"}
        assert working.call("execution", "follow", execution_id).code == 1


def test_a_task_is_left_for_later(working: Place, tmp_path: Path) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=3)
    working.write("file", "")
    left = working.call("run", "until", file(working), "--in", "3")
    assert left.code == 0
    assert "retinue serve" in left.err
    execution_id = left.out.split()[0]
    # It is due by the time the server is up, or soon after.
    with working.serve():
        assert working.call("execution", "follow", execution_id).code == 0
        found = working.call("execution", "show", execution_id, "--json").json
        assert found["state"] == "completed"
        assert datetime.fromisoformat(found["started_at"]) >= moment
        waited = working.call("run", "until", file(working), "--in", "1", "--follow")
        assert waited.code == 0
        assert "completed" in waited.err
    for words in (["--at", "tomorrow"], ["--at", "2035-01-01", "--in", "5"], ["--in", "1e300"]):
        refused = working.call("run", "until", file(working), *words)
        assert (refused.code, refused.out) == (2, ""), words
    early = working.call("run", "until", file(working), "--at", "2001-01-01", "--priority", "-3")
    assert early.code == 0
    newest = working.call("execution", "--json").json["executions"][0]
    assert (newest["state"], newest["priority"]) == ("completed", -3)
    turn = working.call("run", "until", file(working), "--on-busy", "enqueue", "--session", "s")
    assert turn.code == 0

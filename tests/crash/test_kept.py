"""Agents that outlive their server: found again by the next one, no line lost or doubled."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.crash.test_commands import Server
from tests.process.rig import alive, marked, until

from retinue.keeper.tree import stat

AGENTS = 10
_AT = re.compile(r"Retinue \S+ at (http://\S+)")
LINES = 700
COUNT = """
import json, os, sys, time
kind, last, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
given = sys.stdin.read()
for n in range(last):
    while n == last - 40 and not os.path.exists(sys.argv[4]):
        time.sleep(0.01)
    if kind == "text":
        os.write(1, f"{n} \\u00e9\\n".encode())
    else:
        said = {"type": "output", "content": f"{n} \\u00e9\\n"}
        os.write(1, json.dumps(said).encode() + b"\\n")
        os.write(1, json.dumps({"type": "usage", "input_tokens": 1}).encode() + b"\\n")
    time.sleep(pause)
print(f"done {given}", file=sys.stderr)
if kind == "lines":
    os.write(1, json.dumps({"type": "result", "result": [os.getpid(), given]}).encode() + b"\\n")
"""
MANY = 120_000
BURST = """
import os, sys
said = b"".join(
    b'{"type": "output", "content": "%d\\\\n"}\\n' % n for n in range(int(sys.argv[1]))
) + b'{"type": "result", "result": "done"}\\n'
while said:
    said = said[os.write(1, said):]
"""
LARGE = 3 << 20
SAY_MUCH = """
import os, sys, time
said = b"x" * int(sys.argv[1])
while said:
    said = said[os.write(1, said):]
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
os.write(1, b"end")
"""
PYTHON = (sys.executable, "-I", "-S", "-u", "-c", COUNT)


class Place:
    """A directory with a configuration, and the servers that were started there."""

    def __init__(self, directory: Path, database_url: str | None = None, **more: Any) -> None:
        self.directory = directory
        self.server: Server | None = None
        common = {"examples": False, "entry_points": False, "port": 0, "grace_seconds": 5}
        self.lease = 2 if database_url else 0
        given = {"database_url": database_url, "lease_seconds": 2} if database_url else {}
        kept = {"driver": "command", "keep_running": True, "concurrency": AGENTS}
        end = str(directory / "end")
        self.agents: list[dict[str, Any]] = [
            {**kept, "agent_id": "text", "command": [*PYTHON, "text", str(LINES), "0.01", end]},
            {
                **kept,
                "agent_id": "lines",
                "command": [*PYTHON, "lines", str(LINES), "0.01", end],
                "output": "json-lines",
            },
            {**kept, "agent_id": "short", "command": [*PYTHON, "text", "50", "0.01", end]},
            {
                **kept,
                "agent_id": "burst",
                "command": [*PYTHON[:-1], BURST, str(MANY)],
                "output": "json-lines",
            },
            {**kept, "agent_id": "large", "command": [*PYTHON[:-1], SAY_MUCH, str(LARGE), end]},
            {**kept, "agent_id": "long", "command": ["sleep", "1000"], "stop_seconds": 0.3},
            {
                "driver": "command",
                "agent_id": "mortal",
                "command": ["sh", "-c", "setsid sleep 1000 & sleep 1000"],
            },
        ]
        self.settings = {**common, **given, **more}
        self.configure()

    def configure(self) -> None:
        text = json.dumps({**self.settings, "agents": self.agents})
        (self.directory / "retinue.yaml").write_text(text)

    async def start(self) -> httpx.AsyncClient:
        already = len(self.output)
        server = self.server = await asyncio.to_thread(Server, self.directory)

        def url() -> str | None:
            assert server.process.poll() is None, self.output
            found = _AT.search(self.output, already)
            return found[1] if found is not None else None

        await until(url, 30)
        return httpx.AsyncClient(base_url=url() or "", timeout=30, trust_env=False)

    async def kill(self) -> None:
        assert self.server is not None
        await self.server.end(signal.SIGKILL)

    def end(self) -> None:
        """Let them come to their end."""
        (self.directory / "end").touch()

    def reattached(self, count: int) -> bool:
        return self.output.count("re-attached: instance") >= count

    @property
    def output(self) -> str:
        path = self.directory / "output"
        return path.read_text() if path.exists() else ""


@pytest.fixture(params=["sqlite", "postgres"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    made = Place(tmp_path, url)
    yield made
    if made.server is not None and made.server.process.poll() is None:
        await made.server.end(signal.SIGKILL)
    # What is kept goes on; a server that does not know its agent any more ends it.
    made.agents = [{"driver": "command", "agent_id": "other", "command": ["true"]}]
    made.configure()
    client = await made.start()
    await client.aclose()
    assert made.server is not None
    scopes = _scopes(tmp_path)
    for scope in scopes:
        await until(partial(_gone, scope), 10)
    await made.server.end(signal.SIGTERM)


def _gone(scope: str) -> bool:
    return marked(scope) == []


def _dead(pid: int) -> bool:
    return not alive(pid)


def parent(pid: int) -> int:
    found = stat(pid)
    assert found is not None
    return found.parent


def _scopes(directory: Path) -> set[str]:
    """Return the scopes of processes that run from below ``directory``."""
    found = set()
    for entry in os.listdir("/proc"):
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if f"HOME={directory}" in environ and "RETINUE_MARK=" in environ:
            found.add(environ.partition("RETINUE_MARK=")[2].partition(":")[0])
    return found


async def submit(client: httpx.AsyncClient, agent_id: str, prompt: str = "x") -> str:
    task = {"session_id": "s", "agent_id": agent_id, "parameters": {"prompt": prompt}}
    answer = await client.post("/v1/executions", json=task)
    assert answer.status_code == 202, answer.text
    execution_id: str = answer.json()["execution_id"]
    return execution_id


async def _post(client: httpx.AsyncClient, path: str) -> Any:
    return (await client.post(path)).json()


async def instances(client: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    answer = await client.get("/v1/instances", params={"limit": 1000, **query})
    found: list[dict[str, Any]] = answer.json()["instances"]
    return found


async def events(client: httpx.AsyncClient, execution_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        answer = await client.get(
            f"/v1/executions/{execution_id}/events",
            params={"after": len(found)},
            headers={"accept": "application/json"},
        )
        page = answer.json()["events"]
        if not page:
            return found
        found += page


async def eventually(look: Any, holds: Any, seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not holds(found := await look()):
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)
    return found


async def ended(client: httpx.AsyncClient, execution_id: str) -> dict[str, Any]:
    async def look() -> Any:
        return (await client.get(f"/v1/executions/{execution_id}")).json()

    found: dict[str, Any] = await eventually(look, lambda e: e["finished_at"])
    return found


@pytest.mark.requirement("001.recover")
async def test_every_kept_agent_is_found_again_and_no_line_is_lost_or_doubled(
    place: Place,
) -> None:
    client = await place.start()
    ids = [await submit(client, kind) for kind in ("text", "lines") for _ in range(AGENTS // 2)]
    mortal = await submit(client, "mortal")
    begun = await eventually(
        lambda: instances(client, live="true"),
        lambda found: len([i for i in found if i["pid"]]) == AGENTS + 1,
    )
    pids = {i["execution_id"]: i["pid"] for i in begun}

    def as_before(found: list[dict[str, Any]]) -> bool:
        return {i["execution_id"]: i["pid"] for i in found} == {i: pids[i] for i in ids}

    for times in range(1, 4):
        await asyncio.sleep(0.4)  # somewhere in the middle of what they write
        await client.aclose()
        await place.kill()
        died = time.monotonic()
        if mortal in pids:
            await until(partial(_dead, pids[mortal]), 5)
            assert time.monotonic() - died < 2
        assert all(alive(pids[i]) for i in ids), "it was to be kept"
        client = await place.start()
        began = time.monotonic()
        await until(partial(place.reattached, times * AGENTS), 30)
        took = time.monotonic() - began
        assert took < 3 + place.lease, took
        await eventually(partial(instances, client, state="busy"), as_before)
        assert (await ended(client, mortal))["outcome"] == "unknown"
    place.end()
    expected = "".join(f"{n} é\n" for n in range(LINES))
    for execution_id in ids:
        execution = await ended(client, execution_id)
        assert (execution["state"], execution["attempt"]) == ("completed", 1), execution
        told = await events(client, execution_id)
        said = "".join(e["content"] for e in told if e["eventType"] == "content_chunk")
        assert said == expected
        assert [e["sequence"] for e in told] == list(range(1, len(told) + 1))
        if execution["agent_id"] == "text":
            assert execution["result"] == expected
        else:
            assert execution["result"] == [pids[execution_id], "x"]
            spent = [e for e in told if e["eventType"] == "usage"]
            assert len(spent) == LINES
            assert told[-1]["usage"]["input_tokens"] == LINES
    for word in ("re-attached", "gone"):
        # Where a lease has to run out first, the server serves already.
        assert place.lease or f"  {word}, of what an earlier server had running: " in place.output
    assert place.output.count("re-attached: instance") == 3 * AGENTS
    assert "gone with its server: instance" in place.output
    verdict = (await client.get("/v1/ledger/verify")).json()
    assert verdict["ok"] is True, verdict
    await client.aclose()


async def test_what_ended_while_no_server_was_there_is_taken_as_it_ended(place: Place) -> None:
    client = await place.start()
    place.end()
    execution_id = await submit(client, "short", "the prompt")
    (i,) = await eventually(lambda: instances(client), lambda found: found and found[0]["pid"])
    await client.aclose()
    await place.kill()
    await until(lambda: not alive(i["pid"]), 10)
    client = await place.start()
    execution = await ended(client, execution_id)
    assert (execution["state"], execution["attempt"]) == ("completed", 1)
    assert execution["result"] == "".join(f"{n} é\n" for n in range(50))
    (after,) = await instances(client)
    assert (after["state"], after["exit_code"], after["reason"]) == ("stopped", 0, None)
    assert after["cpu_secs"] > 0
    log = (await client.get(f"/v1/instances/{i['instance_id']}/log")).json()
    assert (log["stdout"], log["stderr"]) == (execution["result"], "done the prompt\n")
    await client.aclose()


@pytest.mark.requirement("001.recover")
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
async def test_what_one_that_has_ended_said_is_read_on_by_the_next_server(
    place: Place, way: signal.Signals
) -> None:
    """Its process is gone, its result is on disk: only the reading was cut short."""
    client = await place.start()
    execution_id = await submit(client, "burst")
    (found,) = await eventually(
        lambda: instances(client, execution_id=execution_id), lambda f: f and f[0]["ended_at"]
    )
    assert found["exit_code"] == 0
    await client.aclose()
    assert place.server is not None
    await place.server.end(way)
    client = await place.start()
    end = await ended(client, execution_id)
    assert (end["state"], end["result"]) == ("completed", "done"), end["error"]
    assert end["attempt"] == 1
    assert place.reattached(1), "it had been read before the server went: write more"
    said = "".join(e.get("content", "") for e in await events(client, execution_id))
    assert said == "".join(f"{n}\n" for n in range(MANY))
    await client.aclose()


@pytest.mark.requirement("001.recover")
async def test_a_second_server_in_the_same_place_leaves_its_output_alone(
    postgres_url: str, tmp_path: Path
) -> None:
    place = Place(tmp_path, postgres_url)
    first = await place.start()
    running = place.server
    assert running is not None
    long = await submit(first, "large")
    spool = tmp_path / ".retinue/processes/agent-large/logs" / f"{long}-1" / "stdout"
    await until(lambda: spool.exists() and spool.stat().st_size >= LARGE, 10)
    before = spool.stat().st_ino
    second = await place.start()
    try:
        other = await submit(second, "large")
        await until((spool.parents[1] / f"{other}-1" / "stdout").exists, 10)
        assert (spool.stat().st_ino, spool.stat().st_size) == (before, LARGE)
        place.end()
        for client, execution_id in ((second, other), (first, long)):
            end = await ended(client, execution_id)
            assert (end["state"], len(end["result"])) == ("completed", LARGE + len("end"))
        await until(lambda: spool.stat().st_size == 1 << 20, 10)  # it is a log now
    finally:
        for each in (running, place.server):
            assert each is not None
            await each.end(signal.SIGTERM)
        await first.aclose()
        await second.aclose()


async def test_a_server_that_is_stopped_leaves_it_too_and_the_next_one_can_end_it(
    place: Place,
) -> None:
    client = await place.start()
    execution_id = await submit(client, "long")
    (i,) = await eventually(lambda: instances(client), lambda found: found and found[0]["pid"])
    await client.aclose()
    assert place.server is not None
    await place.server.end(signal.SIGTERM)
    assert place.server.process.returncode == 0
    assert alive(i["pid"])
    client = await place.start()
    (found,) = await instances(client, live="true")
    assert (found["pid"], found["state"], found["keep_running"]) == (i["pid"], "busy", True)
    path = f"/v1/instances/{i['instance_id']}"
    await eventually(partial(_post, client, f"{path}/pause"), lambda i: i.get("state") == "paused")
    await client.aclose()
    await place.kill()
    client = await place.start()
    assert (await client.get(path)).json()["state"] == "paused"
    await eventually(partial(_post, client, f"{path}/resume"), lambda i: i.get("state") == "busy")
    stopped = (await client.post(f"{path}/stop")).json()
    assert (stopped["state"], stopped["exit_signal"]) == ("stopped", signal.SIGTERM)
    assert not alive(i["pid"])
    execution = await ended(client, execution_id)
    assert execution["state"] == "cancelled", (execution["error"], place.output[-1500:])
    await client.aclose()


async def test_a_deadline_that_passed_meanwhile_ends_it(place: Place) -> None:
    (long,) = (agent for agent in place.agents if agent["agent_id"] == "long")
    long["timeout"] = 1.5
    place.configure()
    client = await place.start()
    execution_id = await submit(client, "long")
    (i,) = await eventually(lambda: instances(client), lambda found: found and found[0]["pid"])
    await client.aclose()
    await place.kill()
    await asyncio.sleep(1.5)
    client = await place.start()
    assert (await ended(client, execution_id))["state"] == "timed_out"
    await until(lambda: not alive(i["pid"]), 5)
    await client.aclose()


async def test_one_whose_agent_is_gone_is_ended_and_said_to_be(place: Place) -> None:
    client = await place.start()
    execution_id = await submit(client, "long")
    (i,) = await eventually(lambda: instances(client), lambda found: found and found[0]["pid"])
    await client.aclose()
    await place.kill()
    place.agents = [agent for agent in place.agents if agent["agent_id"] != "long"]
    place.configure()
    client = await place.start()
    await until(lambda: not alive(i["pid"]), 5)
    execution = await ended(client, execution_id)
    assert (execution["state"], execution["outcome"]) == ("failed", "unknown")
    (after,) = await instances(client)
    assert (after["state"], after["reason"]) == ("failed", "its server was killed")
    await client.aclose()


async def test_a_keeper_that_is_killed_takes_them_along(place: Place) -> None:
    client = await place.start()
    execution_id = await submit(client, "long")
    (i,) = await eventually(lambda: instances(client), lambda found: found and found[0]["pid"])
    await client.aclose()
    keeper = parent(i["pid"])
    await place.kill()
    os.kill(keeper, signal.SIGKILL)
    await until(lambda: not alive(i["pid"]), 2)
    client = await place.start()
    assert (await ended(client, execution_id))["outcome"] == "unknown"
    await client.aclose()

"""Somebody sets the clock by two hours while all goes on: nothing happens early, late or twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torture.http import Connection, ask
from torture.servers import Server

if TYPE_CHECKING:
    from tests.faults.conftest import Start

HOURS = ("+2h", "-2h")
PLACES = ("/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime",
          "/usr/local/lib/faketime", "/usr/lib/faketime")  # fmt: skip


class Clock:
    """The wall clock of a server, which a test may set."""

    def __init__(self, directory: Path) -> None:
        found = [Path(p) / "libfaketimeMT.so.1" for p in PLACES]
        library = next((path for path in found if path.exists()), None)
        if library is None:
            pytest.skip("there is no libfaketime (Debian: apt-get install faketime)")
        self._file = directory / "clock"
        self.set("+0")
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }

    def set(self, offset: str) -> None:
        """Set the clock so far from the right time."""
        new = self._file.with_suffix(".new")
        new.write_text(offset)
        new.rename(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    """A clock that can be set."""
    return Clock(tmp_path)


async def submit(server: Server, capability: str, parameters: Any, **more: Any) -> dict[str, Any]:
    body = {"session_id": "s", "capability": capability, "parameters": parameters, **more}
    status, answer = await ask(server.url, "POST", "/v1/executions", body)
    assert status == 202, answer
    return dict(answer)


async def shown(server: Server, accepted: dict[str, Any]) -> dict[str, Any]:
    _, found = await ask(server.url, "GET", f"/v1/executions/{accepted['execution_id']}")
    return dict(found)


async def ended(server: Server, accepted: dict[str, Any]) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while not (found := await shown(server, accepted))["finished_at"]:
            await asyncio.sleep(0.02)
    return found


async def ticks(server: Server) -> None:
    """Return once the server's periodic work has seen the clock as it is now."""
    said = server.log.count("clock was set")
    async with asyncio.timeout(10):
        while server.log.count("clock was set") == said:
            await asyncio.sleep(0.05)
    await asyncio.sleep(1.2)  # and done all that it does in a round, once more


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
@pytest.mark.parametrize("offset", HOURS)
async def test_a_clock_that_is_set_changes_nothing(
    start: Start, clock: Clock, tmp_path: Path, request: pytest.FixtureRequest,
    offset: str, store: str,
) -> None:  # fmt: skip
    url = request.getfixturevalue("postgres_url") if store == "postgres" else None
    server = await start(environment=clock.environment, database_url=url, lease_seconds=3)
    flag = tmp_path / "flag"
    running = await submit(server, "until", {"path": str(flag)}, timeout_ms=60_000)
    # It holds the agent's one place until the test lets it: the others wait in the queue, one of
    # them with a deadline an hour away.
    holding = await submit(server, "single", {"path": str(flag)})
    queued = await submit(server, "single", {}, timeout_ms=3_600_000)
    hasty = await submit(server, "single", {}, timeout_ms=8_000)
    assert (await shown(server, queued))["state"] == "queued"
    link = await Connection.open(server.url)
    task = {"session_id": "s", "capability": "reflect", "parameters": {"value": "once"}}
    _, first = await link.send("POST", "/v1/orchestrate", task, "a key")
    clock.set(offset)
    await ticks(server)
    assert (await shown(server, running))["state"] == "running"
    assert (await shown(server, queued))["state"] == "queued"
    _, again = await link.send("POST", "/v1/orchestrate", task, "a key")
    assert again["execution_id"] == first["execution_id"]
    _, second = await link.send("POST", "/v1/orchestrate", task)
    assert second["execution_id"] > first["execution_id"]
    assert second["timestamp"] > first["timestamp"]
    # A deadline falls when it falls, by how much time has passed.
    late = await ended(server, hasty)
    assert late["state"] == "timed_out"
    flag.touch()
    for accepted in (running, holding, queued):
        found = await ended(server, accepted)
        assert (found["state"], found["attempt"]) == ("completed", 1)
    assert "took over" not in server.log
    link.close()
    clock.set("+0")
    status, verdict = await ask(server.url, "GET", "/v1/ledger/verify")
    assert (status, verdict["ok"]) == (200, True)

"""A server that stands still beside another one: what it ran is ended before it is run again."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from tests.crash.test_kept import Place, ended, eventually, instances, submit
from tests.process.rig import alive

COUNT = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(file, b"begun %d\\n" % os.getpid())
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
os.write(file, b"done %d\\n" % os.getpid())
"""


def said(file: Path) -> list[list[str]]:
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.requirement("001.recover")
@pytest.mark.parametrize("kept", [False, True])
async def test_it_is_never_run_by_two_at_once(
    tmp_path: Path, postgres_url: str, kept: bool
) -> None:
    place, file = Place(tmp_path, postgres_url), tmp_path / "said"
    place.agents = [
        {
            "driver": "command",
            "agent_id": "counts",
            "command": [sys.executable, "-I", "-S", "-c", COUNT, str(file), str(tmp_path / "end")],
            "delivery": "at_least_once",
            "keep_running": kept,
        }
    ]
    place.configure()
    client = await place.start()
    first = place.server
    assert first is not None
    try:
        execution_id = await submit(client, "counts")
        await eventually(lambda: asyncio.to_thread(said, file), lambda found: len(found) == 1)
        await eventually(lambda: instances(client), lambda found: found and found[0]["pid"])
        await client.aclose()
        # The second one stands beside it, with an agent of that name, before the first one stops.
        client = await place.start()
        first.process.send_signal(signal.SIGSTOP)
        begun = await eventually(
            lambda: asyncio.to_thread(said, file), lambda found: len(found) == 2
        )
        assert not alive(int(begun[0][1]))
        old = [i for i in await instances(client) if i["state"] == "failed"]
        assert [i["reason"] for i in old] == [
            "its server was killed, or is not heard of: it was ended"
        ]
        assert "ended for want of its server: instance" in place.output
        first.process.send_signal(signal.SIGCONT)
        place.end()
        assert (await ended(client, execution_id))["state"] == "completed"
        assert [word for word, _ in said(file)] == ["begun", "begun", "done"]
        assert said(file)[2][1] == begun[1][1]
    finally:
        await client.aclose()
        for server in (first, place.server):
            if server is not None and server.process.poll() is None:
                os.kill(server.process.pid, signal.SIGCONT)
                await server.end(signal.SIGTERM)

"""A server killed while its agents are processes: none goes on unowned, and the ledger says so."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.process.rig import alive, marked, until

from retinue.storage.lockfile import read_holder

AGENTS = 100
SCRIPT = "setsid sleep 1000 & echo $! $$; cat >/dev/null; exec sleep 1000"


def configuration(directory: Path) -> None:
    command = ["sh", "-c", SCRIPT]
    agent: dict[str, Any] = {"driver": "command", "agent_id": "sleeper", "command": command}
    agent |= {"concurrency": AGENTS, "stop_seconds": 0.2}
    common = {"examples": False, "entry_points": False, "port": 0, "grace_seconds": 0.5}
    text = json.dumps({**common, "agents": [agent]})
    (directory / "retinue.yaml").write_text(text)


class Server:
    """``retinue serve`` in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        program = [sys.executable, "-m", "retinue", "serve"]
        environ = {"PATH": os.environ["PATH"]}
        with (directory / "output").open("ab") as output:
            self.process = subprocess.Popen(
                program, cwd=directory, env=environ, stdout=output, stderr=output
            )

    async def client(self) -> httpx.AsyncClient:
        lock = self._directory / ".retinue" / "retinue.lock"

        def url() -> str | None:
            assert self.process.poll() is None, (self._directory / "output").read_text()
            holder = read_holder(lock)
            return holder.url if holder is not None and holder.pid == self.process.pid else None

        await until(url, 30)
        found = url() or ""
        while True:
            try:
                async with httpx.AsyncClient() as client:
                    await client.get(f"{found}/health")
            except httpx.TransportError:
                await asyncio.sleep(0.01)
            else:
                return httpx.AsyncClient(base_url=found, timeout=30)

    async def end(self, number: int) -> None:
        self.process.send_signal(number)
        await asyncio.to_thread(self.process.wait, 30)


async def pids(client: httpx.AsyncClient, execution_id: str) -> list[int]:
    """Return the processes of an execution, once it has said them."""
    url = f"/v1/executions/{execution_id}/events"
    async with client.stream("GET", url, headers={"accept": "text/event-stream"}) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data:"):
                event: dict[str, Any] = json.loads(line[5:])
                if event["eventType"] == "content_chunk":
                    return [int(pid) for pid in event["content"].split()]
    raise AssertionError("it said nothing")


@pytest.mark.requirement("001.recover")
async def test_no_agent_of_a_killed_server_goes_on_and_each_is_reported(tmp_path: Path) -> None:
    configuration(tmp_path)
    server = await asyncio.to_thread(Server, tmp_path)
    try:
        async with await server.client() as client:
            task = {"session_id": "s", "agent_id": "sleeper", "parameters": {"prompt": "x"}}
            sent = await asyncio.gather(
                *(client.post("/v1/executions", json=task) for _ in range(AGENTS))
            )
            ids = [answer.json()["execution_id"] for answer in sent]
            found = await asyncio.gather(*(pids(client, i) for i in ids))
            running = [pid for both in found for pid in both]
            assert len(running) == 2 * AGENTS
            assert all(map(alive, running))
            mine = tmp_path / ".retinue" / "processes" / "agent-sleeper" / "tmp"
            assert len(list(mine.iterdir())) == AGENTS
            server.process.kill()
            assert await until(lambda: not any(map(alive, running)), 10) < 2
        await asyncio.to_thread(server.process.wait)
        server = await asyncio.to_thread(Server, tmp_path)
        async with await server.client() as client:
            assert list(mine.iterdir()) == []
            after = [(await client.get(f"/v1/executions/{i}")).json() for i in ids]
            assert {execution["state"] for execution in after} == {"failed"}
            assert {execution["outcome"] for execution in after} == {"unknown"}
            listed = (await client.get("/v1/instances", params={"limit": 1000})).json()
            assert {i["execution_id"] for i in listed["instances"]} == set(ids)
            assert {(i["state"], i["reason"]) for i in listed["instances"]} == {
                ("failed", "its server was killed")
            }
            again = (await client.post("/v1/executions", json=task)).json()["execution_id"]
            running = await pids(client, again)
            await until(lambda: _scopes(running))  # while it is started it shows none
            scope = _scopes(running).pop()
            assert len(marked(scope)) >= 2
            await server.end(15)
            assert marked(scope) == []
    finally:
        if server.process.poll() is None:
            await server.end(9)


def _scopes(pids: list[int]) -> set[str]:
    found = (Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0") for pid in pids)
    marks = [entry for entries in found for entry in entries if entry.startswith("RETINUE_MARK=")]
    return {mark.removeprefix("RETINUE_MARK=").partition(":")[0] for mark in marks}

"""Hardly any open files: who is too many gets an answer, nobody is harmed, and it passes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torture.http import Broken, Connection, ask
from torture.servers import Server

if TYPE_CHECKING:
    from tests.faults.conftest import Start

FEW = ("/bin/sh", "-c", 'ulimit -S -n 64 && ulimit -H -n 64 && exec "$0" "$@"')
RECOVERED_SECONDS = 2.0


async def crowd(server: Server, count: int) -> tuple[list[Connection], list[int | None]]:
    """Open connections, ask something on each, and keep them open."""
    links: list[Connection] = []
    heard: list[int | None] = []
    for _ in range(count):
        try:
            link = await Connection.open(server.url)
            links.append(link)
            async with asyncio.timeout(5):
                status, answer = await link.send("GET", "/v1/agents")
        except Broken:
            heard.append(None)
            continue
        if status == 503:
            assert (answer["code"], answer["retryable"]) == ("E_OVERLOADED", True)
        heard.append(status)
    return links, heard


def seconds_of_work(server: Server) -> float:
    """Return how much time of a processor the server has taken."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def test_too_many_connections_are_told_so(start: Start, tmp_path: Path) -> None:
    server = await start(prefix=FEW)
    task: dict[str, Any] = {"session_id": "s", "capability": "until"}
    task["parameters"] = {"path": str(tmp_path / "flag")}
    status, running = await ask(server.url, "POST", "/v1/executions", task)
    assert status == 202
    links, heard = await crowd(server, 150)
    assert heard[0] == 200
    assert heard.count(200) >= 8
    assert heard.count(503) >= 100, heard
    assert set(heard) == {200, 503}
    # Those that have a place keep it, and have all the server can do.
    status, _ = await links[0].send("POST", "/v1/orchestrate", reflect("hello"))
    assert status == 200
    (tmp_path / "flag").touch()
    for link in links:
        link.close()
    left = time.monotonic()
    await answered(server)
    assert time.monotonic() - left < RECOVERED_SECONDS
    async with asyncio.timeout(10):
        path = f"/v1/executions/{running['execution_id']}"
        while (await ask(server.url, "GET", path))[1]["state"] != "completed":
            await asyncio.sleep(0.02)


async def test_who_asks_is_heard_however_many_only_wait(start: Start, tmp_path: Path) -> None:
    server = await start(prefix=FEW)
    silent = []
    for _ in range(120):  # one after the other: each is accepted before the next one comes
        silent.append(await Connection.open(server.url))
        await asyncio.sleep(0)
    for _ in range(10):
        status, answer = await ask(server.url, "GET", "/v1/agents")
        assert (status, answer["code"]) == (503, "E_OVERLOADED")
        status, health = await ask(server.url, "GET", "/v1/health")
        assert (status, health["status"]) == (200, "healthy")
    said = [line for line in server.log.splitlines() if "connections are open" in line]
    assert len(said) == 1
    for link in silent:
        link.close()
    await answered(server)


async def test_silent_connections_neither_spin_nor_end_the_server(start: Start) -> None:
    server = await start(prefix=FEW)
    opened = await asyncio.gather(
        *(Connection.open(server.url) for _ in range(300)), return_exceptions=True
    )
    before, began = seconds_of_work(server), time.monotonic()
    while time.monotonic() - began < 1.5:
        await asyncio.sleep(0.1)
    assert seconds_of_work(server) - before < 0.7
    assert server.lives
    for link in opened:
        if isinstance(link, Connection):
            link.close()
    left = time.monotonic()
    await answered(server)
    assert time.monotonic() - left < RECOVERED_SECONDS + 1


@pytest.mark.parametrize("hard", [300, 5000])
async def test_the_limit_is_raised_at_the_start(start: Start, hard: int) -> None:
    command = f'ulimit -S -n 128 && ulimit -H -n {hard} && exec "$0" "$@"'
    server = await start(prefix=("/bin/sh", "-c", command))
    assert limits(server) == [str(hard), str(hard)]


def limits(server: Server) -> list[str]:
    """Return how many files the server may open, soft and hard."""
    said = Path(f"/proc/{server.pid}/limits").read_text()
    (line,) = (line for line in said.splitlines() if line.startswith("Max open files"))
    return line.split()[3:5]


def reflect(value: str) -> dict[str, Any]:
    return {"session_id": "s", "capability": "reflect", "parameters": {"value": value}}


async def answered(server: Server) -> None:
    """Return once a task is performed on a connection of its own."""
    async with asyncio.timeout(10):
        while True:
            try:
                status, _ = await ask(server.url, "POST", "/v1/orchestrate", reflect("again"))
            except Broken:
                status = 0
            if status == 200:
                return
            await asyncio.sleep(0.05)

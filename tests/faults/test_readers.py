"""Readers that take nothing: they cost little, slow nobody, and are dropped."""

from __future__ import annotations

import asyncio
import socket
import time
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
from torture.http import Connection, ask
from torture.servers import Server

if TYPE_CHECKING:
    from tests.faults.conftest import Start

READERS = 200
MOST_BYTES = 64 << 20
RESULT = 7 << 20  # characters of two bytes each, once they are JSON
DROPPED_SECONDS = 30.0
NOISE_SECONDS = 0.02  # other tests and other processes want the machine too


async def perform(server: Server, capability: str, **parameters: Any) -> str:
    """Have a task done and return its execution's id."""
    task = {"session_id": "s", "capability": capability, "parameters": parameters}
    status, answer = await ask(server.url, "POST", "/v1/executions", task)
    assert status == 202, answer
    path = f"/v1/executions/{answer['execution_id']}"
    async with asyncio.timeout(30):
        while True:
            _, listing = await ask(server.url, "GET", "/v1/executions?state=completed")
            if any(e["execution_id"] == answer["execution_id"] for e in listing["executions"]):
                return path
            await asyncio.sleep(0.02)


def deaf(server: Server, path: str) -> socket.socket:
    """Ask for ``path`` and never read the answer."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    reader.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return reader


async def latencies(server: Server, count: int) -> list[float]:
    """Return how long each of some requests takes, in order of length."""
    link = await Connection.open(server.url)
    took: list[float] = []
    body = {"session_id": "fast", "capability": "reflect", "parameters": {"value": "hi"}}
    for _ in range(count):
        began = time.perf_counter()
        status, _ = await link.send("POST", "/v1/orchestrate", body)
        took.append(time.perf_counter() - began)
        assert status == 200
    link.close()
    return sorted(took)


async def p99(server: Server) -> float:
    """Return the usual p99 of several rounds: one alone differs twofold on a busy machine."""
    return median([(await latencies(server, 300))[-4] for _ in range(3)])


async def settled(server: Server) -> int:
    """Return the server's memory once it does not grow any more."""
    before, same = 0, 0
    async with asyncio.timeout(60):
        while same < 5:
            await asyncio.sleep(0.2)
            now = server.memory
            same = same + 1 if now <= before + (1 << 20) else 0
            before = max(before, now)
    return before


@pytest.mark.parametrize("kind", ["results", "events"])
async def test_two_hundred_that_never_read_cost_little(start: Start, kind: str) -> None:
    server = await start()
    if kind == "results":
        paths = [await perform(server, "large", size=RESULT) for _ in range(4)]
    else:
        paths = [await perform(server, "loud", size=900_000, count=4) for _ in range(4)]
    # What reading costs once, whoever reads: caches fill.
    for path in paths:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.url.rpartition(":")[2])
        request = f"GET {path}/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        assert len(await reader.read()) > 3_000_000
        writer.close()
    await latencies(server, 200)
    calm = await p99(server)
    before = await settled(server)
    readers = [deaf(server, f"{paths[n % len(paths)]}/events") for n in range(READERS)]
    began = time.monotonic()
    try:
        grown = await settled(server) - before
        assert grown <= MOST_BYTES, f"{grown / (1 << 20):.1f} MiB"
        # Once they are stuck. While they all arrive, others do wait longer than that.
        during = await p99(server)
        assert during <= 2 * calm + NOISE_SECONDS, (calm, during)
        if kind == "results":
            async with asyncio.timeout(DROPPED_SECONDS * 2):
                while server.log.count("dropped a connection") < READERS:
                    await asyncio.sleep(0.1)
            # All of them were there, and stuck, a good while after the first one was.
            assert time.monotonic() - began <= DROPPED_SECONDS * 1.5
    finally:
        for one in readers:
            one.close()

"""Five times as much as a server can do: refused early, done nearly as fast, within its memory."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from torture.http import Connection, ask
from torture.overload import TIMES, press

if TYPE_CHECKING:
    from tests.faults.conftest import Start

GROWN_BYTES = 64 << 20
PEAK_SECONDS = 4.0
OVERLOAD_SECONDS = 8.0
CALLERS = 400
ROUNDS = 3


@pytest.mark.requirement("004.backpressure")
async def test_overload_is_refused_early_and_costs_little(start: Start) -> None:
    server = await start(max_requests=48, queue_bound=40)
    await press(server, callers=40, seconds=1)
    before = server.memory
    for left in reversed(range(ROUNDS)):
        peak = await press(server, callers=40, seconds=PEAK_SECONDS)
        pause = CALLERS / (peak.goodput * TIMES)
        over = await press(server, callers=CALLERS, seconds=OVERLOAD_SECONDS, pause=pause)
        said = (peak.goodput, peak.p99(), over.statuses, over.goodput, over.p99())
        assert set(over.statuses) <= {200, 429, 503}, said
        assert over.statuses[429] + over.statuses[503] > over.statuses[200], said
        assert over.unsaid == over.failed == 0, said
        refused = sorted(over.refused_in)
        quick = (
            over.offered >= 3 * peak.goodput
            and over.goodput >= 0.8 * peak.goodput
            and over.p99() <= 2 * peak.p99() + 0.1
            and refused[len(refused) // 2] < 0.1
        )
        # Whoever else wants the machine slows one phase and not the other.
        assert quick or left, said
        if quick:
            break
    assert server.memory - before < GROWN_BYTES
    status, answer = await ask(server.url, "GET", "/v1/ledger/verify")
    assert (status, answer["ok"]) == (200, True)
    _, counts = await ask(server.url, "GET", "/v1/executions?state=completed&limit=1")
    _, every = await ask(server.url, "GET", "/v1/executions?limit=1")
    assert counts["total"] == every["total"]  # all that was accepted came to its end


async def test_the_service_says_how_it_is_however_much_there_is_to_do(start: Start) -> None:
    server = await start(max_requests=1)
    waiting, asking = await Connection.open(server.url), await Connection.open(server.url)
    body = {"session_id": "s", "capability": "busy", "parameters": {"milliseconds": 60_000}}
    held = asyncio.create_task(waiting.send("POST", "/v1/orchestrate", body))
    async with asyncio.timeout(10):
        while (answer := await asking.send("GET", "/v1/agents"))[0] == 200:
            if held.done():  # our own question was in its way
                held = asyncio.create_task(waiting.send("POST", "/v1/orchestrate", body))
            await asyncio.sleep(0.01)
    assert (answer[0], answer[1]["code"], answer[1]["retryable"]) == (503, "E_OVERLOADED", True)
    assert (await asking.send("GET", "/v1/health"))[0] == 200
    held.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await held
    waiting.close()  # who leaves makes room
    async with asyncio.timeout(10):
        while (await asking.send("GET", "/v1/agents"))[0] != 200:
            await asyncio.sleep(0.01)
    asking.close()


async def test_bytes_are_bounded_whoever_sends_them(start: Start) -> None:
    server = await start(max_held_bytes=4 << 20)
    body = {"session_id": "s", "capability": "until", "parameters": {"path": "/nowhere"}}
    body["context"] = "x" * 900_000
    links = [await Connection.open(server.url) for _ in range(8)]
    sent = [asyncio.create_task(link.send("POST", "/v1/orchestrate", body)) for link in links]
    done, waiting = await asyncio.wait(sent, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    async with asyncio.timeout(10):
        while len(done) < 4:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
    assert len(done) == 4
    assert {task.result()[0] for task in done} == {503}
    assert {task.result()[1]["code"] for task in done} == {"E_OVERLOADED"}
    # A small one fits.
    status, _ = await ask(server.url, "GET", "/v1/agents")
    assert status == 200
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for link in links:
        link.close()


async def test_streams_are_bounded_apart(start: Start) -> None:
    server = await start(max_streams=2)
    task = {"session_id": "s", "capability": "until", "parameters": {"path": "/nowhere"}}
    _, accepted = await ask(server.url, "POST", "/v1/executions", task)
    port = int(server.url.rpartition(":")[2])
    path = f"/v1/executions/{accepted['execution_id']}/events"
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    statuses = []
    writers = []
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        statuses.append((await reader.readline()).split()[1])
        writers.append(writer)
    assert statuses == [b"200", b"200", b"503"]
    for writer in writers:
        writer.close()

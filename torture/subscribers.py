"""Subscribers that drop and come back with their number, while the server dies and starts again.

Each of them must have seen every event once and in order, the same ones as all the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from urllib.parse import urlsplit

from torture.callers import Wish
from torture.checker import Violation
from torture.http import ask
from torture.rig import Rig, RigFailed

EXECUTIONS = 5
_LENGTH_MS = 9000
_CHUNKS = 300
_RETRY_SECONDS = 0.1
_DONE_SECONDS = 90.0


class Subscriber:
    """A reader of one execution's events. ``seen`` holds numbers and what came with them."""

    def __init__(self, rig: Rig, execution_id: str, random: Random) -> None:
        self._rig = rig
        self._execution_id = execution_id
        self._random = random
        self.seen: list[tuple[int, bytes]] = []
        self.connections = 0
        self.ended = False

    async def follow(self) -> None:
        """Read to the end, in as many connections as it takes."""
        while not self.ended:
            url = await self._rig.doors.pick(self._random)
            patience = self._random.choice([1, 5, 25, 10_000])
            try:
                async for number, data in self._read(url):
                    self.seen.append((number, data))
                    self.ended = any(
                        b'"eventType":"%b"' % kind in data
                        for kind in (b"completed", b"failed", b"cancelled")
                    )
                    patience -= 1
                    if not patience:
                        break
            except (OSError, asyncio.IncompleteReadError, ValueError):
                await asyncio.sleep(self._random.uniform(0, _RETRY_SECONDS))

    async def _read(self, url: str) -> AsyncIterator[tuple[int, bytes]]:
        """Yield the frames of one connection."""
        self.connections += 1
        place = urlsplit(url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        try:
            last = f"Last-Event-ID: {self.seen[-1][0]}\r\n" if self.seen else ""
            path = f"/v1/executions/{self._execution_id}/events"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{last}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise ConnectionError(head.split(b"\r\n")[0])
            rest = b""
            while size := int(await reader.readline(), 16):
                rest += (await reader.readexactly(size + 2))[:-2]
                *frames, rest = rest.split(b"\n\n")
                for frame in frames:
                    if not frame.startswith(b":"):
                        number, _, data = frame.partition(b"\n")
                        yield int(number.removeprefix(b"id: ")), data
        finally:
            writer.transport.abort()


async def sweep(rig: Rig, *, subscribers: int, kills: int, random: Random) -> list[Violation]:
    """Have subscribers follow some executions through kills of the one server."""
    (server,) = rig.servers
    ids: list[str] = []
    for number in range(EXECUTIONS):
        parameters = {"delay_ms": _LENGTH_MS, "chunks": _CHUNKS}
        wish = Wish(marker=f"story {number}", capability="same", waits=False, parameters=parameters)
        answer = await rig.client.send(server.url, wish)
        if answer is None or answer.status != 202:
            raise RigFailed(f"{wish.marker} was not accepted: {answer}")
        ids.append(answer.body["execution_id"])
    readers = [
        Subscriber(rig, ids[n % EXECUTIONS], Random(f"{rig.plan.seed}/{n}"))
        for n in range(subscribers)
    ]
    tasks = [asyncio.create_task(reader.follow()) for reader in readers]
    try:
        for _ in range(kills):
            await asyncio.sleep(random.uniform(3.0, 6.0))
            rig.kill(server)
            await rig.start(server)
        async with asyncio.timeout(_DONE_SECONDS):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    lasts = {i: (await ask(server.url, "GET", f"/v1/executions/{i}"))[1]["last_seq"] for i in ids}
    return list(_judged(readers, ids, lasts))


def _judged(readers: list[Subscriber], ids: list[str], lasts: dict[str, int]) -> list[Violation]:
    found: list[Violation] = []
    told: dict[str, list[tuple[int, bytes]]] = {}
    for n, reader in enumerate(readers):
        execution_id = ids[n % EXECUTIONS]
        numbers = [number for number, _ in reader.seen]
        expected = list(range(1, lasts[execution_id] + 1))
        if numbers != expected:
            gaps, twice = set(expected) - set(numbers), len(numbers) - len(set(numbers))
            said = f"subscriber {n} missed {sorted(gaps)[:5]} and saw {twice} twice"
            found.append(Violation("stream", execution_id, said))
        elif told.setdefault(execution_id, reader.seen) != reader.seen:
            found.append(Violation("stream", execution_id, f"subscriber {n} saw other events"))
    if sum(reader.connections for reader in readers) <= 2 * len(readers):
        found.append(Violation("stream", "all", "hardly anybody came back"))
    return found

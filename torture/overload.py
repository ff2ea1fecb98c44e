"""Overload: first as much as a server can do, then five times as much for a while.

What is refused must be refused early and say when to come back; what is accepted must end; the
server must do nearly as much as before, and not grow. The agent is slow rather than costly, so that
what is measured is the server and not the machine.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from torture.servers import Server

TIMES = 5
MOST_GROWN = 64 << 20
BUSY = '{"session_id":"s%d","capability":"busy","parameters":{"milliseconds":20}}'
"""A task of 20 ms in one of many sessions."""


@dataclass(kw_only=True)
class Pressure:
    """What one phase brought."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    unsaid: int = 0
    """Refusals that do not say when to come back."""
    failed: int = 0
    """Accepted tasks that did not succeed."""
    took: list[float] = field(default_factory=list)
    """Seconds that each accepted task took."""
    refused_in: list[float] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Tasks done per second."""
        return self.statuses[200] / self.seconds

    @property
    def offered(self) -> float:
        """Requests sent per second."""
        return self.statuses.total() / self.seconds

    def p99(self) -> float:
        """Return the time that one accepted task in a hundred goes beyond."""
        return sorted(self.took)[int(len(self.took) * 0.99)]


async def press(
    server: Server, *, callers: int, seconds: float, pause: float = 0.0, task: str = BUSY
) -> Pressure:
    """Have ``callers`` send for ``seconds``, each one request every ``pause`` at most."""
    found = Pressure()
    until = time.monotonic() + seconds
    await asyncio.gather(
        *(_call(server, (task % (n % 50)).encode(), pause, until, found) for n in range(callers))
    )
    found.seconds = seconds
    return found


async def _call(server: Server, body: bytes, pause: float, until: float, found: Pressure) -> None:
    place = urlsplit(server.url)
    request = (
        "POST /v1/orchestrate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    await asyncio.sleep(random.uniform(0, pause))
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    while (began := time.monotonic()) < until:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        answer = await reader.readexactly(length)
        took = time.monotonic() - began
        status = int(head.split()[1])
        found.statuses[status] += 1
        if status == 200:
            found.took.append(took)
            found.failed += b'"success":true' not in answer
        else:
            found.refused_in.append(took)
            found.unsaid += b"\r\nretry-after: " not in head
        if pause:
            await asyncio.sleep(max(pause - took, 0))
    writer.close()


def broken(peak: Pressure, over: Pressure, grown: int) -> list[str]:
    """Return what an overload that followed a peak shows to be wrong."""
    rules = (
        (set(over.statuses) <= {200, 429, 503}, f"answers were {dict(over.statuses)}"),
        (over.unsaid == 0, f"{over.unsaid} refusals do not say when to come back"),
        (over.failed == 0, f"{over.failed} accepted tasks failed"),
        (over.offered >= 3 * peak.goodput, f"only {over.offered:.0f} requests/s were offered"),
        (
            over.goodput >= 0.8 * peak.goodput,
            f"{over.goodput:.0f} tasks/s were done, {peak.goodput:.0f} at the peak",
        ),
        (
            over.p99() <= 2 * peak.p99() + 0.1,
            f"the p99 of what was accepted is {over.p99():.3f} s, {peak.p99():.3f} s at the peak",
        ),
        (grown <= MOST_GROWN, f"the server grew by {grown >> 20} MiB"),
    )
    return [said for holds, said in rules if not holds]

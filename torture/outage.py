"""The database goes away under load: killed, its connections cut, or read-only for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random
from urllib.parse import urlsplit

import asyncpg

from retinue.testing.servers import PostgresServer
from torture.checker import Violation
from torture.rig import Rig

RECOVERED_SECONDS = 5.0
_ANSWERED_SECONDS = 0.5
"""How long answers that were on their way when the database went may still arrive."""


class Outages:
    """Outages of one database, and what was wrong while it was away."""

    def __init__(self, rig: Rig, postgres: PostgresServer, random: Random) -> None:
        self._rig = rig
        self._postgres = postgres
        self._random = random
        self.violations: list[Violation] = []
        self.recovered: list[float] = []

    async def killed(self) -> None:
        """Kill the database's server by SIGKILL, leave it down for a while, start it again."""
        await asyncio.to_thread(self._postgres.kill9)
        await self._away("killed", self._random.uniform(0.2, 3.0))
        await asyncio.to_thread(self._postgres.start)
        await self._back("killed")

    async def read_only(self) -> None:
        """Let the database refuse every write for a while."""
        await self._say("ALTER SYSTEM SET default_transaction_read_only = on")
        await self._away("read-only", self._random.uniform(0.5, 2.0))
        await self._say("ALTER SYSTEM RESET default_transaction_read_only")
        await self._back("read-only")

    async def storm(self) -> None:
        """Cut every connection to the database, again and again."""
        db = await asyncpg.connect(self._postgres.url())
        try:
            for _ in range(self._random.randint(10, 40)):
                await db.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
                await asyncio.sleep(self._random.uniform(0, 0.1))
        finally:
            await db.close()
        await self._back("storm")

    def any(self) -> Callable[[], Awaitable[None]]:
        """Return one of them."""
        return self._random.choice([self.killed, self.killed, self.read_only, self.storm])

    async def _say(self, statement: str) -> None:
        db = await asyncpg.connect(self._postgres.url())
        try:
            # The setting itself must be writable while it is on.
            await db.execute("SET default_transaction_read_only = off")
            await db.execute(statement)
            await db.execute("SELECT pg_reload_conf()")
        finally:
            await db.close()

    async def _away(self, kind: str, seconds: float) -> None:
        await asyncio.sleep(_ANSWERED_SECONDS)
        before = self._rig.client.acknowledged
        await self._refused(kind)
        await asyncio.sleep(seconds)
        invented = self._rig.client.acknowledged - before
        if invented:
            self._blame(kind, f"{invented} answers were acknowledged while it was away")

    async def _refused(self, kind: str) -> None:
        """Ask once ourselves: the answer must be 503, and say when to come back."""
        place = urlsplit(self._rig.servers[0].url)
        body = b'{"session_id":"s0","capability":"once","parameters":{"marker":"outage"}}'
        head = (
            "POST /v1/executions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(head.encode() + body)
        said = (await asyncio.wait_for(reader.read(), 30)).lower()
        writer.close()
        if not said.startswith(b"http/1.1 503 ") or b"\r\nretry-after: " not in said:
            self._blame(kind, f"a task was answered {said[:300]!r} while it was away")

    async def _back(self, kind: str) -> None:
        """Wait until something is acknowledged; it must not take long."""
        back = time.monotonic()
        await self._rig.progress()
        took = time.monotonic() - back
        self.recovered.append(took)
        if took > RECOVERED_SECONDS:
            self._blame(kind, f"it took {took:.1f} s to go on")

    def _blame(self, kind: str, said: str) -> None:
        self.violations.append(Violation("outage", kind, said))

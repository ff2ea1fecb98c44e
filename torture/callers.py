"""The load: callers that go on through every crash, and write down what they were told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

from torture.http import Broken, Connection
from torture.journals import Answered, Intent, Lines, Unanswered

ANSWER_SECONDS = 30.0
STOP_SECONDS = ANSWER_SECONDS + 10
REFUSED_PAUSE = 0.05
SESSIONS = 6
CAPABILITIES = {"once": 5, "again": 4, "same": 3, "delegate": 1}
NOBODYS = "nobody-does-this"
LATE = "no answer in time"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a caller wants done. With ``key`` it may be sent more than once."""

    marker: str
    capability: str
    session: str = "s0"
    waits: bool = True
    key: str | None = None
    timeout_ms: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where it is posted."""
        return "/v1/orchestrate" if self.waits else "/v1/executions"

    @property
    def body(self) -> dict[str, Any]:
        """The body that is posted."""
        limit = {"timeout_ms": self.timeout_ms} if self.timeout_ms is not None else {}
        return {
            "session_id": self.session,
            "capability": self.capability,
            "parameters": {"marker": self.marker, **self.parameters},
            **limit,
        }


class Doors:
    """The servers that can be asked right now."""

    def __init__(self) -> None:
        self._urls: dict[str, str] = {}
        self._some = asyncio.Event()

    def open(self, name: str, url: str) -> None:
        """Take in that a server answers."""
        self._urls[name] = url
        self._some.set()

    def close(self, name: str) -> None:
        """Take in that it does not any more."""
        self._urls.pop(name, None)
        if not self._urls:
            self._some.clear()

    async def pick(self, random: Random) -> str:
        """Return the address of one of them, waiting for the first."""
        await self._some.wait()
        return random.choice(list(self._urls.values()))


class Client:
    """Sends wishes and journals every send: an intent before, what came of it after."""

    def __init__(self, journal: Lines) -> None:
        self._journal = journal
        self._sends = 0
        self.acknowledged = 0
        self.last_at = 0.0
        """When (monotonic clock) the last acknowledgement came."""
        self._news = asyncio.Event()

    async def send(self, url: str, wish: Wish, links: Links | None = None) -> Answered | None:
        """Send ``wish`` once; None: no answer came."""
        self._sends += 1
        send = str(self._sends)
        self._journal.write(
            Intent(
                send=send,
                marker=wish.marker,
                capability=wish.capability,
                waits=wish.waits,
                key=wish.key,
            )
        )
        own = links if links is not None else Links()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status, body = await own.send(url, wish)
        except Broken as error:
            self._journal.write(Unanswered(send=send, why=str(error)))
            return None
        except TimeoutError:
            self._journal.write(Unanswered(send=send, why=LATE))
            return None
        finally:
            if links is None:
                own.close()
        answer = Answered(send=send, status=status, body=body)
        self._journal.write(answer)
        if status in {200, 202}:
            self.acknowledged += 1
            self.last_at = time.monotonic()
            self._news.set()
        return answer

    async def news(self) -> None:
        """Return at the next acknowledgement."""
        self._news.clear()
        await self._news.wait()


class Links:
    """The connections of one caller: those that are free, by address."""

    def __init__(self) -> None:
        self._free: dict[str, list[Connection]] = {}

    async def send(self, url: str, wish: Wish) -> tuple[int, Any]:
        """Send on a free connection, or on a new one."""
        free = self._free.setdefault(url, [])
        link = free.pop() if free else await Connection.open(url)
        try:
            answer = await link.send("POST", wish.path, wish.body, wish.key)
        except BaseException:
            link.close()
            raise
        free.append(link)
        return answer

    def close(self) -> None:
        """Close what is open."""
        for links in self._free.values():
            for link in links:
                link.close()
        self._free.clear()


class Load:
    """Callers that each want one thing after the other, until told to stop."""

    def __init__(self, doors: Doors, client: Client, *, callers: int, seed: int) -> None:
        self._doors = doors
        self._client = client
        self._callers = callers
        self._seed = seed
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Let the callers begin."""
        self._tasks = [asyncio.create_task(self._call(n)) for n in range(self._callers)]

    async def stop(self) -> None:
        """Let every caller end what it has begun.

        Raises:
            Exception: what a caller failed with.
        """
        self._stopping = True
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*self._tasks)
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """Stop the callers wherever they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _call(self, number: int) -> None:
        random = Random(f"{self._seed}/{number}")
        links = Links()
        try:
            count = 0
            while not self._stopping:
                count += 1
                wish = wanted(random, f"{number}.{count}")
                if wish.key is None:
                    await self._once(wish, random, links)
                else:
                    await self._insist(wish, random, links)
        finally:
            links.close()

    async def _once(self, wish: Wish, random: Random, links: Links) -> Answered | None:
        url = await self._doors.pick(random)
        answer = await self._client.send(url, wish, links)
        if answer is None or answer.status >= 429:
            await asyncio.sleep(REFUSED_PAUSE)
        return answer

    async def _insist(self, wish: Wish, random: Random, links: Links) -> None:
        """Send, at times twice at once, and again until it is answered."""
        while True:
            twice: list[Coroutine[Any, Any, Answered | None]] = [
                self._once(wish, random, links) for _ in range(random.choice([1, 1, 2]))
            ]
            answers = await asyncio.gather(*twice)
            settled = any(a is not None and a.status < 429 for a in answers)
            if self._stopping or (settled and random.random() < 0.8):
                return


def wanted(random: Random, marker: str) -> Wish:
    """Return the next wish of a caller."""
    kinds = list(CAPABILITIES)
    capability = random.choices(kinds, [CAPABILITIES[kind] for kind in kinds])[0]
    parameters: dict[str, Any] = {"delay_ms": round(random.expovariate(1 / 12), 1)}
    if random.random() < 0.15:
        parameters["chunks"] = random.randint(1, 5)
    if random.random() < 0.03:
        parameters["failures"] = random.randint(1, 3)
    if random.random() < 0.01:
        capability = NOBODYS
    keyed = random.random() < 0.25
    return Wish(
        marker=marker,
        capability=capability,
        session=f"s{random.randrange(SESSIONS)}",
        waits=random.random() < 0.75,
        key=f"key-{marker}" if keyed else None,
        parameters=parameters,
    )

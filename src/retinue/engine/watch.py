"""Whether another service is well, as last heard: who asks us waits for nobody."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from retinue.interfaces import Health, Peer

EVERY_SECONDS = 5.0
FIRST_SECONDS = 1.5


class Watch:
    """Checks one service again and again."""

    def __init__(self, peer: Peer, *, every: float = EVERY_SECONDS) -> None:
        self.peer = peer
        self.health: Health | None = None
        self._every = every
        self._heard = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to check; does nothing when it has begun."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def known(self) -> Health:
        """Return what was last heard; only the very first time wait for it, a moment."""
        self.start()
        if self.health is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_SECONDS):
                    await self._heard.wait()
        return self.health or Health(healthy=False, reason="it does not answer")

    def heard(self, health: Health) -> None:
        """Take in what a call of another kind said of the service."""
        self.health = health
        self._heard.set()

    async def _run(self) -> None:
        while True:
            self.heard(await self.peer.check())
            await asyncio.sleep(self._every * random.uniform(0.8, 1.2))

    async def stop(self) -> None:
        """Stop checking, and close the connections to the service."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        await self.peer.close()

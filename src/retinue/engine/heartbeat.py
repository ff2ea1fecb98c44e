"""Asks every agent, again and again, whether it can work.

Each check has ``timeout`` seconds, and one that hangs holds up no other: it is cancelled and not
waited for. What changes (an agent goes offline, or comes back) is logged and audited.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from retinue.domain.audit import AuditDraft
from retinue.domain.ids import now_us
from retinue.domain.intent import Audit
from retinue.domain.strictjson import dumps
from retinue.engine.entry import Entry
from retinue.engine.registry import Registry
from retinue.errors import RetinueError, said
from retinue.interfaces import Features, Health, Store

log = logging.getLogger(__name__)
AT_ONE_TIME = 256


class Heartbeat:
    """The health checks of one process."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        *,
        interval: float,
        timeout: float,
        features: Callable[[Entry], Features],
        on_back: Callable[[Entry], None],
    ) -> None:
        self._store = store
        self._registry = registry
        self._interval = interval
        self._timeout = timeout
        self._features = features
        self._on_back = on_back
        self._room = asyncio.Semaphore(AT_ONE_TIME)
        self._checks: dict[Entry, asyncio.Task[Health]] = {}
        self._looks: dict[Entry, asyncio.Task[None]] = {}
        self._rounds: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin; the first round is at once."""
        self._loop = asyncio.get_running_loop()
        self._rounds = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End, with the checks that are under way."""
        tasks: list[asyncio.Task[Any]] = [*self._looks.values(), *self._checks.values()]
        if self._rounds is not None:
            tasks.append(self._rounds)
        self._rounds = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    def soon(self, entry: Entry) -> None:
        """Check a new agent at once, if the checks run; may be called from any thread."""
        if self._rounds is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin, entry)

    async def _run(self) -> None:
        while True:
            for entry in self._registry:
                self._begin(entry)
            await asyncio.sleep(self._interval)

    def _begin(self, entry: Entry) -> None:
        if entry in self._looks or self._rounds is None:
            return  # the last one is under way, within its time
        look = self._looks[entry] = asyncio.create_task(self.look(entry))
        look.add_done_callback(lambda _: self._looks.pop(entry, None))

    async def look(self, entry: Entry) -> None:
        """Check one agent and do what follows from it."""
        if entry.instance is None and not self._features(entry).there:
            return  # nothing of it runs that could be asked
        async with self._room:
            health = await self._bounded(entry)
        if entry.removed:
            return
        pulse = entry.pulse
        if health.healthy:
            pulse.good(now_us())
            if entry.unhealthy is not None:
                self._registry.set_health(entry, None)
                self._on_back(entry)
                await self._tell(entry, "agent.online", None)
            return
        pulse.bad(health.reason or "it says that it is not healthy")
        if pulse.offline:
            was, reason = entry.unhealthy, pulse.reason
            self._registry.set_health(entry, reason)
            if was is None:
                await self._tell(entry, "agent.offline", reason)

    async def _bounded(self, entry: Entry) -> Health:
        if entry in self._checks:
            return Health(False, "its last health check has not ended")
        name = f"agent {entry.agent_id}, health check"
        check = asyncio.create_task(_ask(entry), name=name)
        self._checks[entry] = check
        check.add_done_callback(lambda _: self._checks.pop(entry, None))
        done, _ = await asyncio.wait({check}, timeout=self._timeout)
        if done and not check.cancelled():
            return check.result()
        check.cancel()
        return Health(False, f"no answer to a health check within {self._timeout:g} s")

    async def _tell(self, entry: Entry, action: str, reason: str | None) -> None:
        if reason is None:
            log.info("agent %s is back", entry.agent_id, extra={"agent_id": entry.agent_id})
        else:
            fields = {"agent_id": entry.agent_id}
            log.warning("agent %s is offline: %s", entry.agent_id, reason, extra=fields)
        draft = AuditDraft(
            owner=entry.owner,
            actor="retinue",
            action=action,
            target=entry.agent_id,
            detail=dumps({"worker": self._store.worker, "reason": reason}),
        )
        with suppress(RetinueError):  # a store that is away has been logged about enough
            await self._store.write(Audit(draft, now_us()))


async def _ask(entry: Entry) -> Health:
    if entry.removed:
        return Health(False, "it was removed")
    try:
        return await (await entry.ready()).ping()
    except RetinueError as error:
        return Health(False, error.message)
    except Exception as error:
        return Health(False, said(error))

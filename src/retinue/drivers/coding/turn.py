"""One turn of a coding CLI: an execution, as an async context manager that iterates its events.

What the CLI says is heard by one task, which tells the turn (``told``, a ``Scribe``), and taken
from here by the engine. Text that is not taken yet is one event, so a CLI that writes faster than
the store costs less per piece, and past a bound it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from retinue.domain.event import EventData, EventType
from retinue.drivers.coding.told import MOST_EVENTS, Told
from retinue.errors import CommunicationError, RetinueError
from retinue.interfaces import Job

if TYPE_CHECKING:
    from retinue.drivers.coding.driver import CodingInstance


QUIET_SECONDS = 30.0
"""How long one may say nothing before that shows: some try a refused model again without a word."""


class Turn(Told):
    """What all turns have beside: a life, and silence. Subclasses speak with a CLI."""

    def __init__(self, instance: CodingInstance, job: Job) -> None:
        super().__init__(instance, job)
        self._watching: asyncio.TimerHandle | None = None
        self._lock: asyncio.Lock | None = None
        self._finish: asyncio.Task[None] | None = None
        self._quiet = False

    # -- its life: what subclasses do ------------------------------------------------------------

    async def start(self) -> None:
        """Begin to speak with the CLI."""
        raise NotImplementedError

    async def close(self, grace: float) -> None:
        """End whatever ``start`` began; when ``error`` is set or there is no end, stop the work."""
        raise NotImplementedError

    @property
    def paused(self) -> bool:
        """Whether a person has stopped its process where it is."""
        return False

    # -- the engine's side ---------------------------------------------------------------------

    async def __aenter__(self) -> AsyncIterator[EventData]:
        execution = self.job.execution
        self.instance.running.add(self)
        try:
            lock = self.instance.natives.turn(execution.owner, execution.session_id)
            await lock.acquire()
            self._lock = lock
            self.native = await asyncio.to_thread(
                self.instance.natives.find, execution.owner, execution.session_id
            )
            known = self.instance.lent.has_history
            if self.native is None and known is not None:
                self.elsewhere = await known(execution)
            await self.start()
        except RetinueError as error:
            await asyncio.shield(self.finish(0.0))
            safe = self._secrecy.error(error)
            raise safe from (error if safe is error else None)
        except BaseException:
            await asyncio.shield(self.finish(0.0))
            raise
        self._heard_at = self._loop.time()
        self._watch()
        return self

    async def __aexit__(self, *_: object) -> None:
        ending = self.finish(self.config.stop_seconds)
        if self.error is not None or not self.ended.is_set():
            await asyncio.shield(ending)  # nothing works on after a failure was recorded

    def finish(self, grace: float) -> asyncio.Task[None]:
        """End the turn, whoever waits for that; what is told from now on is not heard."""
        if self._finish is None:
            self._finish = self.instance.aside(self._end_all(grace))
        return self._finish

    async def _end_all(self, grace: float) -> None:
        self.over = True
        self.troubled(None)
        for timer in (self._watching, self._thought_timer):
            if timer is not None:
                timer.cancel()
        self._ring()
        self._release()
        if self.asking.opened is not None:
            self.instance.questions.pop(self.asking.opened.id, None)
        try:
            await self.close(grace)
            if self._keeping is not None:
                await asyncio.wait({self._keeping})
            if self.native is not None and self._held:
                await self._keep(self.native, known=True)
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None
            self.instance.running.discard(self)

    def __aiter__(self) -> AsyncIterator[EventData]:
        return self

    async def __anext__(self) -> EventData:
        while True:
            event = self._next()
            if event is not None:
                return self._secrecy.event(event)
            if self.over:
                raise StopAsyncIteration
            self._bell = self._loop.create_future()
            await self._bell

    def _next(self) -> EventData | None:
        if not self._events:
            self._flush_text(last=False)
        if self._events:
            event = self._events.popleft()
            if self._space is not None and len(self._events) <= MOST_EVENTS // 2:
                self._release()
            return event
        if self.ended.is_set():
            self.over = True
            if self.error is not None:
                raise self.error
            return EventData(EventType.COMPLETED, {"result": self._result})
        opened = self.asking.open()
        return self._question(opened) if opened is not None else None

    # -- silence -------------------------------------------------------------------------------

    def look(self) -> None:
        """Take note of what could not be read, if anything was."""

    def _watch(self) -> None:
        """Look whether it still says anything; alive is not healthy."""
        if self.over or self.ended.is_set():
            return
        now = self._loop.time()
        self.look()
        waits = self.asking or self._tools or self.full or self.queued
        if waits or self.paused:
            self._heard_at = now
        silent = now - self._heard_at
        most = self.config.silence_seconds
        first = min(QUIET_SECONDS, most / 2)
        if silent < first:
            self._quiet = False
        elif not self._quiet:
            self._quiet = True
            said = f"{self.config.kind} has said nothing for {silent:.0f} s: alive, or stuck?"
            self.warn(said, silent_seconds=round(silent, 1))
            self.troubled(said)
        if silent >= most:
            last = f"; the last thing was: {self._retry}" if self._retry else ""
            why = CommunicationError(
                f"{self.config.kind} has said nothing for {silent:.0f} s{last}"
            )
            self.fail(self.without(why))
            return
        self._watching = self._loop.call_later(
            max((most if self._quiet else first) - silent, 0.05), self._watch
        )

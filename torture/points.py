"""Crash points: named places at which the server under test can be made to end, as by a power cut.

The product knows nothing of them. Its parts are derived or wrapped here, and say "passed" at every
boundary of a commit, a publication and a dispatch; at the chosen pass of the chosen point the
process ends by ``os._exit``: no handler, no flush, no farewell.

A point of the store is ``KIND.MOMENT``: a batch with an intent of that kind, and

- ``before``: nothing of it is in the database,
- ``half``: some of its rows are written,
- ``written``: all of them are, and nothing is committed,
- ``committed``: it is durable, and nobody was told,
- ``answered``: the engine is about to hear of it.

A new kind of intent belongs into ``KINDS``, and into the play of ``torture.sweep``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

from retinue.domain.agent import AgentDefinition
from retinue.domain.event import Event, EventData, EventType
from retinue.domain.intent import Intent
from retinue.domain.result import Result
from retinue.drivers.python import PythonDriver
from retinue.engine.journal import Journal
from retinue.interfaces import DriverContext, Features, Health, Instance, Job, Store
from retinue.storage.carrier import Carrier
from retinue.storage.link import Connection
from retinue.storage.postgres import PostgresStore
from retinue.storage.sqlite import SqliteStore
from retinue.storage.statements import Change, Insert, Saved, Statement

STATUS = 86
"""The exit status of a process that ended at its point."""

MOMENTS = ("before", "half", "written", "committed", "answered")
KINDS = (
    "submit", "refuse", "lease", "append", "finish", "requeue", "cancel", "expire",
    "ask", "answer", "closequestion", "audit",
)  # fmt: skip
OF_STORE = tuple(f"{kind}.{moment}" for kind in KINDS for moment in MOMENTS)
OF_JOURNAL = ("publish.before", "publish.after")
OF_DRIVER = (
    "dispatch.before", "dispatch.begun", "dispatch.event",
    "dispatch.completed", "dispatch.left", "resume.before", "resume.after",
)  # fmt: skip
AT_STOP = ("close.before", "close.after")
AT_START = (
    "open.after", "start.before", "start.after",
    *(f"{kind}.{moment}" for kind in ("finish", "requeue", "lease") for moment in MOMENTS),
    "dispatch.before",
)  # fmt: skip
"""Points that a start passes which takes over what a crash left running."""

SERVING = (*OF_STORE, *OF_JOURNAL, *OF_DRIVER)
"""Points that a server passes under load."""


class Trigger:
    """Ends the process at the ``nth`` pass of ``point``, counted from when it is armed."""

    def __init__(self, point: str | None, nth: int = 1, *, armed: bool = True) -> None:
        self.armed = armed
        self._point = point
        self._left = nth

    def passed(self, point: str) -> None:
        """Take in that a point is passed, by any thread."""
        if point != self._point or not self.armed:
            return
        self._left -= 1
        if not self._left:
            os._exit(STATUS)

    def batch(self, kinds: Iterable[str], moment: str) -> None:
        """Take in that a batch has come to ``moment``."""
        for kind in kinds:
            self.passed(f"{kind}.{moment}")


def kinds_of(intents: Sequence[Intent]) -> list[str]:
    """Return the kinds of a batch's intents, as points are named."""
    return sorted({type(intent).__name__.lower() for intent in intents})


# -- the stores --------------------------------------------------------------------------------


class _Writes:
    """How far the batch under way has come; both stores have one under way at a time."""

    def __init__(self, trigger: Trigger) -> None:
        self.trigger = trigger
        self._kinds: list[str] = []
        self._wrote = False

    def begin(self, intents: Sequence[Intent]) -> None:
        self._kinds = kinds_of(intents)
        self._wrote = False
        self.trigger.batch(self._kinds, "before")

    def carried_out(self, statement: Statement) -> None:
        if isinstance(statement, Insert | Change) and not self._wrote:
            self._wrote = True
            self.trigger.batch(self._kinds, "half")
        elif isinstance(statement, Saved):
            self.trigger.batch(self._kinds, "written")

    def committed(self) -> None:
        self.trigger.batch(self._kinds, "committed")


class PointedSqlite(SqliteStore):
    """The SQLite store, with points."""

    def __init__(self, path: Path | None, trigger: Trigger, *, url: str | None = None) -> None:
        super().__init__(path, url=url)
        self._trigger = trigger
        self._writes = _Writes(trigger)

    async def open(self) -> None:
        await super().open()
        self._trigger.passed("open.after")

    async def close(self) -> None:
        self._trigger.passed("close.before")
        await super().close()
        self._trigger.passed("close.after")

    async def write(self, intent: Intent, /) -> Result:
        result = await super().write(intent)
        self._trigger.batch(kinds_of([intent]), "answered")
        return result

    def _apply(self, intents: Sequence[Intent]) -> list[Result]:
        self._writes.begin(intents)
        results = super()._apply(intents)
        self._writes.committed()
        return results

    def _carry_out(self, db: Any, statement: Statement) -> Any:
        answer = super()._carry_out(db, statement)
        self._writes.carried_out(statement)
        return answer


class PointedPostgres(PostgresStore):
    """The PostgreSQL store, with points."""

    def __init__(self, dsn: str, trigger: Trigger, *, lease_seconds: float) -> None:
        super().__init__(dsn, lease_seconds=lease_seconds, on_lost=self._hear)
        self.on_lost: Callable[[], None] = lambda: None
        self._trigger = trigger
        self._writes = _Writes(trigger)

    def _hear(self) -> None:
        self.on_lost()

    async def open(self) -> None:
        await super().open()
        self._carrier = PointedCarrier(self._writes)
        self._trigger.passed("open.after")

    async def close(self) -> None:
        self._trigger.passed("close.before")
        await super().close()
        self._trigger.passed("close.after")

    async def write(self, intent: Intent, /) -> Result:
        result = await super().write(intent)
        self._trigger.batch(kinds_of([intent]), "answered")
        return result

    async def _apply(self, intents: Sequence[Intent]) -> list[Result]:
        self._writes.begin(intents)
        results = await super()._apply(intents)
        self._writes.committed()
        return results


class PointedCarrier(Carrier):
    """Tells how far a batch has come on PostgreSQL."""

    def __init__(self, writes: _Writes) -> None:
        super().__init__()
        self._writes = writes

    async def _carry_out(self, db: Connection, statement: Statement) -> Any:
        answer = await super()._carry_out(db, statement)
        self._writes.carried_out(statement)
        return answer


# -- the journal and the driver ----------------------------------------------------------------


class PointedJournal(Journal):
    """The journal, with points; it publishes whether or not somebody watches."""

    def __init__(self, store: Store, trigger: Trigger) -> None:
        super().__init__(store)
        self._trigger = trigger

    def is_watched(self, execution_id: str) -> bool:
        return True

    def publish(self, events: Sequence[Event]) -> None:
        self._trigger.passed("publish.before")
        super().publish(events)
        self._trigger.passed("publish.after")


class PointedDriver:
    """The Python driver, with points."""

    name: ClassVar[str] = PythonDriver.name
    features: ClassVar[Features] = PythonDriver.features

    def __init__(self, trigger: Trigger) -> None:
        self._driver = PythonDriver()
        self._trigger = trigger

    async def start(self, agent: AgentDefinition, context: DriverContext, /) -> Instance:
        self._trigger.passed("start.before")
        instance = await self._driver.start(agent, context)
        self._trigger.passed("start.after")
        return PointedInstance(instance, self._trigger)

    async def check(self, agent: AgentDefinition, /) -> None:
        await self._driver.check(agent)


class PointedInstance:
    """An instance whose every execution passes the points of a dispatch."""

    def __init__(self, instance: Instance, trigger: Trigger) -> None:
        self.handle = instance.handle
        self._instance = instance
        self._trigger = trigger

    @asynccontextmanager
    async def execute(self, job: Job, /) -> AsyncIterator[AsyncIterator[EventData]]:
        self._trigger.passed("dispatch.before")
        async with self._instance.execute(job) as events:
            self._trigger.passed("dispatch.begun")
            yield _Through(events, self._trigger)
        self._trigger.passed("dispatch.left")

    async def answer(self, question_id: str, answer: Any, /) -> None:
        self._trigger.passed("resume.before")
        await self._instance.answer(question_id, answer)
        self._trigger.passed("resume.after")

    async def ping(self) -> Health:
        return await self._instance.ping()

    async def stop(self, grace: float, /) -> None:
        await self._instance.stop(grace)


class _Through:
    """An agent's events on their way to the engine."""

    def __init__(self, events: AsyncIterator[EventData], trigger: Trigger) -> None:
        self._events = events
        self._trigger = trigger

    def __aiter__(self) -> AsyncIterator[EventData]:
        return self

    async def __anext__(self) -> EventData:
        event = await anext(self._events)
        last = event.type is EventType.COMPLETED
        self._trigger.passed("dispatch.completed" if last else "dispatch.event")
        return event

"""The negative controls: stores that do not keep their promise.

A rig that does not catch these proves nothing about the others. ``SIGKILL`` alone cannot show a
missing fsync, since the page cache outlives the process; a commit that comes too late it can. A
power cut shows the missing fsync.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from retinue.domain.intent import Intent
from retinue.domain.result import Result
from retinue.storage import program
from retinue.storage.sqlite import SqliteStore
from retinue.storage.writer import Waiting

LATE_SECONDS = 0.04


class HastyStore(SqliteStore):
    """Answers its callers a moment before the transaction is committed."""

    async def open(self) -> None:
        """Open, and read on the writer's connection: it alone sees what was acknowledged."""
        await super().open()
        if self._readers is not None:
            self._readers.shutdown()
            self._readers = None

    def _commit(self, batch: list[Waiting], *, again: bool = False) -> None:
        results = self._decide([item.intent for item in batch])
        self._acknowledge([(i.future, r) for i, r in zip(batch, results, strict=True)])
        time.sleep(LATE_SECONDS)
        self._db.execute("COMMIT")

    def _decide(self, intents: Sequence[Intent]) -> list[Result]:
        """Run the batch program in a transaction, and leave that open."""
        self._db.execute("BEGIN IMMEDIATE")
        steps = program.run(intents)
        answer: Any = None
        while True:
            try:
                statement = steps.send(answer)
            except StopIteration as end:
                results: list[Result] = end.value
                return results
            answer = self._carry_out(self._db, statement)


class NormalStore(SqliteStore):
    """Commits without waiting for the disk: ``synchronous=NORMAL``."""

    def _connect(self) -> sqlite3.Connection:
        db = super()._connect()
        db.execute("PRAGMA synchronous = NORMAL")
        return db


STORES: dict[str, type[SqliteStore]] = {"hasty": HastyStore, "normal": NormalStore}

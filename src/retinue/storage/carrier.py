"""Carries a batch program's statements out on PostgreSQL.

Each statement is one round trip for the whole batch, its rows transposed into one array per
column. Beginning and ending the transaction is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from retinue.domain.execution import Execution
from retinue.domain.intent import Intent
from retinue.domain.result import Result
from retinue.domain.session import Session
from retinue.storage import program
from retinue.storage.link import Connection
from retinue.storage.sql import BATCH, insert
from retinue.storage.statements import (
    Change,
    Executions,
    Heads,
    Insert,
    Query,
    Saved,
    Statement,
)
from retinue.storage.tables import TABLES, record_of

_INSERTS = {table: insert(table).postgres for table in TABLES}
_STATEMENTS = {name: statement.postgres for name, statement in BATCH.items()}
_PARAMETER = re.compile(r"\$(\d+)")
_HEADS_KNOWN = 50_000


class Carrier:
    """Runs batch programs; remembers which session heads are there, and what is prepared."""

    def __init__(self) -> None:
        self._heads: set[tuple[str, str]] = set()
        self._prepared: Connection | None = None

    async def prepare(self, db: Connection) -> None:
        """Run every statement once, for no rows, so that no batch has to prepare one.

        Between preparing a statement and running it the server waits for us, yet does not call
        the transaction idle: a process stopped just there would keep its locks for ever.
        """
        if db is self._prepared:
            return
        for text in (*_INSERTS.values(), *_STATEMENTS.values()):
            count = max(int(number) for number in _PARAMETER.findall(text))
            await db.fetch(text, *[[]] * count)
        self._prepared = db

    async def run(
        self, db: Connection, intents: Sequence[Intent], sinks: Sequence[str] = ()
    ) -> list[Result]:
        """Run the program of a batch inside the transaction that ``db`` is in."""
        steps = program.run(intents, sinks)
        answer: Any = None
        while True:
            try:
                statement = steps.send(answer)
            except StopIteration as end:
                results: list[Result] = end.value
                return results
            answer = await self._carry_out(db, statement)

    async def _carry_out(self, db: Connection, statement: Statement) -> Any:
        match statement:
            case Insert(table=table, rows=rows):
                await db.fetch(_INSERTS[table], *zip(*rows, strict=True))
            case Change(name=name, rows=changes):
                await db.fetch(_STATEMENTS[name], *zip(*changes, strict=True))
            case Query(name=name, rows=asked):
                return await db.fetch(_STATEMENTS[name], *zip(*asked, strict=True))
            case Executions(ids=ids):
                found = await db.fetch(_STATEMENTS["lock_execution"], ids)
                return {row[0]: record_of(Execution, row) for row in found}
            case Heads(keys=keys, at=at):
                return await self._lock_heads(db, keys, at)
            case Saved(heads=heads):
                if len(self._heads) > _HEADS_KNOWN:
                    self._heads.clear()
                self._heads.update((head.owner, head.session_id) for head in heads)
        return None

    async def _lock_heads(
        self, db: Connection, keys: list[tuple[str, str]], at: int
    ) -> dict[tuple[str, str], Session]:
        """Make all that may be missing, then lock them all: either in sorted order."""
        columns = tuple(zip(*keys, strict=True))
        known = self._heads.issuperset(keys)
        while True:
            if not known:
                await db.fetch(_STATEMENTS["make_head"], *columns, [at] * len(keys))
            rows = await db.fetch(_STATEMENTS["lock_head"], *columns)
            if len(rows) == len(keys):
                found = (record_of(Session, row) for row in rows)
                return {(head.owner, head.session_id): head for head in found}
            known = False

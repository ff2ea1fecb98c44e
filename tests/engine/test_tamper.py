"""Verification, column by column: what was changed behind the ledger's back is named."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from retinue import Context, Orchestrator, Runtime, Settings, capability
from retinue.domain.execution import Task
from retinue.domain.principal import Role
from retinue.engine.retention import Policy
from retinue.errors import AgentNotFound
from retinue.interfaces import Page
from retinue.orchestrator import LOCAL_ADMIN
from retinue.storage.link import numbered
from retinue.storage.tables import TABLES

Sql = Callable[..., Awaitable[list[Any]]]
TRIGGERS = {"contract_fixed": "contract", "event_fixed": "event", "audit_fixed": "audit"}
BESIDE = {"outbox", "parked", "agent_definition", "instance"}
"""What is still to be done, what is set up, which processes there were: not what was done, so no
part of the record. (What is
registered now has to fit the audit: test_roster.)"""
TABLES_WATCHED = {
    **{table: columns for table, columns in TABLES.items() if table not in BESIDE},
    "tally": ("agent_id", "completed", "failed"),
}

# What a verification cannot tell, and why that is no hole in the record.
LIVE = {
    ("question", "expires_at"): "when a question would have expired; that it did is chained",
    ("mark", "at"): "the audit row that the mark names says when",
    ("mark", "pending"): "what is still to be swept; what was not is found by its content",
}
ROWS = {
    "execution": "id = '{done}'",
    "event": "execution_id = '{done}' AND seq = 1",
    "contract": "session_id = 'kept' AND n = 2",
    "session": "session_id = 'kept'",
    "question": "state = 'answered' AND execution_id = '{asked}'",
    "api_key": "name = 'revoked'",
    "audit": "n = 2",
    "checkpoint": "session_id = 'cut'",
    "mark": "id = '{erased}' AND kind = 'erased'",
    "erased_event": "execution_id = '{erased}' AND seq = 1",
    "tally": "agent_id = 'work'",
}
WORDS = {
    ("execution", "state"): "failed",
    ("execution", "delivery"): "idempotent",
    ("execution", "outcome"): "unknown",
    ("event", "type"): "thinking",
    ("contract", "type"): "REQUEST",
    ("contract", "status"): "failed",
    ("question", "state"): "expired",
    ("question", "kind"): "approval",
    ("question", "role"): "admin",
    ("api_key", "role"): "admin",
    ("mark", "kind"): "removed",
}
NUMBERS = frozenset(
    (
        "deadline_at cancel_requested_at started_at finished_at response_n closed_seq"
        " revoked_at expires_at"
    ).split()
)
MORE = [
    "UPDATE contract SET digest = NULL WHERE session_id = 'kept' AND n = 1",
    "UPDATE contract SET body = NULL WHERE session_id = 'kept' AND n = 1",
    "DELETE FROM contract WHERE session_id = 'kept' AND n = 1",
    "DELETE FROM contract WHERE session_id = 'kept'",
    "DELETE FROM contract WHERE session_id = 'cut'",
    "DELETE FROM session WHERE session_id = 'refused'",
    "DELETE FROM session WHERE session_id = 'kept'",
    "DELETE FROM checkpoint",
    "DELETE FROM mark WHERE kind = 'removed'",
    "DELETE FROM mark WHERE kind = 'erased'",
    "DELETE FROM erased_event",
    "DELETE FROM execution WHERE id = '{done}'",
    "DELETE FROM execution WHERE id = '{open}'",
    "DELETE FROM execution WHERE id = '{cut}'",
    "DELETE FROM event WHERE execution_id = '{done}' AND seq = 1",
    "DELETE FROM event WHERE execution_id = '{open}'",
    "DELETE FROM question WHERE state = 'answered'",
    "UPDATE question SET state = 'lost' WHERE state = 'open'",
    "UPDATE question SET prompt = 'another' WHERE state = 'open'",
    "UPDATE event SET at = at + 1 WHERE execution_id = '{open}'",
    "UPDATE execution SET created_by = 'mallory' WHERE id = '{open}'",
    "UPDATE execution SET owner = 'mallory' WHERE id = '{open}'",
    "UPDATE execution SET last_seq = last_seq + 1 WHERE id = '{open}'",
    "DELETE FROM api_key WHERE name = 'active'",
    "UPDATE api_key SET role = 'viewer' WHERE name = 'active'",
    "UPDATE api_key SET revoked_at = 1 WHERE name = 'active'",
    "UPDATE api_key SET revoked_at = NULL",
    "INSERT INTO event VALUES ('01ARZ3NDEKTSV4RRFFQ69G5FAV', 1, 'log', 1, '{{}}')",
    "INSERT INTO api_key VALUES ('x', 'x', 'x', 'admin', 'x', 1, NULL)",
    "INSERT INTO tally VALUES ('ghost', 1, 0)",
    "DELETE FROM tally",
    "UPDATE execution SET state = 'failed' WHERE id = '{cut}'",
    "DELETE FROM audit WHERE n = (SELECT max(n) FROM audit)",
]


@capability()
async def work(context: Context) -> str:
    """Say something and end."""
    context.log("secret")
    context.log("more")
    return "done"


@capability()
async def question(context: Context) -> str:
    """Ask somebody."""
    return f"heard {await context.ask('really?', schema={'type': 'boolean'})}"


async def asked(orchestrator: Orchestrator) -> tuple[str, str]:
    """Have a question asked; return the execution and the question."""
    accepted = await orchestrator.submit(
        Task(session_id="asked", capability="question", parameters={})
    )
    async with asyncio.timeout(20):
        while True:
            for found in (await orchestrator.questions(Page())).items:
                if found.execution_id == accepted.execution_id:
                    return accepted.execution_id, found.id
            await asyncio.sleep(0.005)


async def filled(runtime: Runtime) -> dict[str, str]:
    """Leave a bit of everything; return the executions by what became of them."""
    orchestrator = runtime.orchestrator
    orchestrator.register_agent(work)
    orchestrator.register_agent(question)

    async def done(session_id: str) -> str:
        reply = await orchestrator.orchestrate(session_id, {"capability": "work"})
        return str(reply["execution_id"])

    found = {"cut": await done("cut")}
    await done("cut")
    runtime.engine.retention.policy = Policy(executions=1)
    await done("kept")  # so that what was before is old
    _, pruned = await orchestrator.prune()
    assert (pruned.contracts, pruned.executions) == (4, 2)
    runtime.engine.retention.policy = Policy()
    await done("cut")
    found["done"] = await done("kept")
    found["erased"] = await done("erased")
    await orchestrator.erase(found["erased"])
    found["asked"], question_id = await asked(orchestrator)
    await orchestrator.answer(question_id, True)
    async for _ in orchestrator.follow(found["asked"]):
        pass
    with pytest.raises(AgentNotFound):
        await orchestrator.perform(Task(session_id="refused", capability="unheard-of"))
    await orchestrator.keys.create("active", Role.ADMIN, "local", by=LOCAL_ADMIN)
    key, _ = await orchestrator.keys.create("revoked", Role.VIEWER, "local", by=LOCAL_ADMIN)
    await orchestrator.keys.revoke(key.id, by=LOCAL_ADMIN)
    found["open"], _ = await asked(orchestrator)
    # The execution whose row is changed is the second of its session: places 3 and 4.
    return found


@asynccontextmanager
async def sqlite_ledger(path: Path) -> AsyncIterator[tuple[Runtime, Sql]]:
    runtime = Runtime(Settings(data_dir=path, examples=False, entry_points=False))
    await runtime.start()
    db = sqlite3.connect(path / "retinue.db", isolation_level=None)

    async def sql(statement: str, *values: Any) -> list[Any]:
        return db.execute(statement, values).fetchall()

    yield runtime, sql
    db.close()
    await runtime.stop(grace=0.1)


@asynccontextmanager
async def postgres_ledger(url: str) -> AsyncIterator[tuple[Runtime, Sql]]:
    runtime = Runtime(Settings(database_url=url, examples=False, entry_points=False))
    await runtime.start()
    db = await asyncpg.connect(url)

    async def sql(statement: str, *values: Any) -> list[Any]:
        return list(map(tuple, await db.fetch(numbered(statement), *values)))

    yield runtime, sql
    await db.close()
    await runtime.stop(grace=0.1)


def changed(table: str, column: str, value: Any) -> Any:
    """Return another value that the column may hold."""
    if (table, column) in WORDS:
        return WORDS[table, column]
    if isinstance(value, int):
        return value + 1000
    if isinstance(value, str):
        return value + "x"
    if value is not None:
        return bytes(value)[:-1] + bytes([bytes(value)[-1] ^ 1])
    if column in NUMBERS:
        return 1
    return b"{}" if column in {"schema", "answer_hash", "digest", "body"} else "x"


async def missed(orchestrator: Orchestrator, sql: Sql, ids: dict[str, str]) -> list[str]:
    """Change every column, one after the other; return what verification did not see."""
    found: list[str] = []
    for table, columns in TABLES_WATCHED.items():
        where = ROWS[table].format(**ids)
        for column in columns:
            rows = await sql(f"SELECT {', '.join(columns)} FROM {table} WHERE {where}")
            assert len(rows) == 1, (table, where, rows)
            before = rows[0][columns.index(column)]
            after = changed(table, column, before)
            assert after != before
            key = dict(zip(columns, rows[0], strict=True)) | {column: after}
            match = {c: v for c, v in key.items() if v is not None}
            condition = " AND ".join(f"{c} = ?" for c in match)
            await sql(f"UPDATE {table} SET {column} = ? WHERE {where}", after)
            fault = (await orchestrator.verify()).fault
            if (fault is None) is ((table, column) not in LIVE):
                found.append(f"{table}.{column}: {before!r} → {after!r}: {fault}")
            await sql(f"UPDATE {table} SET {column} = ? WHERE {condition}", before, *match.values())
    assert (await orchestrator.verify()).ok
    return found


async def check_columns(runtime: Runtime, sql: Sql, *, postgres: bool) -> None:
    orchestrator = runtime.orchestrator
    ids = await filled(runtime)
    await runtime.engine.scheduler.anchor()
    verdict = await orchestrator.verify()
    assert verdict.ok, verdict
    for trigger, table in TRIGGERS.items():
        await sql(f"DROP TRIGGER {trigger}" + (f" ON {table}" if postgres else ""))
    found = await missed(orchestrator, sql, ids)
    assert not found, "\n".join(found)


async def test_every_column_is_watched_sqlite(tmp_path: Path) -> None:
    async with sqlite_ledger(tmp_path) as (runtime, sql):
        await check_columns(runtime, sql, postgres=False)


async def test_every_column_is_watched_postgres(postgres_url: str) -> None:
    async with postgres_ledger(postgres_url) as (runtime, sql):
        await check_columns(runtime, sql, postgres=True)


async def test_what_is_put_in_or_taken_out_is_named(tmp_path: Path) -> None:
    async with sqlite_ledger(tmp_path) as (runtime, sql):
        ids = await filled(runtime)
        await runtime.engine.scheduler.anchor()
        for trigger in (*TRIGGERS, "audit_kept"):
            await sql(f"DROP TRIGGER {trigger}")
        quiet = []
        for statement in MORE:
            copy = tmp_path / "copy.db"
            copy.unlink(missing_ok=True)
            await sql("VACUUM INTO ?", str(copy))
            with sqlite3.connect(copy) as db:
                assert db.execute(statement.format(**ids)).rowcount >= 1, statement
            db.close()
            settings = Settings(database_url=f"sqlite:///{copy}", examples=False)
            other = Runtime(settings)
            await other.open()
            fault = (await other.orchestrator.verify()).fault
            await other.close()
            if fault is None:
                quiet.append(statement)
        assert not quiet, quiet

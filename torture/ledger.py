"""The ledger as it lies in the database, read with plain SQL: no line of the product's reads.

Only ``verify`` asks the product, for the verdict on its chains.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from retinue.runtime import Runtime
from retinue.settings import Settings

ACTIVE = ("running", "input_required")
TERMINAL = frozenset({"completed", "failed", "cancelled", "timed_out"})
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Execution:
    """A row of ``execution``."""

    id: str
    state: str
    delivery: str
    attempt: int
    max_attempts: int
    last_seq: int
    created_at: int
    started_at: int | None
    request_id: str
    response_id: str | None
    error_code: str | None


@dataclass(frozen=True)
class Contract:
    """A row of ``contract``; ``body`` is decoded."""

    id: str
    type: str
    status: str | None
    execution_id: str | None
    session_id: str
    n: int
    body: Any


@dataclass(frozen=True)
class Event:
    """A row of ``event``; ``data`` is decoded."""

    execution_id: str
    seq: int
    type: str
    at: int
    data: Any


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All of it. Events and contracts are by execution, in order."""

    executions: dict[str, Execution]
    contracts: dict[str, list[Contract]]
    refused: dict[str, Contract | None]
    """REQUESTs that no agent could do, by id, each with the RESPONSE that follows it."""
    events: dict[str, list[Event]]
    keys: dict[str, str]

    def marker(self, execution_id: str) -> str | None:
        """Return which task an execution is of."""
        for contract in self.contracts.get(execution_id, ()):
            if contract.type == "REQUEST":
                return str(contract.body["parameters"]["marker"])
        return None


async def query(database: str, sql: str) -> Sequence[Any]:
    """Return the rows of a query on the database that a settings' URL names."""
    if database.startswith(_SQLITE):
        return await asyncio.to_thread(_from_file, database.removeprefix(_SQLITE), sql)
    connection = await asyncpg.connect(database, timeout=5)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close(timeout=5)


def _from_file(path: str, sql: str) -> Sequence[Any]:
    connection = sqlite3.connect(path, timeout=5)
    try:
        connection.execute("PRAGMA query_only = ON")
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def unfinished(database: str) -> list[str]:
    """Return the executions that have not ended."""
    known = ", ".join(f"'{state}'" for state in sorted(TERMINAL))
    rows = await query(database, f"SELECT id FROM execution WHERE state NOT IN ({known})")
    return [row[0] for row in rows]


async def running(database: str) -> list[tuple[str, str]]:
    """Return the executions that run, each with its worker."""
    known = ", ".join(f"'{state}'" for state in ACTIVE)
    rows = await query(database, f"SELECT id, worker FROM execution WHERE state IN ({known})")
    return [(row[0], row[1]) for row in rows]


async def workers(database: str, pid: int) -> list[tuple[str, bool]]:
    """Return the epochs of a process, oldest first, and whether each goes on."""
    rows = await query(database, f"SELECT id, stopped_at FROM worker WHERE pid = {pid} ORDER BY id")
    return [(row[0], row[1] is None) for row in rows]


async def read(database: str) -> Ledger:
    """Return the whole ledger."""
    columns = ", ".join(Execution.__dataclass_fields__)
    executions = [Execution(*r) for r in await query(database, f"SELECT {columns} FROM execution")]
    contracts: defaultdict[str, list[Contract]] = defaultdict(list)
    refused: dict[str, Contract | None] = {}
    asked: Contract | None = None
    columns = ", ".join(Contract.__dataclass_fields__)
    for row in await query(
        database, f"SELECT {columns} FROM contract ORDER BY owner, session_id, n"
    ):
        contract = Contract(*_decoded(row))
        if contract.execution_id is not None:
            contracts[contract.execution_id].append(contract)
        elif contract.type == "REQUEST":
            refused[contract.id] = None
            asked = contract
        elif asked is not None and (contract.session_id, contract.n - 1) == (
            asked.session_id,
            asked.n,
        ):
            refused[asked.id] = contract
    events: defaultdict[str, list[Event]] = defaultdict(list)
    columns = ", ".join(Event.__dataclass_fields__)
    for row in await query(database, f"SELECT {columns} FROM event ORDER BY execution_id, seq"):
        event = Event(*_decoded(row))
        events[event.execution_id].append(event)
    return Ledger(
        executions={execution.id: execution for execution in executions},
        contracts=dict(contracts),
        refused=refused,
        events=dict(events),
        keys=dict(await query(database, "SELECT key, execution_id FROM idempotency")),
    )


def _decoded(row: Sequence[Any]) -> list[Any]:
    """Return a row whose last column is JSON."""
    return [*row[:-1], json.loads(bytes(row[-1]))]


async def verify(database: str) -> str | None:
    """Return what the product's own verification finds wrong. No server may run on SQLite."""
    settings = Settings(database_url=database, examples=False, entry_points=False)
    runtime = Runtime(settings)
    orchestrator = await runtime.open()
    try:
        fault = (await orchestrator.verify()).fault
    finally:
        await runtime.close()
    return f"{fault.chain}, row {fault.n}: {fault.reason}" if fault is not None else None


def database_in(directory: Path) -> str:
    """Return the URL of the SQLite store of a data directory."""
    return f"{_SQLITE}{directory / 'retinue.db'}"

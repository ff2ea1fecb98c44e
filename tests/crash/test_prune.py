"""Retention killed in the middle: the record holds, and the next round goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from retinue import Context, Runtime, Settings, capability
from retinue.domain.execution import Task
from retinue.domain.ids import now_us
from retinue.interfaces import ContractFilter, Page

RETINUE = Path(sys.executable).parent / "retinue"
TASKS = 1500
KILLS = 4


@capability()
async def tell(context: Context) -> str:
    """Say something and end."""
    context.log("one")
    context.log("two")
    return "done"


async def filled(runtime: Runtime) -> None:
    orchestrator = await runtime.start()
    orchestrator.register_agent(tell)
    for start in range(0, TASKS, 100):
        await asyncio.gather(
            *(
                orchestrator.perform(Task(session_id=f"s{n % 5}", capability="tell", parameters={}))
                for n in range(start, start + 100)
            )
        )
    # The one that is kept: alone at the end of its chain.
    await orchestrator.perform(Task(session_id="s0", capability="tell", parameters={}))
    await runtime.stop(grace=5)


async def audits(runtime: Runtime) -> int:
    n, _ = await runtime.store.audit_head()
    return n


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_a_kill_in_the_middle_loses_nothing_but_time(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    if kind == "postgres":
        url = request.getfixturevalue("postgres_url")
    where: dict[str, Any] = {"database_url": url, "examples": False, "entry_points": False}
    await filled(Runtime(Settings(**where)))
    environment = {
        "PATH": os.defpath,
        "HOME": str(tmp_path),
        "RETINUE_DATABASE_URL": url,
        "RETINUE_EXAMPLES": "false",
        "RETINUE_RETENTION_EXECUTIONS": "1",
    }
    interrupted = 0
    for number in range(KILLS):
        process = await asyncio.create_subprocess_exec(
            *(str(RETINUE), "ledger", "prune", "--json"),
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
        )
        await _until_it_has_written(process, url, number * 3 + 1)
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()
        reader = Runtime(Settings(**where))
        orchestrator = await reader.open()
        verdict = await orchestrator.verify()
        assert verdict.ok, verdict
        left = await orchestrator.contracts(ContractFilter(), Page(limit=1))
        interrupted += await reader.store.unswept(now_us()) or left.total > 2
        await reader.close()
    assert interrupted, "no kill came in the middle"
    last = Runtime(Settings(**where, retention_executions=1))
    orchestrator = await last.open()
    await orchestrator.prune()
    verdict = await orchestrator.verify()
    assert verdict.ok, verdict
    assert (verdict.contracts, verdict.events) == (2, 3)
    assert len(await last.store.with_events("", 10)) == 1
    assert not await last.store.unswept(now_us())
    await last.close()


async def _until_it_has_written(process: asyncio.subprocess.Process, url: str, more: int) -> None:
    """Wait until the process has put so many rows into the audit, or has ended."""
    look = _Look(url)
    before = await look.audits()
    while process.returncode is None and await look.audits() < before + more:
        await asyncio.sleep(0.001)
    await look.close()


class _Look:
    """Reads the audit's head beside the store."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._db: Any = None

    async def audits(self) -> int:
        if self._url.startswith("sqlite"):
            import sqlite3  # noqa: PLC0415 one of two

            if self._db is None:
                self._db = sqlite3.connect(self._url.removeprefix("sqlite:///"))
            return int(self._db.execute("SELECT n FROM audit_head").fetchone()[0])
        import asyncpg  # noqa: PLC0415 the other one

        if self._db is None:
            self._db = await asyncpg.connect(self._url)
        return int(await self._db.fetchval("SELECT n FROM audit_head"))

    async def close(self) -> None:
        closing = self._db.close()
        if closing is not None:
            await closing

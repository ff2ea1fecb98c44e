"""PostgreSQL killed, cut off and made read-only under load: no word that is not kept."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from torture.rig import Plan
from torture.scenarios import QUICK, outages

from retinue import Orchestrator, Runtime, Settings, capability
from retinue.errors import Pending, StoreUnavailable
from retinue.storage.postgres import PostgresStore
from retinue.testing.servers import PostgresServer


@pytest.mark.parametrize("servers", [1, 2])
async def test_an_outage_loses_and_doubles_nothing(tmp_path: Path, servers: int) -> None:
    report = await outages(tmp_path, Plan(seed=servers, servers=servers), replace(QUICK, outages=3))
    assert not report.violations, report
    assert report.acknowledged > 50
    assert len(report.answered) == 3


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("postgresql://ann:se%20cret@127.0.0.1:1/ledger", "ledger at 127.0.0.1:1"),
        ("postgresql://ann:se%20cret@/ledger?host=127.0.0.1&port=1", "ledger at 127.0.0.1:1"),
        ("postgresql://ann:se%20cret@127.0.0.1:1,127.0.0.1:2/ledger", "ledger at 127.0.0.1:1"),
    ],
)
async def test_who_cannot_be_reached_is_named_without_its_password(place: str, shown: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        await PostgresStore(place).open()
    assert shown in caught.value.message
    assert "cret" not in caught.value.message


async def test_a_database_that_is_not_there_is_named(postgres_server: PostgresServer) -> None:
    with pytest.raises(StoreUnavailable, match=f"nowhere at 127.0.0.1:{postgres_server.port}"):
        await PostgresStore(postgres_server.url("nowhere")).open()


async def test_who_waits_for_accepted_work_is_not_told_to_send_it_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    @capability()
    async def work() -> None:
        begun.set()
        await never.wait()

    with PostgresServer() as server:
        settings = Settings(
            data_dir=tmp_path,
            examples=False,
            entry_points=False,
            database_url=server.url(),
            lease_seconds=1.0,
        )
        runtime = Runtime(settings)
        orchestrator = await runtime.start()
        try:
            orchestrator.register_agent(work)
            caller = asyncio.create_task(orchestrator.orchestrate("s", {"capability": "work"}))
            async with asyncio.timeout(30):
                await begun.wait()
                await asyncio.to_thread(server.kill9)
                with pytest.raises(Pending) as caught:
                    await caller
                with pytest.raises(StoreUnavailable):
                    await orchestrator.compress_session("s")
                await asyncio.to_thread(server.start)
                execution_id = caught.value.details["execution_id"]
                while not await ended(orchestrator, execution_id):
                    await asyncio.sleep(0.05)
            assert not caught.value.retryable
            # Nobody else is there, and nobody died: what is said of it is true of that, too.
            assert "could not renew its lease" in caplog.text
            assert "nother worker" not in caplog.text
            _, reply = await orchestrator.task_of(await orchestrator.execution(execution_id))
            assert reply is not None
            assert reply.error is not None
            assert "lost its lease" in reply.error["message"]
        finally:
            await runtime.stop(grace=0)


async def ended(orchestrator: Orchestrator, execution_id: str) -> bool:
    """Say whether an execution has ended, as far as the store answers."""
    try:
        return (await orchestrator.execution(execution_id)).terminal
    except StoreUnavailable:
        return False

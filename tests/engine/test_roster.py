"""Registered agents as a process runs them: what goes before, and what cannot be run."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from retinue import Runtime, Settings, capability
from retinue.domain.agent import Capability, Registration
from retinue.errors import AgentNotFound, Conflict, InvalidInput
from retinue.orchestrator import LOCAL_ADMIN
from retinue.storage.link import numbered
from retinue.testing.http_agents import HttpAgent
from retinue.testing.store_agents import put, registration


@pytest.fixture
def agent() -> Iterator[HttpAgent]:
    with HttpAgent() as agent:
        yield agent


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    """A runtime that is not started: a test does that."""
    settings = Settings(
        data_dir=tmp_path, examples=False, entry_points=False, egress_allow=("127.0.0.1",)
    )
    return Runtime(settings)


def wanted(agent: HttpAgent, agent_id: str, word: str) -> Registration:
    return Registration(
        agent_id=agent_id,
        name=agent_id,
        endpoint=agent.endpoint,
        capabilities=(Capability(name=word),),
    )


async def test_no_agent_has_the_name_that_contracts_call_us_by(
    runtime: Runtime, agent: HttpAgent
) -> None:
    async with runtime as orchestrator:
        with pytest.raises(InvalidInput, match="Retinue itself"):
            await orchestrator.register_remote(wanted(agent, "orchestrator", "good"))

        @capability(agent_id="orchestrator")
        async def impostor() -> None:
            """Do nothing."""

        with pytest.raises(InvalidInput, match="Retinue itself"):
            orchestrator.register_agent(impostor)


async def test_an_agent_of_the_process_goes_before_a_registered_one(
    runtime: Runtime, agent: HttpAgent, caplog: pytest.LogCaptureFixture
) -> None:
    async with runtime as orchestrator:
        await orchestrator.register_remote(wanted(agent, "twice", "good"))
        await orchestrator.register_remote(wanted(agent, "once", "plain"))

    @capability(agent_id="twice")
    async def good() -> str:
        """Answer from this process."""
        return "here"

    again = Runtime(runtime.settings)
    again.orchestrator.register_agent(good)
    async with again as orchestrator:
        assert "twice is left out" in caplog.text
        assert (await orchestrator.orchestrate("s", {"capability": "good"}))["data"] == "here"
        assert (await orchestrator.orchestrate("s", {"capability": "plain"}))["data"] == 1
        with pytest.raises(Conflict):
            await orchestrator.register_remote(wanted(agent, "twice", "good"))
        # The registration itself can still be ended.
        await orchestrator.remove_remote("twice")
        assert (await orchestrator.agent("twice")).driver == "python"
        with pytest.raises(Conflict, match="own code or configuration"):
            await orchestrator.remove_remote("twice")
        with pytest.raises(AgentNotFound):
            await orchestrator.remove_remote("never")


async def test_a_registration_that_cannot_be_read_holds_up_no_other(
    runtime: Runtime, agent: HttpAgent, caplog: pytest.LogCaptureFixture
) -> None:
    await runtime.store.open()
    for n, definition in enumerate([b"", b"{}", b'{"name":"\xff"}', b"[]"]):
        odd = msgspec.structs.replace(registration(f"odd-{n}"), definition=definition)
        await runtime.store.write(put(odd))
    await runtime.store.close()
    async with Runtime(runtime.settings) as orchestrator:
        assert caplog.text.count("cannot be run") == 4
        await orchestrator.register_remote(wanted(agent, "good", "good"), LOCAL_ADMIN)
        assert (await orchestrator.orchestrate("s", {"capability": "good"}))["success"]
        assert [view.agent_id for view in await orchestrator.agents()] == ["good"]


async def test_a_store_in_memory_leaves_no_key_behind(
    agent: HttpAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(database_url="sqlite://", examples=False, egress_allow=("127.0.0.1",))
    async with Runtime(settings) as orchestrator:
        await orchestrator.register_remote(wanted(agent, "far", "good"))
        assert (await orchestrator.orchestrate("s", {"capability": "good"}))["success"]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("on_postgres", [False, True])
async def test_a_registration_changed_behind_the_audit_is_named(
    tmp_path: Path, agent: HttpAgent, request: pytest.FixtureRequest, on_postgres: bool
) -> None:
    url = request.getfixturevalue("postgres_url") if on_postgres else None
    settings = Settings(
        data_dir=tmp_path,
        database_url=url,
        examples=False,
        entry_points=False,
        egress_allow=("127.0.0.1",),
    )
    async with Runtime(settings) as orchestrator:
        for name in ("kept", "again", "removed"):
            await orchestrator.register_remote(wanted(agent, name, name))
        for name in ("again", "removed"):
            await orchestrator.remove_remote(name)
        await orchestrator.register_remote(wanted(agent, "again", "again"))
        assert (await orchestrator.verify()).ok
        async with database(tmp_path, url) as sql:
            fields = "id owner created_by driver definition fingerprint created_at removed_at"
            for field in fields.split():
                where = "agent_id = 'kept'"
                ((before,),) = await sql(f"SELECT {field} FROM agent_definition WHERE {where}")
                await sql(f"UPDATE agent_definition SET {field} = ? WHERE {where}", other(before))
                fault = (await orchestrator.verify()).fault
                assert fault is not None, field
                assert (fault.chain, fault.id) == ("registered agents", "kept")
                await sql(f"UPDATE agent_definition SET {field} = ? WHERE {where}", before)
            assert (await orchestrator.verify()).ok
            where = "agent_id = 'removed'"
            await sql(f"UPDATE agent_definition SET removed_at = NULL WHERE {where}")
            fault = (await orchestrator.verify()).fault
            assert fault is not None
            assert fault.id == "removed"
            assert "does not say who registered" in fault.reason


def other(value: Any) -> Any:
    """Return another value for a column."""
    if isinstance(value, bytes):
        return value + b" "
    return value + "x" if isinstance(value, str) else (value or 0) + 1


@asynccontextmanager
async def database(path: Path, url: str | None) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Go to the store's rows past Retinue."""
    if url is None:
        with closing(sqlite3.connect(path / "retinue.db", isolation_level=None)) as db:

            async def sql(statement: str, *values: Any) -> Any:
                return db.execute(statement, values).fetchall()

            yield sql
        return
    link = await asyncpg.connect(url)

    async def sql_there(statement: str, *values: Any) -> Any:
        return await link.fetch(numbered(statement), *values)

    yield sql_there
    await link.close()

"""Erasure, and what agents' processes left beside the store: logs, and sessions of their own."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retinue import Runtime, Settings
from retinue.domain.execution import Task
from retinue.interfaces import InstanceFilter, Page
from retinue.orchestrator import Reply
from retinue.settings import CodingReference, CommandReference
from retinue.testing.coding_agent import install


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[Runtime]:
    program = install(tmp_path / "bin", "claude")["claude"]
    agents = (
        CommandReference(driver="command", agent_id="cat", command=("cat",)),
        CodingReference.model_validate({"driver": "claude", "command": (program,)}),
    )
    runtime = Runtime(
        Settings(data_dir=tmp_path / "data", examples=False, entry_points=False, agents=agents)
    )
    await runtime.start()
    yield runtime
    await runtime.stop(grace=0)


async def run(system: Runtime, agent: str, prompt: str, session: str = "s") -> Reply:
    task = Task(session_id=session, agent_id=agent, parameters={"prompt": prompt})
    answer = await system.orchestrator.perform(task)
    assert answer.error is None, answer.error
    await asyncio.to_thread(system.keeper.logs.settle)
    return answer


def holding(system: Runtime, text: str) -> set[str]:
    """Return the files of logs that hold a text, by the directory they are in."""
    logs = (system.settings.data_dir / "processes").glob("*/logs/*/*")
    return {file.parent.name for file in logs if text in file.read_text()}


async def turns_before(system: Runtime, session: str) -> int:
    answer = await run(system, "claude", "[[seen]]", session)
    found: int = json.loads(json.loads(answer.data or b""))["turns_before"]
    return found


@pytest.mark.parametrize("agent", ["cat", "claude"])
async def test_the_log_of_an_execution_goes_with_what_it_said(system: Runtime, agent: str) -> None:
    erased = await run(system, agent, "the secret")
    kept = await run(system, agent, "the secret too", "t")
    names = {f"{reply.execution_id}-1" for reply in (erased, kept)}
    assert holding(system, "the secret") == names
    await system.orchestrator.erase(erased.execution_id)
    assert holding(system, "the secret") == {f"{kept.execution_id}-1"}
    where = InstanceFilter(execution_id=erased.execution_id)
    (record,) = (await system.store.instances(where, Page())).items
    log = await system.orchestrator.log_of(record.instance_id)
    assert log == {"stdout": "", "stderr": ""}


async def test_a_session_that_is_erased_is_not_gone_on_with(system: Runtime) -> None:
    for session in "st":
        for agent in ("cat", "claude"):
            await run(system, agent, f"the secret of {session}", session)
    before = holding(system, "the secret of t")
    assert len(before) == 2
    assert len(holding(system, "the secret of s")) == 2
    await system.orchestrator.erase_session("s")
    assert holding(system, "the secret of s") == set()
    assert holding(system, "the secret of t") == before
    assert await turns_before(system, "s") == 0
    assert await turns_before(system, "t") == 1


async def test_a_turn_that_is_erased_is_not_gone_on_with(system: Runtime) -> None:
    await run(system, "claude", "the first")
    answer = await run(system, "claude", "the second")
    await system.orchestrator.erase(answer.execution_id)
    assert len(holding(system, "the first")) == 1
    assert await turns_before(system, "s") == 0
    assert await turns_before(system, "s") == 1

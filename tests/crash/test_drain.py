"""SIGTERM under load: the server ends in time, and whatever it accepted is kept."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torture import ledger
from torture.callers import Wish
from torture.journals import Answered
from torture.rig import Plan, Rig, until

PLAN = Plan(seed=1, grace_seconds=10)


def long(capability: str, milliseconds: int) -> Wish:
    return Wish(
        marker=f"long {capability}", capability=capability, parameters={"delay_ms": milliseconds}
    )


async def drained(rig: Rig, wishes: Sequence[Wish]) -> tuple[float, dict[str, Answered]]:
    """Stop the first server while it does ``wishes``; return how long it took, and its answers."""
    server = rig.servers[0]
    rig.load.start()
    await rig.progress()
    sends = [asyncio.create_task(rig.client.send(server.url, wish)) for wish in wishes]

    async def begun() -> bool:
        markers = {(await asks(rig)).get(wish.marker) for wish in wishes}
        return None not in markers

    try:
        await until("the long tasks run", begun)
        seconds = await rig.drain(server)
        answers = await asyncio.gather(*sends)
    finally:
        for send in sends:
            send.cancel()
    found = {wish.marker: a for wish, a in zip(wishes, answers, strict=True) if a is not None}
    return seconds, found


async def asks(rig: Rig) -> dict[str, str]:
    """Return which execution runs for which task."""
    found = await ledger.read(rig.database)
    running = {execution_id for execution_id, _ in await ledger.running(rig.database)}
    return {found.marker(i) or "": i for i in running}


@pytest.mark.parametrize("shared", [False, True], ids=["sqlite", "postgres"])
async def test_what_runs_ends_and_is_answered(
    tmp_path: Path, request: pytest.FixtureRequest, shared: bool
) -> None:
    url: str | None = request.getfixturevalue("postgres_url") if shared else None
    plan = replace(PLAN, database=url, servers=2 if shared else 1)
    async with Rig(tmp_path, plan) as rig:
        seconds, answers = await drained(rig, [long("once", 800), long("same", 800)])
        await rig.progress()
        report = await rig.finish()
    assert not report.violations, report
    assert seconds < PLAN.grace_seconds
    for capability in ("once", "same"):
        body = answers[f"long {capability}"].body
        assert body["success"] is True
        assert body["data"]["attempt"] == 1


async def test_what_outlasts_the_grace_is_repeated_only_where_it_may(tmp_path: Path) -> None:
    grace = 0.3
    async with Rig(tmp_path, replace(PLAN, grace_seconds=grace)) as rig:
        seconds, answers = await drained(rig, [long("once", 2500), long("same", 2500)])
        report = await rig.finish()
    assert not report.violations, report
    assert seconds < grace + 5
    once: dict[str, Any] = answers["long once"].body
    assert (once["success"], once["error_info"]["code"]) == (False, "E_SHUTTING_DOWN")
    same = answers["long same"]
    assert (same.status, same.body["code"]) == (503, "E_PENDING")
    found = await ledger.read(rig.database)
    ended = found.executions[same.body["details"]["execution_id"]]
    assert (ended.state, ended.attempt) == ("completed", 2)

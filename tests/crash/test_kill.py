"""Servers killed under load: nothing that was acknowledged is lost, nothing is done too often."""

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from torture.callers import Wish
from torture.rig import Plan, Report, Rig

READY_SECONDS = 3.0
RESUMED_SECONDS = 5.0
PLAN = Plan(seed=1, pause=(0.2, 0.6))


async def killed(directory: Path, plan: Plan, kills: int) -> Report:
    async with Rig(directory, plan) as rig:
        rig.load.start()
        await rig.sweep(kills)
        return await rig.finish()


def kept_all(report: Report, kills: int) -> None:
    assert not report.violations, report
    assert report.kills >= kills
    assert report.acknowledged > kills
    assert report.retaken, "no kill interrupted anything"
    # The slowest of many may be the machine's fault; the usual one is ours.
    assert median(report.ready) < READY_SECONDS
    assert median(report.resumed) < RESUMED_SECONDS


@pytest.mark.requirement("003.contracts-durable")
async def test_sqlite_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    # The Trace that the servers are told of is down all the while.
    kept_all(await killed(tmp_path, PLAN, 20), 20)


async def test_postgres_keeps_what_it_acknowledged(tmp_path: Path, postgres_url: str) -> None:
    kept_all(await killed(tmp_path, replace(PLAN, database=postgres_url), 5), 5)


async def test_of_two_servers_the_other_one_takes_over(tmp_path: Path, postgres_url: str) -> None:
    kept_all(await killed(tmp_path, replace(PLAN, database=postgres_url, servers=2), 4), 4)


async def test_a_store_that_acknowledges_too_early_is_caught(tmp_path: Path) -> None:
    report = await killed(tmp_path, replace(PLAN, store="hasty", callers=4), 4)
    assert report.lost, report


@pytest.mark.parametrize(("capability", "deaths"), [("once", 1), ("again", 3), ("same", 5)])
async def test_a_task_that_kills_its_server_is_given_up(
    tmp_path: Path, capability: str, deaths: int
) -> None:
    parameters = {"delay_ms": 200, "deaths": 100}
    poison = Wish(marker="poison", capability=capability, waits=False, parameters=parameters)
    async with Rig(tmp_path, PLAN) as rig:
        assert await rig.outlast(poison) == deaths
        after = await rig.client.send(rig.servers[0].url, Wish(marker="after", capability="once"))
        report = await rig.finish()
    assert after is not None
    assert after.body["success"] is True
    assert not report.violations, report
    assert report.effects == deaths + 1
    assert report.executions == 2

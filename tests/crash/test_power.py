"""The power is cut: what was acknowledged is on the disk, because the store waited for it."""

from dataclasses import replace
from pathlib import Path

import pytest
from torture import power
from torture.image import Image, missing
from torture.rig import Plan, Report, Rig

PLAN = Plan(seed=1, pause=(0.1, 0.4))


@pytest.fixture(autouse=True)
def images() -> None:
    if reason := missing():
        pytest.skip(f"no file system image can be mounted here: {reason}")


async def cut(directory: Path, plan: Plan, cuts: int) -> Report:
    with Image(directory) as image:
        async with Rig(directory, replace(plan, data=image.path / "data")) as rig:
            rig.load.start()
            faults = await power.sweep(rig, image, cuts)
            report = await rig.finish()
    report.violations += faults
    return report


@pytest.mark.requirement("003.contracts-durable")
async def test_what_was_acknowledged_is_on_the_disk(tmp_path: Path) -> None:
    report = await cut(tmp_path, PLAN, 4)
    assert not report.violations, report
    assert report.cuts == 4
    assert report.acknowledged > 40


async def test_a_store_that_does_not_wait_for_the_disk_is_caught(tmp_path: Path) -> None:
    report = await cut(tmp_path, replace(PLAN, store="normal"), 3)
    assert report.lost, report

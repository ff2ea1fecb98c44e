"""Subscribers come back after a crash with the number they have: no gap, no repeat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torture.rig import Plan
from torture.scenarios import QUICK, subscribers


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
async def test_readers_that_come_back_miss_and_repeat_nothing(
    tmp_path: Path, request: pytest.FixtureRequest, store: str
) -> None:
    database = request.getfixturevalue("postgres_url") if store == "postgres" else None
    profile = replace(QUICK, subscribers=40)
    report = await subscribers(tmp_path, Plan(seed=3, database=database), profile)
    assert not report.violations, report
    assert report.kills == 2

"""A server that ends in the middle of a commit, a publication or a dispatch is recovered from."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from torture import points, sweep
from torture.rig import Plan, Report, Rig

from retinue.domain.intent import Intent

PLAN = Plan(seed=1)
# One of each kind of moment; `make torture ARGS=--full` goes through all of them.
SOME = (
    "submit.half",
    "submit.answered",
    "append.committed",
    "finish.written",
    "finish.committed",
    "requeue.before",
    "lease.committed",
    "cancel.answered",
    "answer.committed",
    "dispatch.event",
    "publish.before",
    "close.after",
)


async def swept(directory: Path, plan: Plan, only: tuple[str, ...]) -> Report:
    chosen = sweep.crashes(only, Random(plan.seed), None)
    async with Rig(directory, plan) as rig:
        missed = await sweep.run(rig, chosen)
        report = await rig.finish()
    report.violations += missed
    assert report.crashes == len(chosen), report
    return report


async def test_sqlite_recovers(tmp_path: Path) -> None:
    report = await swept(tmp_path, PLAN, SOME)
    assert not report.violations, report
    assert report.retaken


async def test_postgres_recovers(tmp_path: Path, postgres_url: str) -> None:
    plan = replace(PLAN, database=postgres_url, lease_seconds=1.0)
    report = await swept(tmp_path, plan, SOME[::3])
    assert not report.violations, report
    assert report.retaken


def test_points_are_named_after_intents() -> None:
    kinds = {kind.__name__.lower() for kind in Intent.__args__}
    assert set(points.KINDS) <= kinds


@pytest.mark.parametrize("armed", [True, False])
def test_a_trigger_counts_from_when_it_is_armed(
    armed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    exits: Callable[[int], None] = ended.append
    monkeypatch.setattr("os._exit", exits)
    trigger = points.Trigger("submit.before", 2, armed=armed)
    trigger.batch(["append", "submit"], "before")
    trigger.batch(["submit"], "committed")
    assert not ended
    trigger.armed = True
    trigger.passed("submit.before")
    assert ended == ([points.STATUS] if armed else [])
    trigger.passed("submit.before")
    assert ended == [points.STATUS]


def test_a_seed_gives_the_same_sweep() -> None:
    def order(seed: int) -> list[str]:
        return [str(crash) for crash in sweep.crashes((), Random(seed), 20)]

    assert order(7) == order(7) != order(8)
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+ (\d|at start)", said) for said in order(7))

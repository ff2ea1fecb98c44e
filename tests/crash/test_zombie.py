"""A worker that is frozen past its lease, and wakes: what it lost is lost, and it works again."""

from pathlib import Path
from random import Random

from torture import zombie
from torture.rig import Plan, Rig

LEASE_SECONDS = 1.0


def plan(database: str) -> Plan:
    return Plan(seed=1, database=database, servers=2, lease_seconds=LEASE_SECONDS)


async def test_late_writes_are_refused_and_a_new_epoch_begins(
    tmp_path: Path, postgres_url: str
) -> None:
    async with Rig(tmp_path, plan(postgres_url)) as rig:
        story = await zombie.tell(rig)
    assert not list(story.faults())
    assert not story.report.violations, story.report
    assert len(story.frozen) == 9
    # The lease may have been renewed a moment before the freeze, or be due a third later.
    assert LEASE_SECONDS / 3 < story.taken_seconds < LEASE_SECONDS + 5
    assert story.awake is not None
    assert story.awake.body["data"] == {"marker": "awake", "attempt": 1}
    assert story.awake_pid == story.pid


async def test_under_load(tmp_path: Path, postgres_url: str) -> None:
    async with Rig(tmp_path, plan(postgres_url)) as rig:
        rig.load.start()
        await zombie.sweep(rig, 3, Random(1))
        report = await rig.finish()
    assert not report.violations, report
    assert report.freezes == 3
    assert report.acknowledged > 10

"""Where agents' processes live: what one leaves, what is cleared, and what never is."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue.domain.ids import ulid
from retinue.errors import SpawnFailed
from retinue.process.link import KeeperLink
from retinue.process.quarters import Ground, ProcessConfig, Quarters
from retinue.process.traces import IDLE_SECONDS, MOST_LOGS


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    link = KeeperLink()
    yield Ground(link, tmp_path / "processes", {"PATH": os.defpath})
    link.logs.close()


@pytest.fixture
def quarters(ground: Ground) -> Quarters:
    made = Quarters(ground, "agent-a", ProcessConfig(command=("sh",)))
    made.prepare()
    return made


def begin(quarters: Quarters, name: str) -> tuple[Path, Path]:
    """Begin a process that says something."""
    tmp, log = quarters.begin(name)
    log.mkdir()
    (log / "stdout").write_text("said")
    return tmp, log


def age(*directories: Path) -> None:
    """Have nothing been written there for longer than anything is kept."""
    for directory in directories:
        for entry in (*directory.iterdir(), directory):
            at = entry.stat().st_mtime - IDLE_SECONDS - 60
            os.utime(entry, (at, at))


async def test_what_runs_is_never_cleared_however_long_it_says_nothing(
    ground: Ground, quarters: Quarters
) -> None:
    tmp, log = begin(quarters, "0-worker")
    age(tmp, log)
    for n in range(MOST_LOGS + 5):
        await quarters.leave(begin(quarters, f"1-{n:03}")[0])
    assert tmp.is_dir()
    assert (log / "stdout").read_text() == "said"
    assert len(list(quarters.logs.iterdir())) == MOST_LOGS + 1
    await quarters.leave(tmp)
    assert not tmp.exists()
    begin(quarters, "2")
    assert not log.exists()  # it is the oldest


async def test_what_a_killed_server_left_is_cleared_in_time(
    ground: Ground, quarters: Quarters
) -> None:
    lost, lost_log = begin(quarters, "0-lost")
    late, late_log = begin(quarters, "0-late")
    ground.working.clear()  # as for a server that begins
    age(lost, lost_log)
    begin(quarters, "1")
    assert not lost.exists()
    assert lost_log.exists()  # one of the last: it can still be read
    assert late.is_dir()
    assert late_log.is_dir()


async def test_two_agents_of_one_name_each_do_not_share(ground: Ground, quarters: Quarters) -> None:
    other = Quarters(ground, "worker-a", ProcessConfig(command=("sh",)))
    other.prepare()
    first, _ = begin(quarters, "same")
    second, _ = begin(other, "same")
    assert first != second
    await other.leave(second)
    assert first.is_dir()


def test_only_the_logs_of_executions_are_forgotten_with_them(
    ground: Ground, quarters: Quarters
) -> None:
    mine, others = ulid(), ulid()
    names = (f"{mine}-1", f"{mine}-2b", f"{others}-1", f"server-{ulid()}", ulid())
    for name in names:
        begin(quarters, name)
    assert ground.executions() == {mine, others}
    ground.forget({mine}, "me", "s")
    assert {log.name for log in quarters.logs.iterdir()} == set(names[2:])
    ground.forget({others}, "me", "s")
    assert ground.executions() == set()
    shutil.rmtree(ground.root)
    assert ground.executions() == set()


def test_a_directory_that_cannot_be_made_is_named(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "processes").mkdir()
    (tmp_path / "processes" / "agent-b").touch()
    blocked = Quarters(ground, "agent-b", ProcessConfig(command=("sh",)))
    with pytest.raises(SpawnFailed, match=r"agent-b.* cannot be made: "):
        blocked.prepare()
    absent = ProcessConfig(command=("sh",), home=str(tmp_path / "absent"))
    with pytest.raises(SpawnFailed, match=r"absent does not exist"):
        Quarters(ground, "agent-c", absent).prepare()

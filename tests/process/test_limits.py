"""What the kernel limits for us: CPU and tasks of a tree, where control groups can be made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.process.rig import Start

from retinue.keeper import spawn
from retinue.keeper.cgroup import Groups, bases, bound, drop, one_for_all
from retinue.keeper.main import MOST_TASKS, TASKS_EACH
from retinue.process.link import KeeperLink

BURN = """
import json, os, time
begun = time.monotonic()
for _ in range(2):
    if os.fork() == 0:
        while time.process_time() < 0.2: pass
        os._exit(0)
for _ in range(2): os.wait()
groups = open("/proc/self/cgroup").read()
print(json.dumps([time.monotonic() - begun, groups.count("/retinue-")]))
"""


def _no_throttle() -> str:
    group = Groups().make(50.0)
    if group is None:
        return f"the kernel lets no control group be made in {bases() or 'any hierarchy'}"
    drop(group)
    return ""


NO_THROTTLE = _no_throttle()


def _no_bound() -> str:
    group = Groups(lambda: bases("pids"), tasks=True).make(100)
    if group is None:
        return f"the kernel lets no control group be made in {bases('pids') or 'any hierarchy'}"
    drop(group)
    return ""


NO_BOUND = _no_bound()


def groups() -> list[str]:
    return [name for base in bases() for name in os.listdir(base) if name.startswith("retinue-")]


@pytest.mark.skipif(bool(NO_THROTTLE), reason=NO_THROTTLE)
@pytest.mark.requirement("001.limits")
async def test_the_cpu_of_a_tree_is_throttled_and_nobody_is_ended(
    python: Start, link: KeeperLink
) -> None:
    child = await python(BURN, limits={"cpu_percent": 20.0})
    assert len(groups()) >= 1
    took, inside = json.loads(await child.stdout.next() or b"")
    assert inside == 1
    assert took > 0.4 / 0.2 * 0.8  # 0.4 s of CPU at a fifth of one
    assert (await child.wait()).code == 0
    await child.wait_gone()
    pid = link.pid
    await link.close()
    assert not [name for name in groups() if name.startswith(f"retinue-{pid}.")]


@pytest.mark.skipif(bool(NO_THROTTLE), reason=NO_THROTTLE)
async def test_groups_of_keepers_that_are_no_more_are_removed(link: KeeperLink) -> None:
    left = []
    for base in bases():
        if os.access(os.path.join(base, "cgroup.procs"), os.W_OK):
            left.append(os.path.join(base, "retinue-1.12345-0"))  # the pid lives; not since then
            os.mkdir(left[-1])
    await link.start()
    assert not any(map(os.path.exists, left))


def test_where_no_group_can_be_made_the_keeper_measures(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()  # a directory, and no control group
    groups = Groups(lambda: [str(tmp_path), "/nowhere"])
    assert groups.make(50.0) is None
    assert os.listdir(tmp_path) == ["cgroup.procs"]
    groups.sweep()


@pytest.mark.skipif(bool(NO_BOUND), reason=NO_BOUND)
async def test_one_with_limited_processes_cannot_take_all_tasks_of_the_machine(
    link: KeeperLink, shell: Start
) -> None:
    limits = {"processes": 10, "cpu_percent": 100.0}
    child = await shell("cat /proc/self/cgroup; exec sleep 1000", limits=limits)
    lines = [(await child.stdout.next() or b"").decode() for _ in range(len(OWN_GROUPS))]
    name = next(
        line.strip().rpartition("/")[2]
        for line in lines
        if line.split(":")[1] in {"", "pids"} and "/retinue-" in line
    )
    group = next(p for base in bases("pids") if (p := Path(base) / name).exists())
    assert int((group / "pids.max").read_text()) == MOST_TASKS + TASKS_EACH * 10
    child.kill()
    await child.wait_gone()
    assert not group.exists()


OWN_GROUPS = Path("/proc/self/cgroup").read_text().splitlines()


def test_a_group_that_can_be_the_only_one_is_bounded_itself(tmp_path: Path) -> None:
    assert not bound(str(tmp_path), 5)
    assert not one_for_all(str(tmp_path))
    (tmp_path / "pids.max").write_text("max")
    (tmp_path / "cgroup.controllers").touch()
    assert bound(str(tmp_path), 5)
    assert (tmp_path / "pids.max").read_text() == "5"
    assert one_for_all(str(tmp_path))


def test_who_is_not_root_leaves_some_of_what_the_machine_bears() -> None:
    program = (
        "import resource as r, sys; sys.path.insert(0, sys.argv[1]);"
        " from retinue.keeper.spawn import _leave_some;"
        " had = r.getrlimit(r.RLIMIT_NPROC)[1]; _leave_some();"
        " print(had, *r.getrlimit(r.RLIMIT_NPROC))"
    )
    source = str(Path(spawn.__file__).parents[2])
    words = [sys.executable, "-I", "-S", "-c", program, source]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    had, soft, hard = map(int, said.split())
    pids = int(Path("/proc/sys/kernel/pid_max").read_text())
    tasks = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    assert soft == hard
    bears = min(n for n in (had, pids) if n > 0)
    assert hard == had or hard <= max(bears * 3 // 4, tasks + 5000)
    assert hard > tasks

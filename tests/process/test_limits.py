"""What the kernel limits for us: the CPU of a tree, where a control group can be made."""

import json
import os
from pathlib import Path

import pytest
from tests.process.rig import Start

from retinue.keeper.cgroup import Groups, bases, drop
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

"""What /proc is read for, on kernels that list children and on those that do not."""

import os
import subprocess

import pytest

from retinue.keeper import tree


@pytest.mark.parametrize("listed", [True, False])
def test_a_tree_is_found_with_and_without_the_list_of_children(
    listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "_LISTS_CHILDREN", listed)
    script = "sleep 1000 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            below = int(process.stdout.readline())
            assert tree.children(process.pid) == [below]
            assert tree.tree([process.pid]) == [process.pid, below]
            assert process.pid in tree.tree([os.getpid()])
            assert tree.usage([process.pid]).processes == 2
        finally:
            os.kill(below, 9)
    assert tree.stat(process.pid) is None
    assert tree.children(process.pid) == []
    assert tree.mark_of(process.pid) is None


def test_an_incarnation_is_a_pid_and_its_start() -> None:
    found = tree.stat(os.getpid())
    assert found is not None
    assert found.parent == os.getppid()
    assert found.session == os.getsid(0)
    assert tree.incarnation(os.getpid()) == f"{os.getpid()}.{found.started}"
    assert tree.incarnation(1 << 30) == f"{1 << 30}.0"

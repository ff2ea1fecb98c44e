"""What a server that is not heard of left running is found by whoever takes over, and ended."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.process.rig import alive, begin, needs_sandbox, until

from retinue.keeper.tree import children, stat, tree
from retinue.process.child import Child, Streams
from retinue.process.environment import inherited
from retinue.process.link import Command, KeeperLink
from retinue.process.remains import Remains, end
from retinue.process.sandbox import Bubblewrap, Sandbox, boxed
from retinue.testing import agent as hostile

PROGRAM = (sys.executable, "-I", "-S", hostile.__file__)


@pytest.fixture
async def link() -> AsyncIterator[KeeperLink]:
    made = KeeperLink()
    yield made
    if made.pid is not None and alive(made.pid):
        os.kill(made.pid, signal.SIGCONT)
    await made.close()


def handle(child: Child) -> dict[str, int]:
    return {"pid": child.pid, "start": child.start}


async def whole(child: Child, least: int) -> list[int]:
    await until(lambda: len(tree([child.pid])) >= least)
    return tree([child.pid])


@pytest.mark.parametrize("keeper", ["runs", "stopped"])
@pytest.mark.parametrize("steps", [("leave",), ("leave", "daemon"), ("unmark", "leave", "daemon")])
async def test_all_of_an_instance_is_ended_and_nothing_else(
    link: KeeperLink, tmp_path: Path, keeper: str, steps: tuple[str, ...]
) -> None:
    mine = await begin(link, (*PROGRAM, *steps, "say=ready", "sleep"), tmp_path, None)
    assert await mine.stdout.next() == b"ready\n"
    other = await begin(link, (*PROGRAM, "sleep"), tmp_path, None)
    pids = await whole(mine, 2)
    if keeper == "stopped":
        assert link.pid is not None
        os.kill(link.pid, signal.SIGSTOP)
    found = await end({mine.name: handle(mine), "nobody": {}})
    assert found["nobody"] == Remains()
    assert found[mine.name].ended >= 2
    assert found[mine.name].left == ()
    assert not any(map(alive, pids))
    assert alive(other.pid)


@needs_sandbox
async def test_a_sandbox_is_ended_with_all_that_it_holds(link: KeeperLink, tmp_path: Path) -> None:
    env = inherited(os.environ)
    bwrap = await Bubblewrap(link).ready(Sandbox(), env)
    shell = "setsid sleep 1000 & sleep 1000"
    command = Command(path="/bin/sh", argv=("sh", "-c", shell), env=env, cwd="/")
    child = await link.spawn(boxed(command, Sandbox(), bwrap, ()), Streams())
    pids = await whole(child, 5)
    assert (await end({child.name: handle(child)}))[child.name].left == ()
    assert not any(map(alive, pids))


async def test_a_pid_that_is_somebody_elses_by_now_is_left_alone(
    link: KeeperLink, tmp_path: Path
) -> None:
    other = await begin(link, (*PROGRAM, "sleep"), tmp_path, None)
    us = stat(os.getpid())
    assert us is not None
    later, ours = handle(other), {"pid": os.getpid(), "start": us.started}
    later["start"] += 1
    for given in (later, ours):
        assert await end({"gone": given}) == {"gone": Remains()}
    assert alive(other.pid)
    assert children(os.getpid())

"""What counts when a tree is measured, and how soon one that multiplies is ended."""

import asyncio
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.process.rig import Start, alive, until

from retinue.keeper import tree
from retinue.keeper.agent import FORK_SECONDS, GROWING_SECONDS, Agent
from retinue.keeper.strike import _stop, kill_group
from retinue.keeper.tree import Usage
from retinue.process.child import Streams
from retinue.process.link import KeeperLink
from retinue.process.reading import Bounds

MB = 1 << 20
ORPHANS = """
import subprocess, sys
for _ in range(40): subprocess.run(["/bin/sh", "-c", "true &"])
print("done")
sys.stdin.read()
"""
SHARED = """
import mmap, os, sys, time
m = mmap.mmap(-1, 60 << 20); m.write(b"x" * (60 << 20))
for _ in range(4):
    if os.fork() == 0: sum(m[::4096]); os.write(1, b"here\\n"); time.sleep(1000)
sys.stdin.read()
"""
OWN = SHARED.replace("sum(m[::4096])", "x = bytearray(60 << 20)")
SPIN = """
import os
tokens, more = os.pipe()
os.write(more, b"x" * 600)
os.close(more)
print("ready", flush=True)
while os.read(tokens, 1): os.fork()
while True: pass
"""


async def test_those_that_ended_and_nobody_waited_for_count_as_no_process(python: Start) -> None:
    child = await python(ORPHANS, limits={"processes": 5})
    assert await child.stdout.next() == b"done\n"
    # It waits for none of them: that is what is to be counted out.
    await until(lambda: sum(not alive(pid) for pid in tree.children(child.pid)) >= 40)
    assert (await child.usage())["processes"] == 1
    assert child.stdin is not None
    child.stdin.close()
    assert (await child.wait()).code == 0


async def test_one_whose_first_thread_alone_has_ended_is_a_process(python: Start) -> None:
    child = await python(
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "print('ready')\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    assert await child.stdout.next() == b"ready\n"
    await until(lambda: (s := tree.stat(child.pid)) is not None and s.state == "Z")
    found = tree.stat(child.pid)
    assert found is not None
    assert not found.dead
    assert (await child.usage())["processes"] == 1


async def test_memory_that_is_shared_counts_once_for_the_limit(python: Start) -> None:
    child = await python(SHARED, limits={"memory_bytes": 150 * MB})
    for _ in range(4):
        assert await child.stdout.next() == b"here\n"
    await until(lambda: tree.usage([child.pid]).memory > 200 * MB)  # what looks like too much
    assert tree.share([child.pid]) < 150 * MB
    begun = time.monotonic()
    await until(lambda: time.monotonic() - begun > 1.5)  # several looks of the keeper
    assert child.exit is None


async def test_memory_of_ones_own_counts_for_each(python: Start) -> None:
    child = await python(OWN, limits={"memory_bytes": 150 * MB})
    status = await asyncio.wait_for(child.wait(), 20)
    assert status.reason == "limit_memory"
    found = re.fullmatch(r"([\d.]+) MB of 150 MB", status.detail or "")
    assert found is not None
    assert 150 < float(found[1]) < 400


def test_what_is_measured_is_named_beside_the_limit() -> None:
    def ended(limits: dict[str, float], used: Usage, now: float = 0.5) -> tuple[str, str]:
        agent = Agent("a", 1, 1, {"limits": limits}, 0.0)
        agent.judge(used, now)
        assert agent.reason is not None
        assert agent.detail is not None
        return agent.reason, agent.detail

    memory = Usage(0, int(312.25 * MB), 1)
    assert ended({"memory_bytes": 300 * MB}, memory) == ("limit_memory", "312.2 MB of 300 MB")
    assert ended({"processes": 5}, Usage(0, 0, 7)) == ("limit_processes", "7 of 5 processes")
    assert ended({"processes": 5}, Usage(0, 0, 8))[1] == "at least 8 of 5 processes"
    assert ended({"runtime_seconds": 3}, Usage(0, 0, 1), 3.1) == ("limit_runtime", "3.1 s of 3 s")
    files = ended({"open_files": 10}, Usage(0, 0, 1, 11))
    assert files == ("limit_open_files", "11 of 10 files in one process")


def test_large_memory_is_measured_again_only_after_ten_times_as_long() -> None:
    agent = Agent("a", 1, 1, {"limits": {"memory_bytes": 100}}, 0.0)
    asked = []

    def slow() -> int:
        asked.append(time.monotonic())
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass
        return 50

    for now in (0.5, 0.7, 0.9, 1.2):
        agent.judge(Usage(0, 200, 1), now, slow)
        assert not agent.ending
    assert len(asked) == 2
    agent.judge(Usage(0, 200, 1), 5.0, lambda: 101)
    assert agent.ending


def test_one_that_multiplies_is_looked_at_more_often() -> None:
    agent = Agent("a", 1, 1, {"limits": {"processes": 100}}, 0.0)
    now, count, pauses = 0.0, 1, []
    for growth in (0,) * 6 + (20, 20) + (0,) * 5:
        assert agent.due is not None
        pauses.append(agent.due - now)
        now, count = agent.due, count + growth
        agent.judge(Usage(0, 0, count), now)
    assert pauses[0] == pytest.approx(GROWING_SECONDS)
    assert pauses[6] == pytest.approx(FORK_SECONDS)
    assert pauses[7] == pauses[8] == pytest.approx(GROWING_SECONDS)
    assert pauses[-1] == pytest.approx(FORK_SECONDS)


async def test_a_count_ends_where_it_is_enough(python: Start) -> None:
    child = await python("import os, time\nfor _ in range(4): os.fork()\ntime.sleep(1000)")
    await until(lambda: tree.usage([child.pid]).processes == 16)
    assert tree.usage([child.pid], most=5).processes == 6


async def test_a_tree_that_is_stopped_grows_no_more(python: Start) -> None:
    child = await python(
        "import os, time\nprint('ready')\n"
        "for _ in range(400):\n    if os.fork() == 0: os.setsid()\n    time.sleep(0.05)\n"
    )
    assert await child.stdout.next() == b"ready\n"
    await until(lambda: len(tree.tree([child.pid])) > 30)
    seen: set[int] = set()
    for _ in range(5):
        _stop([child.pid], seen)
    states = {found.state for pid in seen if (found := tree.stat(pid)) and not found.dead}
    await until(lambda: _states(seen) <= {"T"})
    assert states <= {"T", "R", "S", "D"}
    assert len(tree.tree([child.pid])) <= len(seen)
    child.kill()


def _states(pids: set[int]) -> set[str]:
    return {found.state for pid in pids if (found := tree.stat(pid)) and not found.dead}


async def test_a_group_is_hit_at_once(python: Start) -> None:
    child = await python("import os, time\nfor _ in range(4): os.fork()\ntime.sleep(1000)")
    await until(lambda: tree.usage([child.pid]).processes == 16)
    both = tree.tree([child.pid])
    kill_group(child.pid, 9)
    await until(lambda: not any(map(alive, both)))
    kill_group(child.pid, 9)  # nobody is there any more


@pytest.mark.parametrize("apart", ["", "os.setsid()"], ids=["in a group", "each in a session"])
async def test_one_that_multiplies_and_takes_all_the_cpu_is_ended_soon(
    apart: str, python: Start
) -> None:
    program = SPIN.replace("os.fork()", f"os.fork() or {apart}" if apart else "os.fork()")
    child = await python(
        program, Streams(stderr=Bounds(when_full="drop")), limits={"processes": 50}
    )
    assert await child.stdout.next() == b"ready\n"
    begun = time.monotonic()
    status = await asyncio.wait_for(child.wait(), 60)
    await asyncio.wait_for(child.wait_gone(), 60)
    assert status.reason == "limit_processes"
    assert time.monotonic() - begun < 10  # some 0.1 s on a machine that does nothing else


@pytest.mark.skipif(os.getuid() != 0, reason="it takes privilege to come first")
async def test_a_keeper_comes_first_and_its_agents_do_not(link: KeeperLink, shell: Start) -> None:
    child = await shell("nice; cat /proc/self/autogroup; exec sleep 1000")
    assert await child.stdout.next() == b"%d\n" % os.getpriority(os.PRIO_PROCESS, 0)
    assert link.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, link.pid) == -20
    group: Callable[[int | None], Path] = lambda pid: Path(f"/proc/{pid}/autogroup")  # noqa: E731
    if group(link.pid).exists():
        assert group(link.pid).read_text().endswith("nice -20\n")
        assert (await child.stdout.next() or b"").endswith(b"nice 0\n")

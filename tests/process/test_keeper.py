"""The keeper: who is started, reaped and ended, by whom, and what is never left."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.process.rig import Start, alive, marked, until

from retinue.errors import SpawnFailed
from retinue.keeper.tree import children, mark_of, stat, tree
from retinue.process.child import Streams
from retinue.process.link import Command, KeeperLink

PROGRAM = Path(__file__).with_name("program.py")


async def test_a_process_runs_with_its_own_pipes_session_and_nothing_else(python: Start) -> None:
    child = await python(
        "import os, json, sys; print(json.dumps([os.getsid(0) == os.getpid(),"
        " sorted(map(int, os.listdir('/proc/self/fd')))[:-1], sys.stdin.read()]));"
        " print('to stderr', file=sys.stderr); sys.exit(3)"
    )
    assert child.stdin is not None
    await child.stdin.write(b"in\n")
    child.stdin.close()
    assert json.loads(await child.stdout.next() or b"") == [True, [0, 1, 2], "in\n"]
    assert await child.stdout.next() is None
    assert [line async for line in child.stderr] == [b"to stderr\n"]
    assert (await child.wait()).code == 3
    await child.wait_gone()


async def test_the_keeper_is_the_parent_and_this_process_has_no_other_child(
    link: KeeperLink, shell: Start
) -> None:
    before = children(os.getpid())
    child = await shell("echo $PPID; exec sleep 100")
    assert int(await child.stdout.next() or 0) == link.pid
    assert children(os.getpid()) == [*before, link.pid]


async def test_children_of_the_program_itself_are_left_alone(shell: Start) -> None:
    own = await asyncio.to_thread(subprocess.Popen, ["/bin/sh", "-c", "exit 7"])
    theirs = [await shell("exit 1") for _ in range(5)]
    assert {(await child.wait()).code for child in theirs} == {1}
    assert await asyncio.to_thread(own.wait) == 7
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


async def test_signals_that_the_starter_ignores_reach_the_agent(python: Start) -> None:
    child = await python(
        "import signal; print([signal.getsignal(n) == signal.SIG_DFL for n in"
        " (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)], signal.pthread_sigmask(0, []))"
    )
    assert await child.stdout.next() == b"[True, True, True] set()\n"


async def test_what_cannot_be_started_says_why_and_leaves_nothing(
    link: KeeperLink, tmp_path: Path
) -> None:
    nothing = Command(path="/bin/sh", argv=("sh",), env={}, cwd=str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="No such file") as caught:
        await link.spawn(nothing, Streams())
    assert caught.value.filename == str(tmp_path / "absent")
    plain = tmp_path / "plain"
    plain.write_text("no program")
    for path, number in ((str(plain), errno.EACCES), ("/no/such", errno.ENOENT)):
        with pytest.raises(OSError, match=r"No such file|Permission") as refused:
            await link.spawn(Command(path=path, argv=("x",), env={}, cwd=str(tmp_path)), Streams())
        assert refused.value.errno == number
    large = Command(path="/bin/sh", argv=("sh", "x" * 4_000_000), env={}, cwd="/")
    with pytest.raises(OSError, match="too long"):
        await link.spawn(large, Streams())
    assert link.children == {}
    assert link.pid is not None
    assert children(link.pid) == []


async def test_kill_ends_every_descendant_however_it_left(shell: Start, tmp_path: Path) -> None:
    # A tool in its own session, a daemon (orphaned, own session, empty environment), a stopped one.
    child = await shell(
        f"cd {tmp_path}; setsid sh -c 'echo $$ >tool; exec sleep 1000' &"
        " env -i setsid sh -c '(echo $$ >outer; sleep 1000 & echo $! >daemon) &' ;"
        " sh -c 'trap \"\" TERM; echo $$ >stopped; kill -STOP $$' &"
        " while ! [ -s tool -a -s daemon -a -s stopped ]; do sleep 0.01; done; echo ready; wait"
    )
    assert await child.stdout.next() == b"ready\n"
    left = [int((tmp_path / name).read_text()) for name in ("tool", "daemon", "stopped")]
    assert all(map(alive, left))
    child.kill()
    status = await child.wait()
    assert (status.code, status.signal, status.reason) == (None, 9, "killed")
    await asyncio.wait_for(child.wait_gone(), 2)
    assert not any(map(alive, left))


async def test_what_outlives_its_leader_may_linger_and_is_then_ended(
    shell: Start, tmp_path: Path
) -> None:
    script = f"env -i setsid sh -c 'echo $$ >{tmp_path}/left; exec sleep 1000' & sleep 0.2; exit 4"
    child = await shell(script, linger=0.3)
    assert (await child.wait()).code == 4
    left = int((tmp_path / "left").read_text())
    assert alive(left)
    begun = time.monotonic()
    await asyncio.wait_for(child.wait_gone(), 5)
    assert time.monotonic() - begun > 0.2
    assert not alive(left)


async def test_leftovers_of_one_agent_are_ended_while_others_go_on(
    shell: Start, link: KeeperLink
) -> None:
    other = await shell("setsid sleep 1000 & echo $!; wait")
    tool = int(await other.stdout.next() or 0)
    for _ in range(5):
        one = await shell("setsid sleep 1000 & exit 0", linger=0.0)
        await asyncio.wait_for(one.wait_gone(), 5)
    assert alive(tool)
    assert alive(other.pid)
    assert link.pid is not None
    assert children(link.pid) == [other.pid]


async def test_a_tree_that_forks_as_fast_as_it_can_is_ended(shell: Start) -> None:
    script = "f() { echo x; setsid sh -c ': ; sleep 1000' & sleep 0.01; f; }; f & f & f"
    child = await shell(script)
    assert await child.stdout.next() == b"x\n"
    child.kill()
    await asyncio.wait_for(child.wait_gone(), 5)


async def test_an_exit_is_seen_at_once_although_a_grandchild_holds_the_output(
    shell: Start,
) -> None:
    took = []
    for _ in range(3):  # the slowest may be the machine's fault
        child = await shell("sleep 1000 & echo $!; exec sleep 1001", linger=60.0)
        holder = int(await child.stdout.next() or 0)
        begun = time.monotonic()
        os.kill(child.pid, signal.SIGKILL)
        assert (await child.wait()).signal == 9
        took.append(time.monotonic() - begun)
        assert alive(holder)
        assert not child.stdout.ended
        child.kill()
        await asyncio.wait_for(child.wait_gone(), 2)
    assert min(took) < 0.2


async def test_the_end_of_the_output_is_no_exit(shell: Start) -> None:
    child = await shell("echo last; exec >&- 2>&-; exec sleep 1000")
    assert await child.stdout.next() == b"last\n"
    assert await child.stdout.next() is None
    assert child.exit is None
    assert alive(child.pid)


async def test_a_signal_reaches_only_the_living(shell: Start) -> None:
    child = await shell("trap 'echo got; exit 5' INT; echo ready; while :; do sleep 0.01; done")
    assert await child.stdout.next() == b"ready\n"
    assert await child.signal(signal.SIGINT) == 1
    assert await child.stdout.next() == b"got\n"
    assert (await child.wait()).code == 5
    assert await child.signal(signal.SIGTERM) == 0


async def test_pause_stops_the_whole_tree_and_resume_lets_it_go_on(python: Start) -> None:
    child = await python(
        "import subprocess, sys; subprocess.run([sys.executable, '-u', '-c',"
        " 'import time\\nfor n in range(100000): print(n); time.sleep(0.001)'])"
    )
    assert await child.stdout.next() == b"0\n"
    assert await child.pause() == 2
    both = tree([child.pid])
    await until(lambda: {found.state for pid in both if (found := stat(pid))} == {"T"})
    usage = await child.usage()
    assert usage["stopped"]
    assert usage["processes"] == 2
    for _ in range(3):
        await child.usage()  # what it wrote before comes in meanwhile
        while child.stdout.take() is not None:
            pass
    seen = child.stdout.counts.lines
    await child.resume()
    assert await child.stdout.next() == b"%d\n" % seen


async def test_a_cancelled_spawn_leaves_no_process(link: KeeperLink, tmp_path: Path) -> None:
    await link.start()
    command = Command(path="/bin/sleep", argv=("sleep", "100"), env={}, cwd=str(tmp_path))
    for _ in range(10):
        spawning = asyncio.create_task(link.spawn(command, Streams()))
        await asyncio.sleep(0)
        spawning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await spawning
    assert link.pid is not None
    await link.spawn(Command(path="/bin/true", argv=("true",), env={}, cwd="/"), Streams())
    await until(lambda: children(link.pid or 0) == [])


async def test_when_the_keeper_is_killed_its_agents_die_and_the_next_spawn_works(
    link: KeeperLink, shell: Start
) -> None:
    child = await shell("setsid sleep 1000 & echo $!; wait")
    tool = int(await child.stdout.next() or 0)
    first = link.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert (await child.wait()).reason == "lost"
    await until(lambda: not alive(child.pid) and not alive(tool), 5)
    again = await shell("exit 6")
    assert (await again.wait()).code == 6
    assert link.pid != first


async def test_what_a_dead_keeper_left_is_ended_and_what_a_living_one_has_is_not(
    link: KeeperLink, shell: Start, tmp_path: Path
) -> None:
    mine = await shell("exec sleep 1000")
    dead = f"RETINUE_MARK={link.scope}:1.12345:gone"  # the pid lives; it did not start then
    stranger = "RETINUE_MARK=another:1.12345:gone"
    argv = ["env", "-i", dead, "sleep", "1000"], ["env", "-i", stranger, "sleep", "1001"]
    stray, other = [await asyncio.to_thread(subprocess.Popen, words) for words in argv]
    try:
        await until(lambda: mark_of(stray.pid) and mark_of(other.pid))
        second = KeeperLink(link.scope)
        await second.start()
        assert await asyncio.to_thread(stray.wait, 5) == -signal.SIGKILL
        assert other.poll() is None
        assert alive(mine.pid)
        await second.close()
        assert alive(mine.pid)
    finally:
        for left in (stray, other):
            left.kill()
            await asyncio.to_thread(left.wait)


async def test_one_out_of_descriptors_refuses_and_recovers() -> None:
    done = await program("descriptors")
    assert done == {"refused": True, "left": 0, "again": 0}


@pytest.mark.requirement("001.many")
async def test_a_thousand_agents_need_no_thread_answer_10_000_calls_and_are_all_reaped() -> None:
    done = await program("thousand")
    assert (done["running"], done["names"]) == (1000, 1001)
    assert done["threads"] <= 32
    assert done["calls"] == 10_000
    assert done["memory"] <= 250
    assert done["exits"] == {"9": 1000}
    assert done["after"] == 0
    assert done["fds"] <= 0


@pytest.mark.parametrize("forked", [False, True], ids=["alone", "with a forked child of its own"])
async def test_when_the_owner_is_killed_nothing_of_its_agents_lives(forked: bool) -> None:
    argv = [sys.executable, str(PROGRAM), "owner", str(int(forked))]
    owner = await asyncio.to_thread(subprocess.Popen, argv, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    with owner.stdout:
        told = json.loads(await asyncio.to_thread(owner.stdout.readline))
    assert len(told["agents"]) == 100
    assert all(map(alive, [*told["agents"], *told["tools"]]))
    owner.kill()
    took = await until(lambda: not any(map(alive, told["agents"] + told["tools"])), 5)
    if forked:
        os.kill(told["forked"], signal.SIGKILL)
    await asyncio.to_thread(owner.wait)
    assert took < 2
    await until(lambda: not alive(told["keeper"]), 5)
    assert marked(told["scope"]) == []


async def program(what: str) -> dict[str, Any]:
    done = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), what, stdout=subprocess.PIPE
    )
    out, _ = await done.communicate()
    assert done.returncode == 0
    answer = json.loads(out)
    assert isinstance(answer, dict)
    return answer


async def test_a_link_belongs_to_the_process_that_made_it() -> None:
    assert (await program("fork"))[
        "said"
    ] == "this keeper belongs to the process that forked this one"


async def test_a_closed_link_refuses_nothing_later(link: KeeperLink, shell: Start) -> None:
    child = await shell("exec sleep 1000")
    await link.close()
    assert child.gone
    assert not alive(child.pid)
    assert (await (await shell("exit 2")).wait()).code == 2


async def test_a_program_that_cannot_start_a_keeper_says_so(
    link: KeeperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(SpawnFailed, match="the keeper cannot be started"):
        await link.start()

"""Agents that do all they can not to be ended, and what is left of them: nothing."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.process.rig import alive, until

from retinue.domain.ids import ulid
from retinue.process.child import Child, Exit, Streams
from retinue.process.ladder import Ladder, stop
from retinue.process.link import Command, KeeperLink
from retinue.process.reading import Bounds
from retinue.testing.agent import HOSTILE, argv, tagged

OWNER = Path(__file__).with_name("program.py")
DROP = Streams(stdout=Bounds(when_full="drop"))


async def begin(link: KeeperLink, *steps: str, streams: Streams = DROP) -> tuple[Child, str]:
    tag = ulid()
    words = argv(f"tag={tag}", *steps)
    command = Command(path=words[0], argv=words, env={"PATH": os.defpath}, cwd="/")
    child = await link.spawn(command, streams)
    return child, tag


@pytest.mark.parametrize("tree", HOSTILE)
async def test_two_seconds_after_its_stop_nothing_of_a_tree_is_left(
    tree: str, link: KeeperLink
) -> None:
    child, tag = await begin(link, *HOSTILE[tree][0])
    assert await asyncio.wait_for(child.stdout.next(), 30) == b"ready\n"
    await until(lambda: len(tagged(tag)) >= HOSTILE[tree][1], 30)
    stopped = await stop(child, Ladder(grace=0.1))
    assert stopped.clean
    assert stopped.exit is not None
    assert await until(lambda: not tagged(tag)) < 2


@pytest.mark.parametrize("tree", HOSTILE)
async def test_two_seconds_after_its_owner_was_killed_nothing_of_a_tree_is_left(tree: str) -> None:
    tag = ulid()
    words = [sys.executable, str(OWNER), "hostile", *argv(f"tag={tag}", *HOSTILE[tree][0])]
    # The words of the owner's own command line say the tag, too.
    owner = await asyncio.to_thread(subprocess.Popen, words, stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        with owner.stdout:
            assert await asyncio.to_thread(owner.stdout.readline) == b"ready\n"
        await until(lambda: len(tagged(tag)) > HOSTILE[tree][1], 30)
        owner.kill()
        assert await until(lambda: set(tagged(tag)) <= {owner.pid}) < 2
    finally:
        owner.kill()
        await asyncio.to_thread(owner.wait)


async def test_an_exit_is_seen_while_a_grandchild_holds_the_output(link: KeeperLink) -> None:
    took = []
    for _ in range(3):  # the slowest may be the machine's fault
        seen: list[float] = []
        child, tag = await begin(link, "leave", "pid", "answer", "exit=4")

        def ended(_: Exit, seen: list[float] = seen) -> None:
            seen.append(time.monotonic())

        child.when_exited(ended)
        assert int(await child.stdout.next() or 0) == child.pid
        assert child.stdin is not None
        await child.stdin.write(b"go\n")
        assert await child.stdout.next() == b"go\n"
        begun = time.monotonic()
        assert (await child.wait()).code == 4
        took.append(seen[0] - begun)
        await asyncio.wait_for(child.wait_gone(), 5)
        assert tagged(tag) == []
    assert min(took) < 0.2


async def test_one_that_ends_between_request_and_reply_ends_the_wait(link: KeeperLink) -> None:
    child, _ = await begin(link, "answer", "read", "half=no en", "exit=5")
    assert child.stdin is not None
    await child.stdin.write(b"one\n")
    assert await child.stdout.next() == b"one\n"
    await child.stdin.write(b"two\n")
    assert await asyncio.wait_for(child.stdout.next(), 5) == b"no en"
    assert await child.stdout.next() is None
    assert (await child.wait()).code == 5


async def test_a_line_over_the_limit_is_refused_and_what_follows_is_read(link: KeeperLink) -> None:
    child, _ = await begin(link, "bytes=fffe000a", "line=100m", "say=next", streams=Streams())
    assert [line async for line in child.stdout] == [b"\xff\xfe\x00\n", b"next\n"]
    assert child.stdout.counts.oversize_bytes == (100 << 20) + 1


async def test_it_does_what_it_is_told_while_it_runs(link: KeeperLink) -> None:
    child, _ = await begin(link, "serve", "signal=USR1", streams=Streams())
    assert child.stdin is not None
    await child.stdin.write(b"hello\n!error=oops\n!flood=250\n!files=3\n!memory=1m\n!cpu=0.01\n")
    child.stdin.close()
    lines = [line async for line in child.stdout]
    assert [len(line) for line in lines] == [6, 100, 100, 100]
    assert await child.stderr.next() == b"oops\n"
    assert (await child.wait()).signal == signal.SIGUSR1
    assert not alive(child.pid)


def test_it_runs_as_a_module_and_refuses_what_it_does_not_know() -> None:
    def run(*steps: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "retinue.testing.agent", *steps]
        return subprocess.run(program, capture_output=True, text=True, check=False)

    done = run("tag=x", "say=hello", "exit=3")
    assert (done.stdout, done.returncode) == ("hello\n", 3)
    done = run("misbehave")
    assert "there is no step 'misbehave'" in done.stderr
    assert done.returncode == 1

"""Keepers that do not answer, or are no more: everything ends, says why, and nothing is left."""

import asyncio
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.process.rig import Start, alive, until
from tests.process.test_hostile import OWNER, begin

from retinue.domain.ids import ulid
from retinue.errors import SpawnFailed
from retinue.keeper.seal import STOPPED_SECONDS
from retinue.keeper.tree import children, read
from retinue.process.child import Streams
from retinue.process.kept import JoinedLink, Kept
from retinue.process.ladder import Ladder, stop
from retinue.process.link import Command, KeeperLink
from retinue.process.watch import ASK_SECONDS, LOOK_SECONDS, SILENT_SECONDS, Patience
from retinue.testing.agent import HOSTILE, argv, tagged

FREE = ("unmark", "leave", "daemon", "say=ready", "sleep")
"""Leaves processes that carry no mark in their environment, in sessions of their own."""


async def freed(link: KeeperLink) -> str:
    child, tag = await begin(link, *FREE)
    assert await child.stdout.next() == b"ready\n"
    await until(lambda: len(tagged(tag)) == 4)
    return tag


@pytest.mark.parametrize("question", ["usage", "signal", "spawn", "none"])
async def test_one_that_was_stopped_is_killed_and_all_that_asked_are_answered(
    question: str, link: KeeperLink, shell: Start, caplog: pytest.LogCaptureFixture
) -> None:
    child, tag = await begin(link, *FREE)
    assert await child.stdout.next() == b"ready\n"
    first = link.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    async with asyncio.timeout(20):
        if question != "none":
            asked: dict[str, Callable[[], Awaitable[object]]] = {
                "usage": child.usage,
                "signal": lambda: child.signal(signal.SIGTERM),
                "spawn": lambda: shell("exit 1"),
            }
            with pytest.raises(SpawnFailed, match="its keeper was killed: it was stopped"):
                await asked[question]()
        status = await child.wait()
        assert status.reason == "lost"
        assert "was lost: its keeper was killed: it was stopped" in str(status)
        await child.wait_gone()
        await until(lambda: not tagged(tag))
    assert any(
        record.levelno == logging.ERROR
        and f"keeper {first} is gone" in record.getMessage()
        and child.name in record.getMessage()
        for record in caplog.records
    )
    assert (await (await shell("exit 6")).wait()).code == 6
    assert link.pid != first


async def test_a_ladder_ends_although_its_keeper_was_stopped(link: KeeperLink) -> None:
    child, tag = await begin(link, "deaf", "say=ready", "sleep")
    assert await child.stdout.next() == b"ready\n"
    assert link.pid is not None
    os.kill(link.pid, signal.SIGSTOP)
    async with asyncio.timeout(20):
        stopped = await stop(child, Ladder(stdin=0.1, grace=0.1))
        assert stopped.clean
        await until(lambda: not tagged(tag))


async def test_a_link_that_is_closed_ends_a_stopped_keeper_and_what_it_had() -> None:
    link = KeeperLink()
    tag = await freed(link)
    assert link.pid is not None
    os.kill(link.pid, signal.SIGSTOP)
    async with asyncio.timeout(20):
        await link.close()
    assert tagged(tag) == []
    assert not alive(link.pid)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
async def test_a_stopped_keeper_of_an_earlier_owner_is_ended_before_its_agents_are_gone(
    kept: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earlier, tag = KeeperLink(), ulid()
    words = argv(f"tag={tag}", *FREE)
    spool = tmp_path if kept else None
    command = Command(
        path=words[0],
        argv=words,
        env={"PATH": os.defpath},
        cwd="/",
        stdin=False,
        kept=str(tmp_path) if kept else None,
    )
    child = await earlier.spawn(command, Streams(spool=spool))
    assert await child.stdout.next() == b"ready\n"
    await until(lambda: len(tagged(tag)) == 4)
    pid = earlier.pid
    assert pid is not None
    where = earlier.address
    os.kill(pid, signal.SIGSTOP)
    earlier.let_go(child.name)  # as a server does that ends
    child.close()
    await earlier.close()
    ours = KeeperLink(earlier.scope)
    try:
        # While one becomes another program it has no name.
        await until(lambda: len(tagged(tag)) == 4)
        async with asyncio.timeout(30):
            if kept:
                found = await Kept(ours).find(where, child.name, Streams(spool=tmp_path))
                assert found is None
            else:
                await ours.start()
            assert tagged(tag) == []
        assert not alive(pid)
        said = rf"keeper {pid}\S* of an earlier (owner|server) was killed: it was stopped"
        assert re.search(said, caplog.text)
        assert re.search(r"ended what a keeper left that is gone: [34] processes", caplog.text)
    finally:
        await ours.close()
        os.kill(pid, signal.SIGKILL)  # a zombie now: it is our child
        await asyncio.to_thread(os.waitpid, pid, 0)


async def test_whoever_comes_while_a_keeper_has_an_owner_is_told_so(
    link: KeeperLink, shell: Start
) -> None:
    child = await shell("read line; exit 5")
    second = JoinedLink(KeeperLink(link.scope))
    with pytest.raises(SpawnFailed, match="has another owner"):
        await second.join(link.address)
    assert child.stdin is not None
    await child.stdin.write(b"go\n")
    assert (await child.wait()).code == 5


async def test_no_agent_can_take_the_address_of_its_keeper(link: KeeperLink, python: Start) -> None:
    child = await python(
        "import errno, os, socket\n"
        "scope, keeper, _ = os.environ['RETINUE_MARK'].split(':')\n"
        "try: socket.socket(socket.AF_UNIX).bind(f'\\0retinue-{scope}-{keeper}')\n"
        "except OSError as error: print(errno.errorcode[error.errno])\n"
    )
    assert await child.stdout.next() == b"EADDRINUSE\n"


async def test_nobody_below_a_keeper_is_told_anything_at_its_door(
    link: KeeperLink, python: Start
) -> None:
    child = await python(
        "import os, socket\n"
        "scope, keeper, _ = os.environ['RETINUE_MARK'].split(':')\n"
        "door = socket.socket(socket.AF_UNIX)\n"
        "door.connect(f'\\0retinue-{scope}-{keeper}')\n"
        "print(door.recv(100))\n"
    )
    assert await child.stdout.next() == b"b''\n"


async def test_where_the_address_is_taken_nothing_that_is_kept_starts(
    link: KeeperLink, shell: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its address is named after a process that has just begun: this test takes that of the next.
    program = (
        "import socket, sys; sys.path.insert(0, sys.argv.pop(1));"
        " from retinue.keeper import main, tree, door; import os;"
        " taken = door.listen(door.address(sys.argv[3], tree.incarnation(os.getpid())));"
        " main.main()"
    )
    monkeypatch.setattr("retinue.process.link._PROGRAM", program)
    assert (await (await shell("exit 3")).wait()).code == 3
    with pytest.raises(OSError, match="could not be found again"):
        await shell("exit 3", Streams(spool=tmp_path), stdin=False, kept=str(tmp_path))


async def test_a_full_door_that_nobody_opens_is_silence(
    link: KeeperLink, shell: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = await shell("exec sleep 1000")
    assert link.pid is not None
    os.kill(link.pid, signal.SIGSTOP)
    waiting = []
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        waiting.append(sock)
        try:
            sock.connect(link.address)
        except BlockingIOError:
            break
    ours = KeeperLink(link.scope)
    async with asyncio.timeout(20):
        with pytest.raises(SpawnFailed, match=r"was killed: it was stopped|is not there"):
            await JoinedLink(ours).join(link.address)
        assert (await child.wait()).reason == "lost"
    for sock in waiting:
        sock.close()
    await ours.close()


async def test_what_hid_from_a_keeper_that_was_killed_is_ended_by_the_next(
    link: KeeperLink, caplog: pytest.LogCaptureFixture
) -> None:
    child, tag = await begin(link, *HOSTILE["changed mark"][0])
    assert await child.stdout.next() == b"ready\n"
    await until(lambda: len(tagged(tag)) == 4)
    first = link.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert str(await child.wait()) == "was lost: its keeper died"
    await until(lambda: not tagged(tag))
    said = f"keeper {first} is gone (its keeper died) and took along 1 processes: {child.name}"
    assert said in caplog.text


async def test_when_both_are_killed_the_next_owner_ends_what_hid_from_them() -> None:
    tag = ulid()
    words = [sys.executable, str(OWNER), "hostile", *argv(f"tag={tag}", *FREE)]
    owner = await asyncio.to_thread(subprocess.Popen, words, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    with owner.stdout:
        assert await asyncio.to_thread(owner.stdout.readline) == b"ready\n"
    await until(lambda: len(tagged(tag)) == 5)
    (keeper,) = children(owner.pid)
    scope = (read(f"/proc/{keeper}/cmdline") or b"").split(b"\0")[-2].decode()
    for pid in (keeper, owner.pid):
        os.kill(pid, signal.SIGSTOP)
    for pid in (keeper, owner.pid):
        os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(owner.wait)
    await until(lambda: not alive(keeper))
    assert tagged(tag)
    link = KeeperLink(scope)
    await link.start()
    assert tagged(tag) == []
    await link.close()


def judged(looks: list[tuple[bool, bool, bool]]) -> float | None:
    patience = Patience()
    for number, (heard, waits, still) in enumerate(looks, 1):
        if patience.judge(heard=heard, waits=waits, still=still) is not None:
            return number * LOOK_SECONDS
    return None


def test_silence_ends_a_keeper_only_when_something_is_asked() -> None:
    looks = int(SILENT_SECONDS / LOOK_SECONDS)
    assert judged([(False, True, False)] * looks) == SILENT_SECONDS
    assert judged([(False, True, False)] * (looks - 1)) is None
    assert judged([(False, False, False)] * looks * 2) is None
    assert judged([*[(False, True, False)] * (looks - 1), (True, True, False)] * 3) is None
    stopped = judged([(False, False, True)] * looks)
    assert stopped is not None
    assert STOPPED_SECONDS < stopped <= STOPPED_SECONDS + 2 * LOOK_SECONDS
    assert judged([(False, False, True), (False, False, False)] * looks) is None


async def test_one_that_says_nothing_for_long_is_asked(link: KeeperLink, shell: Start) -> None:
    child = await shell("exec sleep 1000")
    asked = link._questions
    await until(lambda: link._questions > asked, ASK_SECONDS + 10)
    assert child.exit is None

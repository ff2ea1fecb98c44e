"""The mark that every process of a keeper has, whatever it did to its environment."""

import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.process.rig import Start, alive, needs_sandbox, until

from retinue.domain.ids import ulid
from retinue.keeper import seal
from retinue.keeper.tree import children, read
from retinue.process.child import Streams
from retinue.process.link import Command, KeeperLink
from retinue.process.sandbox import Sandbox, boxed
from retinue.runtime.system import Runtime, _scope
from retinue.settings import Settings

LINE = "grep -F 'realtime timeout' /proc/self/limits"
SEALED = """
import resource, sys, time
value = int(sys.argv[1])
with open("/proc/self/comm", "w") as file: file.write(sys.argv[2])
resource.setrlimit(15, (value, value))
print("ready", flush=True)
time.sleep(1000)
"""


def sealed(scope: str, keeper: int = 1, name: str = "left") -> "subprocess.Popen[bytes]":
    """Start what a keeper of ``scope`` could have left that is no more."""
    value = seal._FIRST | seal._scope_bits(scope) | keeper
    words = [sys.executable, "-I", "-S", "-c", SEALED, str(value), name, "other"]
    left = subprocess.Popen(words, env={}, stdout=subprocess.PIPE)
    assert left.stdout is not None
    with left.stdout:
        assert left.stdout.readline() == b"ready\n"
    return left


async def test_every_process_has_its_keepers_seal_and_no_other_limit_is_changed(
    link: KeeperLink, shell: Start
) -> None:
    script = "env -i setsid /bin/sh -c '/bin/cat /proc/self/limits'; grep ctxt /proc/self/status"
    child = await shell(script)
    lines = [line.decode() async for line in child.stdout]
    assert link.pid is not None
    own = seal.seal_of(link.pid)
    assert own is not None
    assert seal._FIRST <= own < seal._FIRST << 1
    assert seal.seal_of(os.getpid()) != own
    ours = (read("/proc/self/limits") or b"").decode().splitlines(keepends=True)
    for mine, theirs in zip(ours, lines, strict=False):
        if mine.startswith("Max realtime timeout"):
            assert theirs.split()[3:5] == [str(own)] * 2
        else:
            assert mine == theirs
    assert resource.getrlimit(15) != (own, own)


async def test_two_keepers_of_a_scope_have_two_seals(link: KeeperLink) -> None:
    await link.start()
    second = KeeperLink(link.scope)
    await second.start()
    seals = {seal.seal_of(pid or 0) for pid in (link.pid, second.pid)}
    await second.close()
    assert len(seals) == 2
    assert len({(found or 0) >> 32 for found in seals}) == 1


@needs_sandbox
@pytest.mark.parametrize("network", ["host", "loopback", "none"])
async def test_it_goes_through_a_sandbox(network: str, link: KeeperLink, tmp_path: Path) -> None:
    plain = Command(path="/bin/sh", argv=("sh", "-c", LINE), env={}, cwd=str(tmp_path))
    box = Sandbox(network=network)  # type: ignore[arg-type]
    child = await link.spawn(boxed(plain, box, "/usr/bin/bwrap", [str(tmp_path)]), Streams())
    line = await child.stdout.next() or b""
    assert line.split()[3] == str(seal.seal_of(link.pid or 0)).encode()


async def test_a_start_ends_what_carries_its_scope_and_nothing_else() -> None:
    scope = ulid()
    mine, other = await asyncio.to_thread(lambda: (sealed(scope), sealed(ulid())))
    try:
        link = KeeperLink(scope)
        await link.start()
        assert await asyncio.to_thread(mine.wait, 5) == -9
        assert alive(other.pid)
        await link.close()
    finally:
        for left in (mine, other):
            left.kill()
            await asyncio.to_thread(left.wait)


async def test_a_keeper_that_has_the_seal_of_an_outer_one_does_not_stand_for_it() -> None:
    scope = ulid()
    left = await asyncio.to_thread(sealed, scope)
    nested = await asyncio.to_thread(sealed, scope, 1, seal.KEEPER)
    link = KeeperLink(scope)
    try:
        await link.start()
        assert not alive(left.pid)
        assert not alive(nested.pid)
        await link.close()
    finally:
        for process in (left, nested):
            process.kill()
            await asyncio.to_thread(process.wait)


async def test_what_a_living_keeper_of_the_same_scope_has_is_left_alone(
    link: KeeperLink, shell: Start
) -> None:
    child = await shell("env -i setsid /bin/sh -c 'echo $$; exec /bin/sleep 1000' & wait")
    hidden = int(await child.stdout.next() or 0)
    second = KeeperLink(link.scope)
    await second.start()
    await second.sweep()
    await second.close()
    assert alive(hidden)
    assert alive(child.pid)


async def test_a_server_ends_what_was_left_although_it_has_no_agents_any_more(
    tmp_path: Path,
) -> None:
    settings = Settings(
        database_url=f"sqlite:///{tmp_path}/store.db", data_dir=tmp_path, examples=False
    )
    scope = _scope(settings)
    assert scope is not None
    (tmp_path / "processes").mkdir()
    left = await asyncio.to_thread(sealed, scope)
    try:
        async with Runtime(settings):
            assert not alive(left.pid)
    finally:
        left.kill()
        await asyncio.to_thread(left.wait)


async def test_a_server_that_never_had_agents_here_starts_no_keeper(tmp_path: Path) -> None:
    settings = Settings(
        database_url=f"sqlite:///{tmp_path}/store.db", data_dir=tmp_path, examples=False
    )
    before = children(os.getpid())
    async with Runtime(settings):
        assert children(os.getpid()) == before


async def test_below_another_keeper_there_is_a_seal_of_ones_own_or_the_outer_one(
    link: KeeperLink, shell: Start, tmp_path: Path
) -> None:
    # Without privilege (CAP_SYS_RESOURCE) nobody can raise what is there.
    script = "import sys; from retinue.keeper.seal import *; print(take(sys.argv[1]), seal_of(0))"
    program = f"import os; {script}".replace("seal_of(0)", "seal_of(os.getpid())")
    source = str(Path(seal.__file__).parents[2])
    words = (sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r}); {program}", "x")
    child = await link.spawn(
        Command(path=words[0], argv=words, env={}, cwd=str(tmp_path)), Streams()
    )
    took, found = (await child.stdout.next() or b"").split()
    outer = seal.seal_of(link.pid or 0)
    assert int(found) != outer if took == b"True" else int(found) == outer
    await until(lambda: child.exit is not None)

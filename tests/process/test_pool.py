"""Agents that are kept warm: how many there are, who gets one, and what becomes of them."""

import asyncio
import os
import re
import signal
import textwrap
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.process.rig import alive, marked, until

from retinue.domain.supervision import RestartPolicy
from retinue.errors import InvalidInput, ShuttingDown, SpawnFailed
from retinue.process import (
    AgentConfig,
    AgentHandle,
    AgentPool,
    Backend,
    LocalProcessRunner,
    ProcessRunnerConfig,
    first_line,
)
from retinue.process.ladder import Ladder
from retinue.process.pool import Demand
from retinue.testing.agent import argv

REMEMBERS = """
echo ready
heard=
while read -r line; do heard="$heard $line"; echo "$heard"; done
"""
CONFIG = AgentConfig("warm", "remembers", "")
QUICK = RestartPolicy(most=2, within_seconds=1.0, first_wait_ms=50, most_wait_ms=50)


def program(*command: str) -> Backend:
    return Backend(command=command, prompt="none")


CATALOGUE = {
    "remembers": program("sh", "-c", REMEMBERS),
    "deaf": program(*argv("deaf", "leave", "daemon", "say=ready", "sleep")),
    "silent": program("sleep", "1000"),
    "fails": program("sh", "-c", "exit 3"),
    "says": Backend(
        command=("sh", "-c", 'echo why >&2; echo "no $KEY" >&2; exit 4'),
        prompt="none",
        environment={"KEY": "canary-99"},
    ),
    "absent": program("no-such-cli"),
}


@pytest.fixture
async def runner() -> AsyncIterator[LocalProcessRunner]:
    async with LocalProcessRunner(catalogue=CATALOGUE) as found:
        yield found
        assert marked(found._link.scope) == []  # the pool left nothing, before the runner ends


def pool_of(runner: LocalProcessRunner, backend: str = "remembers", **more: Any) -> AgentPool:
    config = AgentConfig("warm", backend, "")
    return AgentPool(runner, config, **{"ready": first_line, **more})


async def ask(handle: AgentHandle, word: str) -> str:
    await handle.write_stdin(word.encode() + b"\n")
    return (await handle.next_stdout() or b"").decode().strip()


async def use(pool: AgentPool, word: str) -> str:
    async with pool.take() as handle:
        return await ask(handle, word)


async def running(runner: LocalProcessRunner) -> int:
    return sum(not info.status.final for info in await runner.list_agents())


@pytest.mark.requirement("001.pools")
async def test_the_least_are_warm_before_the_first_call_and_nobody_gets_a_used_one(
    runner: LocalProcessRunner,
) -> None:
    async with pool_of(runner, min_agents=2, max_agents=3) as pool:
        assert (pool.min_agents, pool.max_agents, pool.warmup_config) == (2, 3, CONFIG)
        warm = {info.id for info in await runner.list_agents()}
        assert (len(warm), pool.warm, pool.taken) == (2, 2, 0)
        seen = []
        for user in range(5):
            async with pool.take() as handle:
                assert pool.taken == 1
                assert user or handle.id() in warm
                assert await ask(handle, "secret") == "secret"  # and nothing that others said
                assert await ask(handle, "more") == "secret more"
            seen.append(handle)
            with suppress(RuntimeError):
                async with pool.take() as other:
                    seen.append(other)
                    raise RuntimeError("of the user")
        assert len({handle.pid for handle in seen}) == len({h.id() for h in seen}) == 10
        await until(lambda: all(handle.status().final for handle in seen))
        await until(lambda: (pool.warm, pool.size) == (2, 2))


@pytest.mark.requirement("001.pools")
async def test_it_grows_to_its_most_callers_wait_in_order_and_it_falls_back(
    runner: LocalProcessRunner,
) -> None:
    order: list[int] = []
    sizes: list[int] = []
    let_go = asyncio.Event()

    async def hold(user: int, pool: AgentPool) -> None:
        async with pool.take() as handle:
            order.append(user)
            assert await ask(handle, str(user)) == str(user)
            sizes.append(await running(runner))
            await let_go.wait()

    async with pool_of(runner, min_agents=1, max_agents=3, idle_seconds=0.3) as pool:
        users = [asyncio.create_task(hold(user, pool)) for user in range(8)]
        await until(lambda: len(order) == 3 and pool.taken == 3)
        assert pool.size == 3
        let_go.set()
        await asyncio.gather(*users)
        assert order == list(range(8))
        assert max(sizes) == 3
        # What the burst needed is there for the next one, and goes when there is none.
        await until(lambda: pool.warm == 3)
        await until(lambda: (pool.warm, pool.size) == (1, 1))
        assert await running(runner) == 1


@pytest.mark.requirement("001.pools")
async def test_a_warm_one_that_dies_is_replaced_after_a_pause(runner: LocalProcessRunner) -> None:
    slow = RestartPolicy(first_wait_ms=200, most_wait_ms=200, jitter=0)
    async with pool_of(runner, min_agents=2, max_agents=2, restart=slow) as pool:
        dying, other = await runner.list_agents()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        os.kill(dying.pid, signal.SIGKILL)
        await until(lambda: pool.warm == 1)
        async with pool.take() as handle:
            assert handle.id() == other.id
        await until(lambda: pool.warm == 2)
        assert loop.time() - begun >= 0.2
        assert not {dying.id, other.id} & {
            info.id for info in await runner.list_agents() if not info.status.final
        }


@pytest.mark.requirement("001.pools")
async def test_what_cannot_be_started_says_so_at_once_and_leaves_nothing(
    runner: LocalProcessRunner,
) -> None:
    for backend, more, why in (
        ("absent", {}, "no-such-cli"),
        ("fails", {}, r"^sh -c 'exit 3' exited 3 before (it was ready|its first line)$"),
        ("says", {}, r"^sh -c .* exited 4 before (it was ready|its first line): why \| no \*\*\*$"),
        ("silent", {"start_seconds": 0.1}, r"not ready after 0\.1 s"),
        ("deaf", {"ready": _refuses, "ladder": Ladder(grace=0.01)}, "I do not like it"),
    ):
        with pytest.raises((SpawnFailed, LookupError), match=why):
            async with pool_of(runner, backend, **more):
                raise AssertionError("it opened")
        assert await running(runner) == 0


async def _refuses(handle: AgentHandle) -> None:
    await first_line(handle)
    raise LookupError("I do not like it")


@pytest.mark.requirement("001.pools")
async def test_callers_of_one_that_keeps_failing_hear_why_until_it_is_tried_again(
    runner: LocalProcessRunner,
) -> None:
    async with pool_of(runner, "fails", min_agents=0, restart=QUICK) as pool:
        assert pool.size == 0
        with pytest.raises(SpawnFailed, match=r"ended 3 times within 1 s, the last time: "):
            await asyncio.wait_for(use(pool, "never"), 10)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(SpawnFailed, match="3 times"):
            await use(pool, "never")
        assert asyncio.get_running_loop().time() - begun < 0.1
        assert len(await runner.list_agents()) == 3
        runner.catalogue["fails"] = CATALOGUE["remembers"]
        await until(lambda: pool._failed is None)
        assert await use(pool, "well") == "well"


@pytest.mark.requirement("001.pools")
async def test_who_gives_up_waiting_costs_nobody_an_agent(runner: LocalProcessRunner) -> None:
    async with pool_of(runner, min_agents=1, max_agents=1) as pool:
        async with pool.take():
            gives_up = asyncio.create_task(use(pool, "never"))
            waits = asyncio.create_task(use(pool, "mine"))
            await asyncio.sleep(0)
            gives_up.cancel()
            await asyncio.wait([gives_up])
            assert gives_up.cancelled()
        assert await asyncio.wait_for(waits, 10) == "mine"
    async with pool_of(runner, min_agents=0, max_agents=1) as pool:
        given = asyncio.create_task(use(pool, "never"))
        while not pool.taken:
            await asyncio.sleep(0)
        given.cancel()  # it has been given one, and has not run since
        await asyncio.wait([given])
        assert (given.cancelled(), pool.warm) == (True, 1)
        (info,) = [i for i in await runner.list_agents() if not i.status.final]
        async with pool.take() as handle:
            assert handle.id() == info.id


@pytest.mark.requirement("001.pools")
async def test_close_ends_all_of_them_whatever_they_do(runner: LocalProcessRunner) -> None:
    ladder = Ladder(grace=0.05)
    async with AsyncExitStack() as held:
        async with pool_of(runner, "deaf", min_agents=2, max_agents=3, ladder=ladder) as pool:
            taken = [await held.enter_async_context(pool.take()) for _ in range(3)]
            waits = asyncio.create_task(use(pool, "never"))
            await asyncio.sleep(0)
            assert len(marked(runner._link.scope)) >= 6  # each has left some behind
    assert not any(alive(handle.pid) for handle in taken)
    assert marked(runner._link.scope) == []
    with pytest.raises(ShuttingDown):
        await waits
    with pytest.raises(ShuttingDown):
        await use(pool, "never")
    # In the middle of a start, too.
    opening = asyncio.create_task(pool_of(runner, "silent", min_agents=3).__aenter__())
    while await running(runner) < 3:
        await asyncio.sleep(0.002)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


def test_a_pool_that_could_never_be_full_is_refused() -> None:
    runner = LocalProcessRunner(ProcessRunnerConfig(max_concurrent_agents=2))
    for least, most in ((2, 1), (-1, 1), (0, 0)):
        with pytest.raises(InvalidInput, match="min_agents"):
            pool_of(runner, min_agents=least, max_agents=most)
    with pytest.raises(SpawnFailed, match="max_concurrent_agents = 2"):
        pool_of(runner, max_agents=3)
    with pytest.raises(SpawnFailed, match="do not fit this machine"):
        pool_of(LocalProcessRunner(), max_agents=10**9)


async def test_the_guide_runs_as_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "guide-commands.md").read_text()
    section = text.partition("## From a program of your own")[2]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert ["AgentPool" in block for block in blocks] == [False, True]
    for block in blocks:
        space: dict[str, Any] = {}
        exec("async def main():\n" + textwrap.indent(block, "    "), space)
        await space["main"]()
    printed = capsys.readouterr().out.splitlines()
    assert [printed[0], printed[-1]] == [r"b'4\n'", r"b'the task\n'"]


def test_demand_is_held_for_a_while_after_it_has_fallen() -> None:
    demand = Demand(hold=10)
    found = []
    for wanted, now in ((1, 0), (5, 1), (5, 50), (2, 60), (3, 65), (3, 69.9), (3, 70), (0, 71)):
        demand.note(wanted, now)
        found.append((demand.most, demand.falls_at))
    assert found == [
        (1, None), (5, None), (5, None), (5, 70), (5, 70), (5, 70), (3, None), (3, 81),
    ]  # fmt: skip

"""Pools of real processes: warm, growing, shrinking, replaced, drained; and nothing is lost."""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.engine.pooled import LinesDriver, SessionDriver, SilentDriver, agent
from tests.process.rig import alive, marked, until

from retinue import Runtime, Settings
from retinue.domain.agent import Capability
from retinue.domain.execution import State, Task
from retinue.domain.policy import Delivery, RetryPolicy
from retinue.domain.supervision import PoolPolicy, Restart, RestartPolicy
from retinue.engine.views import PoolView
from retinue.errors import AgentNotFound, AgentUnavailable, InvalidInput, NotFound
from retinue.interfaces import Page
from retinue.orchestrator import Reply
from retinue.process.link import KeeperLink

QUICK = RestartPolicy(first_wait_ms=1, most_wait_ms=5)


class Rig:
    """A started system with one pool, ``it``."""

    def __init__(self, system: Runtime, driver: LinesDriver, tmp: Path) -> None:
        self.system = system
        self.driver = driver
        self.tmp = tmp
        self.pool = system.engine.pools._known("it").pool

    @property
    def view(self) -> PoolView:
        return self.pool.view(time.monotonic())

    def states(self) -> list[str]:
        return sorted(member.state for member in self.view.instances)

    async def ask(self, do: str = "echo", session: str = "s", **more: Any) -> Reply:
        asked = Task(session_id=session, capability="do", parameters={"do": do, **more})
        return await self.system.orchestrator.perform(asked)

    async def pid(self, **more: Any) -> int:
        reply = await self.ask(**more)
        assert reply.error is None, reply.error
        return int(json.loads(reply.data or b"")["pid"])

    def hold(self, **more: Any) -> "asyncio.Task[int]":
        return asyncio.create_task(self.pid(do="hold", file=str(self.tmp / "go"), **more))

    def go(self) -> None:
        (self.tmp / "go").touch()


Start = Callable[..., Any]


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Start]:
    """Start a system with a pool; stop it and see that nothing is left."""
    rigs: list[tuple[Rig, KeeperLink]] = []

    async def start(*, kind: Any = LinesDriver, worker: bool = False, **more: Any) -> Rig:
        link = KeeperLink()
        driver = kind(link)
        settings = Settings(data_dir=tmp_path, examples=False, entry_points=False)
        system = Runtime(settings, drivers=[driver])
        policy = more.pop("policy", {})
        policy = PoolPolicy(**{"restart": QUICK, "ping_seconds": 60, **policy})
        definition = agent(tmp_path, pool=policy, **more)
        if worker:
            system.engine.add_worker(definition)
        else:
            system.engine.add_agent(definition)
        rigs.append((Rig(system, driver, tmp_path), link))
        await system.start()
        return rigs[-1][0]

    yield start
    for rig, link in rigs:
        rig.go()
        await rig.system.stop(grace=0)
        assert rig.view.instances == []
        await link.close()
        assert marked(link.scope) == []


async def test_the_least_are_warm_before_the_first_task(started: Start) -> None:
    rig = await started(policy={"least": 2, "most": 3, "in_flight": 2})
    await until(lambda: rig.states() == ["ready", "ready"])
    assert await rig.pid() in rig.driver.pids
    assert len(rig.driver.pids) == 2
    (shown,) = await rig.system.orchestrator.agents()
    assert (shown.status, shown.concurrency, shown.pool) == ("available", 6, {"it": "ready"})


async def test_it_grows_under_load_deals_evenly_and_falls_back(started: Start) -> None:
    policy = {"least": 1, "most": 3, "in_flight": 2, "idle_seconds": 0.05}
    rig = await started(policy=policy)
    held = [rig.hold() for _ in range(8)]  # two more than there is room for
    await until(lambda: [m.in_flight for m in rig.view.instances] == [2, 2, 2])
    assert rig.states() == ["busy"] * 3
    await until(lambda: len(rig.system.engine.attempts.running) == 6)
    rig.go()
    served = Counter(await asyncio.gather(*held))
    assert set(served) == set(rig.driver.pids)
    assert served.total() == 8
    await until(lambda: rig.states() == ["ready"])
    assert sum(map(alive, rig.driver.pids)) == 1
    view = rig.view
    assert (view.requests, view.errors, view.started, view.restarts) == (8, 0, 3, 0)


@pytest.mark.parametrize("restart", list(Restart))
async def test_one_that_dies_is_replaced_by_policy(started: Start, restart: Restart) -> None:
    policy = {"restart": RestartPolicy(restart=restart, first_wait_ms=1)}
    rig = await started(policy=policy)
    first = await rig.pid()
    os.kill(first, signal.SIGKILL)
    await until(lambda: not alive(first))
    if restart is Restart.TEMPORARY:
        await until(lambda: rig.view.state == "stopped")
        with pytest.raises(AgentUnavailable):
            await rig.ask()
        rig.system.engine.pools.renew("it")  # a person may have it again
        await until(lambda: rig.states() == ["ready"])
    second = await rig.pid()
    assert second != first


async def test_a_well_meant_end_is_not_undone_for_transient_ones(started: Start) -> None:
    rig = await started(
        policy={"restart": RestartPolicy(restart=Restart.TRANSIENT, first_wait_ms=1)}
    )
    reply = await rig.ask("exit", code=0)
    assert reply.error["code"] == "E_STREAM_BROKEN"
    await until(lambda: rig.view.state == "stopped")
    assert "policy" in (rig.view.reason or "")


async def test_what_keeps_dying_is_failed_with_one_alert_and_can_be_revived(
    started: Start,
) -> None:
    rig = await started(policy={"least": 2, "most": 2})
    (rig.tmp / "stopper").write_text("not today")
    pids = list(rig.driver.pids)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: rig.view.state == "failed" and not rig.view.instances)
    assert "6 times within 60 s, the last time: it exited 1: not today" in str(rig.view.reason)
    while not await alerts(rig):
        await asyncio.sleep(0.002)
    with pytest.raises(AgentUnavailable):
        await rig.ask()
    (rig.tmp / "stopper").unlink()
    rig.system.engine.pools.renew("it")
    await until(lambda: rig.states() == ["ready", "ready"])
    assert await rig.pid() not in pids
    assert await alerts(rig) == [("it", "failed")]


async def alerts(rig: Rig) -> list[tuple[str, str]]:
    audit = await rig.system.store.audit(Page(100))
    return [(row.target, row.outcome) for row in audit.items if row.action == "pool.failed"]


async def test_a_death_fails_what_it_was_doing_and_repeats_it_only_as_allowed(
    started: Start,
) -> None:
    rig = await started(policy={"in_flight": 4})
    held = [asyncio.create_task(rig.ask("hold", file="/absent")) for _ in range(3)]
    await until(lambda: rig.view.in_flight == 3)
    took = await until_all(held, lambda: os.kill(rig.driver.pids[0], signal.SIGKILL))
    assert took < 1
    for reply in [task.result() for task in held]:
        assert (reply.state, reply.error["code"]) == (State.FAILED, "E_STREAM_BROKEN")


async def test_what_one_does_not_take_any_more_another_one_does_in_the_same_attempt(
    started: Start,
) -> None:
    rig = await started(policy={"least": 2, "most": 2})
    for member in list(rig.pool.members.values()):
        instance: Any = member.instance
        instance.child.stdin.close()
    replies = await asyncio.gather(*(rig.ask() for _ in range(4)))
    for reply in replies:
        assert reply.error is None, reply.error
        execution = await rig.system.orchestrator.execution(reply.execution_id)
        assert execution.attempt == 1
    assert not {json.loads(r.data or b"")["pid"] for r in replies} & set(rig.driver.pids[:2])


async def test_what_bears_repeats_is_done_by_the_next(started: Start) -> None:
    rig = await started(
        policy={"in_flight": 4},
        delivery=Delivery.AT_LEAST_ONCE,
        retry=RetryPolicy(waits_ms=(1,)),
    )
    held = [rig.hold() for _ in range(3)]
    await until(lambda: rig.view.in_flight == 3)
    os.kill(rig.driver.pids[0], signal.SIGKILL)
    await until(lambda: rig.view.in_flight == 3 and len(rig.driver.pids) == 2)
    rig.go()
    assert await asyncio.gather(*held) == [rig.driver.pids[1]] * 3
    assert rig.view.errors == 3


async def until_all(tasks: list[Any], first: Callable[[], object]) -> float:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    first()
    await asyncio.wait(tasks)
    return loop.time() - begun


async def test_old_ones_are_replaced_one_by_one_without_losing_a_task(started: Start) -> None:
    policy = {"least": 2, "most": 2, "in_flight": 2}
    rig = await started(policy=policy)
    await until(lambda: rig.states() == ["ready", "ready"])
    first = set(rig.driver.pids)
    held = [rig.hold() for _ in range(3)]
    await until(lambda: rig.view.in_flight == 3)
    rig.system.engine.pools.renew("it")
    await until(lambda: rig.states().count("draining") == 1)
    assert await rig.pid() not in first  # what comes goes to the new one, or to what is not full
    rig.go()
    assert set(await asyncio.gather(*held)) == first
    await until(lambda: len(rig.driver.pids) == 4 and rig.states() == ["ready", "ready"])
    assert not any(map(alive, first))
    assert (rig.view.errors, rig.view.restarts) == (0, 0)


async def test_a_lifetime_ends_and_tasks_go_on(started: Start) -> None:
    rig = await started(policy={"lifetime_seconds": 0.2, "in_flight": 4})
    seen: set[int] = set()
    while len(seen) < 3:
        seen.add(await rig.pid())
    assert rig.view.errors == 0


async def test_a_drain_that_takes_too_long_ends(started: Start) -> None:
    rig = await started(policy={"drain_seconds": 0.1, "in_flight": 2})
    held = asyncio.create_task(rig.ask("hold", file="/absent"))
    await until(lambda: rig.view.in_flight == 1)
    rig.system.engine.pools.renew("it")
    reply = await held
    assert reply.error["code"] == "E_STREAM_BROKEN"
    assert await rig.pid() == rig.driver.pids[1]


async def test_it_is_scaled_while_it_works(started: Start) -> None:
    rig = await started(policy={"least": 1, "most": 1, "in_flight": 1})
    pools = rig.system.engine.pools
    held = [rig.hold() for _ in range(3)]
    await until(lambda: rig.view.in_flight == 1)
    pools.scale("it", 3, 3)
    await until(lambda: rig.view.in_flight == 3)
    pools.scale("it", 1, 1)
    await until(lambda: rig.states().count("draining") == 2)
    rig.go()
    assert sorted(await asyncio.gather(*held)) == sorted(rig.driver.pids)
    await until(lambda: rig.states() == ["ready"])
    pools.scale("it", 0, 0)
    await until(lambda: rig.view.state == "stopped")
    with pytest.raises(AgentUnavailable):
        await rig.ask()
    pools.scale("it", 1, 1)
    await rig.pid()
    with pytest.raises(InvalidInput):
        pools.scale("it", 2, 1)
    with pytest.raises(NotFound):
        pools.scale("other", 1, 1)


async def test_one_that_does_not_answer_a_ping_is_replaced(started: Start) -> None:
    policy = {"ping_seconds": 0.02, "answer_seconds": 0.2, "in_flight": 2}
    rig = await started(policy=policy)
    busy = rig.hold()
    await until(lambda: rig.view.in_flight == 1)
    held = [await rig.pid() for _ in range(5)]  # busy and answering: it is left alone
    assert set(held) == {rig.driver.pids[0]}
    rig.go()
    await busy
    reply = await rig.ask("mute")
    assert reply.error["code"] == "E_STREAM_BROKEN"
    assert await rig.pid() == rig.driver.pids[1]
    assert rig.view.restarts == 1


async def test_where_nothing_can_be_asked_one_that_is_silent_is_called_stalled(
    started: Start,
) -> None:
    policy = {"ping_seconds": 0.02, "stall_seconds": 0.1}
    rig = await started(policy=policy, kind=SilentDriver)
    held = rig.hold()
    await until(lambda: rig.states() == ["stalled"])
    rig.go()
    await held
    assert rig.states() == ["ready"]


async def test_an_instance_serves_one_session_where_the_driver_says_so(started: Start) -> None:
    policy = {"least": 1, "most": 2, "in_flight": 1}
    rig = await started(policy=policy, kind=SessionDriver)
    one = await rig.pid(session="one")
    two = await rig.pid(session="two")
    assert one != two
    assert [await rig.pid(session=s) for s in ("one", "two", "one")] == [one, two, one]
    assert {m.session_id for m in rig.view.instances} == {"one", "two"}
    three = await rig.pid(session="three")  # the one that was idle for longest made room
    assert three not in {one, two}
    assert await rig.pid(session="one") == one
    assert await rig.pid(session="two") != two


async def test_a_program_says_itself_which_agents_it_performs(
    started: Start, tmp_path: Path
) -> None:
    offers = tuple(agent(tmp_path, n, capabilities=(Capability(name=n),)) for n in ("a", "b"))
    rig = await started(worker=True, offers=offers, capabilities=(), policy={"in_flight": 2})
    orchestrator = rig.system.orchestrator
    assert [a.agent_id for a in await orchestrator.agents()] == ["a", "b"]
    for name in ("a", "b"):
        task = Task(session_id="s", capability=name, parameters={"do": "echo"})
        assert json.loads((await orchestrator.perform(task)).data or b"")["agent"] == name
    # A new version of the program offers something else.
    other = agent(tmp_path, "b", version="2", capabilities=(Capability(name="c"),))
    rig.driver.offers = (offers[0], other)
    rig.system.engine.pools.renew("it")
    await until(lambda: len(rig.driver.pids) == 2 and rig.states() == ["ready"])
    assert (await orchestrator.agent("b")).version == "2"
    with pytest.raises(AgentNotFound):
        await orchestrator.perform(Task(session_id="s", capability="b"))
    task = Task(session_id="s", capability="c", parameters={"do": "echo"})
    assert (await orchestrator.perform(task)).success


async def test_one_that_cannot_start_keeps_nothing_else_from_starting(
    started: Start, tmp_path: Path
) -> None:
    (tmp_path / "stopper").write_text("never")
    rig = await started()
    await until(lambda: rig.view.state == "failed")
    with pytest.raises(AgentUnavailable):
        await rig.ask()


async def test_a_thousand_tasks_start_three_processes(started: Start) -> None:
    rig = await started(policy={"least": 3, "most": 3, "in_flight": 10})
    await until(lambda: len(rig.driver.pids) == 3)
    served: Counter[int] = Counter()
    for _ in range(20):
        served.update(await asyncio.gather(*(rig.pid() for _ in range(50))))
    assert len(rig.driver.pids) == rig.view.started == 3
    assert served.total() == rig.view.requests == 1000
    assert set(served) == set(rig.driver.pids)


async def test_cancelling_what_waits_for_an_instance_takes_nothing_from_others(
    started: Start,
) -> None:
    rig = await started(policy={"least": 1, "most": 1, "in_flight": 1})
    pool = rig.pool
    member = await pool.acquire()
    waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(3)]
    await until(lambda: pool.waiting == 3)
    waiting[0].cancel()
    pool.release(member)
    waiting[1].cancel()  # it has been handed over in this turn
    assert (await waiting[2]) is member
    assert member.in_flight == 1
    pool.release(member)
    assert (member.in_flight, pool.waiting) == (0, 0)

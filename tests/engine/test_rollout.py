"""New versions of a worker: brought in one by one, taken back where they do not work."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.engine.test_stdio import PROGRAM, Rig
from tests.process.rig import marked, until

from retinue import Runtime, Settings
from retinue.domain.execution import Task
from retinue.domain.supervision import Phase
from retinue.errors import AgentNotFound, AgentUnavailable, Conflict, NotFound
from retinue.interfaces import Page
from retinue.settings import WorkerReference


class Deploys(Rig):
    """A system whose configuration the test changes; its first version is ``it`` alone."""

    def __init__(self, tmp: Path, **more: Any) -> None:
        self.more = {"process_pool_size": 3, **more}
        self.tmp = tmp
        self.now = self.settings()

    def settings(self, *words: str, **more: Any) -> Settings:
        worker = WorkerReference(
            driver="stdio", name="w", command=(*PROGRAM, *words), **{**self.more, **more}
        )
        return Settings(data_dir=self.tmp, examples=False, entry_points=False, agents=(worker,))

    async def start(self) -> None:
        system = Runtime(self.now, reread=lambda: self.now)
        await system.start()
        super().__init__(system, self.tmp)
        await until(lambda: self.pool.ready == self.pool.policy.least)

    async def deploy(self, *words: str, **more: Any) -> None:
        self.now = self.settings(*words, **more)
        await self.system.orchestrator.deploy_pool("w")

    def rollout(self) -> str:
        assert self.view.rollout is not None
        return self.view.rollout.state

    async def pid(self) -> int:
        return int((await self.result())["pid"])


@pytest.fixture
async def deploys(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start a system that can be deployed to; see that nothing is left of it."""
    rigs: list[Deploys] = []

    async def start(**more: Any) -> Deploys:
        rig = Deploys(tmp_path, **more)
        await rig.start()
        rigs.append(rig)
        return rig

    yield start
    for rig in rigs:
        rig.go()
        await rig.system.stop(grace=0)
        assert marked(rig.system.keeper.scope) == []


async def working(rig: Deploys, seen: list[tuple[bool, int]], fewest: list[int]) -> None:
    """Have work done without a pause.

    Note whether version 2 was there when it was asked, and by whom it was done; and how many were
    ready.
    """
    while True:
        fewest.append(rig.pool.ready)
        there = any(m.version == 2 and m.phase is Phase.READY for m in rig.pool.members.values())
        seen.append((there, await rig.pid()))


async def ended(tasks: Sequence["asyncio.Task[None]"]) -> None:
    """Stop what works without a pause; it has not failed."""
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.requirement("000.deploy-update")
async def test_a_new_version_takes_over_one_by_one_and_no_request_fails(deploys: Any) -> None:
    rig = await deploys()
    old = rig.pids()
    held = [rig.hold() for _ in range(6)]
    await until(lambda: [m.in_flight for m in rig.view.instances] == [2, 2, 2])
    seen: list[tuple[bool, int]] = []
    fewest: list[int] = []
    callers = [asyncio.create_task(working(rig, seen, fewest)) for _ in range(4)]
    await until(lambda: len(seen) > 20)
    await rig.deploy("agents=it,more")
    assert (rig.view.version, rig.rollout()) == (2, "running")
    with pytest.raises(Conflict):
        await rig.system.orchestrator.deploy_pool("w")
    # One new one is there, one old one is drained: that has work, so the others wait.
    await until(lambda: sorted(m.version for m in rig.view.instances) == [1, 1, 1, 2])
    await until(lambda: any(m.phase is Phase.DRAINING for m in rig.pool.members.values()))
    await until(lambda: sum(there for there, _ in seen) > 20)
    rig.go()
    assert {result["pid"] for result in await asyncio.gather(*held)} == old
    await until(lambda: rig.rollout() == "done")
    new = rig.pids()
    assert len(new) == 3
    assert new.isdisjoint(old)
    assert {m.version for m in rig.view.instances} == {2}
    done = len(seen)
    await until(lambda: len(seen) > done + 30)
    assert {pid for there, pid in seen if not there} >= old
    assert {pid for there, pid in seen if there} <= new  # later work went to the new ones
    await ended(callers)
    assert min(fewest) >= 3
    assert (rig.view.errors, rig.view.restarts) == (0, 0)
    assert rig.system.orchestrator.definition("more").agent_id == "more"


async def taken_back(rig: Deploys) -> list[Any]:
    audit = await rig.system.store.audit(Page(limit=1000))
    return [row for row in audit.items if row.action == "pool.rolled_back"]


@pytest.mark.requirement("000.deploy-update")
async def test_one_that_does_not_become_ready_leaves_the_old_version_at_work(
    deploys: Any, tmp_path: Path
) -> None:
    rig = await deploys()
    old = rig.pids()
    stopper = tmp_path / "stopper"
    stopper.touch()
    await rig.deploy(f"stopper={stopper}", process_pool_size=1, max_concurrent_requests=2)
    await until(lambda: rig.rollout() == "rolled_back")
    assert "not today" in rig.view.rollout.reason
    assert (rig.view.version, rig.view.state, rig.view.most) == (1, "ready", 3)
    assert rig.view.in_flight_limit == 10
    assert rig.pids() == old
    assert {await rig.pid() for _ in range(9)} == old
    while not (rows := await taken_back(rig)):
        await asyncio.sleep(0.002)
    (row,) = rows
    assert (row.target, row.outcome) == ("w", "failed")
    stopper.unlink()
    await rig.deploy(f"stopper={stopper}", process_pool_size=1)
    await until(lambda: rig.rollout() == "done" and len(rig.view.instances) == 1)
    assert rig.view.version == 3
    await until(lambda: rig.system.engine.registry.find("it").definition.concurrency == 10)
    assert rig.pids().isdisjoint(old)


@pytest.mark.requirement("000.deploy-update")
async def test_one_that_fails_half_way_is_taken_back_altogether(
    deploys: Any, tmp_path: Path
) -> None:
    rig = await deploys(process_pool_size=2)
    held = [rig.hold() for _ in range(2)]
    await until(lambda: [m.in_flight for m in rig.view.instances] == [1, 1])
    stopper = tmp_path / "stopper"
    await rig.deploy(f"stopper={stopper}", "agents=it,more")
    await until(lambda: any(m.phase is Phase.DRAINING for m in rig.pool.members.values()))
    await rig.result()  # by the new one
    (new,) = [m.instance.child.pid for m in rig.pool.members.values() if m.version == 2]
    stopper.touch()
    rig.go()  # what is drained may end; the next new one cannot start
    await asyncio.gather(*held)
    await until(lambda: rig.rollout() == "rolled_back")
    await until(lambda: [m.version for m in rig.view.instances] == [1, 1])
    await until(lambda: rig.view.state == "ready")
    assert new not in rig.pids()
    assert (await rig.result())["pid"] in rig.pids()
    with pytest.raises(AgentNotFound):
        rig.system.orchestrator.definition("more")


@pytest.mark.requirement("000.deploy-update")
async def test_one_that_dies_at_its_work_is_taken_back(deploys: Any) -> None:
    rig = await deploys(process_pool_size=2)
    held = [rig.hold() for _ in range(2)]
    await until(lambda: [m.in_flight for m in rig.view.instances] == [1, 1])
    await rig.deploy("agents=it")
    await until(lambda: any(m.phase is Phase.DRAINING for m in rig.pool.members.values()))
    reply = await rig.ask("exit", code=3)
    assert reply.error["code"] == "E_STREAM_BROKEN"
    await until(lambda: rig.rollout() == "rolled_back")
    rig.go()
    await asyncio.gather(*held)
    await until(lambda: [m.version for m in rig.view.instances] == [1, 1])
    await rig.result()


async def test_what_is_scaled_or_shut_down_on_the_way_stays_so(deploys: Any) -> None:
    rig = await deploys()
    held = [rig.hold() for _ in range(3)]
    await until(lambda: [m.in_flight for m in rig.view.instances] == [1, 1, 1])
    await rig.deploy("agents=it,more")
    await until(lambda: any(m.phase is Phase.DRAINING for m in rig.pool.members.values()))
    await rig.system.orchestrator.scale_pool("w", 2)
    rig.go()
    await asyncio.gather(*held)
    await until(lambda: rig.rollout() == "done")
    await until(lambda: [m.version for m in rig.view.instances] == [2, 2])
    assert (rig.view.least, rig.view.most, rig.view.state) == (2, 2, "ready")
    await rig.deploy("agents=it")
    await rig.system.orchestrator.shut_down_pool("w", 5)
    await until(lambda: not rig.view.instances)
    assert (rig.view.most, rig.view.state) == (0, "stopped")
    with pytest.raises(AgentUnavailable):
        await rig.ask()
    await rig.system.orchestrator.scale_pool("w", 1)
    await until(lambda: rig.view.state == "ready")
    await rig.result()


async def test_each_version_is_given_only_what_it_performs(deploys: Any) -> None:
    rig = await deploys(process_pool_size=2)
    await rig.deploy("agents=it,old")
    await until(lambda: rig.rollout() == "done")

    async def by(agent: str) -> int:
        task = Task(session_id="s", agent_id=agent, parameters={})
        reply = await rig.system.orchestrator.perform(task)
        assert reply.error is None, reply.error
        return next(  # type: ignore[no-any-return]
            m.version for m in rig.pool.members.values()
            if m.instance.child.pid == json.loads(reply.data)["pid"]
        )  # fmt: skip

    held = [rig.hold() for _ in range(2)]
    await until(lambda: [m.in_flight for m in rig.view.instances] == [1, 1])
    await rig.deploy("agents=it,new")
    await until(lambda: any(m.phase is Phase.DRAINING for m in rig.pool.members.values()))
    assert [await by(name) for name in ("old", "new", "old", "new", "it")] == [2, 3, 2, 3, 3]
    rig.go()
    await asyncio.gather(*held)
    await until(lambda: rig.rollout() == "done")
    with pytest.raises(AgentNotFound):
        await by("old")
    assert await by("new") == 3


async def test_a_worker_that_is_not_named_any_more_is_not_deployed(deploys: Any) -> None:
    rig = await deploys(process_pool_size=1)
    rig.now = rig.now.model_copy(update={"agents": ()})
    with pytest.raises(NotFound, match="names no worker w"):
        await rig.system.orchestrator.deploy_pool("w")
    with pytest.raises(NotFound):
        await rig.system.orchestrator.deploy_pool("other")
    assert (rig.view.version, rig.view.rollout) == (1, None)
    await rig.result()

"""Workers over stdio: pools, limits, health, restarts, bad frames, and what is left: nothing."""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.process.rig import alive, marked, until

from retinue import Runtime, Settings
from retinue.domain.event import Event
from retinue.domain.execution import State, Task
from retinue.domain.instance import InstanceState
from retinue.drivers.stdio.lifecycle import EDGES, Lifecycle, Stage
from retinue.engine.instances import WORK_SECONDS
from retinue.engine.views import PoolView
from retinue.errors import AgentUnavailable, Conflict, IllegalTransition, QueueFull
from retinue.interfaces import InstanceFilter, Page
from retinue.orchestrator import Reply
from retinue.process.log import read_log
from retinue.settings import WorkerReference

PROGRAM = (sys.executable, "-I", "-S", "-u", str(Path(__file__).with_name("misbehaving.py")))


class Rig:
    """A started system with one worker, ``w``, whose agent is ``it``."""

    def __init__(self, system: Runtime, tmp: Path) -> None:
        self.system = system
        self.tmp = tmp
        self.pool = system.engine.pools._known("w").pool

    @property
    def view(self) -> PoolView:
        return self.pool.view(time.monotonic())

    def stages(self) -> list[str | None]:
        return [member.stage for member in self.view.instances]

    def pids(self) -> set[int]:
        return {
            live.process.pid
            for live in self.system.engine.instances.live.values()
            if live.process is not None and not live.record.ended
        }

    async def ask(self, do: str = "echo", **more: Any) -> Reply:
        deadline = more.pop("deadline_us", None)
        asked = Task(
            session_id="s", agent_id="it", parameters={"do": do, **more}, deadline_us=deadline
        )
        return await self.system.orchestrator.perform(asked)

    async def result(self, do: str = "echo", **more: Any) -> Any:
        reply = await self.ask(do, **more)
        assert reply.error is None, reply.error
        return json.loads(reply.data or b"")

    async def events(self, reply: Reply) -> list[Event]:
        return list(await self.system.store.events(reply.execution_id))

    def hold(self) -> "asyncio.Task[Any]":
        return asyncio.create_task(self.result("hold", file=str(self.tmp / "go")))

    def go(self) -> None:
        (self.tmp / "go").touch()

    async def log(self, stream: str) -> str:
        """Return what the logs of all its processes hold."""
        await asyncio.to_thread(self.system.keeper.logs.settle)
        found = await self.system.store.instances(InstanceFilter(), Page(100))
        places = [record.found()["log"] for record in found.items]
        return b"".join(read_log(Path(place), stream) for place in places).decode()

    @property
    def reader(self) -> Any:
        (member,) = self.pool.members.values()
        return member.instance.pipe.reader  # type: ignore[union-attr]


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start a system with a worker; stop it and see that nothing is left."""
    rigs: list[Rig] = []

    async def start(*words: str, command: tuple[str, ...] = PROGRAM, **more: Any) -> Rig:
        given = {"process_pool_size": 1, **more}
        worker = WorkerReference(driver="stdio", name="w", command=(*command, *words), **given)
        settings = Settings(data_dir=tmp_path, examples=False, entry_points=False, agents=(worker,))
        system = Runtime(settings)
        await system.start()
        rigs.append(Rig(system, tmp_path))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.go()
        await rig.system.stop(grace=0)
        assert marked(rig.system.keeper.scope) == []
        assert list((tmp_path / "processes" / "worker-w" / "tmp").iterdir()) == []


# -- what is shown of it -------------------------------------------------------------------------


async def test_a_process_shows_what_it_works_on(started: Any) -> None:
    rig = await started(max_concurrent_requests=3)
    system = rig.system

    async def shown() -> Any:
        (view,) = (await system.orchestrator.instances(InstanceFilter(), Page())).items
        return view

    idle = await shown()
    assert (idle.status, idle.executions, idle.execution_id) == ("idle", [], None)
    assert idle.instance_id == rig.view.instances[0].instance_id  # `worker list` says the same
    held = [rig.hold() for _ in range(2)]
    await until(lambda: rig.view.in_flight == 2)
    busy = await shown()
    running = [e.execution_id for e in await system.store.held()]
    assert (busy.state, busy.status) == ("busy", "running")
    assert sorted(busy.executions) == sorted(running)
    assert (busy.execution_id, busy.attempt) == (busy.executions[0], 1)
    # Another server reads it in the store, and finds it by its execution.
    by_execution = InstanceFilter(execution_id=busy.execution_id)
    while not (found := (await system.store.instances(by_execution, Page())).items):
        await asyncio.sleep(0.02)
    assert (found[0].instance_id, found[0].state) == (busy.instance_id, InstanceState.BUSY)
    await system.orchestrator.pause_instance(busy.instance_id)
    assert ((await shown()).status, len((await shown()).executions)) == ("paused", 2)
    await system.orchestrator.resume_instance(busy.instance_id)
    rig.go()
    await asyncio.gather(*held)
    await until(lambda: not rig.view.in_flight)
    done = await shown()
    assert (done.status, done.executions, done.execution_id) == ("idle", [], None)
    while (await system.store.instances(by_execution, Page())).items:
        await asyncio.sleep(0.02)


@pytest.mark.requirement("001.health")
async def test_work_that_brings_nothing_is_stalled_though_pings_are_answered(
    started: Any,
) -> None:
    rig = await started(stall_seconds=0.3, health_interval=0.02)
    orchestrator = rig.system.orchestrator

    async def shown() -> Any:
        (view,) = (await orchestrator.instances(InstanceFilter(), Page())).items
        return view

    assert (await shown()).health == "healthy"
    held = rig.hold()
    while (view := await shown()).health != "stalled":
        assert view.health == "healthy"
        await asyncio.sleep(0)
    assert view.last_event_secs >= 0.3
    assert view.busy_secs >= 0.3
    assert [m.state for m in (await orchestrator.pools())[0].instances] == ["stalled"]
    assert (await orchestrator.pool("w")).instances[0].latency_ms is not None
    rig.go()
    await held
    assert [m.state for m in (await orchestrator.pools())[0].instances] == ["ready"]
    assert (await shown()).health == "healthy"


async def test_short_calls_are_not_written_each(
    started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await started()
    (live,) = rig.system.engine.instances.live.values()
    await live.settled()
    written: list[Any] = []
    write = rig.system.engine.instances.write

    async def seen(intent: Any) -> Any:
        written.append(intent)
        return await write(intent)

    monkeypatch.setattr(rig.system.engine.instances, "write", seen)
    begun = time.monotonic()
    for _ in range(100):
        await rig.result()
    assert len(written) <= 1 + (time.monotonic() - begun) / WORK_SECONDS


async def test_one_that_ends_at_work_shows_what_it_worked_on(started: Any) -> None:
    rig = await started(max_restarts=0)
    held = asyncio.create_task(rig.ask("hold", file="/absent"))
    await until(lambda: rig.view.in_flight == 1)
    (live,) = rig.system.engine.instances.live.values()
    os.kill(live.process.pid, signal.SIGKILL)
    reply = await held
    await live.settled()
    view = await rig.system.orchestrator.instance(live.id)
    assert (view.state, view.executions) == ("failed", [reply.execution_id])


async def test_its_stdin_is_the_protocols(started: Any) -> None:
    rig = await started()
    (live,) = rig.system.engine.instances.live.values()
    assert (await rig.system.orchestrator.instance(live.id)).stdin is False
    with pytest.raises(Conflict, match="no stdin that is open"):
        await rig.system.orchestrator.tell_instance(live.id, b"no frame")
    assert await rig.result()


# -- starting ------------------------------------------------------------------------------------


@pytest.mark.requirement("000.start")
async def test_it_is_started_with_its_ready_frame_and_has_the_agents_it_must(
    started: Any,
) -> None:
    rig = await started("agents=it,other", agents=("it",))
    agents = await rig.system.orchestrator.agents()
    assert [(a.agent_id, a.driver, a.status) for a in agents] == [
        ("it", "stdio", "available"),
        ("other", "stdio", "available"),
    ]
    assert agents[0].capabilities == [{"name": "it", "description": "", "parameters": None}]
    assert agents[0].pool == {"w": "ready"}
    assert rig.stages() == ["ready"]


@pytest.mark.requirement("000.start")
@pytest.mark.parametrize(
    ("words", "more", "why"),
    [
        (("agents=other",), {"agents": ("it",)}, "w does not have the agent it"),
        (("start=silent",), {"startup_timeout": 0.3}, "it was not ready within 0.3 s"),
        (("start=refuse",), {}, "no module x"),
        ((), {"command": ("/absent",)}, "/absent does not exist"),
        ((), {"command": ("sh", "-c", "echo 'bad luck' >&2; exit 7")},
         "the worker exited 7 before it was ready: bad luck"),
        ((), {"command": ("sh", "-c", "exec >&-; sleep 1000")},
         "the worker closed its output before it was ready"),
    ],
)  # fmt: skip
async def test_one_that_does_not_become_ready_is_gone_and_says_why(
    started: Any, words: tuple[str, ...], more: dict[str, Any], why: str
) -> None:
    rig = await started(*words, max_restarts=0, **more)
    await until(lambda: rig.view.state == "failed")
    assert why in str(rig.view.reason)
    await until(lambda: marked(rig.system.keeper.scope) == [])
    assert await rig.system.orchestrator.agents() == []
    ended = {InstanceState.FAILED, InstanceState.STOPPED}
    while True:  # its end is in the store soon after
        found = await rig.system.store.instances(InstanceFilter(), Page())
        if {record.state for record in found.items} <= ended:
            break
        await asyncio.sleep(0.002)


@pytest.mark.requirement("000.worker-env")
async def test_it_sees_only_what_its_settings_name(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_API_KEY", "secret")
    rig = await started(environment={"MODEL_KEY": "given-key"})
    seen = await rig.result("env")
    root = tmp_path / "processes" / "worker-w"
    assert seen["cwd"] == str(root / "work")
    env = seen["env"]
    assert (env["HOME"], env["MODEL_KEY"]) == (str(root / "home"), "given-key")
    assert Path(env["TMPDIR"]).parent == root / "tmp"
    assert env["PATH"] == os.environ["PATH"]
    assert "CANARY_API_KEY" not in env
    assert "given-key" not in json.dumps(rig.system.settings.shown())


# -- many at once --------------------------------------------------------------------------------


@pytest.mark.requirement("000.stress")
@pytest.mark.requirement("000.reuse")
async def test_a_thousand_on_three_processes_with_default_limits(
    started: Any,
) -> None:
    rig = await started(process_pool_size=3)
    pids = rig.pids()
    assert len(pids) == 3
    served: Counter[int] = Counter()
    for first in range(0, 1000, 100):
        numbers = range(first, first + 100)
        found = await asyncio.gather(*(rig.result(id=n) for n in numbers))
        assert [one["input"]["id"] for one in found] == list(numbers)
        served.update(one["pid"] for one in found)
    assert set(served) == pids == rig.pids()
    assert (rig.view.requests, rig.view.errors, rig.view.started) == (1000, 0, 3)
    assert max(served.values()) < 2 * min(served.values())


@pytest.mark.requirement("000.correlation")
async def test_answers_in_any_order_reach_their_own_caller(started: Any) -> None:
    rig = await started()
    held = [rig.hold() for _ in range(4)]
    await until(lambda: rig.view.in_flight == 4)
    found = await asyncio.gather(*(rig.result(id=n) for n in range(6)))
    assert [one["input"]["id"] for one in found] == list(range(6))
    assert not any(task.done() for task in held)
    rig.go()
    await asyncio.gather(*held)


@pytest.mark.requirement("000.pool")
async def test_no_process_has_more_than_its_limit_and_who_waits_is_served_in_order(
    started: Any,
) -> None:
    rig = await started(process_pool_size=3, max_concurrent_requests=2)
    held = [rig.hold() for _ in range(6)]
    await until(lambda: rig.view.in_flight == 6)
    assert [m.in_flight for m in rig.view.instances] == [2, 2, 2]
    order: list[int] = []

    async def late(n: int) -> None:
        await rig.result(id=n)
        order.append(n)

    waiting = []
    for n in range(5):
        waiting.append(asyncio.create_task(late(n)))
        depth = n + 1
        while sum(d.ready for d in await rig.system.store.depths()) < depth:
            await asyncio.sleep(0.002)
    assert rig.view.in_flight == 6
    rig.go()
    await asyncio.gather(*held, *waiting)
    assert sorted(order) == list(range(5))
    view = rig.view
    assert (view.requests, view.errors) == (11, 0)
    assert view.average_ms > 0


@pytest.mark.requirement("000.limits")
async def test_what_does_not_fit_in_the_queue_is_refused_at_once(started: Any) -> None:
    rig = await started(max_concurrent_requests=1, request_queue_size=2)
    held = [rig.hold() for _ in range(3)]
    while sum(d.ready for d in await rig.system.store.depths()) < 2:
        await asyncio.sleep(0.002)
    with pytest.raises(QueueFull) as caught:
        await rig.ask()
    assert caught.value.code == "E_QUEUE_FULL"
    rig.go()
    await asyncio.gather(*held)


@pytest.mark.requirement("000.limits")
async def test_as_many_as_there_is_room_for_are_never_refused(started: Any) -> None:
    rig = await started(max_concurrent_requests=2, request_queue_size=4)

    async def caller() -> None:
        for _ in range(40):
            await rig.result()

    await asyncio.gather(*(caller() for _ in range(6)))


@pytest.mark.requirement("000.limits")
async def test_the_defaults_are_the_specifications() -> None:
    worker = WorkerReference(driver="stdio", name="w", command=("w",))
    assert (
        worker.process_pool_size,
        worker.max_concurrent_requests,
        worker.request_queue_size,
        worker.max_memory_mb,
        worker.max_subprocess_lifetime_hours,
    ) == (3, 10, 100, 4096, 24)


@pytest.mark.requirement("000.limits")
async def test_over_its_memory_it_is_ended_with_that_reason(started: Any) -> None:
    rig = await started(max_memory_mb=60)
    reply = await rig.ask("memory", bytes=200 << 20)
    assert reply.error["code"] == "E_STREAM_BROKEN"
    assert "memory" in reply.error["details"]["reason"]
    await rig.result()


@pytest.mark.requirement("000.limits")
async def test_an_old_process_is_replaced_and_no_task_is_lost(started: Any) -> None:
    rig = await started(max_subprocess_lifetime_hours=0.5 / 3600)
    seen: set[int] = set()
    while len(seen) < 3:
        seen.add((await rig.result())["pid"])
    assert rig.view.errors == 0


# -- its end -------------------------------------------------------------------------------------


@pytest.mark.requirement("000.auto-restart")
@pytest.mark.parametrize("do", [{"do": "exit", "code": 0}, {"do": "exit_held"}, {"do": "close"}])
async def test_one_that_ends_tells_its_callers_within_a_second_and_is_replaced(
    started: Any, do: dict[str, Any]
) -> None:
    rig = await started()
    (first,) = rig.pids()
    held = [asyncio.create_task(rig.ask("hold", file="/absent")) for _ in range(5)]
    await until(lambda: rig.view.in_flight == 5)
    begun = time.monotonic()
    await rig.ask(**do)
    replies = await asyncio.gather(*held)
    assert time.monotonic() - begun < 1
    for reply in replies:
        assert (reply.state, reply.error["code"]) == (State.FAILED, "E_STREAM_BROKEN")
        assert reply.error["retryable"] is True
    assert (await rig.result())["pid"] != first
    await until(lambda: not alive(first))
    assert rig.view.restarts == 1


@pytest.mark.requirement("000.auto-restart")
@pytest.mark.parametrize(("policy", "code", "again"), [
    ("permanent", 0, True), ("permanent", 1, True), ("transient", 0, False),
    ("transient", 1, True), ("temporary", 1, False),
])  # fmt: skip
async def test_it_is_restarted_by_policy(started: Any, policy: str, code: int, again: bool) -> None:
    rig = await started(restart=policy)
    assert (await rig.ask("exit", code=code)).error["code"] == "E_STREAM_BROKEN"
    if again:
        await rig.result()
    else:
        await until(lambda: rig.view.state == "stopped")
        with pytest.raises(AgentUnavailable):
            await rig.ask()


@pytest.mark.requirement("000.auto-restart")
async def test_more_than_five_ends_in_a_minute_are_a_crash_and_one_alert(
    started: Any, tmp_path: Path
) -> None:
    rig = await started(f"stopper={tmp_path / 'stopper'}")
    (tmp_path / "stopper").touch()
    await rig.ask("exit", code=1)
    await until(lambda: rig.view.state == "failed")
    assert "6 times within 60 s" in str(rig.view.reason)
    assert "not today" in str(rig.view.reason)

    async def alerts() -> list[Any]:
        audit = await rig.system.store.audit(Page(100))
        return [row for row in audit.items if row.action == "pool.failed"]

    while not await alerts():
        await asyncio.sleep(0.002)
    (tmp_path / "stopper").unlink()
    rig.system.engine.pools.renew("w")
    await rig.result()
    (alert,) = await alerts()
    assert (alert.target, alert.outcome) == ("w", "failed")
    assert json.loads(alert.detail)["reason"].startswith("it ended 6 times")


async def test_what_waits_for_a_pool_that_fails_is_refused_as_what_comes_then(
    started: Any, tmp_path: Path
) -> None:
    stopper = tmp_path / "stopper"
    rig = await started(f"stopper={stopper}", max_restarts=1, max_concurrent_requests=2)
    held = [asyncio.create_task(rig.ask("hold", file="/absent")) for _ in range(6)]
    while sum(d.ready for d in await rig.system.store.depths()) < 4:
        await asyncio.sleep(0.002)
    stopper.touch()
    (pid,) = rig.pids()
    os.kill(pid, signal.SIGKILL)
    ends = Counter(reply.error["code"] for reply in await asyncio.gather(*held))
    assert ends == {"E_STREAM_BROKEN": 2, "E_AGENT_UNAVAILABLE": 4}
    with pytest.raises(AgentUnavailable):
        await rig.ask()
    assert sum(d.ready for d in await rig.system.store.depths()) == 0


async def test_what_bears_repeats_is_done_by_the_next_process(started: Any) -> None:
    rig = await started(delivery="at_least_once")
    (first,) = rig.pids()
    held = rig.hold()
    await until(lambda: rig.view.in_flight == 1)
    os.kill(first, signal.SIGKILL)
    await until(lambda: not alive(first))
    rig.go()
    assert (await held)["pid"] != first


@pytest.mark.requirement("000.health")
async def test_one_that_does_not_answer_is_replaced_and_a_busy_one_is_left_alone(
    started: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rig = await started(health_interval=0.05, health_timeout=0.5)
    (first,) = rig.pids()
    held = [rig.hold() for _ in range(3)]
    await until(lambda: rig.view.in_flight == 3)
    await until(lambda: (rig.view.instances[0].latency_ms or 0) > 0)
    rig.go()
    assert {one["pid"] for one in await asyncio.gather(*held)} == {first}
    with caplog.at_level(logging.WARNING, "retinue.engine.supervisor"):
        reply = await rig.ask("deaf")
        assert (reply.error["code"], reply.error["retryable"]) == ("E_STREAM_BROKEN", True)
        assert (await rig.result())["pid"] != first
    said = [r.getMessage() for r in caplog.records if "is ended" in r.getMessage()]
    assert said == ["w: an instance is ended: no answer to a ping within 0.5 s"]


@pytest.mark.requirement("000.restart")
async def test_a_restart_drains_and_nothing_accepted_is_lost(started: Any) -> None:
    rig = await started(process_pool_size=2)
    first = rig.pids()
    held = [rig.hold() for _ in range(6)]
    await until(lambda: rig.view.in_flight == 6)
    rig.system.engine.pools.renew("w")
    await until(lambda: "draining" in {m.state for m in rig.view.instances})
    new = [asyncio.create_task(rig.result(id=n)) for n in range(10)]
    rig.go()
    assert {one["pid"] for one in await asyncio.gather(*held)} == first
    assert len(await asyncio.gather(*new)) == 10
    begun = time.monotonic()
    await until(lambda: len(rig.pids()) == 2 and not rig.pids() & first)
    assert time.monotonic() - begun < 5  # only as long as work ran, not drain_timeout
    assert rig.view.errors == 0


@pytest.mark.requirement("000.restart")
async def test_a_restart_kills_what_is_left_at_its_timeout(started: Any) -> None:
    rig = await started("end=never", drain_timeout=0.2)
    (first,) = rig.pids()
    held = asyncio.create_task(rig.ask("hold", file="/absent"))
    await until(lambda: rig.view.in_flight == 1)
    rig.system.engine.pools.renew("w")
    assert (await held).error["code"] == "E_STREAM_BROKEN"
    await until(lambda: not alive(first))
    await rig.result()


@pytest.mark.requirement("000.restart")
async def test_a_replacement_that_cannot_start_leaves_the_old_one_at_work(
    started: Any, tmp_path: Path
) -> None:
    rig = await started(f"stopper={tmp_path / 'stopper'}", max_restarts=1)
    first = rig.pids()
    (tmp_path / "stopper").touch()
    rig.system.engine.pools.renew("w")
    await until(lambda: rig.view.state == "failed")
    assert "exited 4 before it was ready: not today" in str(rig.view.reason)
    assert {(await rig.result())["pid"]} == first


@pytest.mark.requirement("000.restart")
async def test_a_pool_says_that_it_is_one_short(started: Any, tmp_path: Path) -> None:
    rig = await started(f"stopper={tmp_path / 'stopper'}", process_pool_size=2, max_restarts=1)
    (tmp_path / "stopper").touch()
    os.kill(min(rig.pids()), signal.SIGKILL)
    await until(lambda: len(rig.view.instances) == 1)
    await until(lambda: rig.view.reason is not None)
    assert (rig.view.state, rig.view.least, rig.pool.ready) == ("failed", 2, 1)
    await rig.result()


async def test_a_process_that_a_person_stops_is_replaced_and_counts_as_no_failure(
    started: Any,
) -> None:
    rig = await started(max_restarts=0)
    for _ in range(2):
        (pid,) = rig.pids()
        live = rig.system.engine.instances.live
        (name,) = [name for name, one in live.items() if not one.record.ended]
        await rig.system.orchestrator.stop_instance(name)
        await until(lambda pid=pid: rig.pids() and pid not in rig.pids())  # type: ignore[misc]
        await rig.result()
    assert (rig.view.state, rig.view.restarts) == ("ready", 0)


async def test_a_paused_process_is_let_stand(started: Any) -> None:
    rig = await started(health_interval=0.02, health_timeout=0.5)
    (name,) = rig.system.engine.instances.live
    await rig.system.orchestrator.pause_instance(name)
    held = asyncio.create_task(rig.result())
    for _ in range(10):
        before = rig.view.instances[0].latency_ms
        await until(lambda before=before: rig.view.instances[0].latency_ms != before)  # type: ignore[misc]
    assert not held.done()
    await rig.system.orchestrator.resume_instance(name)
    await held
    assert rig.view.restarts == 0


@pytest.mark.requirement("000.scale")
async def test_it_is_scaled_while_tasks_run_and_loses_none(started: Any) -> None:
    rig = await started(process_pool_size=1, max_concurrent_requests=2)
    pools = rig.system.engine.pools
    done: list[Any] = []
    over = asyncio.Event()

    async def caller() -> None:
        while not over.is_set():
            done.append(await rig.result())

    callers = [asyncio.create_task(caller()) for _ in range(8)]
    for size in (4, 2, 5, 1):
        pools.scale("w", size, size)
        await until(
            lambda size=size: len(rig.view.instances) == rig.pool.ready == size  # type: ignore[misc]
        )
        before = len(done)
        await until(lambda before=before: len(done) > before + 20)  # type: ignore[misc]
    over.set()
    await asyncio.gather(*callers)
    assert rig.view.errors == 0
    assert len({one["pid"] for one in done}) >= 6


@pytest.mark.requirement("000.lifecycle")
async def test_every_state_is_shown(started: Any, tmp_path: Path) -> None:
    rig = await started(process_pool_size=1)
    (member,) = rig.pool.members.values()
    instance: Any = member.instance
    assert Lifecycle().stage is Stage.INITIALIZING
    assert rig.stages() == ["ready"]
    held = rig.hold()
    await until(lambda: rig.stages() == ["busy"])
    reply = await rig.ask("fail", code="E_INTERNAL")
    assert reply.error["code"] == "E_INTERNAL"
    assert rig.stages() == ["error"]
    await rig.result("chunks", count=1)
    assert rig.stages() == ["streaming"]
    rig.go()
    await held
    assert rig.stages() == ["ready"]
    with pytest.raises(IllegalTransition):
        instance.lifecycle.to(Stage.STREAMING)
    rig.system.engine.pools.renew("w")
    await until(lambda: instance.stage == "shutdown")
    with pytest.raises(IllegalTransition):
        instance.lifecycle.to(Stage.READY)
    await until(lambda: rig.stages() == ["ready"])
    (member,) = rig.pool.members.values()
    crashed: Any = member.instance
    await rig.ask("exit", code=1)
    await until(lambda: crashed.stage == "crashed")


@pytest.mark.requirement("000.lifecycle")
async def test_it_is_initializing_until_it_is_ready(started: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    rig = await started(f"gate={gate}")
    gate.unlink()
    rig.system.engine.pools.scale("w", 2, 2)
    await until(lambda: len(rig.pids()) == 2)
    assert rig.stages() == ["ready", "initializing"]
    assert {(await rig.result())["pid"] for _ in range(5)} < rig.pids()
    gate.touch()
    await until(lambda: rig.stages() == ["ready", "ready"])
    life = Lifecycle()
    life.ended(0, failed=True)
    assert str(life.stage) == "initializing"
    life.over(asked=False)
    life.over(asked=True)
    assert str(life.stage) == "crashed"
    assert {to for edges in EDGES.values() for to in edges} | {Stage.INITIALIZING} == set(Stage)


# -- what it says --------------------------------------------------------------------------------


@pytest.mark.requirement("000.stderr")
async def test_stderr_is_no_protocol_and_is_printed_behind_its_name(
    started: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "retinue.worker"):
        rig = await started()
        await until(lambda: "[w] hello from stderr" in caplog.text)
    assert "hello from stderr\n" in await rig.log("stderr")
    assert "hello" not in await rig.log("stdout")


@pytest.mark.requirement("000.stderr")
async def test_a_flood_of_stderr_delays_no_frame(started: Any) -> None:
    rig = await started()
    flood = asyncio.create_task(rig.ask("stderr", bytes=100 << 20))
    await until(lambda: rig.view.in_flight == 1)
    slowest, count = 0.0, 0
    while not flood.done():
        begun = time.monotonic()
        await rig.result()
        slowest = max(slowest, time.monotonic() - begun)
        count += 1
    assert (await flood).error is None
    assert count > 10
    assert slowest < 1
    kept = await rig.log("stderr")
    assert len(kept) <= 1 << 20
    assert "x" * 99 + "\n" in kept


async def test_chunks_are_events_and_one_that_reads_slowly_holds_up_the_worker(
    started: Any,
) -> None:
    rig = await started()
    reply = await rig.ask("chunks", count=5_000)
    texts = [json.loads(e.data) for e in await rig.events(reply) if e.type == "content_chunk"]
    assert "".join(t["content"] for t in texts) == "".join(f"{n} " for n in range(5_000))
    assert {t["node_name"] for t in texts} == {"a"}


async def test_a_result_in_pieces_is_whole_and_bounded(started: Any) -> None:
    rig = await started()
    reply = await rig.ask("large", bytes=5_000_000)
    assert json.loads(reply.data or b"") == "y" * 5_000_000
    reply = await rig.ask("large", bytes=17 << 20)
    assert reply.error["code"] == "E_INTERNAL"
    assert "larger than" in reply.error["message"]
    await rig.result()


async def test_a_task_that_is_too_large_for_a_line_is_refused_and_was_not_begun(
    started: Any,
) -> None:
    rig = await started(line_bytes=10_000)
    reply = await rig.ask(text="x" * 10_000)
    assert reply.error["code"] == "E_TOO_LARGE"
    await rig.result()


@pytest.mark.requirement("000.timeout")
@pytest.mark.parametrize(("settings", "seconds"), [({}, 30), ({"timeout": 7}, 7)])
async def test_a_task_without_a_limit_has_thirty_seconds_or_what_is_set(
    started: Any, settings: dict[str, Any], seconds: int
) -> None:
    rig = await started(**settings)
    reply = await rig.ask()
    execution = await rig.system.store.execution(reply.execution_id, None)
    assert execution.allowed_us == seconds * 1_000_000


@pytest.mark.requirement("000.timeout")
async def test_past_its_deadline_it_is_told_to_cancel_and_a_late_answer_is_counted(
    started: Any,
) -> None:
    rig = await started(frame_log=True)
    reply = await rig.ask("hold", file=str(rig.tmp / "go"), deadline_us=200_000)
    assert reply.error["code"] == "E_TIMEOUT"
    assert reply.error["message"] == "Agent invocation timed out after 200ms"
    assert reply.error["details"]["elapsed_ms"] >= 200
    assert reply.error["details"]["agent_state"] == "processing"
    rig.go()
    (member,) = rig.pool.members.values()
    instance: Any = member.instance
    await until(lambda: instance.pipe.late == 1)
    assert rig.reader.counts == {}
    await rig.result()
    assert '"operation":"cancel"' in await rig.log("stdout")


# -- what it says, and how long it takes ----------------------------------------------------------


class Clock:
    """A clock that goes when it is told to, and by ``step`` whenever it is read."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


USED = (
    '{"type":"control","correlation_id":"$ID","payload":{"operation":"agent.event",'
    '"event":"usage","data":{"input_tokens":3,"output_tokens":4}}}\n'
)


@pytest.mark.requirement("000.latency")
async def test_what_takes_longer_than_it_may_is_counted_as_a_breach(
    started: Any, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    rig = await started(f"gate={gate}", health_interval=0.2)
    clock = rig.pool.meter.clock = Clock()

    def shown() -> dict[str, tuple[int, int]]:
        return {view.operation.value: (view.count, view.breaches) for view in rig.view.latency}

    await rig.result()
    assert shown()["startup"] == (1, 0)
    assert shown()["simple_invoke"] == (1, 0)
    held = rig.hold()
    await until(lambda: rig.view.in_flight == 1)
    clock.now += 31
    rig.go()
    await held
    assert shown()["simple_invoke"] == (2, 1)
    clock.step = 11  # every operation takes at least that long now
    await rig.result("chunks", count=3)
    assert shown()["stream_chunk"] == (3, 3)
    await rig.result("lines", lines=[USED])
    assert shown()["llm_invoke"] == (1, 0)
    await until(lambda: shown().get("health_check", (0, 0))[1] > 0)
    clock.step = 61
    await rig.result("lines", lines=[USED])
    assert shown()["llm_invoke"] == (2, 1)
    gate.unlink()
    await rig.system.orchestrator.restart_pool("w")
    await until(lambda: len(rig.view.instances) == 2)
    gate.touch()
    await until(lambda: len(rig.view.instances) == 1)
    assert shown()["startup"] == (2, 1)
    assert rig.view.breaches == sum(breaches for _, breaches in shown().values())


@pytest.mark.requirement("000.frame-log")
async def test_frames_are_in_the_log_when_that_is_wanted_and_secrets_are_masked(
    started: Any,
) -> None:
    secret = 'sé"cret\\x\t\u2028 2'
    rig = await started(frame_log=True, environment={"KEY": secret, "EMPTY": "", "SHORT": "it"})
    done = await rig.result("env", said=[secret, "sé"])
    assert done["env"]["KEY"] == secret  # it is masked in the log and nowhere else
    assert done["input"]["said"] == [secret, "sé"]
    await rig.result("chunks", count=2)
    await rig.result("lines", lines=["{broken " + secret + "\n"])
    await rig.ask("lines", lines=["x\n", CHUNK % ("late", "")], mute=True, deadline_us=300_000)
    lines = (await rig.log("stdout")).splitlines()
    framed = [line.split(" ", 2) for line in lines if line.split(" ", 2)[1] in "<>"]
    for time_of, _, text in framed:
        assert datetime.fromisoformat(time_of).tzinfo is not None
        frame = json.loads(text)
        assert frame.keys() >= {"type", "payload", "correlation_id"}
    told = [(way, json.loads(text)) for _, way, text in framed]
    sent = [frame["payload"].get("operation") for way, frame in told if way == ">"]
    assert sent.count("agent.invoke") == 4
    assert "cancel" in sent
    got = [frame["type"] for way, frame in told if way == "<"]
    assert (got[0], told[0][1]["payload"]["status"]) == ("control", "ready")
    assert got.count("stream") == 4
    whole = "\n".join(lines)
    assert "cret" not in whole
    assert whole.count("***") >= 3
    assert '"agent_name":"it"' in whole  # what is as short as that is no secret


@pytest.mark.requirement("000.frame-log")
async def test_frames_are_not_in_the_log_unless_that_is_wanted(started: Any) -> None:
    rig = await started()
    await rig.result("chunks", count=2)
    await rig.result("lines", lines=["{broken\n"])
    (line,) = (await rig.log("stdout")).splitlines()
    assert "bad frame" in line


# -- bad frames ----------------------------------------------------------------------------------

ANSWER = '{"type":"response","correlation_id":"$ID","payload":{"status":"success","result":%s}}\n'
CHUNK = '{"type":"stream","correlation_id":"$ID","payload":{"node_name":"a","chunk":"%s"%s}}\n'


@pytest.mark.requirement("000.bad-frames")
@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("not_json", ["what is this\n"]),
        ("not_an_object", ["[1]\n"]),
        ("unknown_type", ['{"type":"gossip","payload":{}}\n']),
        ("invalid_frame", ['{"type":"response","payload":7}\n']),
        ("version", ['{"protocol_version":"2.0","type":"control","payload":{}}\n']),
        ("unknown_correlation", [ANSWER.replace("$ID", "nobody") % 1]),
        ("second_terminal", [ANSWER % 1, ANSWER % 2]),
        ("late_chunk", [CHUNK % ("x", ',"is_complete":true'), CHUNK % ("y", "")]),
        ("late_chunk", [ANSWER % 1, CHUNK % ("y", "")]),
        ("nul", ['{"type":"control","payload":{"a":"\\u0000"}}\n']),
        ("nan", ['{"type":"control","payload":{"a":NaN}}\n']),
        ("duplicate_key", ['{"type":"control","type":"control","payload":{}}\n']),
        ("oversize", ["$X\n"]),
        ("bom", None),
        ("crlf", [ANSWER.replace("\n", "\r\n") % 1]),
    ],
)
async def test_a_bad_frame_is_counted_and_logged_and_the_next_one_is_read(
    started: Any, kind: str, lines: list[str] | None
) -> None:
    if lines is None:
        script = r"""printf '\357\273\277'; exec "$@" """
        rig = await started(command=("sh", "-c", script, "sh", *PROGRAM))
    else:
        rig = await started()
        await rig.ask("lines", lines=lines, deadline_us=5_000_000)
        await rig.result()  # the reader is in step: this came after it
    assert rig.reader.counts[kind] >= 1
    if kind not in {"bom", "crlf"}:
        assert f"bad frame ({kind})" in await rig.log("stdout")
    assert (await rig.result(id=7))["input"]["id"] == 7
    assert rig.view.restarts == 0


@pytest.mark.requirement("000.bad-frames")
async def test_an_answer_that_is_no_frame_fails_its_own_caller_at_once(started: Any) -> None:
    rig = await started()
    reply = await rig.ask("lines", lines=[ANSWER % "NaN"], mute=True)
    assert reply.error["code"] == "E_INTERNAL"
    assert reply.error["details"]["bad_frame"] == "nan"
    await rig.result()


@pytest.mark.requirement("000.bad-frames")
async def test_half_a_line_and_then_the_end(started: Any) -> None:
    rig = await started()
    reader = rig.reader
    await rig.ask("lines", lines=['{"type":"resp'])
    await rig.ask("exit", code=0)
    await until(lambda: reader.counts["incomplete"] == 1 or reader.counts["not_json"] == 1)
    await rig.result()


async def test_after_its_end_nothing_of_it_is_left(started: Any, tmp_path: Path) -> None:
    rig = await started(process_pool_size=2)
    await rig.result()
    pools = rig.system.engine.pools
    fds, threads = open_files(), threading.active_count()
    for _ in range(3):
        first = rig.pids()
        pools.renew("w")
        await until(lambda first=first: not rig.pids() & first)  # type: ignore[misc]
        await until(lambda: [m.state for m in rig.view.instances] == ["ready"] * 2)
        assert not any(map(alive, first))
    await until(lambda: open_files() == fds)
    assert threading.active_count() <= threads
    tmp = tmp_path / "processes" / "worker-w" / "tmp"
    assert len(list(tmp.iterdir())) == 2  # those of the two that run


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))

"""The record of processes: who has one, what it says while its agent asks, when it is forgotten."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.process.rig import until

from retinue import Runtime, Settings, capability
from retinue.domain.agent import AgentDefinition, Capability
from retinue.domain.event import EventData, EventType
from retinue.domain.execution import State, Task
from retinue.domain.ids import ulid
from retinue.domain.intent import Intent, PutInstance
from retinue.domain.result import Result
from retinue.engine.retention import Policy
from retinue.interfaces import (
    Birth,
    DriverContext,
    Features,
    Health,
    InstanceFilter,
    InstanceHandle,
    Job,
    Page,
)
from retinue.process.child import Child, Streams
from retinue.process.link import Command, KeeperLink
from retinue.process.remains import Remains
from retinue.settings import CommandReference
from retinue.storage.sqlite import SqliteStore

CAT = "import sys\nfor line in sys.stdin: print('heard', line, end='', flush=True)"


class Asking:
    """A driver of a process that asks a person, and repeats the answer."""

    name: ClassVar[str] = "asking"
    features: ClassVar[Features] = Features(asks=True)

    def __init__(self) -> None:
        self.handle = InstanceHandle("asker", ulid())
        self.link: KeeperLink | None = None
        self._context: DriverContext | None = None
        self._child: Child | None = None

    async def start(self, agent: AgentDefinition, context: DriverContext, /) -> "Asking":
        self._context = context
        return self

    async def check(self, agent: AgentDefinition, /) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def execute(self, job: Job, /) -> AsyncIterator[AsyncIterator[EventData]]:
        assert self._context is not None
        assert self.link is not None
        birth = Birth(
            agent_id="asker", owner="local", driver="asking", handle={}, execution=job.execution
        )
        live = await self._context.instances.begin(birth)
        argv = (sys.executable, "-I", "-S", "-u", "-c", CAT)
        command = Command(path=argv[0], argv=argv, env={}, cwd="/")
        self._child = child = await self.link.spawn(command, Streams(), live.id)
        live.started(child)
        try:
            yield self._events(child)
        finally:
            live.draining("its execution is over")
            child.kill()
            await child.wait_gone()

    async def _events(self, child: Child) -> AsyncIterator[EventData]:
        yield EventData(EventType.INPUT_REQUIRED, {"question_id": ulid(), "prompt": "Well?"})
        said = await child.stdout.next()
        yield EventData(EventType.COMPLETED, {"result": (said or b"").decode()})

    async def answer(self, question_id: str, answer: Any, /) -> None:
        assert self._child is not None
        await self._child.say(f"{answer}\n".encode())

    async def ping(self) -> Health:
        return Health(True)

    async def stop(self, grace: float, /) -> None:
        return


Start = Callable[..., Awaitable[Runtime]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    systems: list[Runtime] = []

    async def begin(*, drivers: Any = (), store: Any = None, **settings: Any) -> Runtime:
        given = Settings(data_dir=tmp_path, examples=False, entry_points=False, **settings)
        system = Runtime(given, drivers=drivers, store=store)
        await system.start()
        systems.append(system)
        return system

    yield begin
    for system in systems:
        await system.stop(grace=1)


@pytest.mark.requirement("001.status")
async def test_one_that_asks_runs_and_waits_for_input(start: Start) -> None:
    driver = Asking()
    system = await start(drivers=[driver])
    driver.link = system.keeper
    desk = system.orchestrator
    desk.register_definition(
        AgentDefinition(
            agent_id="asker", name="asker", driver="asking", capabilities=(Capability(name="ask"),)
        )
    )
    accepted = await desk.submit(Task(session_id="s", capability="ask", parameters={}))
    questions: list[Any] = []

    async with asyncio.timeout(20):
        while not questions:
            questions = (await desk.questions(Page())).items
            await asyncio.sleep(0.01)
    (shown,) = (await desk.instances(InstanceFilter(), Page())).items
    assert (shown.state, shown.status, shown.waiting_for) == ("busy", "running", "input")
    await desk.answer(questions[0].id, "so be it")
    async with asyncio.timeout(20):
        while not (found := await desk.execution(accepted.execution_id)).terminal:
            await asyncio.sleep(0.01)
    assert found.state is State.COMPLETED
    await until(lambda: not system.engine.instances.live)
    (shown,) = (await desk.instances(InstanceFilter(), Page())).items
    assert (shown.state, shown.status, shown.waiting_for) == ("stopped", "terminated", None)
    assert (shown.reason, shown.messages_sent, shown.messages_received) == (
        *("its execution is over", 1),
        1,
    )


class Watched(SqliteStore):
    """A store that remembers what it was asked to write."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(path)
        self.written: list[Intent] = []

    async def write(self, intent: Intent, /) -> Result:
        self.written.append(intent)
        return await super().write(intent)


async def test_an_agent_that_is_no_process_costs_no_record(start: Start) -> None:
    store = Watched(None)
    system = await start(store=store)

    @capability()
    async def plain() -> int:
        return 1

    system.orchestrator.register_agent(plain)
    store.written.clear()
    await system.orchestrator.orchestrate("s", {"capability": "plain"})
    kinds = {type(intent).__name__ for intent in store.written}
    assert kinds >= {"Submit", "Finish"}
    assert kinds.isdisjoint({"PutInstance", "SaveInstance"})


async def test_it_is_on_record_before_it_runs_and_forgotten_with_its_time(
    start: Start, tmp_path: Path
) -> None:
    store = Watched(tmp_path / "retinue.db")
    command = CommandReference(driver="command", agent_id="it", command=("cat",))
    system = await start(store=store, agents=(command,))
    desk = system.orchestrator
    spawn, before = system.keeper.spawn, []

    async def watched(command: Command, streams: Streams, name: str | None = None) -> Child:
        before.append(await store.instance(name or "", None))
        return await spawn(command, streams, name)

    system.keeper.spawn = watched  # type: ignore[method-assign]
    task = Task(session_id="s", agent_id="it", parameters={"prompt": "hi"})
    answer = await desk.perform(task)
    (early,) = before
    assert early is not None
    assert (early.state, early.execution_id, early.attempt) == (
        *("starting", answer.execution_id),
        1,
    )
    assert "pid" not in early.found()
    await until(lambda: not system.engine.instances.live)
    (shown,) = (await desk.instances(InstanceFilter(), Page())).items
    assert (shown.instance_id, shown.state, shown.exit_code) == (early.instance_id, "stopped", 0)
    assert shown.pid is not None
    assert len([i for i in store.written if isinstance(i, PutInstance)]) == 1
    retention = system.engine.retention
    retention.policy = Policy(days=1e-12)
    retention._forget_at = 0
    await retention.round()
    assert (await desk.instances(InstanceFilter(), Page())).total == 0


@pytest.mark.requirement("001.health", "001.metrics")
async def test_a_stalled_one_is_named_and_what_it_used_is_kept_though_nobody_looks(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.engine.rounds.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("retinue.engine.rounds.MEASURE_SECONDS", 0.1)
    monkeypatch.setattr("retinue.engine.instances.MEASURE_SECONDS", 0.1)
    spins = CommandReference(
        driver="command",
        agent_id="spins",
        command=("sh", "-c", "while :; do :; done"),
        stall_seconds=0.2,
        stop_seconds=0.1,
    )
    system = await start(agents=(spins,))
    task = Task(session_id="s", agent_id="spins", parameters={"prompt": "x"})
    accepted = await system.orchestrator.submit(task)

    async def stored() -> Any:
        where = InstanceFilter(execution_id=accepted.execution_id)
        return (await system.store.instances(where, Page())).items

    while not (found := await stored()) or found[0].cpu_us < 200_000:
        await asyncio.sleep(0.01)
    assert found[0].peak_bytes > 0
    assert "agent spins is stalled: nothing has come from instance" in caplog.text
    assert caplog.text.count("is stalled") == 1
    seen = found[0].seen()
    assert [(m.status, m.reason) for m in seen.timeline] == [
        ("initializing", None),
        ("running", None),
        ("running", "stalled"),
    ]
    assert seen.measured_at > found[0].started_at
    await system.orchestrator.cancel(accepted.execution_id)


async def test_what_could_not_be_ended_is_said_to_go_on(start: Start) -> None:
    system = await start()
    book = system.engine.instances
    for remains, state, why in (
        (Remains(1, (7, 9)), "lost", "process 7, 9 goes on and cannot be ended"),
        (Remains(2), "failed", "it was ended"),
        (Remains(), "failed", "its server was killed"),
    ):
        birth = Birth(agent_id="it", owner="local", driver="command", handle={})
        live = await book.begin(birth)
        await book.bury(live.record, remains)
        found = await system.store.instance(live.id, None)
        assert found is not None
        assert found.state == state
        assert str(found.reason).endswith(why)
        book.forget(live)

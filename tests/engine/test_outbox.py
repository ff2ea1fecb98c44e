"""Contracts reach Trace: at least once, in order, whatever Trace, we or the network do."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from retinue import Orchestrator, Runtime, Settings, capability
from retinue.engine.feed import Pace
from retinue.interfaces import ContractFilter, Page
from retinue.orchestrator import Integration
from retinue.testing.peers import FakeTrace, Request
from retinue.testing.store_samples import until

QUICK = Pace(first_wait=0.05, longest_wait=0.2, longest_away=0.2, longest_pause=0.1, poll=0.05)
Started = Callable[..., Any]


@capability()
async def echo(text: str) -> dict[str, str]:
    """Say it again."""
    return {"message": f"Echo: {text}"}


@capability()
async def fail() -> None:
    """Do not."""
    raise ValueError("it broke")


@pytest.fixture
def trace() -> Iterator[FakeTrace]:
    with FakeTrace() as service:
        yield service


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'retinue.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def started(database: str, trace: FakeTrace) -> Started:
    """Start systems on the test's store that tell Trace."""

    @asynccontextmanager
    async def start(
        *, pace: Pace = QUICK, seconds: float = 10.0, **settings: Any
    ) -> AsyncIterator[Runtime]:
        given = {"trace_url": trace.url, **settings}
        runtime = Runtime(
            Settings(database_url=database, examples=False, entry_points=False, **given)
        )
        for feed in runtime.engine.outbox.feeds.values():
            feed.pace = pace
            feed.sink._seconds = seconds  # type: ignore[attr-defined]
        for agent in (echo, fail):
            runtime.orchestrator.register_agent(agent)
        await runtime.start()
        try:
            yield runtime
        finally:
            await runtime.stop(grace=1)

    return start


async def say(orchestrator: Orchestrator, session: str, text: str = "hi") -> dict[str, Any]:
    task = {"capability": "echo", "parameters": {"text": text}}
    return await orchestrator.orchestrate(session, task)


async def chain(orchestrator: Orchestrator, session: str) -> list[str]:
    """Return the ids of a session's contracts, in the order of its chain."""
    listing = await orchestrator.contracts(ContractFilter(session_id=session), Page(limit=1000))
    return [view.contract.id for view in listing.items]


def told(trace: FakeTrace, session: str) -> list[str]:
    """Return the contracts that Trace took of a session, in the order it took them."""
    return [event["data"]["contract_id"] for event in trace.events(session)]


async def delivered(orchestrator: Orchestrator, trace: FakeTrace, session: str) -> None:
    """Return once Trace has taken a session's whole chain, in its order."""
    expected = await chain(orchestrator, session)
    assert expected

    async def there() -> bool:
        return len(set(told(trace, session))) == len(expected)

    await until(there)
    assert list(dict.fromkeys(told(trace, session))) == expected


async def state(orchestrator: Orchestrator) -> Integration:
    return (await orchestrator.integrations())["trace"]


def look(orchestrator: Orchestrator, check: Callable[[Integration], object]) -> Awaitable[object]:
    async def holds() -> object:
        return check(await state(orchestrator))

    return until(holds)


def posts(request: Request) -> bool:
    return request.method == "POST"


@pytest.mark.requirement("003.trace", "003.contract-flow")
async def test_each_contract_is_posted_in_order(trace: FakeTrace, started: Started) -> None:
    async with started() as system:
        orchestrator = system.orchestrator
        await say(orchestrator, "session_001")
        await orchestrator.orchestrate("session_001", {"capability": "fail"})
        await delivered(orchestrator, trace, "session_001")
        asked, answered, again, failed = trace.events("session_001")
        contracts = await chain(orchestrator, "session_001")
    assert asked == {
        "event_type": "contract.request",
        "data": {
            "contract_id": contracts[0],
            "from_agent": "orchestrator",
            "to_agent": "echo",
            "capability": "echo",
            "payload": {"text": "hi"},
            "status": "pending",
            "result": None,
            "error": None,
        },
    }
    assert answered == {
        "event_type": "contract.response",
        "data": {
            "contract_id": contracts[1],
            "from_agent": "echo",
            "to_agent": "orchestrator",
            "capability": None,
            "payload": {"success": True, "data": {"message": "Echo: hi"}},
            "status": "completed",
            "result": {"message": "Echo: hi"},
            "error": None,
        },
    }
    assert again["event_type"] == "contract.request"
    assert failed["data"]["status"] == "failed"
    assert "it broke" in failed["data"]["error"]
    assert failed["data"]["payload"] == {"success": False, "error": failed["data"]["error"]}
    assert failed["data"]["result"] is None


@pytest.mark.requirement("003.trace", "003.contract-flow")
async def test_tasks_nobody_can_do_are_told_too(trace: FakeTrace, started: Started) -> None:
    async with started() as system:
        with pytest.raises(Exception, match="No agent available"):
            await system.orchestrator.orchestrate("s", {"capability": "fly"})
        await delivered(system.orchestrator, trace, "s")
    asked, refused = trace.events("s")
    assert (asked["data"]["capability"], asked["data"]["status"]) == ("fly", "pending")
    assert refused["data"]["error"] == "No agent available for capability: fly"


@pytest.mark.requirement("003.trace")
async def test_many_sessions_each_in_order(trace: FakeTrace, started: Started) -> None:
    trace.delay = 0.002
    async with started() as system:
        names = [f"s{number}" for number in range(12)]
        for _ in range(5):
            await asyncio.gather(*(say(system.orchestrator, name) for name in names))
        for name in names:
            await delivered(system.orchestrator, trace, name)
            kinds = [event["event_type"] for event in trace.events(name)]
            assert kinds == ["contract.request", "contract.response"] * 5
        assert len(trace.events()) == 12 * 10  # none twice: nothing failed
        await look(system.orchestrator, lambda i: i.backlog and i.backlog.contracts == 0)


async def timed(orchestrator: Orchestrator, tasks: int) -> float:
    """Return the median time of a reply."""
    times = []
    for _ in range(tasks):
        before = time.perf_counter()
        assert (await say(orchestrator, "timed"))["success"]
        times.append(time.perf_counter() - before)
    return sorted(times)[tasks // 2]


@pytest.mark.requirement("003.trace", "003.contracts-durable")
async def test_a_trace_that_hangs_adds_nothing_and_gets_all_in_the_end(
    trace: FakeTrace, started: Started
) -> None:
    async with started(seconds=30.0) as system:
        well = await timed(system.orchestrator, 15)
        await delivered(system.orchestrator, trace, "timed")
        trace.hang()
        before = time.monotonic()
        names = [f"s{number}" for number in range(20)]
        replies = await asyncio.gather(
            *(say(system.orchestrator, name, str(n)) for n in range(3) for name in names)
        )
        hanging = await timed(system.orchestrator, 15)
        # A reply that waited for Trace would wait for its 30 seconds.
        assert time.monotonic() - before < 10
        assert hanging < well * 5 + 0.05
        assert all(reply["success"] for reply in replies)
        assert not trace.events("s0")
        assert any(request.path.endswith("/s0/events") for request in trace.requests)
    trace.heal()
    async with started() as system:
        for name in (*names, "timed"):
            await delivered(system.orchestrator, trace, name)
        await look(system.orchestrator, lambda i: i.backlog and i.backlog.sessions == 0)


@pytest.mark.requirement("003.trace", "003.trace-visible")
async def test_an_outage_is_shown_and_made_good(
    trace: FakeTrace, started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    trace.stop()
    async with started() as system:
        orchestrator = system.orchestrator
        with caplog.at_level(logging.WARNING, "retinue"):
            reply = await say(orchestrator, "s1")
            await say(orchestrator, "s2")
            await look(orchestrator, lambda i: i.failures >= 4)
        seen = await state(orchestrator)
        assert seen.healthy is False
        assert seen.backlog is not None
        assert (seen.backlog.sessions, seen.backlog.contracts) == (2, 4)
        assert seen.backlog.error == f"Trace cannot be reached at {trace.url}"
        lines = [r for r in caplog.records if reply["contract_id"] in r.getMessage()]
        assert lines
        assert lines[0].session_id == "s1"  # type: ignore[attr-defined]
        assert lines[0].levelno == logging.WARNING
    # Ours was stopped meanwhile; Trace comes back at the same address.
    async with started() as system:
        orchestrator = system.orchestrator
        await look(orchestrator, lambda i: i.failures >= 1)
        trace.start()
        for name in ("s1", "s2"):
            await delivered(orchestrator, trace, name)
        await look(orchestrator, lambda i: i.healthy)
        seen = await state(orchestrator)
        assert seen.backlog is not None
        assert (seen.backlog.contracts, seen.backlog.error, seen.backlog.failing) == (0, None, 0)


async def test_an_outage_however_long_parks_nothing(trace: FakeTrace, started: Started) -> None:
    trace.answer(503, when=posts)
    async with started(pace=Pace(**{**_fields(QUICK), "tries": 2})) as system:
        await say(system.orchestrator, "s")
        await look(system.orchestrator, lambda i: i.failures >= 6)
        trace.heal()
        await delivered(system.orchestrator, trace, "s")
        seen = await state(system.orchestrator)
        assert seen.backlog is not None
        assert seen.backlog.parked == 0


def _fields(pace: Pace) -> dict[str, Any]:
    return {name: getattr(pace, name) for name in pace.__struct_fields__}


async def test_an_ill_sink_is_tried_by_one_session_at_a_time(
    trace: FakeTrace, started: Started
) -> None:
    trace.answer(503, when=posts)
    pace = Pace(**{**_fields(QUICK), "longest_pause": 30.0, "first_wait": 30.0})
    async with started(pace=pace) as system:
        for number in range(30):
            await say(system.orchestrator, f"s{number}")
        await look(system.orchestrator, lambda i: i.failures >= pace.ailing)
        tried = len([r for r in trace.requests if posts(r)])
        assert tried <= pace.ailing + pace.sessions


@pytest.mark.requirement("003.trace")
async def test_one_sessions_failure_holds_up_no_other(trace: FakeTrace, started: Started) -> None:
    trace.answer(500, when=lambda r: posts(r) and "/bad/" in r.path)
    async with started() as system:
        orchestrator = system.orchestrator
        for _ in range(3):
            for name in ("bad", "good"):
                await say(orchestrator, name)
        await delivered(orchestrator, trace, "good")
        assert not trace.events("bad")
        trace.heal()
        await delivered(orchestrator, trace, "bad")


async def test_a_contract_trace_will_not_take_is_parked(trace: FakeTrace, started: Started) -> None:
    def poison(request: Request) -> bool:
        return posts(request) and request.body["data"]["payload"] == {"text": "poison"}

    trace.answer(422, {"detail": "not that"}, when=poison)
    async with started() as system:
        orchestrator = system.orchestrator
        await say(orchestrator, "s", "first")
        bad = (await say(orchestrator, "s", "poison"))["contract_id"]
        await say(orchestrator, "s", "last")
        expected = [name for name in await chain(orchestrator, "s") if name != bad]
        await until(lambda: _async(len(told(trace, "s")) == 5))
        assert told(trace, "s") == expected
        await look(orchestrator, lambda i: i.backlog and i.backlog.contracts == 0)
        assert len([r for r in trace.requests if poison(r)]) == 1
        (row,) = (await orchestrator.parked(Page())).items
        assert (row.contract_id, row.session_id, row.tries) == (bad, "s", 1)
        assert row.error == 'Trace answered 422: {"detail": "not that"}'
        seen = await state(orchestrator)
        assert (seen.backlog and seen.backlog.parked, seen.healthy) == (1, True)
        # Asked for once more, it is refused again, and taken when Trace has come round.
        assert await orchestrator.retry_parked() == (0, 1)
        trace.heal()
        assert await orchestrator.retry_parked() == (1, 0)
        assert told(trace, "s")[-1] == bad
        assert (await orchestrator.parked(Page())).items == []


async def _async(value: bool) -> bool:
    return value


async def test_what_is_refused_too_often_is_parked(trace: FakeTrace, started: Started) -> None:
    refused = "contract.request"
    trace.answer(500, when=lambda r: posts(r) and r.body["event_type"] == refused)
    async with started(pace=Pace(**{**_fields(QUICK), "tries": 3})) as system:
        orchestrator = system.orchestrator
        await say(orchestrator, "s")
        await look(orchestrator, lambda i: i.backlog and i.backlog.parked)
        await until(lambda: _async(bool(trace.events("s"))))
        (row,) = (await orchestrator.parked(Page())).items
        assert (row.n, row.tries, row.error) == (1, 3, "Trace answered 500: null")
        kinds = [r.body["event_type"] for r in trace.requests if posts(r)]
        assert kinds == [refused] * 3 + ["contract.response"]


async def test_a_slow_trace_is_waited_for(trace: FakeTrace, started: Started) -> None:
    trace.delay = 0.3
    async with started(seconds=5.0) as system:
        await say(system.orchestrator, "s")
        await delivered(system.orchestrator, trace, "s")
        assert (await state(system.orchestrator)).failures == 0


async def test_an_answer_too_late_is_told_twice_but_in_order(
    trace: FakeTrace, started: Started
) -> None:
    trace.delay = 0.5
    async with started(seconds=0.1) as system:
        orchestrator = system.orchestrator
        await say(orchestrator, "s")
        await look(orchestrator, lambda i: i.failures >= 2)
        trace.heal()
        await delivered(orchestrator, trace, "s")


async def test_nothing_is_kept_for_a_sink_that_is_not_set(
    trace: FakeTrace, database: str, started: Started
) -> None:
    quiet = Settings(database_url=database, examples=False, entry_points=False)
    async with Runtime(quiet) as orchestrator:
        orchestrator.register_agent(echo)
        await say(orchestrator, "before")
        assert await orchestrator.integrations() == {}
    async with started() as system:
        await say(system.orchestrator, "after")
        await delivered(system.orchestrator, trace, "after")
    assert trace.sessions() == ["after"]


@pytest.mark.requirement("003.trace")
async def test_a_stop_delivers_what_it_can(trace: FakeTrace, started: Started) -> None:
    async with started() as system:
        await say(system.orchestrator, "s")
    assert len(trace.events("s")) == 2


async def test_a_stop_does_not_wait_for_a_trace_that_hangs(
    trace: FakeTrace, started: Started
) -> None:
    trace.hang()
    async with started(seconds=30.0) as system:
        await say(system.orchestrator, "s")
        await until(lambda: _async(any(map(posts, trace.requests))))
        before = time.monotonic()
    assert time.monotonic() - before < 5


async def test_two_processes_deliver_a_session_in_order(
    trace: FakeTrace, postgres_url: str
) -> None:
    trace.delay = 0.001
    settings = Settings(
        database_url=postgres_url, examples=False, entry_points=False, trace_url=trace.url
    )
    systems = [Runtime(settings), Runtime(settings)]
    for system in systems:
        system.orchestrator.register_agent(echo)
        for feed in system.engine.outbox.feeds.values():
            feed.pace = Pace(**{**_fields(QUICK), "page": 3})
        await system.start()
    try:
        names = ["a", "b", "c"]
        for _ in range(8):
            await asyncio.gather(
                *(say(system.orchestrator, name) for system in systems for name in names)
            )
        for name in names:
            await delivered(systems[0].orchestrator, trace, name)
            assert len(told(trace, name)) == 32
    finally:
        await asyncio.gather(*(system.stop(grace=1) for system in systems))


async def test_what_a_dead_process_was_delivering_another_delivers(
    trace: FakeTrace, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(
        database_url=postgres_url,
        examples=False,
        entry_points=False,
        trace_url=trace.url,
        lease_seconds=1.0,
    )
    trace.hang()
    one, two = Runtime(settings), Runtime(settings)
    for system in (one, two):
        system.orchestrator.register_agent(echo)
        for feed in system.engine.outbox.feeds.values():
            feed.pace = QUICK
    await one.start()
    try:
        await say(one.orchestrator, "s")
        await until(lambda: _async(any(map(posts, trace.requests))))
        # Its lease is not renewed any more: it stops delivering, and is taken for dead.
        store: Any = one.store
        await asyncio.to_thread(store._lease.stop)
        trace.heal()
        await two.start()
        await delivered(two.orchestrator, trace, "s")
    finally:
        await asyncio.gather(one.stop(grace=1), two.stop(grace=1))

"""Following executions: resumable, gap-free, merged, the same for every reader."""

import asyncio

import pytest

from retinue import Context, Orchestrator, Runtime, capability
from retinue.domain.event import Event, EventType
from retinue.domain.execution import Task
from retinue.domain.strictjson import loads
from retinue.errors import NotFound


async def follow(orchestrator: Orchestrator, execution_id: str, after: int = 0) -> list[Event]:
    found: list[Event] = []
    async for events in orchestrator.follow(execution_id, after=after):
        found.extend(events)
    return found


@capability()
async def tell(pieces: int, context: Context) -> str:
    """Stream pieces of text, of every kind of event."""
    context.thinking("how to begin")
    for n in range(pieces):
        context.text(f"{n} ")
        await asyncio.sleep(0)
    context.tool_call("lookup", {"q": 1})
    context.tool_result("lookup", [1, 2])
    context.progress(100, "done")
    context.log("ready")
    return "told"


async def test_every_reader_gets_the_same_events_in_the_same_order(
    orchestrator: Orchestrator,
) -> None:
    orchestrator.register_agent(tell)
    accepted = await orchestrator.submit(
        Task(session_id="s", capability="tell", parameters={"pieces": 300})
    )
    readers = await asyncio.gather(
        *(follow(orchestrator, accepted.execution_id) for _ in range(20))
    )
    first = readers[0]
    assert all(reader == first for reader in readers)
    assert [e.seq for e in first] == list(range(1, len(first) + 1))
    text = "".join(loads(e.data)["content"] for e in first if e.type is EventType.CONTENT_CHUNK)
    assert text == "".join(f"{n} " for n in range(300))
    kinds = [e.type.value for e in first if e.type is not EventType.CONTENT_CHUNK]
    assert kinds == ["thinking", "tool_call", "tool_result", "progress", "log", "completed"]
    assert loads(first[-1].data)["final_response"] == "told"
    # A late reader, and one that comes back with the number it has, get exactly the rest.
    assert await follow(orchestrator, accepted.execution_id) == first
    for after in (1, 3, len(first) - 1):
        assert await follow(orchestrator, accepted.execution_id, after) == first[after:]
    assert await follow(orchestrator, accepted.execution_id, len(first)) == []


async def test_text_is_merged_but_its_first_piece_goes_out_at_once(
    orchestrator: Orchestrator,
) -> None:
    released = asyncio.Event()

    @capability()
    async def story(context: Context) -> None:
        context.text("first")
        await released.wait()
        for n in range(1000):
            context.text(f" {n}")
            if n % 100 == 0:
                await asyncio.sleep(0)

    orchestrator.register_agent(story)
    accepted = await orchestrator.submit(Task(session_id="s", capability="story", parameters={}))
    reader = orchestrator.follow(accepted.execution_id)
    async with asyncio.timeout(10):
        assert loads((await anext(reader))[0].data) == {"content": "first"}
    released.set()
    rest: list[Event] = []
    async for events in reader:
        rest.extend(events)
    # 1,000 pieces became a handful of rows.
    assert len(rest) < 20
    text = "".join(loads(e.data)["content"] for e in rest[:-1])
    assert text == "".join(f" {n}" for n in range(1000))


async def test_only_pieces_of_one_node_are_merged_and_none_across_a_reset(
    orchestrator: Orchestrator,
) -> None:
    @capability()
    async def duet(context: Context) -> None:
        for said, node in (("a", "x"), ("b", "x"), ("c", "x"), ("d", "y"), ("e", "y"), ("f", None)):
            context.text(said, node=node)
        context.text("g", node="y", reset=True)
        context.text("h", node="y")

    orchestrator.register_agent(duet)
    accepted = await orchestrator.submit(Task(session_id="s", capability="duet", parameters={}))
    told = [loads(e.data) for e in await follow(orchestrator, accepted.execution_id)][:-1]
    assert told == [
        {"content": "abc", "node_name": "x"},
        {"content": "de", "node_name": "y"},
        {"content": "f"},
        {"content": "gh", "node_name": "y", "is_reset": True},
    ]


async def test_merged_text_has_a_bound_and_keeps_every_piece(orchestrator: Orchestrator) -> None:
    pieces = [f"{n:0100}" for n in range(5000)]

    @capability()
    async def torrent(context: Context) -> None:
        for piece in pieces:
            context.text(piece)

    orchestrator.register_agent(torrent)
    accepted = await orchestrator.submit(Task(session_id="s", capability="torrent", parameters={}))
    told = await follow(orchestrator, accepted.execution_id)
    said = [loads(e.data)["content"] for e in told[:-1]]
    assert "".join(said) == "".join(pieces)
    assert max(map(len, said)) <= 64 * 1024
    assert len(said) < 200


async def test_a_reader_that_lags_behind_reads_on_from_the_store(
    orchestrator: Orchestrator,
) -> None:
    @capability()
    async def chatter(context: Context) -> None:
        for n in range(2000):
            context.log(str(n))
            if n % 50 == 0:
                await asyncio.sleep(0.001)

    orchestrator.register_agent(chatter)
    accepted = await orchestrator.submit(Task(session_id="s", capability="chatter", parameters={}))
    slow = orchestrator.follow(accepted.execution_id)
    found = list(await anext(slow))
    await follow(orchestrator, accepted.execution_id)  # a fast one reads to the end meanwhile
    async for events in slow:
        found.extend(events)
    assert [e.seq for e in found] == list(range(1, 2002))
    assert [loads(e.data)["message"] for e in found[:-1]] == [str(n) for n in range(2000)]


async def test_nobody_sees_an_event_the_ledger_does_not_hold(runtime: Runtime) -> None:
    orchestrator = runtime.orchestrator
    orchestrator.register_agent(tell)
    accepted = await orchestrator.submit(
        Task(session_id="s", capability="tell", parameters={"pieces": 50})
    )
    async for events in orchestrator.follow(accepted.execution_id):
        stored = await runtime.store.events(accepted.execution_id)
        assert {e.seq for e in events} <= {e.seq for e in stored}


async def test_an_unknown_execution_is_not_found(orchestrator: Orchestrator) -> None:
    with pytest.raises(NotFound):
        await follow(orchestrator, "01ARZ3NDEKTSV4RRFFQ69G5FAV")


async def test_watching_leaves_nothing_behind(runtime: Runtime) -> None:
    orchestrator = runtime.orchestrator
    orchestrator.register_agent(tell)
    for _ in range(50):
        accepted = await orchestrator.submit(
            Task(session_id="s", capability="tell", parameters={"pieces": 1})
        )
        await follow(orchestrator, accepted.execution_id)
    assert runtime.engine.journal.watched == []
    assert runtime.engine.attempts.running == {}


async def test_a_heartbeat_says_that_nothing_happened(orchestrator: Orchestrator) -> None:
    gate = asyncio.Event()

    @capability()
    async def quiet() -> None:
        await gate.wait()

    orchestrator.register_agent(quiet)
    accepted = await orchestrator.submit(Task(session_id="s", capability="quiet", parameters={}))
    reader = orchestrator.follow(accepted.execution_id, heartbeat=0.01)
    async with asyncio.timeout(10):
        assert await anext(reader) == []
    gate.set()
    seen = [event async for events in reader for event in events]
    assert [e.type for e in seen] == [EventType.COMPLETED]

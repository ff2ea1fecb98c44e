"""The Store seam, fourth part: reading."""

# ruff: noqa: D102, PLR2004, a test's name says what it shows, its expected values are literals

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import pytest

from retinue.domain.contract import ContractType, status_of
from retinue.domain.execution import DEAD_LETTER, TERMINAL, Execution, State
from retinue.domain.ids import now_us, ulid
from retinue.domain.intent import Append, Audit
from retinue.errors import InvalidInput
from retinue.interfaces import (
    PAGE_BYTES,
    ContractFilter,
    ContractView,
    ExecutionFilter,
    Listing,
    Page,
    Store,
    Watched,
)
from retinue.testing.store_records import audited, refusal
from retinue.testing.store_runs import asked, question
from retinue.testing.store_samples import (
    SECOND,
    cancel,
    execution,
    fence,
    finish,
    lease,
    load,
    queue,
    run,
    text,
    verify_chain,
    want,
)

R = TypeVar("R")
Lists = Callable[[Page], Awaitable[Listing[R]]]
BAD_CURSORS = ["x", "é", "ZZZZ", "bnVsbA", "W10", "WyJcdTAwMDAiXQ", "W251bGxd", "[" * 5000]


async def walk(lists: Lists[R], size: int) -> list[R]:
    """Read a whole list page by page; check the size of the pages and their totals."""
    items: list[R] = []
    page = Page(limit=size)
    while True:
        listing = await lists(page)
        items += listing.items
        if listing.next_cursor is None:
            assert 0 < len(listing.items) <= size or not items
            assert listing.total == len(items)
            return items
        assert len(listing.items) == size
        page = Page(size, listing.next_cursor)


async def populate(store: Store) -> list[Execution]:
    """Fill a store with executions of every state; return them, oldest first."""
    made: list[Execution] = []
    for i in range(24):
        e = execution(
            owner=("ann", "bob")[i % 2],
            session_id=f"s{i % 3}",
            key=f"k{i}",
            agent_id=(None, "a1", "a2")[i % 3] if i != 11 else None,
            capability=("echo", "sum")[i % 2],
        )
        if i % 6 < 4:
            await run(store, e)
            if i % 6 < 2:
                reason = DEAD_LETTER if i % 8 == 0 else None
                state = State.COMPLETED if i % 4 else State.FAILED
                await store.write(finish(e, state, reason=reason))
        else:
            await queue(store, e)
            if i % 6 == 4:
                await store.write(cancel(e))
            elif i == 11:
                await lease(store, want(f"k{i}", 1, "late"))
        made.append(await load(store, e))
    for owner in ("ann", "bob"):
        await store.write(refusal(owner, "s9"))
    return made


def _fits(e: Execution, name: str, wanted: Any) -> bool:
    return e.state in wanted if name == "states" else getattr(e, name) == wanted


class ListRules:
    """Filters, cursors, totals, and whose it is."""

    async def test_executions(self, store: Store) -> None:
        made = (await populate(store))[::-1]
        filters: list[dict[str, Any]] = [
            {},
            {"owner": "ann"},
            {"session_id": "s1"},
            {"agent_id": "a2"},
            {"capability": "sum"},
            {"state": State.RUNNING},
            {"states": (State.QUEUED, State.FAILED)},
            {"reason": DEAD_LETTER},
            {"owner": "bob", "session_id": "s0", "state": State.COMPLETED},
            {"owner": "nobody"},
        ]
        for chosen in filters:
            expected = [e for e in made if all(_fits(e, k, v) for k, v in chosen.items())]
            assert expected or "owner" in chosen
            where = ExecutionFilter(**chosen)
            for size in (1, 5, 100):
                assert await walk(partial(store.executions, where), size) == expected
        assert len({e.state for e in made}) == 5

    async def test_contracts(self, store: Store) -> None:
        made = {e.id: e for e in await populate(store)}
        everything = await walk(lambda page: store.contracts(ContractFilter(), page), 7)
        order = [(v.contract.owner, v.contract.session_id, v.contract.n) for v in everything]
        assert order == sorted(order)
        answers = sum(e.state in TERMINAL for e in made.values())
        assert len(everything) == len(made) + answers + 4

        def to_agent(view: ContractView) -> str | None:
            return view.contract.to_agent or view.agent_id

        checks: list[tuple[dict[str, str], Callable[[ContractView], bool]]] = [
            ({"owner": "bob"}, lambda v: v.contract.owner == "bob"),
            ({"session_id": "s2"}, lambda v: v.contract.session_id == "s2"),
            ({"from_agent": "a1"}, lambda v: v.contract.from_agent == "a1"),
            ({"to_agent": "a2"}, lambda v: to_agent(v) == "a2"),
            ({"to_agent": "late"}, lambda v: to_agent(v) == "late"),
            ({"owner": "ann", "session_id": "s0", "from_agent": "orchestrator"},
             lambda v: (v.contract.owner, v.contract.session_id, v.contract.from_agent)
             == ("ann", "s0", "orchestrator")),
            ({"owner": "nobody"}, lambda _: False),
        ]  # fmt: skip
        for chosen, belongs in checks:
            where = ContractFilter(**chosen)
            expected = [v for v in everything if belongs(v)]
            got = await walk(partial(store.contracts, where), 3)
            assert got == expected, chosen

    async def test_a_request_shows_how_it_was_answered(self, store: Store) -> None:
        made = {e.id: e for e in await populate(store)}
        for view in (await store.contracts(ContractFilter(), Page())).items:
            e = made.get(view.contract.execution_id or "")
            if e is None:
                continue
            assert (view.state, view.agent_id) == (e.state, e.agent_id)
            assert view.finished_at == e.finished_at
            _, answered = await store.bodies(e)
            assert view.answered == answered
            if view.contract.type is ContractType.RESPONSE:
                assert view.contract.status == status_of(e.state)

    async def test_sessions(self, store: Store) -> None:
        await populate(store)
        everything = await walk(lambda page: store.sessions(None, page), 3)
        assert [(s.owner, s.session_id) for s in everything] == [
            (owner, session) for owner in ("ann", "bob") for session in ("s0", "s1", "s2", "s9")
        ]
        assert await walk(lambda page: store.sessions("bob", page), 2) == everything[4:]
        for session in everything:
            assert await store.session(session.owner, session.session_id) == session
        assert await store.session("ann", "none") is None
        assert await store.session("nobody", "s1") is None

    async def test_questions(self, store: Store) -> None:
        opened = []
        for i in range(6):
            e = await run(store, execution(owner=("ann", "bob")[i % 2], key=f"k{i}"))
            _, question_id = await asked(store, e)
            opened.append(await question(store, question_id))
        opened.sort(key=lambda q: q.id)
        assert await walk(lambda page: store.questions(None, page), 4) == opened
        anns = [q for q in opened if q.owner == "ann"]
        assert await walk(lambda page: store.questions("ann", page), 2) == anns
        assert await store.question(anns[0].id, "ann") == anns[0]
        assert await store.question(anns[0].id, "bob") is None
        assert await store.question(ulid(), None) is None

    async def test_audit(self, store: Store) -> None:
        for i in range(5):
            await store.write(Audit(audited(target=str(i)), now_us()))
        rows = await walk(store.audit, 2)
        assert [row.target for row in rows] == list("01234")

    async def test_one_execution_is_its_owners(self, store: Store) -> None:
        e = await run(store)
        assert await store.execution(e.id, "ann") == e
        assert await store.execution(e.id, "bob") is None
        assert await store.execution(ulid(), None) is None

    @pytest.mark.parametrize("cursor", BAD_CURSORS)
    async def test_a_cursor_that_is_none_is_refused(self, store: Store, cursor: str) -> None:
        page = Page(10, cursor)
        lists: list[Awaitable[Any]] = [
            store.executions(ExecutionFilter(), page),
            store.contracts(ContractFilter(), page),
            store.sessions(None, page),
            store.questions(None, page),
            store.audit(page),
        ]
        for reading in lists:
            with pytest.raises(InvalidInput, match="cursor"):
                await reading

    async def test_a_cursor_of_another_list_is_refused(self, store: Store) -> None:
        await populate(store)
        cursor = (await store.executions(ExecutionFilter(), Page(1))).next_cursor
        with pytest.raises(InvalidInput, match="cursor"):
            await store.audit(Page(1, cursor))


class BodyRules:
    """What is large is read in bounded pages, and in parts."""

    async def test_pages_are_bounded_by_bytes(self, store: Store) -> None:
        body = b'"' + b"x" * (PAGE_BYTES // 3) + b'"'
        for i in range(5):
            e = await run(store, execution(key=f"k{i}"))
            await store.write(finish(e, body=body))
        e = await run(store, execution(key="huge"))
        await store.write(finish(e, body=b'"' + b"x" * (2 * PAGE_BYTES) + b'"'))
        everything: list[ContractView] = []
        page, pages = Page(limit=1000), 0
        while True:
            listing = await store.contracts(ContractFilter(), page)
            size = sum(len(v.contract.body or b"") for v in listing.items)
            answers = sum(len(v.answered or b"") for v in listing.items)
            assert len(listing.items) == 1 or size + answers <= 2 * PAGE_BYTES
            assert listing.total == 12
            everything += listing.items
            pages += 1
            if listing.next_cursor is None:
                break
            page = Page(1000, listing.next_cursor)
        assert [v.contract.n for v in everything] == list(range(1, 13))
        assert pages > 4
        rows = await store.chain("ann", "s1", 0, 1000)
        assert 0 < len(rows) < 12
        assert sum(len(row.body or b"") for row in rows) <= PAGE_BYTES
        assert len(await verify_chain(store, "ann", "s1")) == 12

    async def test_events_are_bounded_by_bytes(self, store: Store) -> None:
        e = await run(store)
        sizes = [10, 2000, 500_000, 10, 10]
        await store.write(Append(fence(e), tuple(text("x" * n) for n in sizes), now_us()))

        async def read(after: int, most_bytes: int) -> list[int]:
            events = await store.events(e.id, after=after, most_bytes=most_bytes)
            return [event.seq for event in events]

        assert await read(0, 1000) == [1]
        assert await read(0, 10_000) == [1, 2]
        assert await read(2, 10_000) == [3]
        assert await read(3, 10_000) == [4, 5]
        assert await read(5, 10_000) == []

    async def test_a_part_of_a_body_can_be_had(self, store: Store) -> None:
        e = await run(store)
        assert await store.result(e, 0, 10) is None
        await store.write(Append(fence(e), (text("äx" * 1000),), now_us()))
        body = '"' + "é1" * 500 + '"'
        await store.write(finish(e, body=body.encode()))
        ended = await load(store, e)
        parts = [await store.result(ended, at, 100) for at in range(0, 1600, 100)]
        assert b"".join(part or b"" for part in parts) == body.encode()
        event = (await store.events(e.id))[0]
        parts = [await store.data_of(event, at, 99) for at in range(0, 4000, 99)]
        assert b"".join(part or b"" for part in parts) == event.data


class WatchRules:
    """What the loops of a process look at."""

    async def test_counts_equal_a_recount(self, store: Store) -> None:
        await populate(store)
        for owner in (None, "ann", "bob", "nobody"):
            views = (await store.contracts(ContractFilter(owner=owner), Page(1000))).items
            by_status: dict[str, int] = {}
            for view in views:
                status = status_of(view.state).value
                by_status[status] = by_status.get(status, 0) + 1
            counts = await store.counts(owner)
            assert counts.contracts == len(views)
            assert counts.by_status == by_status
            assert counts.sessions == (await store.sessions(owner, Page())).total

    async def test_watch_tells_where_each_stands(self, store: Store) -> None:
        assert await store.watch([]) == []
        running, queued, ended = await run(store), execution(key="other"), await run(store)
        await queue(store, queued)
        await store.write(Append(fence(running), (text(), text()), now_us()))
        await store.write(finish(ended))
        ids = [running.id, queued.id, ended.id, *(ulid() for _ in range(3000))]
        seen = sorted(await store.watch(ids), key=lambda w: w.id)
        expected = [
            Watched(running.id, State.RUNNING, 2, cancel_requested=False),
            Watched(queued.id, State.QUEUED, 0, cancel_requested=False),
            Watched(ended.id, State.COMPLETED, 1, cancel_requested=False),
        ]
        assert seen == sorted(expected, key=lambda w: w.id)

    async def test_overdue_names_the_queued_past_their_deadline(self, store: Store) -> None:
        now = now_us()
        deadlines = (now + 30, now + 10, now + 20, now + SECOND * 3600, None)
        queued = [await queue(store, execution(deadline_at=at)) for at in deadlines]
        await run(store, execution(key="other", deadline_at=now + 10))
        late = await store.overdue(now + 1000, 10)
        assert [e.id for e in late] == [queued[i].id for i in (1, 2, 0)]
        assert [e.id for e in await store.overdue(now + 1000, 2)] == [queued[i].id for i in (1, 2)]
        assert await store.overdue(now - SECOND, 10) == []

    async def test_backlog_names_the_keys_that_hold_something_ready(self, store: Store) -> None:
        assert await store.backlog() == []
        await queue(store, execution(key="later", delay=3600 * SECOND))
        await queue(store, execution(key="b", delay=3600 * SECOND))
        for key in ("b", "a", "b"):
            await queue(store, execution(key=key))
        await run(store, execution(key="running"))
        assert await store.backlog() == ["a", "b"]

    async def test_a_read_sees_every_write_answered_before_it(self, store: Store) -> None:
        async def caller(i: int) -> None:
            for _ in range(10):
                e = await run(store, execution(key=f"k{i}", session_id=f"s{i}"))
                assert await store.execution(e.id, None) == e
                await store.write(finish(e))
                assert (await load(store, e)).state is State.COMPLETED

        await asyncio.gather(*(caller(i) for i in range(8)))

    async def test_it_answers(self, store: Store) -> None:
        await store.ping()

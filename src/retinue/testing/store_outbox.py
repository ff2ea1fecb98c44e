"""The part of the store suite about the outbox."""

# ruff: noqa: D102, PLR2004, a test's name says what it shows, its expected values are literals

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from retinue.domain.ids import now_us, ulid
from retinue.domain.intent import ClaimLanes, Refuse, SettleLane, Unpark, WakeLanes
from retinue.domain.outbox import Lane, Parked
from retinue.domain.result import Appended, Claimed, Conflict, Ok
from retinue.interfaces import Backlog, Page, Store
from retinue.testing.store_samples import (
    SECOND,
    cancel,
    execution,
    expire,
    finish,
    queue,
    request,
    response,
    run,
    submit,
    until,
)

Reopen: TypeAlias = Callable[[], Awaitable[Store]]
SINK = "trace"


async def claim(
    store: Store, limit: int = 10, *, sink: str = SINK, at: int = 0, idle: bool = False
) -> list[Lane]:
    """Claim lanes for the store's own worker; ``at`` is how much later than now."""
    result = await store.write(ClaimLanes(sink, store.worker, limit, now_us() + at, idle))
    assert isinstance(result, Claimed)
    return result.lanes


async def settle(
    store: Store,
    lane: Lane,
    next_n: int | None = None,
    *,
    error: str | None = None,
    tries: int = 0,
    delay: int = 0,
    parked: tuple[Parked, ...] = (),
) -> object:
    """Give a lane back; ``next_n`` left out says that everything was taken."""
    assert lane.worker is not None
    at = now_us()
    return await store.write(
        SettleLane(
            lane.sink,
            lane.owner,
            lane.session_id,
            lane.worker,
            lane.last_n + 1 if next_n is None else next_n,
            at + delay,
            at,
            tries,
            error,
            parked,
        )
    )


def parked(lane: Lane, n: int, error: str = "no") -> Parked:
    """Return a parked contract of a lane."""
    return Parked(
        sink=lane.sink,
        owner=lane.owner,
        session_id=lane.session_id,
        n=n,
        contract_id=ulid(),
        tries=1,
        error=error,
        at=now_us(),
    )


async def places(store: Store, lane: Lane, limit: int = 100) -> list[int]:
    """Return the places that are still to be delivered."""
    rows = await store.undelivered(
        lane.owner, lane.session_id, lane.first_n, lane.last_n, limit=limit, most_bytes=1 << 20
    )
    return [row.n for row in rows]


class OutboxRules:
    """Every contract is put into the outbox with its commit, and leaves it in order."""

    async def test_without_sinks_nothing_is_put_there(self, store: Store) -> None:
        await store.write(finish(await run(store)))
        assert await store.outbox_backlog(SINK) == Backlog()
        assert not await store.outbox_due(SINK, now_us() + SECOND)
        assert await claim(store) == []

    async def test_every_way_to_a_contract_leads_there(self, store: Store) -> None:
        store.sinks = (SINK,)
        await store.write(finish(await run(store, execution(session_id="a"))))
        await store.write(cancel(await queue(store, execution(session_id="b"))))
        await store.write(expire(await queue(store, execution(session_id="c"))))
        e = execution(session_id="d")
        await store.write(Refuse("ann", "d", request(e), response(e), now_us()))
        assert await store.outbox_due(SINK, now_us() + SECOND)
        assert await store.outbox_backlog(SINK) == Backlog(sessions=4, contracts=8)
        lanes = await claim(store, at=SECOND)
        assert sorted((o.session_id, o.first_n, o.last_n) for o in lanes) == [
            (name, 1, 2) for name in "abcd"
        ]
        assert {o.worker for o in lanes} == {store.worker}
        assert [await places(store, o) for o in lanes] == [[1, 2]] * 4

    async def test_each_sink_has_its_own(self, store: Store) -> None:
        store.sinks = (SINK, "other")
        await run(store)
        (lane,) = await claim(store, at=SECOND)
        await settle(store, lane)
        assert await store.outbox_backlog(SINK) == Backlog()
        assert await store.outbox_backlog("other") == Backlog(sessions=1, contracts=1)
        assert len(await claim(store, sink="other", at=SECOND)) == 1

    async def test_a_lane_grows_while_it_is_delivered(self, store: Store) -> None:
        store.sinks = (SINK,)
        e = await run(store)
        (lane,) = await claim(store, at=SECOND)
        assert (lane.first_n, lane.last_n) == (1, 1)
        await store.write(finish(e))
        assert not await store.outbox_due(SINK, now_us() + SECOND)
        assert await claim(store, at=SECOND) == []
        assert await settle(store, lane) == Ok()
        assert await store.outbox_backlog(SINK) == Backlog(sessions=1, contracts=1)
        (rest,) = await claim(store, at=SECOND)
        assert (rest.first_n, rest.last_n) == (2, 2)
        assert await settle(store, rest) == Ok()
        assert await store.outbox_backlog(SINK) == Backlog()
        await run(store)
        (later,) = await claim(store, at=SECOND)
        assert (later.first_n, later.last_n) == (3, 3)

    async def test_settling_and_growing_share_a_commit(self, store: Store) -> None:
        store.sinks = (SINK,)
        e = await run(store)
        (lane,) = await claim(store, at=SECOND)
        finished, settled = await asyncio.gather(store.write(finish(e)), settle(store, lane))
        assert isinstance(finished, Appended)
        assert settled == Ok()
        (rest,) = await claim(store, at=SECOND)
        assert (rest.first_n, rest.last_n) == (2, 2)

    async def test_what_failed_is_shown_until_it_is_through(self, store: Store) -> None:
        store.sinks = (SINK,)
        for name in ("a", "b"):
            await store.write(finish(await run(store, execution(session_id=name))))
        first, second = await claim(store, at=SECOND)
        await settle(store, first, 1, error="the older", delay=60 * SECOND)
        await settle(store, second, 2, error="the newer", tries=1, delay=60 * SECOND)
        seen = await store.outbox_backlog(SINK)
        assert (seen.sessions, seen.contracts, seen.failing) == (2, 3, 2)
        assert seen.error == "the newer"
        assert seen.failed_at is not None
        assert await claim(store, at=SECOND) == []
        again = await claim(store, at=61 * SECOND)
        assert sorted((o.first_n, o.tries, o.error) for o in again) == [
            (1, 0, "the older"),
            (2, 1, "the newer"),
        ]
        for lane in again:
            await settle(store, lane)
        assert await store.outbox_backlog(SINK) == Backlog()

    async def test_the_longest_due_come_first(self, store: Store) -> None:
        store.sinks = (SINK,)
        for name in ("a", "b", "c"):
            await run(store, execution(session_id=name))
        lanes = {o.session_id: o for o in await claim(store, at=SECOND)}
        for wait, name in enumerate(("c", "a", "b"), 1):
            await settle(store, lanes[name], 1, error="away", delay=wait * SECOND)
        first = await claim(store, 2, at=10 * SECOND)
        assert [o.session_id for o in first] == ["c", "a"]

    async def test_a_sink_that_is_back_wakes_what_waited_for_it(self, store: Store) -> None:
        store.sinks = (SINK,)
        for name in ("away", "refused"):
            await run(store, execution(session_id=name))
        lanes = {o.session_id: o for o in await claim(store, at=SECOND)}
        await settle(store, lanes["away"], 1, error="away", delay=60 * SECOND)
        await settle(store, lanes["refused"], 1, error="no", tries=3, delay=60 * SECOND)
        await store.write(WakeLanes("other", now_us()))
        assert await claim(store, at=SECOND) == []
        await store.write(WakeLanes(SINK, now_us()))
        assert [o.session_id for o in await claim(store, at=SECOND)] == ["away"]

    async def test_only_its_holder_gives_a_lane_back(self, store: Store) -> None:
        store.sinks = (SINK,)
        await run(store)
        (lane,) = await claim(store, at=SECOND)
        lane.worker = "somebody else"
        refused = await settle(store, lane, parked=(parked(lane, 1),))
        assert refused == Conflict("fenced")
        assert await store.outbox_backlog(SINK) == Backlog(sessions=1, contracts=1)

    async def test_a_claim_whose_answer_was_lost_is_free_again(self, store: Store) -> None:
        store.sinks = (SINK,)
        await run(store)
        (lane,) = await claim(store, at=SECOND)
        assert await claim(store, at=SECOND) == []
        (again,) = await claim(store, at=SECOND, idle=True)
        assert again == lane

    async def test_parked_contracts_are_listed(self, store: Store) -> None:
        store.sinks = (SINK,)
        for name in ("a", "b"):
            await store.write(finish(await run(store, execution(session_id=name))))
        lanes = {o.session_id: o for o in await claim(store, at=SECOND)}
        kept = [parked(lanes["a"], 1, "bad"), parked(lanes["a"], 2), parked(lanes["b"], 2)]
        await settle(store, lanes["a"], parked=(kept[0], kept[1]))
        await settle(store, lanes["b"], parked=(kept[2],))
        assert await store.outbox_backlog(SINK) == Backlog(parked=3)
        listing = await store.parked(None, None, Page(limit=2))
        assert (listing.items, listing.total) == (kept[:2], 3)
        rest = await store.parked(None, None, Page(limit=2, cursor=listing.next_cursor))
        assert (rest.items, rest.total, rest.next_cursor) == (kept[2:], 3, None)
        assert (await store.parked(SINK, "ann", Page())).total == 3
        assert (await store.parked(SINK, "bob", Page())).items == []
        assert (await store.parked("other", None, Page())).items == []
        await store.write(Unpark(SINK, "ann", "a", 1))
        assert (await store.parked(SINK, None, Page())).items == kept[1:]

    async def test_undelivered_rows_come_in_pages_that_fit(self, store: Store) -> None:
        store.sinks = (SINK,)
        for size in (10, 1000, 10, 10):
            body = b'{"parameters":"' + b"x" * size + b'"}'
            assert isinstance(await store.write(submit(execution(), body=body)), Ok)

        async def page(first: int, limit: int, most: int) -> list[int]:
            found = await store.undelivered("ann", "s1", first, 4, limit=limit, most_bytes=most)
            return [row.n for row in found]

        assert await page(1, 100, 1 << 20) == [1, 2, 3, 4]
        assert await page(1, 3, 1 << 20) == [1, 2, 3]
        assert await page(1, 100, 100) == [1]
        assert await page(2, 100, 100) == [2]
        assert await page(3, 100, 100) == [3, 4]
        assert await page(5, 100, 100) == []

    async def test_a_crash_leaves_the_outbox_to_the_next(
        self, store: Store, reopen: Reopen
    ) -> None:
        store.sinks = (SINK,)
        await store.write(finish(await run(store, execution(session_id="held"))))
        assert len(await claim(store, at=SECOND)) == 1
        await run(store, execution(session_id="free"))
        again = await reopen()
        await again.orphans(10)  # which finds out who is dead
        assert await until(lambda: again.outbox_due(SINK, now_us()))
        lanes = await claim(again, at=SECOND)
        assert sorted((o.session_id, o.worker) for o in lanes) == [
            ("free", again.worker),
            ("held", again.worker),
        ]
        assert await again.outbox_backlog(SINK) == Backlog(sessions=2, contracts=3)
        (taken,) = [o for o in lanes if o.session_id == "held"]
        assert (taken.first_n, taken.last_n) == (1, 2)
        assert await again.write(
            SettleLane(SINK, "ann", "held", store.worker, 3, now_us(), now_us())
        ) == Conflict("fenced")

    async def test_claims_do_not_meet(self, store: Store) -> None:
        store.sinks = (SINK,)
        for number in range(20):
            await run(store, execution(session_id=f"s{number}"))
        taken = await asyncio.gather(*(claim(store, 7, at=SECOND) for _ in range(4)))
        names = [o.session_id for lanes in taken for o in lanes]
        assert len(names) == len(set(names)) == 20

"""What a batch does to the outbox: lanes grow with its contracts, are claimed, are given back.

All lanes that a batch changes are locked at once, in sorted order, after the session heads that
their growth needs; claiming takes only what nobody has locked. So two writers cannot wait for each
other here either.
"""

from __future__ import annotations

from collections.abc import Sequence

from retinue.domain.contract import Contract
from retinue.domain.intent import ClaimLanes, Intent, SettleLane, Unpark, WakeLanes
from retinue.domain.outbox import Lane
from retinue.domain.result import Claimed, Conflict, Ok, Result
from retinue.storage.statements import Change, Insert, Query, Steps
from retinue.storage.tables import record_of, row_of

OUTBOX: frozenset[type] = frozenset({ClaimLanes, SettleLane, WakeLanes, Unpark})
"""The intents that are decided here."""

_Key = tuple[str, str, str]


def outbox(
    contracts: Sequence[Contract],
    sinks: Sequence[str],
    asked: Sequence[tuple[int, Intent]],
    results: list[Result],
) -> Steps[None]:
    """Put the batch's contracts into the outbox, then do what was asked of it."""
    settles: list[tuple[int, SettleLane]] = []
    others: list[tuple[int, Intent]] = []
    for i, intent in asked:
        if isinstance(intent, SettleLane):
            settles.append((i, intent))
        else:
            others.append((i, intent))
    named = {(x.sink, x.owner, x.session_id) for _, x in settles}
    grown = {(sink, row.owner, row.session_id) for row in contracts for sink in sinks}
    if named or grown:
        rows = yield Query("lock_lane", sorted(named | grown))
        lanes = {(o.sink, o.owner, o.session_id): o for o in (record_of(Lane, r) for r in rows)}
        known = set(lanes)
        for i, settle in settles:
            results[i] = yield from _settle(lanes, settle)
        _grow(lanes, contracts, sinks)
        yield from _write(lanes, known)
    for i, intent in others:
        results[i] = yield from _rest(intent)


def _settle(lanes: dict[_Key, Lane], intent: SettleLane) -> Steps[Result]:
    lane = lanes.get((intent.sink, intent.owner, intent.session_id))
    if lane is None or lane.worker != intent.worker:
        return Conflict("fenced")
    lane.worker = None
    lane.first_n = intent.next_n
    lane.due_at = intent.due_at
    lane.tries = intent.tries
    lane.error = intent.error
    lane.failed_at = intent.at if intent.error is not None else None
    if intent.parked:
        yield Insert("parked", [row_of(parked) for parked in intent.parked])
    return Ok()


def _grow(lanes: dict[_Key, Lane], contracts: Sequence[Contract], sinks: Sequence[str]) -> None:
    """Let lanes reach to the contracts of this batch, which come in the order of their chains."""
    for row in contracts:
        for sink in sinks:
            key = (sink, row.owner, row.session_id)
            lane = lanes.get(key)
            if lane is not None:
                lane.last_n = row.n
                continue
            lanes[key] = Lane(
                sink=sink,
                owner=row.owner,
                session_id=row.session_id,
                first_n=row.n,
                last_n=row.n,
                due_at=row.at,
                tries=0,
                worker=None,
                error=None,
                failed_at=None,
            )


def _write(lanes: dict[_Key, Lane], known: set[_Key]) -> Steps[None]:
    new = [row_of(lanes[key]) for key in sorted(lanes.keys() - known)]
    if new:
        yield Insert("outbox", new)
    done = [key for key in sorted(known) if lanes[key].first_n > lanes[key].last_n]
    if done:
        yield Change("drop_lane", done)
    kept = [_changes(lanes[key]) for key in sorted(known.difference(done))]
    if kept:
        yield Change("update_lane", kept)


def _changes(o: Lane) -> tuple[object, ...]:
    """Return the parameters of ``update_lane``."""
    changed = (o.first_n, o.last_n, o.due_at, o.tries, o.worker, o.error, o.failed_at)
    return (*changed, o.sink, o.owner, o.session_id)


def _rest(intent: Intent) -> Steps[Result]:
    if isinstance(intent, ClaimLanes):
        return (yield from _claim(intent))
    if isinstance(intent, WakeLanes):
        yield Change("wake_lanes", [(intent.sink, intent.at)])
    elif isinstance(intent, Unpark):
        yield Change("drop_parked", [(intent.sink, intent.owner, intent.session_id, intent.n)])
    return Ok()


def _claim(intent: ClaimLanes) -> Steps[Result]:
    yield Change("free_lanes", [(intent.sink, intent.worker if intent.idle else "")])
    if not intent.limit:
        return Claimed([])
    rows = yield Query("due_lanes", [(intent.sink, intent.limit, intent.at)])
    lanes = [record_of(Lane, row) for row in rows]
    for lane in lanes:
        lane.worker = intent.worker
    if lanes:
        ordered = sorted(lanes, key=lambda o: (o.sink, o.owner, o.session_id))
        yield Change("update_lane", [_changes(lane) for lane in ordered])
    return Claimed(lanes)

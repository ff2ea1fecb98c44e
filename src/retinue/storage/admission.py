"""Submitting and leasing: how an execution comes into the queue, and out of it to a worker.

The queue of a key is the index ``execution_queue``: what may be leased, by rank. What may not (it
is not due, or its session is busy) is not in it, so a lease reads exactly the rows it takes,
however many others wait.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from retinue.domain.event import EventData, EventType
from retinue.domain.execution import Execution, Hold, State, advance
from retinue.domain.ids import now_us
from retinue.domain.intent import Lease, Submit
from retinue.domain.policy import BusyPolicy
from retinue.domain.result import Conflict, Leased, Rejected, Result, Submitted, Work
from retinue.storage.decisions import Batch, Placed
from retinue.storage.statements import Change, Query, Steps
from retinue.storage.tables import record_of
from retinue.storage.turns import Key, Turns


def submit(
    batch: Batch,
    submits: list[tuple[int, Submit]],
    fresh: list[tuple[int, Submit]],
    results: list[Result],
    turns: Turns,
    now: int,
) -> Steps[None]:
    """Accept what is ``fresh`` of the submits: the queue's bound, busy sessions, the fast path."""
    ready, waiting = yield from _depths(fresh, now)
    refused: dict[str, Rejected] = {}
    dropped: list[tuple[str, str]] = []
    for i, intent in fresh:
        execution = intent.execution
        key = execution.queue_key
        hold = Hold.TIME if _later(execution, now) else turns.hold_for(execution)
        leased = intent.worker is not None and hold is Hold.NONE and key not in ready
        # One that brings a free slot does not make the queue longer: the first of it gets that.
        full = intent.worker is None or hold is not Hold.NONE
        if hold is None or (not leased and full and waiting[key] >= intent.bound):
            results[i] = refused[execution.id] = (
                Rejected("session_busy", {"session_id": execution.session_id})
                if hold is None
                else Rejected("queue_full", {"bound": intent.bound})
            )
            if intent.idempotency is not None:
                dropped.append((execution.owner, intent.idempotency.key))
            continue
        if not leased:
            waiting[key] += 1
            if hold is Hold.NONE:
                ready.add(key)
        turns.entered(execution, hold)
        batch.new.append(execution)
        batch.placed.append(_accept(intent, hold, leased=leased))
        results[i] = Submitted(execution.id, leased=leased)
    if dropped:
        yield Change("drop_idempotency", sorted(dropped))
        _refuse_joined(submits, results, refused)


def _depths(fresh: list[tuple[int, Submit]], now: int) -> Steps[tuple[set[str], dict[str, int]]]:
    """Return the keys with something ready, and how much waits where one of these may have to.

    What finds a free slot is not in need of the count, which is long where much waits.
    """
    keys = sorted({intent.execution.queue_key for _, intent in fresh})
    rows = yield Query("ready", [(key,) for key in keys])
    ready = {row[0] for row in rows}
    bounds: dict[str, int] = {}
    for _, intent in fresh:
        execution = intent.execution
        key = execution.queue_key
        if (
            intent.worker is None
            or key in ready
            or execution.on_busy is not BusyPolicy.PARALLEL
            or _later(execution, now)
        ):
            bounds[key] = max(bounds.get(key, 0), intent.bound)
    if not bounds:
        return ready, {}
    rows = yield Query("queue_depth", [(k, n + 1) for k, n in sorted(bounds.items())])
    return ready, dict(rows)


def asking(fresh: list[tuple[int, Submit]], now: int) -> set[Key]:
    """Return the sessions that must be looked at before these are decided."""
    return {
        (e.owner, e.session_id)
        for e in (intent.execution for _, intent in fresh)
        if e.on_busy is not BusyPolicy.PARALLEL and not _later(e, now)
    }


def _later(execution: Execution, now: int) -> bool:
    return execution.run_at > max(now, execution.created_at)


def _refuse_joined(
    submits: list[tuple[int, Submit]], results: list[Result], refused: dict[str, Rejected]
) -> None:
    """Refuse what met an idempotency key of this very batch whose own submit found no room."""
    for i, _ in submits:
        result = results[i]
        if isinstance(result, Submitted) and result.joined:
            holder = result.execution_id
        elif isinstance(result, Conflict):
            holder = result.details["execution_id"]
        else:
            continue
        if holder in refused:
            results[i] = refused[holder]


def _accept(intent: Submit, hold: Hold, *, leased: bool) -> Placed:
    """Make the execution a running or a waiting one; return its REQUEST.

    Sets every field that depends on what was decided: an earlier run of this batch, rolled back
    since, may have decided otherwise.
    """
    execution = intent.execution
    request = intent.request
    waiting = State.SCHEDULED if hold is Hold.TIME else State.QUEUED
    execution.state = State.RUNNING if leased else waiting
    execution.hold = hold
    execution.worker = intent.worker if leased else None
    execution.attempt = 1 if leased else 0
    execution.started_at = execution.created_at if leased else None
    if intent.bind:
        execution.agent_id = request.to_agent if leased else None
        if not leased:
            request = msgspec.structs.replace(request, to_agent=None)
    return Placed(execution.owner, execution.session_id, request, execution.created_at, execution)


def claim(
    submits: list[tuple[int, Submit]], results: list[Result]
) -> Steps[list[tuple[int, Submit]]]:
    """Settle idempotency keys; return the submits that are new."""
    keyed = [(i, s) for i, s in submits if s.idempotency is not None]
    if not keyed:
        return submits
    first: dict[tuple[str, str], Submit] = {}
    for _, submit in keyed:
        assert submit.idempotency is not None
        first.setdefault((submit.execution.owner, submit.idempotency.key), submit)
    now = now_us()
    claims = []
    for (owner, key), submit in sorted(first.items()):
        assert submit.idempotency is not None
        idem = submit.idempotency
        claims.append((owner, key, idem.fingerprint, submit.execution.id, idem.expires_at, now))
    yield Change("claim_idempotency", claims)
    rows = yield Query("read_idempotency", [(owner, key) for owner, key, *_ in claims])
    holders = {(owner, key): (bytes(mark), held) for owner, key, mark, held in rows}
    fresh = [(i, s) for i, s in submits if s.idempotency is None]
    for i, submit in keyed:
        assert submit.idempotency is not None
        mark, holder = holders[submit.execution.owner, submit.idempotency.key]
        if holder == submit.execution.id:
            fresh.append((i, submit))
        elif mark == submit.idempotency.fingerprint:
            results[i] = Submitted(holder, joined=True)
        else:
            results[i] = Conflict("idempotency", {"execution_id": holder})
    fresh.sort(key=lambda pair: pair[0])
    return fresh


def lease(batch: Batch, intent: Lease) -> Steps[Result]:
    """Hand queued executions to a worker.

    What this batch has changed already is passed over: the rows do not tell it yet. So that it
    does not count against what is wanted, the query asks for that much more.
    """
    decided: Counter[str] = Counter()
    for execution in batch.changed.values():
        decided[execution.queue_key] += 1
    wants = {want.key: want for want in intent.wants}
    asked = [(key, wants[key].count + decided[key]) for key in sorted(wants)]
    if not asked or intent.only == ():
        return Leased([])
    if intent.only is None:
        rows = yield Query("lease", asked)
    else:
        rows = yield Query("lease_only", [(i,) for i in sorted(intent.only)])
    found = [(record_of(Execution, row), body) for *row, body in rows]
    if intent.only is not None:  # they came one by one
        found.sort(key=lambda pair: (pair[0].rank, pair[0].id))
    taken: Counter[str] = Counter()
    work: list[Work] = []
    for execution, body in found:
        key = execution.queue_key
        if key not in wants or execution.id in batch.changed or taken[key] == wants[key].count:
            continue
        taken[key] += 1
        execution.state = advance(execution.state, State.RUNNING)
        execution.attempt += 1
        execution.worker = intent.worker
        execution.agent_id = wants[key].agent_id
        if execution.started_at is None:
            execution.started_at = intent.at
        if execution.attempt > 1:
            data = {"attempt": execution.attempt, "is_reset": True}
            started = EventData(EventType.ATTEMPT_STARTED, data)
            batch.add_events(execution, [started], intent.at)
        batch.changed[execution.id] = execution
        work.append(Work(execution, body))
    return Leased(work)

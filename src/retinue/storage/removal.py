"""What a batch removes and erases: ended executions' events, chains' beginnings, bodies.

Runs last in a batch, with the session heads locked: whatever else the batch did is written. Marks
and checkpoints are written after the audit rows they name. What is marked is swept later, a few
events at a time, so that no batch is held up; a crash in between leaves marks that say what is
still to be done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retinue.domain.audit import AuditDraft
from retinue.domain.event import hash_data
from retinue.domain.execution import TERMINAL, State
from retinue.domain.intent import CutChain, Erase, Intent, Retire, Sweep
from retinue.domain.question import Question
from retinue.domain.result import Erased, Result, Retired, Swept
from retinue.domain.retention import (
    CUT,
    GONE_ERASED,
    REMOVED,
    RETIRE,
    Checkpoint,
    Link,
    counted,
    cut_at,
    told,
)
from retinue.domain.strictjson import dumps
from retinue.storage.decisions import Batch
from retinue.storage.statements import Change, Insert, Query, Steps
from retinue.storage.tables import record_of, row_of

_SWEPT_AT_ONCE = 50
_ERASED_AT_ONCE = 8
_ERASED_EVENTS = 32

Removals = Sequence[tuple[int, Intent]]


def sessions_of(removals: Removals) -> set[tuple[str, str]]:
    """Return the sessions whose heads are to be locked for these intents."""
    named = [x for _, x in removals if isinstance(x, CutChain | Erase)]
    return {(x.owner, x.session_id) for x in named}


def remove(batch: Batch, removals: Removals, results: list[Result]) -> Steps[None]:
    """Carry the intents out, in their order."""
    if any(not isinstance(intent, Sweep) for _, intent in removals):
        # What another process has just marked is to be seen: the marks go with the audit's lock.
        yield Query("lock_audit_head", [(1,)])
    seen: set[str] = set()
    for i, intent in removals:
        match intent:
            case Retire():
                results[i] = yield from _retire(batch, intent, seen)
            case CutChain():
                results[i] = yield from _cut(batch, intent)
            case Erase():
                results[i] = yield from _erase(batch, intent)
            case Sweep():
                results[i] = yield from _sweep(intent)


def _marks(kind: str, at: int, ids: Sequence[str], bare: Sequence[str] = ()) -> Any:
    """Return what writes marks once the number of their audit row is known.

    Those of ``ids``, executions, wait to be swept; of ``bare`` there is nothing to sweep.
    """
    waiting = [(i, 1) for i in ids] + [(i, 0) for i in bare]
    return lambda n: Change("put_mark", [(i, kind, n, at, pending) for i, pending in waiting])


def _retire(batch: Batch, intent: Retire, seen: set[str]) -> Steps[Result]:
    wanted = sorted(set(intent.execution_ids) - seen)
    if not wanted:
        return Retired(0)
    rows = yield Query("standing", [(i,) for i in wanted])
    old = [
        execution_id
        for execution_id, state, finished_at, removed in rows
        if not removed and State(state) in TERMINAL and intent.bounds.old(finished_at, execution_id)
    ]
    if not old:
        return Retired(0)
    seen.update(old)
    draft = AuditDraft(
        owner="",
        actor="retinue",
        action=RETIRE,
        target=f"{len(old)} executions",
        detail=dumps({"executions": old}),
    )
    batch.witness(draft, intent.at, _marks(REMOVED, intent.at, old))
    return Retired(len(old))


def _cut(batch: Batch, intent: CutChain) -> Steps[Result]:
    key = (intent.owner, intent.session_id)
    rows = yield Query("checkpoint", [key])
    before = record_of(Checkpoint, rows[0]) if rows else None
    start = before.n if before is not None else 0
    rows = yield Query("links", [(*key, start, intent.limit)])
    links = [Link(*row) for row in rows]
    found = yield Query("needed", [key])
    needed = min((row[0] for row in found if row[0] is not None), default=None)
    count = cut_at(links, intent.bounds, needed)
    if not count:
        # A longer look may find where the exchanges are all closed.
        return Retired(0, more=len(links) == intent.limit)
    gone = links[:count]
    counts = counted(gone)
    if before is not None:
        counts = {status: n + getattr(before, status) for status, n in counts.items()}
    point = Checkpoint(
        owner=intent.owner,
        session_id=intent.session_id,
        n=gone[-1].n,
        hash=bytes(gone[-1].hash),
        began=before.began if before is not None else gone[0].at,
        latest=max(*(link.at for link in gone), before.latest if before is not None else 0),
        audit_n=0,
        **counts,
    )
    yield Change("drop_contracts", [(*key, point.n)])
    batch.witness(
        AuditDraft(
            owner=intent.owner,
            actor="retinue",
            action=CUT,
            target=intent.session_id,
            detail=dumps({"from": start + 1, **told(point)}),
        ),
        intent.at,
        lambda n: Change("put_checkpoint", [(*row_of(point)[:-1], n)]),
    )
    return Retired(count, more=True)


# -- erasure -----------------------------------------------------------------------------------


def _erase(batch: Batch, intent: Erase) -> Steps[Result]:
    key = (intent.owner, intent.session_id)
    rows = yield Query("sides", [(*key, n) for n in sorted(set(intent.places))])
    places: set[int] = set()
    executions: set[str] = set()
    bare: set[str] = set()
    waiting = 0
    for n, contract_id, execution_id, state, request_n, response_n, erased in rows:
        if erased:
            continue
        if execution_id is None:
            places.add(n)
            bare.add(contract_id)
        elif state is None or State(state) not in TERMINAL:
            waiting += 1
        else:
            places.update((request_n, response_n))
            executions.add(execution_id)
    if not places:
        return Erased(0, waiting)
    yield Change("erase_body", [(*key, n) for n in sorted(places)])
    if executions:
        yield from _erase_questions(sorted(executions))
    batch.witness(
        AuditDraft(
            owner=intent.by_owner,
            actor=intent.actor,
            action=intent.action,
            target=intent.target,
            detail=dumps(
                {
                    "owner": intent.owner,
                    "session_id": intent.session_id,
                    "executions": sorted(executions),
                    "contracts": sorted(bare),
                }
            ),
        ),
        intent.at,
        _marks(GONE_ERASED, intent.at, sorted(executions), sorted(bare)),
    )
    return Erased(len(places), waiting)


def _erase_questions(executions: list[str]) -> Steps[None]:
    rows = yield Query("questions_of", [(i,) for i in executions])
    changes = []
    for row in rows:
        question = record_of(Question, row)
        hashed = question.answer_hash
        if question.answer is not None:
            hashed = hash_data(bytes(question.answer))
        changes.append(("", None, None, hashed, question.id))
    if changes:
        yield Change("erase_question", changes)


# -- sweeping ----------------------------------------------------------------------------------


def _sweep(intent: Sweep) -> Steps[Result]:
    removed = yield from _sweep_removed(intent.limit)
    erased = yield from _sweep_erased(intent.limit)
    expired = yield Query("drop_expired", [(intent.at, intent.limit)])
    more = removed.more or erased.more or len(expired) == intent.limit
    return Swept(removed.count + erased.count, more)


def _sweep_removed(limit: int) -> Steps[Swept]:
    rows = yield Query("pending", [(REMOVED, min(_SWEPT_AT_ONCE, limit))])
    if not rows:
        return Swept(0, False)
    each = max(limit // len(rows), 1)
    found = yield Query("first_events", [(row[0], each) for row in rows])
    some = [(execution_id, last) for execution_id, count, last in found if count]
    if some:
        yield Change("drop_events", some)
    done = [execution_id for execution_id, count, _ in found if count < each]
    if done:
        yield Change("drop_questions", [(i,) for i in done])
        yield Change("drop_erased_events", [(i,) for i in done])
        yield Change("swept", [(i, REMOVED) for i in done])
    return Swept(sum(count for _, count, _ in found), True)


def _sweep_erased(limit: int) -> Steps[Swept]:
    rows = yield Query("pending", [(GONE_ERASED, _ERASED_AT_ONCE)])
    if not rows:
        return Swept(0, False)
    each = max(min(limit, _ERASED_EVENTS) // len(rows), 1)
    found = yield Query("unerased", [(row[0], each) for row in rows])
    counts = {row[0]: 0 for row in rows}
    hashes: list[list[Any]] = []
    for execution_id, seq, data in found:
        counts[execution_id] += 1
        hashes.append([execution_id, seq, hash_data(bytes(data))])
    if hashes:
        yield Insert("erased_event", hashes)
        yield Change("erase_event", [(row[0], row[1]) for row in hashes])
    if done := [(i, GONE_ERASED) for i, count in counts.items() if count < each]:
        yield Change("swept", done)
    return Swept(len(hashes), True)

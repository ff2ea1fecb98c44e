"""What a batch of intents does to the rows: the one place where the ledger's rules are applied.

``run`` is a generator without I/O: it yields statements, is sent their answers, and returns one
result per intent, in order. Both stores drive it inside one transaction, so SQLite and PostgreSQL
cannot differ in what they decide.

Order within a batch: executions, then questions, then idempotency keys, then agents, then
instances, then session heads, then lanes of the outbox, then the audit head, each locked in sorted
order; so two writers cannot wait for each other. (What is locked besides, a lease's rows or whose
turn it is, is passed over when somebody else has it.) Heads are locked last, when the contracts get
their places, unless a decision depends on who else is in a session (``turns``): then all at once,
before it. What is removed or erased comes after all other rows (``removal``), under the heads'
locks. A program may be run again after its transaction was rolled back: it leaves nothing behind in
its intents that a second run would mistake for a decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retinue.domain.audit import AuditRow, audit_hash
from retinue.domain.contract import GENESIS, Contract, ContractStatus, Head, append
from retinue.domain.execution import Execution
from retinue.domain.ids import now_us
from retinue.domain.intent import (
    AdoptInstance,
    Answer,
    Append,
    Ask,
    Cancel,
    CloseQuestion,
    CutChain,
    Erase,
    Expire,
    Finish,
    Intent,
    Lease,
    Prioritize,
    Promote,
    PutAgent,
    Release,
    RemoveAgent,
    Requeue,
    Retire,
    RevokeKey,
    Submit,
    Sweep,
)
from retinue.domain.question import Question
from retinue.domain.result import Ok, Rejected, Result
from retinue.domain.seal import seal, seal_request
from retinue.domain.session import Session
from retinue.storage.admission import asking, claim, lease, submit
from retinue.storage.agents import put_or_remove
from retinue.storage.decisions import DECIDE, Batch, Placed
from retinue.storage.instances import INSTANCES, instances
from retinue.storage.outbox import OUTBOX, outbox
from retinue.storage.removal import remove, sessions_of
from retinue.storage.statements import (
    Change,
    Executions,
    Heads,
    Insert,
    Program,
    Query,
    Saved,
    Steps,
)
from retinue.storage.tables import changes_of, record_of, row_of
from retinue.storage.turns import Turns, promote, waking


def run(intents: Sequence[Intent], sinks: Sequence[str] = ()) -> Program:
    """Decide and write one batch. See the module's docstring for the protocol.

    Each contract is also put into the outbox, once for every sink.
    """
    batch = Batch()
    results: list[Result] = [Ok()] * len(intents)
    locked, questions = yield from _lock(intents)
    # Those that need statements of their own, by their kind.
    later: Later = {}
    for i, intent in enumerate(intents):
        kind = type(intent)
        if kind in DECIDE:
            results[i] = DECIDE[kind](batch, intent, locked, questions)
        else:
            later.setdefault(kind, []).append((i, intent))
    if later:
        yield from _decide_later(batch, later, locked, results)
    removals = _of(later, _REMOVALS)
    contracts = yield from _write_contracts(batch, sessions_of(removals))
    lanes = _of(later, OUTBOX)
    if lanes or (sinks and contracts):
        yield from outbox(contracts, sinks, lanes, results)
    yield from _write(batch, removals, results)
    return results


Later = dict[type[Intent], list[tuple[int, Any]]]
_REMOVALS = frozenset({Retire, CutChain, Erase, Sweep})
_AGENTS = frozenset({PutAgent, RemoveAgent})


def _of(later: Later, kinds: frozenset[type]) -> list[tuple[int, Any]]:
    """Return the intents of these kinds, in order."""
    if not later:
        return []
    return sorted(
        (item for kind in kinds for item in later.get(kind, ())), key=lambda item: item[0]
    )


def _decide_later(
    batch: Batch, later: Later, locked: dict[str, Execution], results: list[Result]
) -> Steps[None]:
    submits: list[tuple[int, Submit]] = later.get(Submit, [])
    fresh = (yield from claim(submits, results)) if submits else []
    agents = _of(later, _AGENTS)
    if agents:  # before any head is locked
        yield from put_or_remove(batch, agents, results)
    supervised = _of(later, INSTANCES)
    if supervised:
        yield from instances(batch, supervised, locked, results)
    yield from _let_in(batch, later, fresh, locked, results)
    for i, wanted in later.get(Lease, ()):
        results[i] = yield from lease(batch, wanted)
    for i, revoked in later.get(RevokeKey, ()):
        results[i] = yield from _revoke_key(batch, revoked)


def _let_in(
    batch: Batch,
    later: Later,
    fresh: list[tuple[int, Submit]],
    locked: dict[str, Execution],
    results: list[Result],
) -> Steps[None]:
    """Decide what lets executions into the queue: those that wait the longest come first."""
    promotes: list[tuple[int, Promote]] = later.get(Promote, [])
    releases: list[tuple[int, Release]] = later.get(Release, [])
    turns = Turns()
    now = now_us()
    asked = asking(fresh, now) | waking(locked, promotes)
    asked.update((release.owner, release.session_id) for _, release in releases)
    if asked:
        others = {(s.execution.owner, s.execution.session_id) for _, s in fresh}
        others |= sessions_of(_of(later, _REMOVALS))
        yield from turns.look(batch, asked, others, now)
    for i, free in releases:
        results[i] = yield from turns.release(batch, free)
    for i, due in promotes:
        results[i] = promote(batch, due, locked, turns)
    if fresh:
        yield from submit(batch, later[Submit], fresh, results, turns, now)


def _revoke_key(batch: Batch, intent: RevokeKey) -> Steps[Result]:
    revoked = yield Query("revoke_key", [(intent.at, intent.key_id)])
    if not revoked:
        return Rejected("not_found")
    batch.audits.append((intent.audit, intent.at))
    return Ok()


# -- locking -----------------------------------------------------------------------------------


def _lock(intents: Sequence[Intent]) -> Steps[tuple[dict[str, Execution], dict[str, Question]]]:
    """Lock every execution and every question that the intents name."""
    ids: set[str] = set()
    asked: list[str] = []
    for intent in intents:
        kind = type(intent)
        if kind is Append or kind is Finish or kind is Requeue or kind is Ask:
            ids.add(intent.fence.execution_id)  # type: ignore[union-attr]
        elif kind is Cancel or kind is Expire or kind is Promote or kind is Prioritize:
            ids.add(intent.execution_id)  # type: ignore[union-attr]
        elif kind is AdoptInstance:
            if (fence := intent.fence) is not None:  # type: ignore[union-attr]
                ids.add(fence.execution_id)
        elif kind is Answer or kind is CloseQuestion:
            asked.append(intent.question_id)  # type: ignore[union-attr]
    if asked:
        # Unlocked: whose question it is never changes, and executions are locked first.
        rows = yield Query("find_question", [(i,) for i in sorted(set(asked))])
        ids.update(row[0] for row in rows)
    locked: dict[str, Execution] = {}
    if ids:
        locked = yield Executions(sorted(ids))
    questions: dict[str, Question] = {}
    if asked:
        rows = yield Query("lock_question", [(i,) for i in sorted(set(asked))])
        questions = {question.id: question for question in (record_of(Question, r) for r in rows)}
    return locked, questions


# -- writing -----------------------------------------------------------------------------------

_COUNTED = {
    ContractStatus.COMPLETED: "completed",
    ContractStatus.FAILED: "failed",
    ContractStatus.CANCELLED: "cancelled",
}


def _place(heads: dict[tuple[str, str], Session], placed: list[Placed]) -> list[Contract]:
    """Give every waiting contract its place, and count it on its session."""
    contracts: list[Contract] = []
    ends: dict[tuple[str, str], Head] = {}
    for item in placed:
        key = (item.owner, item.session_id)
        session = heads[key]
        end = ends.get(key)
        if end is None:
            end = ends[key] = Head(session.n, bytes(session.head))
        digest = None
        draft = item.draft
        execution = item.execution
        if session.n == 0:
            session.created_at = item.at
        if draft.status is not None:
            name = _COUNTED[draft.status]
            setattr(session, name, getattr(session, name) + 1)
            digest = seal(execution) if execution is not None else None
        elif execution is not None:
            digest = seal_request(execution)
        row = append(
            end, draft, owner=item.owner, session_id=item.session_id, at=item.at, digest=digest
        )
        if execution is not None:
            if draft.status is None:
                execution.request_n = row.n
            else:
                execution.response_n = row.n
        session.n = end.n
        session.head = end.hash
        session.updated_at = max(session.updated_at, item.at)
        contracts.append(row)
    return contracts


def _lock_heads(
    grown: set[tuple[str, str]], named: set[tuple[str, str]], at: int
) -> Steps[dict[tuple[str, str], Session]]:
    locked = sorted(grown)
    if others := sorted(named - grown):
        # What is not there is not made; a session's row is never deleted.
        rows = yield Query("known_head", others)
        locked = sorted([*grown, *((owner, session_id) for owner, session_id in rows)])
    if not locked:
        return {}
    heads: dict[tuple[str, str], Session] = yield Heads(locked, at)
    return heads


def _write_contracts(batch: Batch, named: set[tuple[str, str]]) -> Steps[list[Contract]]:
    """Write what waits for a place; lock the heads of the sessions ``named`` as well."""
    grown = {(p.owner, p.session_id) for p in batch.placed}
    heads = batch.early
    if heads is None:
        heads = yield from _lock_heads(grown, named, batch.placed[0].at if batch.placed else 0)
    if not grown:
        return []
    batch.heads = {key: heads[key] for key in sorted(grown)}
    contracts = _place(batch.heads, batch.placed)
    yield Insert("contract", [row_of(row) for row in contracts])
    yield Change(
        "update_session",
        [
            (
                *(s.n, s.head, s.completed, s.failed, s.cancelled),
                *(s.created_at, s.updated_at),
                *key,
            )
            for key, s in batch.heads.items()
        ],
    )
    return contracts


def _write(batch: Batch, removals: list[tuple[int, Intent]], results: list[Result]) -> Steps[None]:
    # Heads made for a session whose only task was refused.
    empty = sorted(key for key, s in (batch.early or {}).items() if not s.n)
    if empty:
        yield Change("drop_head", empty)
    if batch.new:
        yield Insert("execution", [row_of(execution) for execution in batch.new])
    if batch.changed:
        changed = sorted(batch.changed.values(), key=lambda e: e.id)
        yield Change("update_execution", [changes_of(execution) for execution in changed])
    if batch.events:
        yield Insert("event", batch.events)
    if batch.tally:
        yield Change("add_tally", [(a, *batch.tally[a]) for a in sorted(batch.tally)])
    yield from _write_questions(batch)
    if removals:
        yield from remove(batch, removals, results)
    yield from _write_audit(batch)
    yield Saved([*batch.new, *batch.changed.values()], list(batch.heads.values()))


def _write_questions(batch: Batch) -> Steps[None]:
    if batch.questions_lost:
        yield Change("lose_questions", [(i,) for i in sorted(batch.questions_lost)])
    if batch.questions_new:
        yield Insert("question", [row_of(question) for question in batch.questions_new])
    if batch.questions_changed:
        yield Change(
            "update_question",
            [
                (q.state.value, q.answer, q.answered_by, q.closed_seq, q.id)
                for q in batch.questions_changed
            ],
        )


def _write_audit(batch: Batch) -> Steps[None]:
    if batch.keys:
        yield Insert("api_key", batch.keys)
    if batch.audits:
        ((n, digest),) = yield Query("lock_audit_head", [(1,)])
        rows: list[list[Any]] = []
        numbered: list[int] = []
        for draft, at in batch.audits:
            n += 1
            numbered.append(n)
            row = AuditRow(
                n=n,
                at=at,
                owner=draft.owner,
                actor=draft.actor,
                action=draft.action,
                target=draft.target,
                outcome=draft.outcome,
                detail=draft.detail,
                hash=GENESIS,
            )
            digest = audit_hash(bytes(digest), row)
            rows.append([*row_of(row)[:-1], digest])
        yield Insert("audit", rows)
        yield Change("update_audit_head", [(n, digest)])
        for place, statement in batch.witnessed:
            yield statement(numbered[place])

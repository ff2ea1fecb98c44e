"""Whose turn it is in a session, and what becomes of a task whose session is busy.

A session is busy while an execution of it is queued, runs, or is between two attempts; not while
one waits for its hour, nor because of what agents have others do (that belongs to the task that
asked for it). All of this is decided while the session's head is locked, so no two processes let
two of them go at once. Those who wait have ``hold = 'session'``: they stand in no queue that a
lease looks at, and go one at a time, in the order of their chain (which is that of acceptance).

Order: all heads that the batch may write to are locked here in one go, sorted, before anything of
theirs is decided. The row of the one who goes next is only tried for after that, never waited for:
whoever holds it is about to change it, and the scheduler asks again.
"""

from __future__ import annotations

from retinue.domain.execution import TERMINAL, Execution, Hold, State, advance
from retinue.domain.intent import Promote, Release
from retinue.domain.policy import BusyPolicy
from retinue.domain.result import Conflict, Promoted, Rejected, Released, Result
from retinue.storage.decisions import Batch, Locked
from retinue.storage.statements import Heads, Query, Steps
from retinue.storage.tables import record_of

Key = tuple[str, str]


class Turns:
    """Which of the sessions that a batch looks at are busy; nobody has looked at the others."""

    def __init__(self) -> None:
        self._looked: set[Key] = set()
        self._busy: set[Key] = set()
        self._waited_for: set[Key] = set()

    def look(self, batch: Batch, keys: set[Key], others: set[Key], at: int) -> Steps[None]:
        """Lock the heads of ``keys`` and of all that the batch writes to; see who is there.

        ``others`` are sessions that the batch may still write to besides.
        """
        written = {(placed.owner, placed.session_id) for placed in batch.placed}
        batch.early = yield Heads(sorted(keys | others | written), at)
        ended = {e.id for e in batch.changed.values() if e.state in TERMINAL}
        self._looked = keys
        rows = yield Query("busy", [(*key, len(ended) + 1) for key in sorted(keys)])
        self._busy = {(owner, session) for owner, session, i in rows if i not in ended}
        rows = yield Query("turn", sorted(keys))
        self._waited_for = {(owner, session) for owner, session in rows}

    def hold_for(self, execution: Execution) -> Hold | None:
        """Return how an execution comes into its session; None when it is refused."""
        key = (execution.owner, execution.session_id)
        if (
            execution.parent_id is not None
            or execution.on_busy is BusyPolicy.PARALLEL
            or key not in self._busy | self._waited_for
        ):
            return Hold.NONE
        return None if execution.on_busy is BusyPolicy.REJECT else Hold.SESSION

    def entered(self, execution: Execution, hold: Hold) -> None:
        """Take in what was decided: those that follow in this batch find it there."""
        key = (execution.owner, execution.session_id)
        if execution.parent_id is None and key in self._looked and hold is not Hold.TIME:
            (self._busy if hold is Hold.NONE else self._waited_for).add(key)

    def release(self, batch: Batch, intent: Release) -> Steps[Result]:
        """Let the first that waits for its session go, when the session is free."""
        key = (intent.owner, intent.session_id)
        if key in self._busy or key not in self._waited_for:
            return Released(None)
        rows = yield Query("next_turn", [key])
        if not rows:
            return Released(None)
        found = record_of(Execution, rows[0])
        # An earlier intent of this batch may have changed it.
        execution = batch.changed.get(found.id, found)
        if execution.state is not State.QUEUED or execution.hold is not Hold.SESSION:
            return Released(None)
        execution.hold = Hold.NONE
        batch.changed[execution.id] = execution
        self._busy.add(key)
        return Released(execution)


def waking(locked: Locked, promotes: list[tuple[int, Promote]]) -> set[Key]:
    """Return the sessions that must be looked at before these can be promoted."""
    found = (locked.get(intent.execution_id) for _, intent in promotes)
    return {
        (e.owner, e.session_id)
        for e in found
        if e is not None and e.on_busy is not BusyPolicy.PARALLEL and e.state is State.SCHEDULED
    }


def promote(batch: Batch, intent: Promote, locked: Locked, turns: Turns) -> Result:
    """Let one whose time has come into the queue, or do what its busy session makes of it."""
    execution = locked.get(intent.execution_id)
    if execution is None:
        return Rejected("not_found")
    if execution.hold is not Hold.TIME or execution.run_at > intent.at:
        return Conflict("not_due", {"state": execution.state.value})
    hold: Hold | None = Hold.NONE
    if execution.state is State.SCHEDULED:
        execution.state = advance(execution.state, State.QUEUED)
        hold = turns.hold_for(execution)
    if hold is None:
        batch.end(
            execution,
            State.FAILED,
            intent.events,
            intent.response,
            intent.at,
            intent.error_code,
            "not_started",
        )
        return Promoted(execution.state, execution.hold)
    execution.hold = hold
    turns.entered(execution, hold)
    batch.changed[execution.id] = execution
    return Promoted(execution.state, hold)

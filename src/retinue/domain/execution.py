"""An Execution: one durable performance of a task, and its state machine.

::

    scheduled ──► queued ──► running ──► completed | failed | cancelled | timed_out
     └► cancelled   ▲  │       │  ▲
                    │  │       │  └── (answer) ─┐
                    │  │       └► input_required ┴─► cancelled | timed_out | failed
                    │  └► cancelled | timed_out | failed
                    └── running (retry, takeover), input_required (answer to a parked run)

The states on the right are terminal: exactly one, ever. A move that is not drawn raises.
``queued → failed`` is the one edge beyond the design's table: a breaker that opens while a task
waits refuses it without starting it, and so does a busy session.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from retinue.domain.budget import Limit
from retinue.domain.policy import BusyPolicy, Delivery
from retinue.errors import IllegalTransition, Outcome


class State(StrEnum):
    """Where an execution stands."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    INPUT_REQUIRED = "input_required"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


class Hold(StrEnum):
    """Why an execution that waits may not be leased yet.

    ``TIME``: it is not due (scheduled, or between two attempts). ``SESSION``: earlier ones of its
    session have not ended.
    """

    NONE = "none"
    TIME = "time"
    SESSION = "session"


DEAD_LETTER = "dead_letter"
"""The reason of an execution that failed because its attempts were used up."""

TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.TIMED_OUT})
ACTIVE = frozenset({State.RUNNING, State.INPUT_REQUIRED})

EDGES: dict[State, frozenset[State]] = {
    State.SCHEDULED: frozenset({State.QUEUED, State.CANCELLED, State.TIMED_OUT}),
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.TIMED_OUT, State.FAILED}),
    State.RUNNING: TERMINAL | {State.QUEUED, State.INPUT_REQUIRED},
    State.INPUT_REQUIRED: frozenset(
        {State.QUEUED, State.RUNNING, State.CANCELLED, State.TIMED_OUT, State.FAILED}
    ),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.TIMED_OUT: frozenset(),
}


def advance(state: State, to: State) -> State:
    """Return ``to`` when the machine has the edge ``state → to``.

    Raises:
        IllegalTransition: it does not.
    """
    if to not in EDGES[state]:
        raise IllegalTransition(f"an execution cannot go from {state} to {to}")
    return to


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller asks: a value, with no lifecycle of its own.

    Either ``capability`` or ``agent_id`` (or both) says who shall do it. ``deadline_us`` is the
    time allowed in microseconds, from acceptance (or ``run_at``) to the reply; None takes the
    agent's. ``run_at`` (microseconds UTC) is when it shall run, None or the past: now. ``on_busy``
    None takes the agent's. ``retry_of`` is the execution that this one does again. ``budget`` is
    what it, and whatever it has others do, may spend.
    """

    session_id: str
    capability: str | None = None
    agent_id: str | None = None
    parameters: Any = {}
    context: Any = None
    intent: str | None = None
    deadline_us: int | None = None
    priority: int = 0
    idempotency_key: str | None = None
    budget: Limit | None = None
    run_at: int | None = None
    on_busy: BusyPolicy | None = None
    retry_of: str | None = None


class Execution(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The stored record of one performance. Times are microseconds UTC.

    ``worker`` is the epoch that runs it now, ``attempt`` counts starts, ``last_seq`` is the
    number of its last event, ``digest`` chains its events. Its input and its result are the
    bodies of its contracts (``request_n``, ``response_n`` within the session's chain).

    ``due_at`` is from when it waits and its deadline counts, ``run_at`` when its next attempt may
    start. ``rank`` is its place in the queue (``policy.rank_of``), ``hold`` why it may not be
    leased though it waits, ``reason`` why it failed where the error does not say. ``interrupted``
    counts the attempts that an orderly stop of the server ended: nobody failed in them.

    Encoded, it is what its RESPONSE seals (``domain.seal``): a new column has a default and comes
    last, and leaves what was sealed before as it was.
    """

    id: str
    owner: str
    created_by: str
    session_id: str
    from_agent: str
    agent_id: str | None
    capability: str | None
    queue_key: str
    state: State
    priority: int
    attempt: int
    worker: str | None
    delivery: Delivery
    max_attempts: int
    last_seq: int
    digest: bytes
    deadline_at: int | None
    run_at: int
    cancel_requested_at: int | None
    created_at: int
    started_at: int | None
    finished_at: int | None
    outcome: Outcome | None
    error_code: str | None
    cursor: str | None
    request_id: str
    request_n: int
    response_id: str | None
    response_n: int | None
    parent_id: str | None
    depth: int
    due_at: int = 0
    rank: int = 0
    hold: Hold = Hold.NONE
    on_busy: BusyPolicy = BusyPolicy.PARALLEL
    retry_of: str | None = None
    reason: str | None = None
    interrupted: int = 0

    @property
    def attempts_used(self) -> int:
        """How many of ``max_attempts`` are used up."""
        return self.attempt - self.interrupted

    @property
    def waits_since(self) -> int:
        """From when it waits; what an earlier version stored has no ``due_at``."""
        return self.due_at or self.created_at

    @property
    def allowed_us(self) -> int | None:
        """The time it was given."""
        return None if self.deadline_at is None else self.deadline_at - self.waits_since

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self.state in TERMINAL

    @property
    def known_in_queue(self) -> Outcome:
        """What is known of the work of one that ends while it waits.

        One that was begun waits again only because it may be repeated, or never got anywhere.
        """
        begun = self.attempt and self.delivery is not Delivery.AT_MOST_ONCE
        return "unknown" if begun else "not_started"

    @property
    def counts(self) -> bool:
        """Whether, ended, it counts in its agent's tally: not when the agent had no part in it."""
        return counts(self.agent_id, self.state, self.outcome)


def counts(agent_id: str | None, state: State, outcome: str | None) -> bool:
    """Say whether an execution counts in the tally of its agent. Pure: it can be recounted."""
    if agent_id is None or state not in TERMINAL or state is State.CANCELLED:
        return False
    return not (state is State.TIMED_OUT and outcome == "not_started")

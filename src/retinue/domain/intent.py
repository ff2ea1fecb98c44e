"""What may be written to a store: a closed set of typed intents.

Each intent is atomic; all that are waiting at one moment share a commit; one that is refused
fails alone. An intent on an execution that runs carries a ``Fence``: it is applied only while
that attempt, on that worker, is still the one the store knows.
"""

from __future__ import annotations

import msgspec

from retinue.domain.agent import StoredAgent
from retinue.domain.audit import AuditDraft
from retinue.domain.contract import Draft
from retinue.domain.event import EventData
from retinue.domain.execution import Execution, State
from retinue.domain.instance import InstanceRecord
from retinue.domain.outbox import Parked
from retinue.domain.principal import ApiKey, Role
from retinue.domain.question import QuestionKind
from retinue.domain.retention import Bounds
from retinue.errors import Outcome


class Fence(msgspec.Struct, frozen=True):
    """Which attempt, on which worker, the writer believes it is running."""

    execution_id: str
    attempt: int
    worker: str


class Idempotency(msgspec.Struct, frozen=True):
    """A caller's key: the same fingerprint joins the first execution, another one conflicts."""

    key: str
    fingerprint: bytes
    expires_at: int


class Submit(msgspec.Struct, frozen=True):
    """Store a new execution with its REQUEST contract.

    With ``worker`` set the caller holds a free slot: the execution is leased to it in the same
    commit, unless something is ready in the queue of its key already. ``bound`` is how many may
    wait for the key, scheduled ones included; one that brings a slot and may run now does not
    count, the first of the queue gets that. One that is not due is stored as scheduled. One
    whose session is busy does as its ``on_busy`` says. ``bind`` says that ``agent_id`` was chosen
    by capability only because that agent was free: an execution that is queued instead is stored
    unbound. Answers ``Submitted``;
    ``Rejected`` when the queue is full (``queue_full``) or the session busy (``session_busy``);
    ``Conflict`` when the idempotency key stands for another request.
    """

    execution: Execution
    request: Draft
    worker: str | None = None
    bound: int = 10_000
    bind: bool = False
    idempotency: Idempotency | None = None


class Refuse(msgspec.Struct, frozen=True):
    """Store the REQUEST and the failed RESPONSE of a task that no agent can do."""

    owner: str
    session_id: str
    request: Draft
    response: Draft
    at: int


class Append(msgspec.Struct, frozen=True):
    """Append events to a running execution. Answers ``Appended``, or ``Conflict`` when fenced."""

    fence: Fence
    events: tuple[EventData, ...]
    at: int


class Finish(msgspec.Struct, frozen=True):
    """End an execution: last events, terminal event, state and RESPONSE contract together.

    ``events`` ends with the terminal one. Answers ``Appended``, or ``Conflict`` when fenced.
    """

    fence: Fence
    state: State
    events: tuple[EventData, ...]
    response: Draft
    at: int
    outcome: Outcome | None = None
    error_code: str | None = None
    reason: str | None = None


class Requeue(msgspec.Struct, frozen=True):
    """Give a running execution back to the queue, not before ``run_at`` (retry, takeover).

    Answers ``Conflict`` when fenced, and when somebody asked for its end (``cancelled``): it is to
    be finished as cancelled then, for nothing of it may run again. ``uncounted`` says that the
    attempt does not count as one of those it may have. ``stood_us`` is for how long its deadline
    stood still, because a person was asked: it falls that much later.
    """

    fence: Fence
    run_at: int
    at: int
    uncounted: bool = False
    stood_us: int = 0


class Cancel(msgspec.Struct, frozen=True):
    """Ask for an execution's end; one that does not run yet ends in this commit.

    Answers ``Cancelling`` with the state it has now. ``owner`` None means any.
    """

    execution_id: str
    owner: str | None
    by: str
    response: Draft
    at: int


class Expire(msgspec.Struct, frozen=True):
    """End a queued execution whose deadline has passed, or that its agent's breaker refuses."""

    execution_id: str
    state: State
    events: tuple[EventData, ...]
    response: Draft
    at: int
    error_code: str


class Promote(msgspec.Struct, frozen=True):
    """Let an execution whose time has come into the queue. Answers ``Promoted``.

    Its ``on_busy`` is decided now; ``events`` and ``response`` are the end of one whose busy
    session refuses it.
    """

    execution_id: str
    at: int
    events: tuple[EventData, ...]
    response: Draft
    error_code: str


class Release(msgspec.Struct, frozen=True):
    """Let the first that waits for its session go on, if the session is free now.

    Answers ``Released``.
    """

    owner: str
    session_id: str
    at: int


class Prioritize(msgspec.Struct, frozen=True):
    """Give an execution that waits another priority and rank. ``owner`` None means any.

    Answers ``Conflict`` when it does not wait any more.
    """

    execution_id: str
    owner: str | None
    priority: int
    step_us: int
    audit: AuditDraft
    at: int


class Want(msgspec.Struct, frozen=True):
    """Up to ``count`` queued executions of ``key``, to be run by ``agent_id``."""

    key: str
    agent_id: str
    count: int


class Lease(msgspec.Struct, frozen=True):
    """Take queued executions: per key, the least rank first. Answers ``Leased``.

    With ``only`` none but these are taken.
    """

    worker: str
    wants: tuple[Want, ...]
    at: int
    only: tuple[str, ...] | None = None


class Ask(msgspec.Struct, frozen=True):
    """Open a question: row, event and ``input_required`` together."""

    fence: Fence
    question_id: str
    event: EventData
    prompt: str
    schema: bytes | None
    expires_at: int | None
    at: int
    kind: QuestionKind = QuestionKind.INPUT
    role: Role = Role.OPERATOR


class Answer(msgspec.Struct, frozen=True):
    """Answer an open question, once; its execution goes on running."""

    question_id: str
    owner: str | None
    by: str
    answer: bytes
    at: int


class CloseQuestion(msgspec.Struct, frozen=True):
    """End an open question unanswered: it expired, or the run that asked is gone."""

    question_id: str
    state: str
    at: int


class PutKey(msgspec.Struct, frozen=True):
    """Store an API key, with its audit row."""

    key: ApiKey
    audit: AuditDraft


class RevokeKey(msgspec.Struct, frozen=True):
    """Revoke an API key, with its audit row. Answers ``Rejected`` when there is no such key."""

    key_id: str
    at: int
    audit: AuditDraft


class PutAgent(msgspec.Struct, frozen=True):
    """Store the registration of an agent, with its audit row; the store gives the revision.

    Answers ``Conflict`` when an agent of that id is registered already.
    """

    agent: StoredAgent
    audit: AuditDraft


class RemoveAgent(msgspec.Struct, frozen=True):
    """End the registration of an agent, with its audit row. Answers ``Rejected`` without one."""

    agent_id: str
    by: str
    at: int
    audit: AuditDraft


class Audit(msgspec.Struct, frozen=True):
    """Append to the audit chain."""

    draft: AuditDraft
    at: int


class ClaimLanes(msgspec.Struct, frozen=True):
    """Take up to ``limit`` lanes of a sink that are due, to deliver them. Answers ``Claimed``.

    What dead workers held is free again. ``idle`` says that nothing is being delivered here: what
    this worker holds all the same (an answer was lost) is free, too.
    """

    sink: str
    worker: str
    limit: int
    at: int
    idle: bool = False


class SettleLane(msgspec.Struct, frozen=True):
    """Give a lane back: everything before ``next_n`` was taken, or is parked.

    With ``error`` the contract at ``next_n`` was not taken, ``tries`` times by now; the lane is
    due again at ``due_at``. ``Conflict`` when another worker holds it.
    """

    sink: str
    owner: str
    session_id: str
    worker: str
    next_n: int
    due_at: int
    at: int
    tries: int = 0
    error: str | None = None
    parked: tuple[Parked, ...] = ()


class WakeLanes(msgspec.Struct, frozen=True):
    """A sink is back: what waited only because it was away is due now."""

    sink: str
    at: int


class Unpark(msgspec.Struct, frozen=True):
    """Forget a parked contract: the sink has taken it."""

    sink: str
    owner: str
    session_id: str
    n: int


class Retire(msgspec.Struct, frozen=True):
    """Have the events of ended, old executions removed: marked and audited now, swept later.

    What has not ended or is not old is passed over. Answers ``Retired``.
    """

    execution_ids: tuple[str, ...]
    bounds: Bounds
    at: int


class CutChain(msgspec.Struct, frozen=True):
    """Remove old contracts from the beginning of a session's chain, with its audit row.

    Only whole exchanges, ended, old, whose events are retired already, and which nobody needs any
    more; of these at most ``limit`` contracts. Answers ``Retired``.
    """

    owner: str
    session_id: str
    bounds: Bounds
    limit: int
    at: int


class Erase(msgspec.Struct, frozen=True):
    """Erase the bodies of exchanges that have ended, given by places in their session's chain.

    What their events and questions hold is marked, and swept later; all is in the audit, as
    ``action``, done by ``actor`` of ``by_owner`` to ``target``. Answers ``Erased``.
    """

    owner: str
    session_id: str
    places: tuple[int, ...]
    actor: str
    by_owner: str
    action: str
    target: str
    at: int


class PutInstance(msgspec.Struct, frozen=True):
    """Store that a process is about to be started: before it is. ``Conflict`` when it is there."""

    instance: InstanceRecord


class SaveInstance(msgspec.Struct, frozen=True):
    """Store an instance as it is now.

    ``Conflict`` when another worker has it (``fenced``), or when its state cannot follow the
    stored one (``illegal``, with ``from`` and ``to``); ``Rejected`` when it is not there.
    """

    instance: InstanceRecord


class AdoptInstance(msgspec.Struct, frozen=True):
    """Take an instance over from a worker that is dead, and with it the attempt it works on.

    ``instance`` is as it was read; ``fence`` is the attempt's, None where it works on nothing. The
    attempt goes on: its number stays. Answers ``Adopted``; ``Conflict`` when somebody else has the
    instance or the execution, or the execution has ended; without an attempt also when the instance
    has: what one leaves that ends may still be wanted.
    """

    instance: InstanceRecord
    fence: Fence | None
    worker: str
    at: int


class ForgetInstances(msgspec.Struct, frozen=True):
    """Remove up to ``limit`` instances that ended before ``before``. Answers ``Swept``."""

    before: int
    limit: int


class Sweep(msgspec.Struct, frozen=True):
    """Deal with up to ``limit`` events that are marked as removed or erased. Answers ``Swept``.

    As many idempotency keys that have expired at ``at`` are forgotten.
    """

    limit: int
    at: int


Intent = (
    Submit
    | Refuse
    | Append
    | Finish
    | Requeue
    | Cancel
    | Expire
    | Promote
    | Release
    | Prioritize
    | Lease
    | Ask
    | Answer
    | CloseQuestion
    | PutKey
    | RevokeKey
    | PutAgent
    | RemoveAgent
    | Audit
    | ClaimLanes
    | SettleLane
    | WakeLanes
    | Unpark
    | Retire
    | CutChain
    | Erase
    | Sweep
    | PutInstance
    | SaveInstance
    | AdoptInstance
    | ForgetInstances
)

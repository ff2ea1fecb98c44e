"""What a store answers to an intent: applied, in conflict with what is there, or rejected."""

from __future__ import annotations

from typing import Any

import msgspec

from retinue.domain.execution import Execution, Hold, State
from retinue.domain.instance import InstanceRecord
from retinue.domain.outbox import Lane


class Ok(msgspec.Struct):
    """The intent was applied; it is durable now."""


class Submitted(Ok):
    """``execution_id`` is the joined execution's when an idempotency key matched.

    ``leased`` says that it is already this worker's to run.
    """

    execution_id: str
    leased: bool = False
    joined: bool = False


class Appended(Ok):
    """``first_seq`` is the number of the first event appended."""

    first_seq: int


class Cancelling(Ok):
    """``state`` is ``cancelled``, an earlier terminal state, or the state it is still in."""

    state: State
    worker: str | None


class Promoted(Ok):
    """``state`` is ``queued``, or ``failed`` when its session refused it; ``hold`` as it is now."""

    state: State
    hold: Hold


class Released(Ok):
    """``execution`` goes on now; None: nobody could, or nobody waits."""

    execution: Execution | None


class Work(msgspec.Struct):
    """A leased execution with its input (the REQUEST's body)."""

    execution: Execution
    body: bytes


class Leased(Ok):
    """What the lease took."""

    work: list[Work]


class Adopted(Ok):
    """The instance and its execution (None: it works on nothing), as they are now."""

    instance: InstanceRecord
    execution: Execution | None


class Claimed(Ok):
    """The lanes taken, the longest due first."""

    lanes: list[Lane]


class Retired(Ok):
    """``count`` executions or contracts went; ``more`` says that another try may find more."""

    count: int
    more: bool = False


class Erased(Ok):
    """``contracts`` were erased now; ``open`` are of executions that have not ended: left alone."""

    contracts: int
    open: int


class Swept(Ok):
    """``count`` events were dealt with; ``more`` says that some are left."""

    count: int
    more: bool


class Conflict(msgspec.Struct):
    """Refused: the stored row is not as the writer believed."""

    reason: str
    details: dict[str, Any] = {}


class Rejected(msgspec.Struct):
    """Refused: no such row (``not_found``), no room (``queue_full``, ``session_busy``)."""

    reason: str
    details: dict[str, Any] = {}


Result = Ok | Conflict | Rejected

"""What a store is asked by, and what it answers beside its records."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from retinue.domain.contract import Contract
from retinue.domain.execution import State
from retinue.domain.instance import InstanceState

T = TypeVar("T")

PAGE_BYTES = 4 << 20
"""How many bytes of bodies are read at once; a single row may be larger."""


class Page(msgspec.Struct, frozen=True):
    """Which part of a list: at most ``limit`` rows after ``cursor`` (from the last page).

    Rows with large bodies make shorter pages: ``PAGE_BYTES``, but one row at least.
    """

    limit: int = 100
    cursor: str | None = None


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """A page of a list: ``total`` counts the whole list, ``next_cursor`` is None at its end."""

    items: list[T]
    total: int
    next_cursor: str | None = None


class ExecutionFilter(msgspec.Struct, frozen=True):
    """Which executions; None means any, ``states`` any of these (none: any)."""

    owner: str | None = None
    session_id: str | None = None
    agent_id: str | None = None
    capability: str | None = None
    state: State | None = None
    states: tuple[State, ...] = ()
    reason: str | None = None


class InstanceFilter(msgspec.Struct, frozen=True):
    """Which instances; None means any, ``states`` any of these, ``live`` what has not ended."""

    owner: str | None = None
    agent_id: str | None = None
    execution_id: str | None = None
    states: tuple[InstanceState, ...] = ()
    live: bool = False


class ContractFilter(msgspec.Struct, frozen=True):
    """Which contracts; None means any."""

    owner: str | None = None
    session_id: str | None = None
    from_agent: str | None = None
    to_agent: str | None = None


class ContractView(msgspec.Struct, frozen=True):
    """A contract as it is shown: a REQUEST's status and partner derived from its RESPONSE.

    ``answered`` is the RESPONSE's body once it exists, for ``result`` and ``error``.
    """

    contract: Contract
    state: State
    agent_id: str | None
    finished_at: int | None
    answered: bytes | None


class StoreCounts(msgspec.Struct, frozen=True):
    """A recount of the ledger: sessions, and contracts by status."""

    sessions: int
    contracts: int
    by_status: dict[str, int]


class AgentTally(msgspec.Struct, frozen=True):
    """How many executions an agent has ended, over the whole life of the store."""

    completed: int = 0
    failed: int = 0


class Backlog(msgspec.Struct, frozen=True):
    """What a sink has still to take: sessions and contracts, those of failing sessions included.

    ``failing`` counts the sessions whose last delivery failed; ``error`` is the latest such
    failure, ``failed_at`` when it was. ``parked`` counts contracts that are not tried again.
    """

    sessions: int = 0
    contracts: int = 0
    failing: int = 0
    parked: int = 0
    error: str | None = None
    failed_at: int | None = None


class QueueDepth(msgspec.Struct, frozen=True):
    """How much waits under a queue key.

    ``ready`` may be leased, ``in_turn`` waits for earlier ones of its session, ``scheduled`` for
    its time. The oldest ones are the ids of what was accepted first.
    """

    key: str
    ready: int
    in_turn: int
    scheduled: int
    oldest_ready: str | None
    oldest_in_turn: str | None


class Watched(msgspec.Struct, frozen=True):
    """Where an execution stands, as the follower polls it."""

    id: str
    state: State
    last_seq: int
    cancel_requested: bool

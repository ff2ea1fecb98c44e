"""The ledger and the queue: Store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from retinue.archive import Archive
from retinue.domain.agent import StoredAgent
from retinue.domain.audit import AuditRow
from retinue.domain.contract import Contract
from retinue.domain.event import Event
from retinue.domain.execution import Execution
from retinue.domain.instance import InstanceRecord
from retinue.domain.intent import Fence, Intent
from retinue.domain.outbox import Parked
from retinue.domain.principal import ApiKey
from retinue.domain.question import Question
from retinue.domain.result import Result
from retinue.domain.session import Session
from retinue.interfaces.listings import (
    PAGE_BYTES,
    AgentTally,
    Backlog,
    ContractFilter,
    ContractView,
    ExecutionFilter,
    InstanceFilter,
    Listing,
    Page,
    QueueDepth,
    StoreCounts,
    Watched,
)


class Store(Archive, Protocol):
    """The ledger and the queue. SQLite and PostgreSQL; one conformance suite runs on both.

    Every read takes an owner as its scope where the record has one (None: any). A read sees
    every write that was answered before it.
    """

    worker: str
    """This process's epoch: a ULID, new at every ``open``."""

    shared: ClassVar[bool]
    """Whether other processes may have it open: what waits in it may be done by them."""

    sinks: tuple[str, ...]
    """Names of the sinks that each contract is put into the outbox for, in the same commit.

    Empty unless set, before ``open``. Processes that share a store name the same ones.
    """

    async def open(self) -> None:
        """Open, migrate, and begin a new epoch.

        Raises:
            StoreLocked: another process has this store open (SQLite).
            StoreUnavailable: it does not answer.
        """
        ...

    async def close(self) -> None:
        """Write what is waiting, give up the epoch, close."""
        ...

    async def write(self, intent: Intent, /) -> Result:
        """Apply one intent and return once it is durable.

        Raises:
            StoreUnavailable: nothing was acknowledged; whether it was applied is not known.
            StoreFull: there is no space; it was not applied.
        """
        ...

    async def ping(self) -> None:
        """Return when the store answers; raise ``StoreUnavailable`` when it does not."""
        ...

    async def execution(self, execution_id: str, owner: str | None, /) -> Execution | None:
        """Return an execution of ``owner``."""
        ...

    async def idempotent(self, owner: str, key: str, now: int, /) -> tuple[bytes, str] | None:
        """Return the fingerprint and the execution that a key stands for at ``now``."""
        ...

    async def executions(self, where: ExecutionFilter, page: Page, /) -> Listing[Execution]:
        """List executions, newest first."""
        ...

    async def events(
        self,
        execution_id: str,
        /,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = PAGE_BYTES,
    ) -> Sequence[Event]:
        """Return journaled events with a number greater than ``after``, in order.

        Not all of them: ``limit`` at most, and ``most_bytes`` of data unless the first has more.
        """
        ...

    async def data_of(self, event: Event, offset: int, length: int, /) -> bytes:
        """Return ``length`` bytes of a journaled event's data, fewer at its end."""
        ...

    async def result(self, execution: Execution, offset: int, length: int, /) -> bytes | None:
        """Return ``length`` bytes of the body of an execution's RESPONSE, fewer at its end.

        None: it is not there, or erased.
        """
        ...

    async def bodies(self, execution: Execution, /) -> tuple[bytes | None, bytes | None]:
        """Return the bodies of an execution's REQUEST and RESPONSE (None: not there, erased)."""
        ...

    async def contracts(self, where: ContractFilter, page: Page, /) -> Listing[ContractView]:
        """List contracts, in chain order."""
        ...

    async def sessions(self, owner: str | None, page: Page, /) -> Listing[Session]:
        """List sessions by id."""
        ...

    async def session(self, owner: str, session_id: str, /) -> Session | None:
        """Return one session."""
        ...

    async def counts(self, owner: str | None, /) -> StoreCounts:
        """Count sessions and contracts."""
        ...

    async def tallies(self) -> dict[str, AgentTally]:
        """Return the tally of every agent that ever ended an execution."""
        ...

    async def watch(self, execution_ids: Sequence[str], /) -> list[Watched]:
        """Return where the given executions stand, in one query."""
        ...

    async def orphans(self, limit: int, /) -> list[Execution]:
        """Return running executions whose worker is dead: to be taken over."""
        ...

    async def held(self) -> list[Fence]:
        """Return the attempts that are leased to this worker now."""
        ...

    async def overdue(self, now: int, limit: int, /) -> list[Execution]:
        """Return queued executions whose deadline has passed."""
        ...

    async def backlog(self) -> list[str]:
        """Return the queue keys that hold something ready."""
        ...

    async def due(self, now: int, limit: int, /) -> list[Execution]:
        """Return what waited for a time that has come, the longest due first."""
        ...

    async def next_due(self) -> int | None:
        """Return when the next one that waits for its time is due."""
        ...

    async def turns(self, after: tuple[str, str], limit: int, /) -> list[tuple[str, str]]:
        """Return owner and id of sessions behind ``after`` that somebody waits for, in order."""
        ...

    async def interrupting(self, limit: int, /) -> list[Execution]:
        """Return what waits for its session and has those before it cancelled."""
        ...

    async def ahead(self, execution: Execution, /) -> list[str]:
        """Return what keeps an execution from its turn: the earlier ones of its session."""
        ...

    async def place(self, execution: Execution, /) -> int:
        """Return how many stand before a queued execution under its key, as one that is ready."""
        ...

    async def depths(self) -> list[QueueDepth]:
        """Return how much waits under each queue key, by key."""
        ...

    async def outbox_due(self, sink: str, now: int, /) -> bool:
        """Say whether a lane of ``sink`` can be claimed at ``now``."""
        ...

    async def outbox_backlog(self, sink: str, /) -> Backlog:
        """Count what ``sink`` has still to take."""
        ...

    async def undelivered(
        self, owner: str, session_id: str, first: int, last: int, /, *, limit: int, most_bytes: int
    ) -> list[Contract]:
        """Return the rows of a chain from place ``first`` to ``last``, in order.

        At most ``limit`` of them, and no more than ``most_bytes`` of bodies, but at least one.
        """
        ...

    async def parked(self, sink: str | None, owner: str | None, page: Page, /) -> Listing[Parked]:
        """List parked contracts by sink, owner and place."""
        ...

    async def questions(self, owner: str | None, page: Page, /) -> Listing[Question]:
        """List open questions, oldest first."""
        ...

    async def question(self, question_id: str, owner: str | None, /) -> Question | None:
        """Return one question."""
        ...

    async def answered(self, execution_id: str, /) -> Sequence[Question]:
        """Return an execution's answered questions, oldest first."""
        ...

    async def keys(self) -> list[ApiKey]:
        """Return all API keys, revoked ones too."""
        ...

    async def agents(self) -> list[StoredAgent]:
        """Return the registrations that are not removed, oldest first."""
        ...

    async def agent_changes(self) -> int:
        """Return a number that grows with every registration and every removal."""
        ...

    async def instance(self, instance_id: str, owner: str | None, /) -> InstanceRecord | None:
        """Return one instance."""
        ...

    async def instances(self, where: InstanceFilter, page: Page, /) -> Listing[InstanceRecord]:
        """List instances, newest first."""
        ...

    async def ownerless(self, node: str, limit: int, /) -> list[InstanceRecord]:
        """Return instances that have not ended and whose worker is dead, oldest first.

        Those of other nodes than ``node`` that are known to be lost are left out.
        """
        ...

    async def audit(self, page: Page, /) -> Listing[AuditRow]:
        """List the audit chain, oldest first."""
        ...

    async def unanchored(self) -> list[tuple[str, str]]:
        """Return owner and id of the sessions that grew since the last anchor was written."""
        ...

    async def audit_head(self) -> tuple[int, bytes]:
        """Return the place and the hash of the audit chain's last row."""
        ...

    async def chain(self, owner: str, session_id: str, after: int, limit: int, /) -> list[Contract]:
        """Return rows of one session's chain; fewer than ``limit`` when they are large."""
        ...

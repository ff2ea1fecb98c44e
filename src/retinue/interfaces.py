"""The seams: Driver and Instance, Store, Sink and Memory.

Everything above them is written against these protocols; only ``runtime`` names what stands
behind them. Each protocol's docstrings are its contract; the conformance suites in
``retinue.testing`` hold implementations to it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import msgspec

from retinue.archive import Archive
from retinue.domain.agent import AgentDefinition, StoredAgent
from retinue.domain.audit import AuditRow
from retinue.domain.budget import Budget
from retinue.domain.contract import Contract
from retinue.domain.event import Event, EventData
from retinue.domain.execution import Execution, State, Task
from retinue.domain.instance import InstanceRecord, InstanceState
from retinue.domain.intent import Fence, Intent, Result
from retinue.domain.outbox import Parked
from retinue.domain.principal import ApiKey, Authority
from retinue.domain.question import Question
from retinue.domain.session import Session
from retinue.domain.supervision import Departure

T = TypeVar("T")

# -- drivers -----------------------------------------------------------------------------------


class Features(msgspec.Struct, frozen=True):
    """The optional powers of a driver; what is not declared is refused with ``NotSupported``.

    ``park`` says what a restart of ours does to a run that waits for an answer:

    - ``resume``: it goes on where it was, its state is in the store;
    - ``hold``: it lives on in its own process or at its peer;
    - ``replay``: it begins anew and gets the answers that were given already, where its delivery
      policy allows repeats at all;
    - ``none``: it is over.

    ``there`` says that an instance costs nothing to start, being an object of this process or
    somebody else's service: its health is checked before its first task. ``registers`` says that
    agents of this kind can be registered through the API: ``Driver.check``. ``keeps`` says that
    what it starts may outlive this server: it is a ``KeepingDriver``, its instances ``Keeping``.

    ``pooled`` says that an instance lives long and performs many executions: it is a
    ``LiveInstance``, and an agent may have several (``AgentDefinition.pool``). ``session_bound``
    says that each then serves one session only. ``pings`` says that ``ping`` asks the instance
    itself; else its health is the age of its last event.
    """

    streams: bool = True
    asks: bool = False
    park: str = "none"
    there: bool = False
    registers: bool = False
    keeps: bool = False
    pooled: bool = False
    session_bound: bool = False
    pings: bool = False


class InstanceHandle(msgspec.Struct, frozen=True):
    """What is needed to find an instance again; serialisable."""

    agent_id: str
    instance_id: str


class Health(msgspec.Struct, frozen=True):
    """Whether an instance can work, and why not."""

    healthy: bool
    reason: str | None = None


class Job(msgspec.Struct, frozen=True):
    """One attempt, as a driver sees it: the execution and its decoded input.

    ``answers`` are the questions that people answered to earlier attempts, in order, each with its
    answer: a driver whose ``park`` is ``replay`` takes them up instead of asking again. ``budget``
    says what may still be spent, to be asked before something costs; what was spent is reported as
    ``usage`` events.
    """

    execution: Execution
    parameters: Any
    context: Any
    intent: str | None
    answers: tuple[tuple[str, Any], ...] = ()
    budget: Budget | None = None


class SubmitPort(Protocol):
    """How work submits more work: handed to instances, so that there is no second way in."""

    async def __call__(self, task: Task, authority: Authority, /) -> Any:
        """Perform ``task`` and return its result data.

        Raises:
            RetinueError: refused, failed or timed out.
        """
        ...


class Exited(Protocol):
    """How a process ended: ``process.Exit`` is one."""

    @property
    def code(self) -> int | None:
        """Its exit code."""
        ...

    @property
    def signal(self) -> int | None:
        """The signal that ended it."""
        ...

    @property
    def reason(self) -> str | None:
        """Why it was ended, when we did: ``killed``, a limit; ``lost``: that is not known."""
        ...

    @property
    def cpu(self) -> float:
        """The CPU seconds it used."""
        ...

    @property
    def peak(self) -> int:
        """The most bytes of memory that were seen."""
        ...


class Process(Protocol):
    """What can be done to a process that is supervised: ``process.Child`` is one."""

    pid: int

    @property
    def messages(self) -> tuple[int, int]:
        """How many messages it was sent, and how many came from it."""
        ...

    @property
    def hears(self) -> bool:
        """Whether it has a stdin that can be written to now."""
        ...

    def when_exited(self, call: Callable[[Exited], None], /) -> None:
        """Have ``call`` told how it ended; at once when it has."""
        ...

    async def say(self, data: bytes, /, *, last: bool = False) -> None:
        """Write to its stdin; ``last``: and close it."""
        ...

    async def signal(self, number: int, *, tree: bool = False) -> int:
        """Signal it, or its whole tree; return how many processes got it."""
        ...

    def kill(self) -> None:
        """Have its whole tree killed."""
        ...

    async def pause(self) -> int:
        """Stop its whole tree where it is."""
        ...

    async def resume(self) -> int:
        """Let its tree go on."""
        ...

    async def usage(self) -> dict[str, Any]:
        """Return ``cpu``, ``memory``, ``processes`` and ``peak`` of its tree; empty: it ended."""
        ...


class Birth(msgspec.Struct, frozen=True, kw_only=True):
    """A process that a driver is about to start.

    ``handle`` is JSON: all that is known beforehand and needed to find the process again, by the
    driver's ``recover`` or by a person; no secrets. ``log`` in it names the directory of its log.
    ``execution`` is what it is started for, if for one. ``kept``: it is to outlive this server.
    """

    agent_id: str
    owner: str
    driver: str
    handle: dict[str, Any]
    execution: Execution | None = None
    kept: bool = False
    instance_id: str | None = None


class Supervised(Protocol):
    """A process that is on record: the driver says what becomes of it. See ``engine.instances``."""

    record: InstanceRecord

    @property
    def id(self) -> str:
        """Its id, which the process carries in its mark, too."""
        ...

    def started(self, process: Process, handle: dict[str, Any] | None = None) -> None:
        """Note that it runs: ready, or busy with what it was started for; its exit is heard."""
        ...

    def busy(self, execution: Execution) -> None:
        """Note that it works on ``execution`` now."""
        ...

    def idle(self) -> None:
        """Note that it works on nothing."""
        ...

    def draining(self, reason: str | None = None) -> None:
        """Note that it takes nothing more and is to end: its exit is no failure then."""
        ...

    def failed(self, reason: str) -> None:
        """Note that it is over without an exit: it could not be started."""
        ...

    def let_go(self) -> None:
        """Note that it goes on without us: whoever finds it writes its record from now on."""
        ...


class InstanceBook(Protocol):
    """Where drivers record the processes they start."""

    async def begin(
        self, birth: Birth, stop: Callable[[float], Awaitable[object]] | None = None
    ) -> Supervised:
        """Record that a process is about to be started; on return that is durable.

        ``stop`` is how it is stopped when somebody asks and it works on nothing.

        Raises:
            Fenced: this worker's epoch is over: nothing may be started.
        """
        ...


class DriverContext(msgspec.Struct, frozen=True):
    """What the engine lends a driver."""

    submit: SubmitPort
    max_result_bytes: int
    instances: InstanceBook


class Instance(Protocol):
    """One live incarnation of an agent."""

    handle: InstanceHandle

    def execute(self, job: Job, /) -> AbstractAsyncContextManager[AsyncIterator[EventData]]:
        """Perform ``job``: the events it yields, ending with ``completed``.

        A failure raises. Leaving the context cancels the work.
        """
        ...

    async def answer(self, question_id: str, answer: Any, /) -> None:
        """Hand in the answer to a question this instance asked.

        Raises:
            NotSupported: the driver does not declare ``asks``.
        """
        ...

    async def ping(self) -> Health:
        """Say whether the instance can take work. It may hang: whoever asks bounds it."""
        ...

    async def stop(self, grace: float, /) -> None:
        """Stop within ``grace`` seconds; nothing of the instance is left."""
        ...


class LiveInstance(Instance, Protocol):
    """An instance that lives long: a process, or a connection. What a pool holds.

    When it ends, everything it was performing fails with ``CommunicationError``; what is begun
    after that fails so with the outcome ``not_started``, and goes to another one.
    """

    offers: Sequence[AgentDefinition]
    """The agents it performs beside the one it was started for: what it announced."""

    @property
    def last_event(self) -> float:
        """When it was last heard of, by the monotonic clock."""
        ...

    @property
    def stage(self) -> str | None:
        """Its own protocol's word for where it stands, if that has one."""
        ...

    async def ended(self) -> Departure:
        """Return how it ended, once nothing is left of it."""
        ...


class Driver(Protocol):
    """The code that runs one kind of agent."""

    name: ClassVar[str]
    features: ClassVar[Features]

    async def start(self, agent: AgentDefinition, context: DriverContext, /) -> Instance:
        """Start an instance.

        Raises:
            SpawnFailed: it cannot be loaded or started.
        """
        ...

    async def check(self, agent: AgentDefinition, /) -> None:
        """Check a definition that an API caller brought.

        Raises:
            EgressDenied, InvalidInput: this caller's agent may not be so.
            NotSupported: the driver does not declare ``registers``.
        """
        ...


class Keeping(Instance, Protocol):
    """An instance of a driver that ``keeps``."""

    def resume(
        self, job: Job, record: Supervised, process: Process, /
    ) -> AbstractAsyncContextManager[AsyncIterator[EventData]]:
        """Go on with what ``process`` does, behind the execution's ``cursor``: see ``execute``."""
        ...

    def let_go(self, execution_id: str, /) -> bool:
        """Let what performs an execution go on without us, if it can; say whether it does.

        Leaving its context ends nothing from then on.
        """
        ...


class KeepingDriver(Driver, Protocol):
    """A driver that ``keeps``."""

    async def recover(
        self, agent: AgentDefinition | None, record: InstanceRecord, cursor: str | None, /
    ) -> Process | None:
        """Find a process that an earlier server of ours left; None: there is none.

        One that ended meanwhile, and how is known, counts as found. ``agent`` None: its definition
        is gone, it is only to be ended. ``cursor`` is how far its output was taken.
        """
        ...

    def end_unwanted(self) -> None:
        """End what was found and nobody has asked for: called when recovery is over."""
        ...


# -- store -------------------------------------------------------------------------------------


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


class Store(Archive, Protocol):
    """The ledger and the queue. SQLite and PostgreSQL; one conformance suite runs on both.

    Every read takes an owner as its scope where the record has one (None: any). A read sees
    every write that was answered before it.
    """

    worker: str
    """This process's epoch: a ULID, new at every ``open``."""

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


# -- other services ----------------------------------------------------------------------------


class Peer(Protocol):
    """Another service that we call."""

    name: ClassVar[str]

    async def check(self) -> Health:
        """Ask the service whether it is well. Answers within a second or so; never raises."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class Sink(Peer, Protocol):
    """Takes every contract, at least once, each session's in the order of its chain.

    Fed by the outbox (``engine.outbox``), never by whoever writes a contract.
    """

    async def deliver(self, contract: Contract, /) -> None:
        """Hand one contract over; on return the service has taken it.

        Raises:
            PeerUnavailable: the service does not answer, or says that it cannot now. Nothing is
                wrong with the contract.
            PeerRefused: it says no to this contract; ``for_good`` when saying it again is idle.
        """
        ...


class Memory(Peer, Protocol):
    """Compresses sessions into memory blocks."""

    async def compress(self, session_id: str, intent: str | None, told: str, /) -> dict[str, Any]:
        """Return the service's block of a session of which ``told`` is the account, as text.

        Raises:
            PeerUnavailable, PeerRefused: there is none.
        """
        ...

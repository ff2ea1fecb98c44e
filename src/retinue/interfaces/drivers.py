"""What runs one kind of agent: Driver and Instance, and what the engine lends them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol

import msgspec

from retinue.domain.agent import AgentDefinition
from retinue.domain.budget import Budget
from retinue.domain.event import EventData
from retinue.domain.execution import Execution, Task
from retinue.domain.instance import InstanceRecord
from retinue.domain.latency import Meter
from retinue.domain.principal import Authority
from retinue.domain.supervision import Departure

STALL_SECONDS = 120.0


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


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What came from a process, and when the last of it did (by the monotonic clock).

    ``dropped`` and ``refused`` are lines of its stdout and their bytes: read and not kept, or too
    long. ``log_lost`` are bytes that its log does not have because the disk was too slow, or full.
    """

    at: float
    dropped: tuple[int, int] = (0, 0)
    refused: tuple[int, int] = (0, 0)
    log_lost: int = 0


class Process(Protocol):
    """What can be done to a process that is supervised: ``process.Child`` is one."""

    pid: int
    start: int

    @property
    def messages(self) -> tuple[int, int]:
        """How many messages it was sent, and how many came from it."""
        ...

    @property
    def heard(self) -> Heard:
        """What came from it."""
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
    ``told``: people may write to its stdin, which is no protocol of ours then. It is stalled when
    what it works on has brought nothing for ``stall_seconds``; ``pings`` says that it
    speaks without working, too, so only its work's events count, else any output does.
    """

    agent_id: str
    owner: str
    driver: str
    handle: dict[str, Any]
    execution: Execution | None = None
    kept: bool = False
    told: bool = False
    stall_seconds: float = STALL_SECONDS
    pings: bool = False
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
        """Note that it works on ``execution`` now, beside what it works on already."""
        ...

    def idle(self, execution: Execution) -> None:
        """Note that it works on ``execution`` no longer."""
        ...

    def draining(self, reason: str | None = None) -> None:
        """Note that it takes nothing more and is to end: its exit is no failure then."""
        ...

    def thinking(self, on: bool, /) -> None:
        """Note that it thinks, or does something else again."""
        ...

    def judged(self, reason: str | None, /) -> None:
        """Note its own last word: why it failed, or None: it succeeded. Its exit is a fact only."""
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
    """What the engine lends a driver.

    ``meter`` is where instances of a pool count how long their operations took; ``has_history``
    says whether the session of an execution has had a task of its agent's before, done by whichever
    server: what a driver keeps of it on this machine may lie on another one.
    """

    submit: SubmitPort
    max_result_bytes: int
    instances: InstanceBook
    meter: Meter | None = None
    has_history: Callable[[Execution], Awaitable[bool]] | None = None


class Instance(Protocol):
    """One live incarnation of an agent."""

    handle: InstanceHandle

    def execute(self, job: Job, /) -> AbstractAsyncContextManager[AsyncIterator[EventData]]:
        """Perform ``job``: the events it yields, ending with ``completed``.

        ``input_required`` asks a question; with ``withdrawn`` set, it takes back the one that it
        names, which is open.

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
    def pid(self) -> int | None:
        """The id of its process, if it has one."""
        ...

    @property
    def faults(self) -> Mapping[str, int]:
        """What was wrong with what it said: how often, by kind."""
        ...

    def excused(self, since: float) -> bool:
        """Say whether it could not be heard since then, by our fault or a person's."""
        ...

    def because(self, why: str, /) -> None:
        """Note why it is about to be stopped, which nobody asked for: its callers hear that."""
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

    def over(self, execution_id: str, /) -> None:
        """Note that how an attempt at an execution ended is in the store.

        Until then what its process wrote is needed whole: the next server may read it again.
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

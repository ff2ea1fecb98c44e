"""One attempt at an execution, while it runs: its deadline, its slot, who waits for it."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import msgspec

from retinue.domain.budget import Budget, Usage
from retinue.domain.event import EventData
from retinue.domain.execution import Execution
from retinue.domain.ids import now_us
from retinue.domain.intent import Fence
from retinue.engine.entry import Entry
from retinue.engine.outcome import Reply
from retinue.engine.pen import Pen
from retinue.errors import BudgetExceeded, InvalidResult, Outcome, RetinueError, Timeout
from retinue.interfaces import Process, Supervised


class Resumed(NamedTuple):
    """What performs an attempt that an earlier server began: its record and its process."""

    record: Supervised
    process: Process


class Pause:
    """A person has what performs an attempt stand still: deadlines do, as for a question."""

    question: str | None = None

    def __init__(self) -> None:
        self.halted: list[Attempt] = []


class Attempt:
    """A running attempt.

    Its deadline is a timer of the loop. It stands still while anybody in ``asking`` waits for a
    person: this attempt, or one below whose result it waits for; ``left`` holds the seconds it had
    then. ``halted`` are those whose deadlines stand still while this one asks, upwards from itself.
    ``parked`` says that it waits for a child that is queued. Waiters get the reply, or None when
    this attempt did not end the execution.
    """

    __slots__ = (
        "_answer",
        "_halted_at",
        "_stood",
        "_waiters",
        "asking",
        "awaited",
        "body",
        "budget",
        "call",
        "calls",
        "came_late",
        "coming_back",
        "effects",
        "entry",
        "execution",
        "fence",
        "halted",
        "heard_at",
        "left",
        "lent",
        "over",
        "parked",
        "pen",
        "question",
        "released",
        "resumed",
        "spent",
        "stop",
        "task",
        "timer",
    )

    def __init__(self, execution: Execution, body: bytes, entry: Entry, call: int) -> None:
        self.execution = execution
        self.body = body
        self.entry = entry
        self.fence = Fence(execution.id, execution.attempt, execution.worker or "")
        self.stop: RetinueError | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.left: float | None = None
        self.asking: set[Attempt | Pause] = set()
        self.halted: list[Attempt] = []
        self._halted_at = self._stood = 0.0
        self.heard_at = asyncio.get_running_loop().time()  # its last event, or its beginning
        self.over = False
        self.came_late = False  # its deadline had passed before it began
        self.parked = False
        self.call = call  # what the agent's breaker gave for it
        self.calls = 0  # how many of its own calls it waits for
        self.awaited: set[str] = set()  # the executions of those calls
        self.lent = False  # its slot is given up while it waits
        self.coming_back: asyncio.Lock | None = None  # held by the one of its calls that regains it
        self.released = False  # it has ended, and holds no slot
        self.question: str | None = None
        self.pen: Pen | None = None
        self.task: asyncio.Task[None] | None = None
        self.budget: Budget | None = None
        self.spent: Usage | None = None
        self.resumed: Resumed | None = None
        self.effects = False  # it did more than answer: its result stands for no other task
        self._waiters: list[asyncio.Future[Reply | None]] = []
        self._answer: Reply | None = None

    def end(self, why: RetinueError) -> None:
        """Stop the agent; the execution ends with ``why`` (the first one given)."""
        if self.stop is None and not self.over and self.task is not None:
            self.stop = why
            self.task.cancel(why.message)

    def wait(self) -> asyncio.Future[Reply | None]:
        """Return a future of its own for this waiter: one that leaves takes nobody along."""
        future: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        if self.released:
            future.set_result(self._answer)
        else:
            self._waiters.append(future)
        return future

    def tell(self, answer: Reply | None) -> None:
        """Give every waiter the reply, those that come later too."""
        self.released, self._answer = True, answer
        for future in self._waiters:
            if not future.done():
                future.set_result(answer)

    def charge(self, event: EventData) -> None:
        """Count what a ``usage`` event says was spent.

        Raises:
            BudgetExceeded: past what this execution, or one above it, may spend.
            InvalidResult: the event does not say what was spent.
        """
        try:
            usage = msgspec.convert(event.data, Usage)
        except msgspec.ValidationError as error:
            raise InvalidResult(f"the agent's usage: {error}") from None
        self.spent = usage if self.spent is None else self.spent.plus(usage)
        passed = self.budget.charge(usage) if self.budget is not None else None
        if passed is not None:
            raise BudgetExceeded(
                f"the task spent more than it may ({passed})",
                details={"limit": passed, "spent": self.spent.as_dict()},
            )

    # -- the deadline --------------------------------------------------------------------------

    def start_clock(self, seconds: float) -> None:
        """Let the deadline fall in ``seconds``."""
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(seconds, self._late)

    def halt(self, asker: Attempt | Pause) -> None:
        """Let the deadline stand still while ``asker`` waits for a person."""
        if not self.asking:
            self._halted_at = asyncio.get_running_loop().time()
        self.asking.add(asker)
        asker.halted.append(self)
        if self.timer is not None:
            self.left = max(self.timer.when() - asyncio.get_running_loop().time(), 0.0)
            self.timer.cancel()
            self.timer = None

    def go_on(self, asker: Attempt | Pause) -> None:
        """Let the deadline run on, unless somebody else still asks."""
        if self.asking == {asker}:
            self._stood = self.stood
        self.asking.discard(asker)
        self.heard_at = asyncio.get_running_loop().time()
        if not self.asking and self.left is not None and not self.over:
            self.start_clock(self.left)
            self.left = None

    @property
    def stood(self) -> float:
        """For how many seconds the deadline has stood still, all in all."""
        since = asyncio.get_running_loop().time() - self._halted_at if self.asking else 0.0
        return self._stood + since

    def _late(self) -> None:
        self.end(_timeout(self.execution))

    def late(self) -> Timeout:
        """Return the end of an attempt that is not begun because its deadline has passed."""
        self.came_late = True
        first = self.execution.attempt == 1
        outcome: Outcome = "not_started" if first else "unknown"
        return _timeout(self.execution, outcome, state="queued")


def _timeout(
    execution: Execution, outcome: Outcome = "unknown", state: str = "processing"
) -> Timeout:
    allowed = (execution.allowed_us or 0) // 1000
    elapsed = (now_us() - execution.waits_since) // 1000
    return Timeout(
        f"Agent invocation timed out after {allowed}ms",
        details={"elapsed_ms": elapsed, "agent_state": state},
        outcome=outcome,
    )

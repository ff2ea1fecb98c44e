"""One attempt at an execution, while it runs: its deadline, its slot, who waits for it."""

from __future__ import annotations

import asyncio

from retinue.domain.execution import Execution
from retinue.domain.ids import now_us
from retinue.domain.intent import Fence
from retinue.engine.outcome import Reply
from retinue.engine.pen import Pen
from retinue.engine.registry import Entry
from retinue.errors import Outcome, RetinueError, Timeout


class Attempt:
    """A running attempt.

    Its deadline is a timer of the loop; ``left`` holds the seconds it had when a question stopped
    it. ``parked`` says that it waits for a child that is queued. Waiters get the reply, or None
    when this attempt did not end the execution.
    """

    __slots__ = (
        "_waiters",
        "body",
        "call",
        "calls",
        "came_late",
        "entry",
        "execution",
        "fence",
        "left",
        "lent",
        "over",
        "parked",
        "pen",
        "question",
        "released",
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
        self.over = False
        self.came_late = False  # its deadline had passed before it began
        self.parked = False
        self.call = call  # what the agent's breaker gave for it
        self.calls = 0  # how many of its own calls it waits for
        self.lent = False  # its slot is given up while it waits
        self.released = False  # it has ended, and holds no slot
        self.question: str | None = None
        self.pen: Pen | None = None
        self.task: asyncio.Task[None] | None = None
        self._waiters: list[asyncio.Future[Reply | None]] = []

    def end(self, why: RetinueError) -> None:
        """Stop the agent; the execution ends with ``why`` (the first one given)."""
        if self.stop is None and not self.over and self.task is not None:
            self.stop = why
            self.task.cancel()

    def wait(self) -> asyncio.Future[Reply | None]:
        """Return a future of its own for this waiter: one that leaves takes nobody along."""
        future: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        return future

    def tell(self, answer: Reply | None) -> None:
        """Give every waiter the reply."""
        for future in self._waiters:
            if not future.done():
                future.set_result(answer)

    # -- the deadline --------------------------------------------------------------------------

    def start_clock(self, seconds: float) -> None:
        """Let the deadline fall in ``seconds``."""
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(seconds, self._late)

    def stop_clock(self) -> None:
        """Let the deadline stand still; ``left`` says how many seconds it has."""
        if self.timer is not None:
            self.left = max(self.timer.when() - asyncio.get_running_loop().time(), 0.0)
            self.timer.cancel()
            self.timer = None

    def _late(self) -> None:
        self.end(_timeout(self.execution))

    def late(self) -> Timeout:
        """Return the end of an attempt that is not begun because its deadline has passed."""
        self.came_late = True
        first = self.execution.attempt == 1
        return _timeout(self.execution, outcome="not_started" if first else "unknown")


def _timeout(execution: Execution, outcome: Outcome = "unknown") -> Timeout:
    allowed = ((execution.deadline_at or 0) - execution.created_at) // 1000
    return Timeout(
        f"Agent invocation timed out after {allowed}ms",
        details={"elapsed_ms": (now_us() - execution.created_at) // 1000},
        outcome=outcome,
    )

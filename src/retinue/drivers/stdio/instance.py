"""One worker that runs: its pipe, its questions, its health, its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retinue.domain.agent import AgentDefinition
from retinue.domain.instance import InstanceState
from retinue.domain.supervision import Departure
from retinue.drivers.stdio.calls import Calls
from retinue.drivers.stdio.config import announced
from retinue.drivers.stdio.lifecycle import Lifecycle
from retinue.drivers.stdio.performance import Performance, control_of
from retinue.drivers.stdio.pipe import Pipe, stamped
from retinue.errors import (
    AgentUnavailable,
    CommunicationError,
    InvalidInput,
    RetinueError,
    SpawnFailed,
)
from retinue.interfaces import DriverContext, Health, InstanceHandle, Job, Supervised
from retinue.process.child import Child
from retinue.process.ladder import Ladder, stop
from retinue.process.log import telling
from retinue.process.quarters import Quarters
from retinue.wire.envelope import Control, Error, Request
from retinue.wire.faults import error_of, fault_of
from retinue.wire.payloads import Asking, Ping, Provide, Ready, Shutdown
from retinue.wire.strict import BadFrame

MOST_SAID = 2_000
LAST_LINES = 5
AFTER_SECONDS = 1.0
"""How long each step after the protocol's own shutdown may take."""


class StdioInstance:
    """One process of a worker."""

    def __init__(
        self,
        worker: AgentDefinition,
        context: DriverContext,
        record: Supervised,
        child: Child,
        *,
        place: Quarters,
        tmp: Path,
        log: Callable[[bytes], None],
    ) -> None:
        self.handle = InstanceHandle(worker.agent_id, record.id)
        self.offers: Sequence[AgentDefinition] = ()
        self.lent = context
        self.child = child
        self.lifecycle = Lifecycle()
        self.questions: dict[str, Asking] = {}
        self._worker = worker
        self._record = record
        self._place = place
        self._tmp = tmp
        self._log = log
        self._masked = place.masked
        self._running: dict[str, Performance] = {}
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._asked_to_end = False
        self._why: str | None = None
        config = worker.config
        assert child.stdin is not None
        self._stdin = child.stdin
        self._stdin_at = 0
        self._asked: int | None = None
        self.pipe = Pipe(
            child,
            config.line_bytes,
            on_control=self._control,
            on_request=self._request,
            on_error=self._refused,
            on_bad=self._no_frame,
            on_rubbish=self._rubbish,
            note=self.note,
            frame_log=config.frame_log,
            most_bad=config.max_bad_lines,
        )
        self._calls = Calls(self.pipe, context, self.handle.agent_id, config.line_bytes)
        self._reading = asyncio.create_task(self.pipe.run())

    # -- its beginning -------------------------------------------------------------------------

    async def ready(self) -> Ready:
        """Return what it announces.

        Raises:
            SpawnFailed: it ends before that, or says that it cannot.
        """
        first: set[asyncio.Future[Any]] = {self._ready, self._reading}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not self._ready.done():
            if not self._reading.cancelled():
                self._reading.result()
            raise await self._not_ready()
        return self._ready.result()

    async def _not_ready(self) -> SpawnFailed:
        self.child.kill()
        await self.child.wait_gone()
        said = self._said()
        status = self.child.exit
        details = {"exit_code": status.code if status is not None else None, "stderr": said}
        over = self.pipe.over.message if self.pipe.over is not None else "the worker ended"
        return SpawnFailed(f"{over} before it was ready{last_words(said)}", details=details)

    def _said(self) -> str:
        """Return the end of what it wrote on stderr."""
        tail = self._masked(self.child.stderr.tail.decode("utf-8", "replace"))
        return tail.strip()[-MOST_SAID:]

    # -- what it is asked ----------------------------------------------------------------------

    @property
    def last_event(self) -> float:
        """When it was last heard of: now, where we or a person keep it from being heard."""
        return time.monotonic() if self._kept_waiting else self.pipe.last_frame

    @property
    def pid(self) -> int | None:
        """Its process's id."""
        return self.child.pid

    @property
    def faults(self) -> Mapping[str, int]:
        """What was wrong with what it wrote: how often, by kind."""
        return self.pipe.reader.counts

    def excused(self, since: float) -> bool:
        """Say whether it could not be heard since then, by our fault or a person's.

        That it speaks is no excuse: a worker answers pings at once. That it still takes in what it
        was sent before the ping is one.
        """
        if self._kept_waiting or self.pipe.last_held > since:
            return True
        asked = self._asked
        return asked is not None and self._stdin_at < self._stdin.bytes < asked

    @property
    def _kept_waiting(self) -> bool:
        return self.pipe.held or self._record.record.state is InstanceState.PAUSED

    @property
    def stage(self) -> str:
        """Specification 000's word for where it stands."""
        return self.lifecycle.stage.value

    def execute(self, job: Job, /) -> Performance:
        """Perform ``job``; see ``Instance``."""
        return Performance(self, job)

    def begin(self, performance: Performance, request: Request) -> None:
        """Send an execution's request."""
        if self._asked_to_end:
            raise AgentUnavailable("this process of the worker is being stopped; try again")
        self.pipe.begin(request, performance)
        self._running[performance.message_id] = performance
        self._record.busy(performance.job.execution)
        self.lifecycle.began()

    def done(self, performance: Performance, *, failed: bool) -> None:
        """Forget an execution."""
        if self._running.pop(performance.message_id, None) is not None:
            self._record.idle(performance.job.execution)
            self.lifecycle.ended(len(self._running), failed=failed)

    async def answer(self, question_id: str, answer: Any, /) -> None:
        """Hand in an answer, or the error that stands for it."""
        asking = self.questions.pop(question_id, None)
        if asking is not None:
            self.provide(asking, answer)

    def provide(self, asking: Asking, answer: Any) -> None:
        """Send an answer; one that is too large for a line is said to be so."""
        error = fault_of(answer) if isinstance(answer, RetinueError) else None
        ids = {"invoke_id": asking.invoke_id, "input_id": asking.input_id}
        value = answer if error is None else None
        try:
            self.pipe.ask(Provide(**ids, value=value, error=error))
        except InvalidInput as refused:
            self.pipe.ask(Provide(**ids, error=fault_of(refused)))
        except CommunicationError:
            pass  # it is gone, and so is who asked

    async def ping(self) -> Health:
        """Ask the process whether it is there."""
        if self._kept_waiting:
            return Health(True)
        try:
            self._stdin_at = self._stdin.bytes
            order = self.pipe.order(Ping())
            self._asked = self._stdin.offered
            answer = await order
        except RetinueError as error:
            return Health(False, error.message)
        if answer.get("status") != "pong":
            return Health(False, f"it answered a ping with {str(answer.get('status'))[:80]!r}")
        return Health(True)

    # -- what it says --------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Have a line in its log."""
        self._log(stamped(self._masked(text)))

    def _control(self, frame: Control) -> None:
        try:
            ready = announced(frame.payload)
            said = control_of(frame.payload) if ready is None else None
        except SpawnFailed as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            return
        except InvalidInput as error:
            why = error.message
            self.pipe.stray("invalid_frame", lambda: why)
            return
        if ready is not None:
            if not self._ready.done():
                self._ready.set_result(ready)
                self.lifecycle.ready()
            return
        performance = self._running.get(frame.correlation_id or "")
        if said is None or performance is None:
            if "operation" in frame.payload:
                text = str(frame.payload)[:200]
                self.pipe.complaints.say(lambda: f"a control frame of no use: {text}")
        elif isinstance(said, Asking):
            performance.asked(said)
        else:
            performance.noted(said)

    def _request(self, frame: Request) -> None:
        """Have done what an agent of the worker wants of others."""
        performance = self._running.get(frame.correlation_id or "")
        call = self._calls.begin(frame, performance.job if performance is not None else None)
        if call is not None and performance is not None:
            performance.calls(call)

    def _no_frame(self, bad: BadFrame) -> None:
        """Take in a line that is none: who sent it as a request waits for an answer."""
        self._calls.refuse_bad(bad)

    def _rubbish(self, why: str) -> None:
        """End it: what it writes is no protocol."""
        self.because(why)
        self.child.kill()

    def _refused(self, frame: Error) -> None:
        """Take in an error about nothing that was asked: before it is ready it cannot start."""
        if not self._ready.done():
            error = error_of(frame.payload)
            self._ready.set_exception(
                error if isinstance(error, SpawnFailed) else SpawnFailed(error.message)
            )

    # -- its end -------------------------------------------------------------------------------

    async def ended(self) -> Departure:
        """Return how it ended, once nothing is left of it."""
        await self._reading
        closed = self.child.exit is None
        if closed:
            await stop(self.child, Ladder(stdin=AFTER_SECONDS, grace=None))
        status = await self.child.wait()
        self.child.kill()
        await self.child.wait_gone()
        self.lifecycle.over(asked=self._asked_to_end)
        await self._place.leave(self._tmp)
        why = "the worker closed its output" if closed else f"the worker {status}"
        if self._why is not None:
            why = self._why
        elif status.code != 0:
            why += last_words(self._said())
        clean = status.code == 0 and status.reason is None and not closed
        return Departure(clean, why, asked=self._asked_to_end)

    def because(self, why: str, /) -> None:
        """Note why it is about to be ended, which it did not ask for."""
        self._why = self.pipe.why = self._why or why
        if self.child.exit is None:
            self._record.draining(why)

    async def stop(self, grace: float, /) -> None:
        """Have it shut down within ``grace`` seconds, else end it; nothing of it is left."""
        self._asked_to_end = True
        self.lifecycle.over(asked=True)
        if self.child.exit is None:
            self._record.draining(self._why)
        if not grace:
            self.child.kill()
            await self.child.wait_gone()
            return
        ladder = Ladder(cancel=grace, stdin=AFTER_SECONDS, grace=AFTER_SECONDS)
        await stop(self.child, ladder, self._shut_down(grace))

    def _shut_down(self, grace: float) -> Callable[[], Any]:
        async def ask() -> None:
            self.pipe.order(Shutdown(reason="graceful", timeout_ms=grace * 1000))

        return ask


def last_words(said: str) -> str:
    """Return what a program said last on stderr, for the end of a sentence."""
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    return ": " + " | ".join(telling(lines, LAST_LINES)) if lines else ""

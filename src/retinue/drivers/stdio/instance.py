"""One worker that runs: its pipe, its questions, its health, its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from retinue.domain.agent import AgentDefinition
from retinue.domain.instance import InstanceState
from retinue.domain.supervision import Departure
from retinue.drivers.stdio.calls import perform_call
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
from retinue.process.quarters import Quarters
from retinue.wire import envelope
from retinue.wire.envelope import Control, Request
from retinue.wire.faults import error_of, fault_of
from retinue.wire.payloads import Asking, Ping, Provide, Ready, Shutdown

MOST_SAID = 2_000
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
        config = worker.config
        self.pipe = Pipe(
            child,
            config.line_bytes,
            on_control=self._control,
            on_request=self._request,
            on_error=self._refused,
            note=self.note,
            frame_log=config.frame_log,
        )
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
        said = self._masked(self.child.stderr.tail.decode("utf-8", "replace").strip()[-MOST_SAID:])
        status = self.child.exit
        details = {"exit_code": status.code if status is not None else None, "stderr": said}
        over = self.pipe.over.message if self.pipe.over is not None else "the worker ended"
        last = f": {said.splitlines()[-1]}" if said else ""
        return SpawnFailed(f"{over} before it was ready{last}", details=details)

    # -- what it is asked ----------------------------------------------------------------------

    @property
    def last_event(self) -> float:
        """When it was last heard of: now, where we or a person keep it from being heard."""
        return time.monotonic() if self._kept_waiting else self.pipe.last_frame

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
            answer = await self.pipe.order(Ping())
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
            self.pipe.reader.count("invalid_frame")
            self.note(f"bad frame (invalid_frame): {error.message}")
            return
        if ready is not None:
            if not self._ready.done():
                self._ready.set_result(ready)
                self.lifecycle.ready()
            return
        performance = self._running.get(frame.correlation_id or "")
        if said is None or performance is None:
            if "operation" in frame.payload:
                self.note(f"a control frame of no use: {str(frame.payload)[:200]}")
        elif isinstance(said, Asking):
            performance.asked(said)
        else:
            performance.noted(said)

    def _request(self, frame: Request) -> None:
        """Have done what an agent of the worker wants of others."""
        performance = self._running.get(frame.correlation_id or "")
        if performance is None:
            error = InvalidInput(
                "a request says by its correlation_id for which request it is made",
                details={"path": "$.correlation_id"},
            )
            self.pipe.send(envelope.error(frame.message_id, fault_of(error)))
            return
        call = perform_call(self.pipe, self.lent, self.handle.agent_id, performance.job, frame)
        performance.calls(asyncio.create_task(call))

    def _refused(self, frame: envelope.Error) -> None:
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
        said = self._masked(self.child.stderr.tail.decode("utf-8", "replace").strip()[-MOST_SAID:])
        if said and status.code != 0:
            why += f": {said.splitlines()[-1]}"
        clean = status.code == 0 and status.reason is None and not closed
        return Departure(clean, why, asked=self._asked_to_end)

    async def stop(self, grace: float, /) -> None:
        """Have it shut down within ``grace`` seconds, else end it; nothing of it is left."""
        self._asked_to_end = True
        self.lifecycle.over(asked=True)
        if self.child.exit is None:
            self._record.draining()
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

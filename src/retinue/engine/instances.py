"""The processes that this worker supervises: each is in the store before it runs, and to its end.

Agents that are objects of our own process are not here and cost nothing. What a driver says of an
instance (it runs, it is busy, it drains) is true here at once and in the store soon after, in
order; only the intention to start one is waited for. What one works on that lives long is written
when that has lasted a while: not for every short call. Nobody else writes its row while we live.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from retinue.domain.execution import Execution
from retinue.domain.ids import now_us, ulid
from retinue.domain.instance import InstanceRecord, InstanceState
from retinue.domain.intent import PutInstance, SaveInstance
from retinue.domain.result import Ok
from retinue.errors import Fenced, SpawnFailed
from retinue.interfaces import STALL_SECONDS, Birth, Exited, Process, Store
from retinue.process.remains import Remains

log = logging.getLogger(__name__)
CLOSE_SECONDS = 5.0
WORK_SECONDS = 1.0
"""How long something is worked on, or nothing is, before the store is told."""
MEASURE_SECONDS = 5.0
"""How often what is measured of an instance that somebody looks at is stored."""
_WORKING = frozenset({InstanceState.READY, InstanceState.BUSY})
_PAUSABLE = frozenset({InstanceState.READY, InstanceState.BUSY, InstanceState.STARTING})


class Live:
    """One instance that this process supervises: what the driver says of it, and its process."""

    def __init__(
        self,
        book: Instances,
        record: InstanceRecord,
        stop: Stop | None,
        birth: Birth | None = None,
    ) -> None:
        self.record = record
        self.seen = record.seen()
        self.process: Process | None = None
        self.stop = stop
        self.why: str | None = None
        """Why a person has it stopped."""
        found = record.found()
        self.stall_seconds = float(found.get("stall_seconds", STALL_SECONDS))
        self.pings = birth is not None and birth.pings
        self.halted: list[Callable[[], None]] = []
        """Lets deadlines go on that stand still while it is paused."""
        self._told = birth is not None and birth.told
        self._thinks = False
        self._last_word: str | None = None
        self._settled = False
        self._stopped = False
        self._measured_at = time.monotonic()
        self._stalled = False
        self._work: dict[str, Execution] = {}
        self._written: tuple[InstanceState, str | None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._book = book
        self._before: InstanceState | None = None
        self._dirty = False
        self._saving: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """The instance's id: also the name of its process at the keeper."""
        return self.record.instance_id

    # -- what the driver says ------------------------------------------------------------------

    def started(self, process: Process, handle: dict[str, Any] | None = None) -> None:
        """Note that its process runs; ``handle`` is added to what was known."""
        self.process = process
        at = now_us()
        self.record.started_at = at
        self.record.handle = msgspec.json.encode(
            {**self.record.found(), **_place(process), **(handle or {})}
        )
        if self.record.state is InstanceState.STARTING:
            busy = self.record.execution_id is not None
            self.record.to(InstanceState.BUSY if busy else InstanceState.READY, at)
        self._note()
        self._save()
        process.when_exited(self._exited)

    def busy(self, execution: Execution) -> None:
        """Note that it works on ``execution`` now, beside what it works on already."""
        self._work[execution.id] = execution
        self._works()

    def idle(self, execution: Execution) -> None:
        """Note that it works on ``execution`` no longer."""
        self._work.pop(execution.id, None)
        self._works()

    def _works(self) -> None:
        """Show what it works on, the oldest first; one that has ended keeps what it worked on."""
        if self.record.ended:
            return
        first = next(iter(self._work.values()), None)
        self.record.execution_id = first.id if first is not None else None
        self.record.attempt = first.attempt if first is not None else None
        self._move(InstanceState.BUSY if first is not None else InstanceState.READY)
        if self._later is None:
            loop = asyncio.get_running_loop()
            self._later = loop.call_later(WORK_SECONDS, self._lasted)

    def _lasted(self) -> None:
        self._later = None
        if not self.record.ended and self._written != (self.record.state, self.record.execution_id):
            self._save()

    @property
    def work(self) -> list[str]:
        """The executions it works on, the oldest first."""
        if self._work or self.record.execution_id is None:
            return list(self._work)
        return [self.record.execution_id]

    @property
    def hears(self) -> bool:
        """Whether people may write to its stdin, and it is open."""
        return self._told and self.process is not None and self.process.hears

    def draining(self, reason: str | None = None) -> None:
        """Note that it takes nothing more and is to end."""
        self._to(InstanceState.DRAINING, self.why or reason)

    def thinking(self, on: bool, /) -> None:
        """Note that it thinks, or does something else again; that is not written by itself."""
        if self._thinks is not on and not self.record.ended:
            self._thinks = on
            self._note()

    def judged(self, reason: str | None, /) -> None:
        """Note its own last word: why it failed, or None: it succeeded.

        Its end may have been seen before: what it wrote last is read after it.
        """
        if self._settled:
            return
        self.seen.status = "completed" if reason is None else "failed"
        if self.record.ended and self.word != self.seen.timeline[-1].status:
            if reason is not None:
                self.record.reason = reason
            self._note()
            self._save()
        elif not self.record.ended:
            self._last_word = reason

    @property
    def word(self) -> str:
        """Specification 001's word for where it stands."""
        record = self.record
        if record.ended:
            return self.seen.status or record.word
        if record.state is InstanceState.BUSY and self._thinks:
            return "thinking"
        return "paused" if self.stopped else record.word

    @property
    def stopped(self) -> bool:
        """Whether a signal of somebody else had it stand still when it was last looked at."""
        return self._stopped and self.record.state in _PAUSABLE

    @property
    def unmeasured(self) -> float:
        """For how many seconds what it uses has not been stored."""
        return time.monotonic() - self._measured_at

    def note_stalled(self, stalled: bool) -> bool:
        """Note whether its work brings nothing; say whether that is news."""
        if stalled is self._stalled or self.record.ended:
            return False
        self._stalled = stalled
        self.seen.moved(now_us(), self.word, "stalled" if stalled else self.record.reason)
        self._save()
        return True

    def _note(self) -> None:
        """Have the timeline say where it stands."""
        self.seen.moved(now_us(), self.word, self.record.reason)

    def failed(self, reason: str) -> None:
        """Note that it is over without an exit that we know: it could not be started."""
        self._end(InstanceState.FAILED, reason)

    def let_go(self) -> None:
        """Note that it goes on without us: whoever finds it writes its record from now on."""
        self._book.forget(self)

    def found(self, process: Process) -> None:
        """Note that its process, begun under an earlier server, is ours now."""
        self.process = process
        if process.pid:
            self.record.handle = msgspec.json.encode({**self.record.found(), **_place(process)})
        self.record.started_at = self.record.started_at or now_us()
        if self.record.state in {InstanceState.STARTING, InstanceState.LOST}:
            self._to(InstanceState.BUSY)
        self.seen.moved(now_us(), self.word, "found by the next server")
        self._save()
        process.when_exited(self._exited)

    def _to(self, state: InstanceState, reason: str | None = None) -> None:
        if not self.record.ended and self.record.state is not state:
            self._move(state, reason)
            self._save()

    def _move(self, state: InstanceState, reason: str | None = None) -> None:
        record = self.record
        if record.state is state:
            return
        if record.state is InstanceState.PAUSED and state is not InstanceState.DRAINING:
            self._before = state  # where it goes on when it is let
        elif state is InstanceState.DRAINING or record.state is not InstanceState.DRAINING:
            record.to(state, now_us(), reason)
            if not (self.pings and state in _WORKING):  # a worker does so a thousand times a second
                self._note()

    def _exited(self, status: Exited) -> None:
        record = self.record
        if record.ended:
            return
        self.count()
        record.exit_code, record.exit_signal = status.code, status.signal
        self.seen.measured_at = now_us()
        record.cpu_us = max(record.cpu_us, int(status.cpu * 1_000_000))
        record.peak_bytes = max(record.peak_bytes, status.peak)
        ours = status.reason == "killed" or (
            record.state is InstanceState.DRAINING and status.reason is None
        )
        if status.reason not in {None, "killed"}:
            self.seen.status, self._settled = None, True  # a limit, or nobody knows
            self._end(InstanceState.FAILED, status.reason)
        elif self.seen.status is not None:
            good = self.seen.status == "completed"
            self._end(InstanceState.STOPPED if good else InstanceState.FAILED, self._last_word)
        elif ours:
            # Who stopped it counts, not the code it found to exit with.
            self.seen.status = "terminated"
            self._end(InstanceState.STOPPED, record.reason or status.reason)
        elif status.code == 0:
            self._end(InstanceState.STOPPED, None)
        else:
            self._end(InstanceState.FAILED, str(status))

    def _end(self, state: InstanceState, reason: str | None) -> None:
        if not self.record.ended:
            self.record.to(state, now_us(), reason)
            self._note()
            self._save()
            self.go_on()

    def go_on(self) -> None:
        """Let the deadlines go on that stood still while it was paused."""
        halted, self.halted = self.halted, []
        for release in halted:
            release()

    # -- what a person asks --------------------------------------------------------------------

    async def pause(self) -> bool:
        """Stop its whole tree where it is; return whether it was running."""
        record = self.record
        if self.process is None or record.state not in _PAUSABLE:
            return False
        await self.process.pause()
        if record.state not in _PAUSABLE:
            return False  # it ended meanwhile
        self._before = record.state
        record.to(InstanceState.PAUSED, now_us(), "paused")
        self._note()
        self._save()
        await self.settled()
        return True

    async def resume(self) -> bool:
        """Let it go on; return whether it was paused, or stopped by somebody's signal."""
        record = self.record
        if self.process is None or record.ended:
            return False
        if record.state is not InstanceState.PAUSED:
            await self.measure()
            if not self.stopped:
                return False
        await self.process.resume()
        self._stopped = False
        if record.state is InstanceState.PAUSED:
            record.to(self._before or InstanceState.BUSY, now_us())
        self._note()
        self._save()
        self.go_on()
        await self.settled()
        return True

    async def measure(self) -> dict[str, Any]:
        """Return what its tree uses now (empty: it does not run), and keep it."""
        try:
            used = await self.process.usage() if self.process is not None else {}
        except SpawnFailed:
            used = {}  # its keeper died, and it with it: that is about to be heard
        if used and not self.record.ended:
            self.record.cpu_us = max(self.record.cpu_us, int(used["cpu"] * 1_000_000))
            self.record.peak_bytes = max(self.record.peak_bytes, used["peak"])
            if self._stopped is not used["stopped"]:
                self._stopped = used["stopped"]
                self.seen.moved(
                    now_us(), self.word, "stopped by a signal" if self.stopped else None
                )
            self.seen.measured_at = now_us()
            if time.monotonic() - self._measured_at >= MEASURE_SECONDS:
                # Should we be killed, these are its last values.
                self._measured_at = time.monotonic()
                self._save()
        self.count()
        return used

    def count(self) -> None:
        """Take in how many messages went in and out."""
        if self.process is not None:
            self.record.messages_in, self.record.messages_out = self.process.messages
            heard = self.process.heard
            self.seen.dropped, self.seen.refused = heard.dropped, heard.refused
            self.seen.log_lost = heard.log_lost

    # -- to the store --------------------------------------------------------------------------

    def _save(self) -> None:
        self._dirty = True
        if self._saving is None:
            self._saving = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._dirty and not self._book.closed:
                self._dirty = False
                self.count()
                self.record.show(self.seen)
                self._written = self.record.state, self.record.execution_id
                answer = await self._book.write(SaveInstance(replace(self.record)))
                if not isinstance(answer, Ok):
                    log.warning("instance %s is not ours any more: %s", self.id, answer)
                    break
        except Exception:
            log.exception("instance %s: how it stands is not in the store", self.id)
        finally:
            self._saving = None
        if self.record.ended:
            self._book.forget(self)

    async def settled(self) -> None:
        """Return once the store has all that was said."""
        if self._saving is not None:
            await asyncio.wait({self._saving})


_ENDED = "its server was killed, or is not heard of: it was ended"


def _place(process: Process) -> dict[str, int]:
    return {"pid": process.pid, "start": process.start}


Stop = Callable[[float], Awaitable[object]]
"""How a driver stops an instance, with the seconds it is given."""


class Instances:
    """The instances of this worker. ``write`` waits for a store that is away."""

    def __init__(self, store: Store, write: Callable[[Any], Awaitable[Any]]) -> None:
        self._store = store
        self.write = write
        self.live: dict[str, Live] = {}
        self.closed = False
        self.node = platform.node()

    async def begin(self, birth: Birth, stop: Stop | None = None) -> Live:
        """Record that a process is about to be started; on return that is durable.

        Raises:
            Fenced: this worker's epoch is over: nothing may be started.
        """
        at = now_us()
        execution = birth.execution
        record = InstanceRecord(
            instance_id=birth.instance_id or ulid(),
            owner=birth.owner,
            agent_id=birth.agent_id,
            driver=birth.driver,
            node=self.node,
            worker=self._store.worker,
            execution_id=execution.id if execution is not None else None,
            attempt=execution.attempt if execution is not None else None,
            state=InstanceState.STARTING,
            kept=int(birth.kept),
            handle=msgspec.json.encode({**birth.handle, "stall_seconds": birth.stall_seconds}),
            created_at=at,
            state_at=at,
        )
        live = Live(self, record, stop, birth)
        live.seen.moved(at, record.word, None)
        record.show(live.seen)
        self.live[live.id] = live
        try:
            if not isinstance(await self.write(PutInstance(replace(record))), Ok):
                raise Fenced
        except asyncio.CancelledError:
            live.failed("it was not started")  # the row may be there all the same
            raise
        except BaseException:
            self.forget(live)
            raise
        return live

    def here(self, instance_id: str) -> Live | None:
        """Return an instance that this process supervises."""
        return self.live.get(instance_id)

    def take_over(self, record: InstanceRecord, process: Process) -> Live:
        """Supervise an instance that an earlier server began, now that its row is ours."""
        live = self.live[record.instance_id] = Live(self, record, None)
        live.found(process)
        return live

    async def bury(self, record: InstanceRecord, remains: Remains | None = None) -> None:
        """Record the end of what a dead worker supervised.

        What was on this node died with its server, or was ended now: ``remains``. What is on
        another node, or could not be ended, is lost to view until somebody says more.
        """
        if remains is not None and remains.left:
            goes_on = f"process {', '.join(map(str, remains.left))} goes on and cannot be ended"
            record.to(InstanceState.LOST, now_us(), f"its server is not heard of; {goes_on}")
        elif remains is not None and remains.ended:
            record.to(InstanceState.FAILED, now_us(), _ENDED)
        elif record.node == self.node:
            record.to(InstanceState.FAILED, now_us(), "its server was killed")
        else:
            record.to(InstanceState.LOST, now_us(), f"nothing is heard of {record.node}")
        seen = record.seen()
        seen.moved(record.state_at, record.word, record.reason)
        record.show(seen)
        await self._store.write(SaveInstance(record))

    def forget(self, live: Live) -> None:
        """Let go of an instance that has ended: the store has its last values."""
        self.live.pop(live.id, None)

    async def close(self) -> None:
        """Write what is still to be said of every instance; nothing is written from then on."""
        saving = {live._saving for live in self.live.values() if live._saving is not None}
        left: set[asyncio.Task[None]] = set()
        if saving:
            _, left = await asyncio.wait(saving, timeout=CLOSE_SECONDS)
        self.closed = True
        for task in left:  # the store is away: the next start says what became of them
            task.cancel()

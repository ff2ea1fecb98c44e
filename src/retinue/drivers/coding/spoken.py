"""A turn with a process of its own, which is spoken with until the turn ends, and then ended.

A subclass says how the process is started, what it is told first, how its messages are read, and
how its work is called off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retinue.domain.execution import Execution
from retinue.domain.instance import InstanceRecord, InstanceState
from retinue.domain.principal import LOCAL
from retinue.drivers.coding.talk import MOST_LINE, Refusals, Talk, read
from retinue.drivers.coding.told import MOST_EVENTS
from retinue.drivers.coding.turn import Turn
from retinue.errors import Cancelled, CommunicationError, RetinueError, SpawnFailed, said
from retinue.interfaces import Birth, Job, Supervised
from retinue.process.child import Child, Streams
from retinue.process.ladder import Ladder, stop
from retinue.process.reading import Bounds, Counts
from retinue.wire.jsonrpc import RpcError

if TYPE_CHECKING:
    from retinue.drivers.coding.driver import CodingInstance

FINISH_SECONDS = 2.0


class SessionLost(Exception):
    """The CLI does not know its own earlier session any more; nothing was done yet."""


class Begun(NamedTuple):
    """A process of an agent's CLI that was started: its TMPDIR, and its place on record."""

    child: Child
    tmp: Path
    record: Supervised

    @property
    def paused(self) -> bool:
        """Whether a person has stopped it where it is."""
        return self.record.record.state is InstanceState.PAUSED


async def spawn(
    instance: CodingInstance,
    name: str,
    argv: list[str],
    more: dict[str, str],
    *,
    stdin: bool,
    execution: Execution | None = None,
    end: Callable[[float], Awaitable[object]] | None = None,
) -> Begun:
    """Start a process of an agent's CLI, on record before it runs.

    ``execution`` is what it is started for, if for one; ``end`` stops it otherwise.

    Raises:
        SpawnFailed: it cannot be started, or is to run in a sandbox and this host has none.
        Fenced: this worker's epoch is over.
    """
    place = instance.place
    tmp, log = await asyncio.to_thread(place.begin, name)
    birth = Birth(
        agent_id=instance.handle.agent_id,
        owner=execution.owner if execution is not None else LOCAL,
        driver=instance.driver,
        handle={"scope": place.ground.link.scope, "log": str(log)},
        execution=execution,
    )
    streams = Streams(
        Bounds(line_bytes=MOST_LINE, most_bytes=2 * MOST_LINE),
        Bounds(lines=False, most=0, when_full="drop"),
        place.log(log),
    )
    try:
        command = await place.command(argv, tmp, more=more, stdin=stdin)
        record = await instance.lent.instances.begin(birth, end)
        try:
            child = await place.spawn(command, streams, record.id)
        except BaseException:
            record.failed("it was not started")
            raise
    except BaseException:
        await place.leave(tmp)
        raise
    record.started(child)
    return Begun(child, tmp, record)


class SpokenTurn(Turn):
    """One process per turn."""

    ladder = Ladder(cancel=5.0, stdin=1.0)
    finish_seconds = FINISH_SECONDS
    stdin = True

    def __init__(self, instance: CodingInstance, job: Job) -> None:
        super().__init__(instance, job)
        self.talk: Talk | None = None
        self._begun: Begun | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._greeting: asyncio.Task[None] | None = None
        self._refusals = Refusals(Counts())
        self._changing = asyncio.Lock()
        self._starts = 0
        self.line = b""
        """The line that is being heard."""

    # -- what subclasses say -------------------------------------------------------------------

    def arguments(self) -> list[str]:
        """Return the arguments after the program; ``native`` is the session to go on with."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return variables that the CLI needs, where the operator does not set them."""
        return {}

    async def greet(self) -> None:
        """Say what has to be said until the turn runs."""
        raise NotImplementedError

    def hear(self, message: dict[str, Any]) -> None:
        """Take in a message."""
        raise NotImplementedError

    def heard_text(self, line: str) -> None:
        """Take in a line that is no message."""
        if line.strip():
            self.warn(f"not a message: {line[:2000]}")

    async def call_off(self) -> None:
        """Have the work stopped in the protocol's own way; return when it says that it was."""
        raise NotImplementedError

    @property
    def paused(self) -> bool:
        """Whether a person has stopped its process where it is."""
        return self._begun is not None and self._begun.paused

    @property
    def record(self) -> InstanceRecord | None:
        """Its process, on record, once that is started."""
        return self._begun.record.record if self._begun is not None else None

    # -- the process ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the process and the task that hears it."""
        await self._spawn()
        self._hearing = asyncio.create_task(self._hear())

    async def _spawn(self) -> None:
        self._starts += 1
        execution = self.job.execution
        name = f"{execution.id}-{execution.attempt}" + ("b" if self._starts > 1 else "")
        argv, more = self.arguments(), self.environment()
        self._begun = await spawn(
            self.instance, name, argv, more, stdin=self.stdin, execution=execution
        )
        self.talk = Talk(self._begun.child)
        self._greeting = asyncio.create_task(self._greet())

    async def _greet(self) -> None:
        try:
            await self.greet()
        except SessionLost:
            raise
        except RpcError as error:
            self.fail(SpawnFailed(f"{self.config.kind}: {error}", details={"code": error.code}))
        except RetinueError as error:
            self.fail(error)
        except Exception as error:
            self.fail(CommunicationError(f"{self.config.kind}: {said(error)}"))

    async def _hear(self) -> None:
        try:
            try:
                await self._listen()
            except SessionLost:
                await self._begin_anew()
                await self._listen()
        except (RetinueError, RpcError) as error:
            self.fail(error if isinstance(error, RetinueError) else CommunicationError(str(error)))
        except SessionLost as error:
            self.fail(CommunicationError(said(error)))
        except Exception as error:
            self.misunderstood(error)

    async def _listen(self) -> None:
        talk = self.talk
        assert talk is not None
        self._refusals = Refusals(talk.child.stdout.counts)

        async def pause() -> None:
            self.heard()
            self.look()
            if self.full:
                await self.room()

        await talk.lines(self._take, pause)
        self.look()
        if not self.ended.is_set():
            status = await talk.child.wait()
            await talk.child.stderr.next()  # its end: what was said last is there now
            self.gone(talk.child)
            why = self.instance.place.failure(talk.child, status, "before its turn had ended")
            why = self.without(why)
            await self.settle(why)
            self.fail(why)

    def gone(self, child: Child) -> None:
        """Look at a process that has ended without a last word; it may raise ``SessionLost``."""

    async def settle(self, why: RetinueError) -> None:
        """Take up what was said last; whoever waits for more is told why there is none."""

    def lost_if(self, lost: bool) -> None:
        """Raise ``SessionLost`` when that is so, and a session was to be gone on with."""
        if lost and self.native is not None and not self._held and self._starts == 1:
            raise SessionLost("its process has ended")

    def _take(self, line: bytes) -> bool:
        refusals = self._refusals
        if refusals.counts.oversize_lines != refusals.lines:
            self.look()
        self.line = line
        message = read(line)
        try:
            if isinstance(message, str):
                self.heard_text(message)
            else:
                self.hear(message)
        except (SessionLost, RetinueError):
            raise
        except Exception as error:
            self.misunderstood(error)  # and hear on: it is told to stop, and says when it has
        return len(self._events) >= MOST_EVENTS

    def look(self) -> None:
        """Take note of lines that were too long."""
        news = self._refusals.news()
        if news is not None:
            self.missed(news)

    async def _begin_anew(self) -> None:
        """Begin a new session of the CLI's where the earlier one is lost, unless it is over."""
        lost = self.native.native_session if self.native is not None else ""
        self.native = None
        self.warn(f"{self.config.kind} does not know its session {lost} any more: it begins anew")
        async with self._changing:  # whoever ends the turn ends the new process, or there is none
            await self._end_process(0.0)
            if self.over or self.ended.is_set():
                raise Cancelled("the turn was ended before it began anew", outcome="not_started")
            await self._spawn()

    # -- its end -------------------------------------------------------------------------------

    async def close(self, grace: float) -> None:
        """End the process and everything it started; remove its TMPDIR."""
        async with self._changing:
            await self._end_process(grace)
        if self._hearing is not None:
            self._hearing.cancel()
            await asyncio.wait({self._hearing})

    async def _end_process(self, grace: float) -> None:
        if self.talk is not None:
            child = self.talk.child
            done = self.ended.is_set() and self.error is None
            if self._begun is not None and done:
                self._begun.record.judged(None)  # its turn went well, whoever ends it now
            if self._begun is not None and child.exit is None:
                self._begun.record.draining()
            if done:
                self.talk.close()
                await _within(child.wait(), self.finish_seconds)
            ladder = Ladder(
                cancel=None if done or not grace else self.ladder.cancel,
                stdin=None if done or not grace else self.ladder.stdin,
                grace=grace or None,
                number=self.ladder.number,
            )
            await stop(child, ladder, self._call_off)
        if self._greeting is not None:
            self._greeting.cancel()
            await asyncio.wait({self._greeting})
        if self._begun is not None:
            await self.instance.place.leave(self._begun.tmp)
            self._begun = None

    async def _call_off(self) -> None:
        """Have the work called off, then let the process end: most stay until their input ends."""
        if self.talk is None:
            return
        work = {
            asyncio.ensure_future(self.call_off()),
            asyncio.ensure_future(self.talk.child.wait()),
        }
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in work:
                one.cancel()
            await asyncio.wait(work)
        for one in done:
            one.result()
        await self.talk.sent()
        self.talk.close()


async def _within(work: Any, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        pass

"""One execution by one process: what goes in, what comes out as events, how it ends.

The outcome is the output's own last word where it has one (``json-lines``), else the exit code.
Leaving the context ends the process step by step; nothing of its tree and its TMPDIR is left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from retinue.domain.event import EventData, EventType
from retinue.drivers.command.config import arguments, stdin_of
from retinue.drivers.command.dialect import DIALECTS
from retinue.drivers.command.kept import Place, Progress, prepare, streams_of
from retinue.errors import (
    AgentFailed,
    CommunicationError,
    ExecutionError,
    InvalidResult,
    RetinueError,
    SpawnFailed,
)
from retinue.interfaces import Birth, Job, Supervised
from retinue.process.child import Child, Exit, Streams
from retinue.process.ladder import Ladder, stop
from retinue.process.link import Command
from retinue.process.reading import Bounds
from retinue.process.spool import SpoolReader

if TYPE_CHECKING:
    from retinue.drivers.command.driver import CommandInstance

MOST_SAID = 2_000
MOST_REASON = 200
MOST_UNREAD = 1 << 20
"""Bytes of its output that are read and not yet taken in; then it waits in its write."""
FINISH_SECONDS = 2.0


class Performance:
    """One execution by one process: an async context manager that iterates its events."""

    def __init__(
        self,
        instance: CommandInstance,
        job: Job,
        found: tuple[Supervised, Child] | None = None,
    ) -> None:
        self._instance = instance
        self._job = job
        self.execution_id = job.execution.id
        self.name = f"{job.execution.id}-{job.execution.attempt}"
        self._dialect = DIALECTS[instance.config.output](instance.lent.max_result_bytes)
        self._events: deque[EventData] = deque()
        self._child: Child | None = None
        self._record: Supervised | None = None
        self._tmp: Path | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._refused = 0
        self._over = False
        self._progress: Progress | None = None
        self._left = False
        self._half = False
        if found is not None:
            self._found(*found)

    def _found(self, record: Supervised, child: Child) -> None:
        """Go on with what an earlier server began."""
        self._record, self._child = record, child
        self._tmp = Path(record.record.found()["tmp"])
        child.given = int(stdin_of(self._instance.config, self._job) is not None)
        behind = Place.read(self._job.execution.cursor, record.id)
        self._progress = Progress(record.id, behind)

    def let_go(self) -> bool:
        """Let the process go on without us, if it is kept; say whether it does."""
        if self._progress is None or self._child is None or self._record is None or self._over:
            return False
        self._left = True
        self._record.let_go()
        self._child.let_go()
        return True

    async def __aenter__(self) -> AsyncIterator[EventData]:
        self._instance.running.add(self)
        try:
            if self._child is None:
                await self._start()
        except BaseException:
            await asyncio.shield(self._instance.aside(self.end(0.0)))
            raise
        return self

    async def _start(self) -> None:
        instance, job = self._instance, self._job
        config, place = instance.config, instance.place
        argv = arguments(config, job)
        given = stdin_of(config, job)
        execution = job.execution
        tmp, log = await asyncio.to_thread(instance.begin, execution.id, execution.attempt)
        self._tmp = tmp
        command = await place.command(argv, tmp, stdin=given is not None)
        streams = Streams(
            Bounds(
                lines=self._dialect.lines,
                line_bytes=config.line_bytes,
                most_bytes=MOST_UNREAD,
            ),
            Bounds(lines=False, most=0, when_full="drop"),
            place.log(log),
        )
        link = place.ground.link
        handle = {"scope": link.scope, "log": str(log), "tmp": str(tmp)}
        if config.keep_running:
            command = await self._keep(command, log, given)
            streams = streams_of(log, lines=self._dialect.lines, line_bytes=config.line_bytes)
            handle |= {"kept": str(log), "keeper": link.address}
        birth = Birth(
            agent_id=instance.handle.agent_id,
            owner=execution.owner,
            driver="command",
            handle=handle,
            execution=execution,
            kept=config.keep_running,
            told=config.stdin_open,
            stall_seconds=config.stall_seconds,
        )
        self._record = await instance.lent.instances.begin(birth)
        self._child = await place.spawn(command, streams, self._record.id)
        if config.keep_running:
            self._child.given = int(given is not None)
        self._record.started(self._child)
        if config.keep_running:
            self._progress = Progress(self._record.id, Place())
        elif given is not None:
            self._feeding = asyncio.create_task(
                _feed(self._child, given, last=not config.stdin_open)
            )

    async def _keep(self, command: Command, directory: Path, given: bytes | None) -> Command:
        """Have the process read and write files: it is to go on when we are gone."""
        await self._instance.place.ground.link.start()
        try:
            await asyncio.to_thread(prepare, directory, given)
        except OSError as error:
            raise SpawnFailed(f"{error.filename} cannot be made: {error.strerror}") from error
        limits = {**command.limits, "spool_bytes": self._instance.config.spool_bytes}
        return msgspec.structs.replace(command, kept=str(directory), limits=limits)

    def __aiter__(self) -> AsyncIterator[EventData]:
        return self

    async def __anext__(self) -> EventData:
        child = self._child
        if child is None or self._over:
            raise StopAsyncIteration
        while not self._events:
            if self._dialect.ended:
                return self._completed(child)
            piece = await child.stdout.next()
            if piece is None:
                self._count(b"", child)
                if not self._emit([*self._dialect.rest(), *self._note_refused(child)], child):
                    return await self._concluded(child)
                continue
            if not self._dialect.lines:
                self._count(piece, child)
            self._emit([*self._dialect.take(piece), *self._note_refused(child)], child)
        return self._events.popleft()

    def _count(self, piece: bytes, child: Child) -> None:
        """Count the lines of text, of which a piece may be any number; none: a last half one."""
        counts = child.stdout.counts
        if piece:
            counts.lines += piece.count(b"\n") - 1  # the piece counted as one
            self._half = not piece.endswith(b"\n")
        elif self._half:
            counts.lines += 1
            self._half = False

    def _emit(self, events: list[EventData], child: Child) -> bool:
        """Hand events on, with their place in the output; say whether there were any.

        Those that an earlier server has journaled are left out.
        """
        for event in events:
            if event.type is not EventType.LOG and self._record is not None:
                self._record.thinking(event.type is EventType.THINKING)
        if self._progress is None or not isinstance(child.stdout, SpoolReader):
            self._events.extend(events)
            return bool(events)
        cursors = self._progress.cursors(len(events), child.stdout.position)
        for event, cursor in zip(events, cursors, strict=True):
            if cursor is not None:
                self._events.append(msgspec.structs.replace(event, cursor=cursor))
        return bool(events)

    def _note_refused(self, child: Child) -> list[EventData]:
        """Say once for each line that was too long to be read."""
        counts = child.stdout.counts
        if counts.oversize_lines <= self._refused:
            return []
        self._refused = counts.oversize_lines
        note = f"refused: {self._refusal(child)}"
        return [EventData(EventType.LOG, {"level": "warning", "message": note})]

    def _refusal(self, child: Child) -> str:
        """Say which lines were too long to be read, and what sets how long one may be."""
        counts = child.stdout.counts
        most = self._instance.config.line_bytes
        one = counts.oversize_lines == 1
        what = "a line" if one else f"{counts.oversize_lines} lines, the longest"
        return f"{what} of {counts.longest_refused} bytes; max_line_mb allows {most}"

    def _completed(self, child: Child) -> EventData:
        self._over = True
        try:
            result = self._dialect.result()
        except InvalidResult as error:
            if not self._dialect.ended and child.stdout.counts.oversize_lines:
                # One of them may have been the result: who reads this has to know.
                error.message += f"; refused: {self._refusal(child)}"
            self._judged(error)
            raise
        except AgentFailed as error:
            self._judged(error)
            raise
        self._judged(None)
        return EventData(EventType.COMPLETED, {"result": result})

    def _judged(self, error: RetinueError | None) -> None:
        """Have its record say what its own last word was, where its dialect has one."""
        if self._dialect.lines and self._record is not None:
            said = self._instance.place.masked(error.message) if error is not None else None
            self._record.judged(said and said[:MOST_REASON])

    async def _concluded(self, child: Child) -> EventData:
        """Judge by its exit; the output has ended without a last word."""
        status = await child.wait()
        await child.stderr.next()  # its end: what was said last is there now
        if status.code != 0:
            raise self._failure(child, status)
        return self._completed(child)

    def _failure(self, child: Child, status: Exit) -> RetinueError:
        instance = self._instance
        said = instance.place.last_said(child.stderr.tail, MOST_SAID)
        name = instance.config.command[0]
        details = {
            "exit_code": status.code,
            "signal": status.signal,
            "reason": status.reason,
            "stderr": said,
        }
        text = f"{name} {status}" + (f": {said.splitlines()[-1]}" if said else "")
        if child.stdout.counts.oversize_lines:
            text += f"; refused: {self._refusal(child)}"
        if status.code is None and status.reason is None:
            return CommunicationError(text, details=details)
        outcome = "unknown" if status.reason == "lost" else "failed"
        kind = CommunicationError if outcome == "unknown" else ExecutionError
        return kind(text, details=details)

    # -- the end -------------------------------------------------------------------------------

    async def __aexit__(self, _: object, error: BaseException | None, *__: object) -> None:
        grace = self._instance.config.stop_seconds
        ending = self._instance.aside(self.end(grace, _why(error)))
        await asyncio.shield(ending)

    async def end(self, grace: float, why: str | None = None) -> None:
        """End the process and everything it started, and say ``why``; remove its TMPDIR."""
        self._over = True
        if self._feeding is not None:
            self._feeding.cancel()
        record = self._record
        if self._left:
            self._instance.running.discard(self)
            return
        if self._child is not None and record is not None:
            if self._dialect.ended:
                await self._finished(self._child)
            if self._child.exit is None:
                record.draining(self._instance.place.masked(why) if why is not None else None)
            ladder = Ladder(grace=grace or None, number=self._instance.config.interrupt)
            await stop(self._child, ladder)
            self._child.close()
        elif record is not None:
            record.failed("it was not started")
        await self._clear()
        self._instance.running.discard(self)

    async def _clear(self) -> None:
        if self._tmp is None:
            return
        place = self._instance.place
        # What is kept is read again should we be killed before the end is in the store.
        await place.leave(self._tmp, read=self._progress is None)
        if self._progress is not None:
            self._instance.read[self.execution_id] = place.logs / self.name

    @staticmethod
    async def _finished(child: Child) -> None:
        """Let one that has said its last word end by itself: it may have things to save."""
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                await child.wait()
        except TimeoutError:
            pass


def _why(error: BaseException | None) -> str | None:
    """Return why what is left by ``error`` is to end: who cancels it says so."""
    if isinstance(error, RetinueError):
        return error.message[:MOST_REASON]
    if isinstance(error, asyncio.CancelledError) and error.args:
        return str(error.args[0])
    return None


async def _feed(child: Child, given: bytes, *, last: bool) -> None:
    """Give it its input while it reads; one that does not want it all says so by its exit."""
    try:
        await child.say(given, last=last)
    except CommunicationError:
        pass

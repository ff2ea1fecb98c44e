"""One execution by one process: what goes in, what comes out as events, how it ends.

The outcome is the output's own last word where it has one (``json-lines``), else the exit code.
Leaving the context ends the process step by step; nothing of its tree and its TMPDIR is left.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from retinue.domain.event import EventData, EventType
from retinue.drivers.command.config import arguments, stdin_of
from retinue.drivers.command.dialect import DIALECTS
from retinue.errors import CommunicationError, ExecutionError, RetinueError
from retinue.interfaces import Birth, Job, Supervised
from retinue.process.child import Child, Exit, Streams
from retinue.process.executable import refused
from retinue.process.ladder import Ladder, stop
from retinue.process.link import Command
from retinue.process.log import InstanceLog
from retinue.process.reading import Bounds

if TYPE_CHECKING:
    from retinue.drivers.command.driver import CommandInstance

MOST_SAID = 2_000
FINISH_SECONDS = 2.0


class Performance:
    """One execution by one process: an async context manager that iterates its events."""

    def __init__(self, instance: CommandInstance, job: Job) -> None:
        self._instance = instance
        self._job = job
        self._dialect = DIALECTS[instance.config.output](instance.lent.max_result_bytes)
        self._events: deque[EventData] = deque()
        self._child: Child | None = None
        self._record: Supervised | None = None
        self._tmp: Path | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._refused = 0
        self._over = False

    async def __aenter__(self) -> AsyncIterator[EventData]:
        self._instance.running.add(self)
        try:
            await self._start()
        except BaseException:
            await asyncio.shield(self._instance.aside(self.end(0.0)))
            raise
        return self

    async def _start(self) -> None:
        instance, job = self._instance, self._job
        config = instance.config
        argv = arguments(config, job)
        given = stdin_of(config, job)
        execution = job.execution
        tmp, log = await asyncio.to_thread(instance.begin, execution.id, execution.attempt)
        self._tmp = tmp
        command = Command(
            path=instance.path,
            argv=tuple(argv),
            env=instance.environment(tmp),
            cwd=str(instance.work_dir),
            stdin=given is not None,
            limits=config.limits,
        )
        command = await instance.boxed(command, tmp)
        streams = Streams(
            Bounds(lines=self._dialect.lines),
            Bounds(lines=False, most=0, when_full="drop"),
            InstanceLog(instance.link.logs, log, config.log_bytes),
        )
        birth = Birth(
            agent_id=instance.handle.agent_id,
            owner=execution.owner,
            driver="command",
            handle={"scope": instance.link.scope, "log": str(log)},
            execution=execution,
        )
        self._record = await instance.lent.instances.begin(birth)
        try:
            self._child = await instance.link.spawn(command, streams, self._record.id)
        except OSError as error:
            raise refused(config.command[0], error) from error
        self._record.started(self._child)
        if given is not None:
            self._feeding = asyncio.create_task(
                _feed(self._child, given, last=not config.stdin_open)
            )

    def __aiter__(self) -> AsyncIterator[EventData]:
        return self

    async def __anext__(self) -> EventData:
        child = self._child
        if child is None or self._over:
            raise StopAsyncIteration
        while not self._events:
            if self._dialect.ended:
                return self._completed()
            piece = await child.stdout.next()
            if piece is None:
                self._events.extend(self._dialect.rest())
                if not self._events:
                    return await self._concluded(child)
                continue
            self._events.extend(self._dialect.take(piece))
            self._note_refused(child)
        return self._events.popleft()

    def _note_refused(self, child: Child) -> None:
        """Say once for each line that was too long to be read."""
        counts = child.stdout.counts
        if counts.oversize_lines > self._refused:
            self._refused = counts.oversize_lines
            note = f"{counts.oversize_lines} lines were refused ({counts.oversize_bytes} bytes)"
            self._events.append(EventData(EventType.LOG, {"level": "warning", "message": note}))

    def _completed(self) -> EventData:
        self._over = True
        return EventData(EventType.COMPLETED, {"result": self._dialect.result()})

    async def _concluded(self, child: Child) -> EventData:
        """Judge by its exit; the output has ended without a last word."""
        status = await child.wait()
        await child.stderr.next()  # its end: what was said last is there now
        if status.code != 0:
            raise self._failure(child, status)
        return self._completed()

    def _failure(self, child: Child, status: Exit) -> RetinueError:
        instance = self._instance
        tail = child.stderr.tail.decode("utf-8", "replace").strip()[-MOST_SAID:]
        said = instance.masked(tail)
        name = instance.config.command[0]
        details = {
            "exit_code": status.code,
            "signal": status.signal,
            "reason": status.reason,
            "stderr": said,
        }
        text = f"{name} {status}" + (f": {said.splitlines()[-1]}" if said else "")
        if status.code is None and status.reason is None:
            return CommunicationError(text, details=details)
        outcome = "unknown" if status.reason == "lost" else "failed"
        kind = CommunicationError if outcome == "unknown" else ExecutionError
        return kind(text, details=details)

    # -- the end -------------------------------------------------------------------------------

    async def __aexit__(self, *_: object) -> None:
        ending = self._instance.aside(self.end(self._instance.config.stop_seconds))
        await asyncio.shield(ending)

    async def end(self, grace: float) -> None:
        """End the process and everything it started; remove its TMPDIR."""
        self._over = True
        if self._feeding is not None:
            self._feeding.cancel()
        record = self._record
        if self._child is not None and record is not None:
            if self._dialect.ended:
                await self._finished(self._child)
            if self._child.exit is None:
                record.draining()
            ladder = Ladder(grace=grace or None, number=self._instance.config.interrupt)
            await stop(self._child, ladder)
        elif record is not None:
            record.failed("it was not started")
        if self._tmp is not None:
            await asyncio.to_thread(shutil.rmtree, self._tmp, ignore_errors=True)
        self._instance.running.discard(self)

    @staticmethod
    async def _finished(child: Child) -> None:
        """Let one that has said its last word end by itself: it may have things to save."""
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                await child.wait()
        except TimeoutError:
            pass


async def _feed(child: Child, given: bytes, *, last: bool) -> None:
    """Give it its input while it reads; one that does not want it all says so by its exit."""
    try:
        await child.say(given, last=last)
    except CommunicationError:
        pass

"""One running agent, for the program that spawned it: specification 001's handle.

It may be used from many tasks at once: writes stay whole, every line is delivered once, everybody
who waits gets the same status.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from retinue.domain.ids import now_us
from retinue.errors import CommunicationError, Timeout
from retinue.process.capacity import percent
from retinue.process.child import Child, Exit
from retinue.process.config import (
    AgentConfig,
    AgentInfo,
    AgentMetrics,
    AgentSignal,
    AgentStatus,
    Backend,
    Moved,
)
from retinue.process.ladder import Ladder, Stopped, stop
from retinue.process.log import forms, last_said, telling
from retinue.process.reading import Counts
from retinue.process.standing import Standing, event_of

END_SECONDS = 1.0
MOST_COMMAND = 200
MOST_SAID = 1_000
LAST_LINES = 3


class OutputLine(msgspec.Struct, frozen=True):
    """A line of stdout as it was, and the JSON object that it is, if it is one."""

    raw: bytes
    event: dict[str, Any] | None = None


class AgentHandle:
    """A spawned agent. ``LocalProcessRunner.spawn`` makes one."""

    def __init__(
        self,
        child: Child,
        config: AgentConfig,
        standing: Standing,
        *,
        parses: bool,
        log_dir: Path | None,
        backend: Backend | None = None,
    ) -> None:
        self.config = config
        self.log_dir = log_dir
        self.unhealthy: str | None = None
        self._child = child
        given = {**backend.environment, **config.environment} if backend is not None else {}
        self._secrets = forms((*given.values(), *config.environment.values()))
        self._command = backend.command if backend is not None else (config.model_backend,)
        self._parses = parses
        self._standing = standing
        self._paused_at: float | None = None
        self._resumed_at = 0.0
        self._asked_to_pause = False
        self._last = {"cpu": 0.0, "memory": 0}
        child.when_exited(self._exited)

    # -- what it is ----------------------------------------------------------------------------

    def id(self) -> str:
        """Return its id."""
        return self._child.name

    @property
    def name(self) -> str:
        """The name it was given."""
        return self.config.name

    @property
    def pid(self) -> int:
        """Its process id, while it lives."""
        return self._child.pid

    @property
    def command(self) -> str:
        """Its backend's command line, as a shell would read it; long ones are cut."""
        return shlex.join(self._command)[:MOST_COMMAND]

    def status(self) -> AgentStatus:
        """Return where it stands."""
        return self._standing.status

    @property
    def timeline(self) -> tuple[Moved, ...]:
        """How it came there: each status with its reason and time."""
        return tuple(self._standing.timeline)

    @property
    def stdout_counts(self) -> Counts:
        """What stdout has brought, exactly: also what was refused or dropped."""
        return self._child.stdout.counts

    @property
    def stderr_counts(self) -> Counts:
        """What stderr has brought."""
        return self._child.stderr.counts

    @property
    def json_lines(self) -> int:
        """How many lines of stdout were JSON objects."""
        return self._standing.events

    @property
    def text_lines(self) -> int:
        """How many were not."""
        return self._standing.texts

    @property
    def silent_secs(self) -> float:
        """How long it has said nothing; the time it was paused does not count."""
        if self._child.exit is not None:
            return 0.0
        last = max(self._child.stdout.last_at, self._child.stderr.last_at, self._resumed_at)
        return (self._paused_at or time.monotonic()) - min(last, self._paused_at or last)

    def info(self) -> AgentInfo:
        """Return what a list shows of it."""
        status = self._child.exit
        return AgentInfo(
            id=self.id(),
            name=self.name,
            status=self.status(),
            model_backend=self.config.model_backend,
            pid=self.pid,
            healthy=self.unhealthy is None,
            silent_secs=self.silent_secs,
            exit_code=status.code if status is not None else None,
        )

    async def metrics(self) -> AgentMetrics:
        """Return what its whole tree uses; after its end, what was last seen."""
        child = self._child
        used = await child.usage()
        if used:
            self._last = {"cpu": used["cpu"], "memory": used["memory"]}
        elif child.exit is not None:
            self._last["cpu"] = max(self._last["cpu"], child.exit.cpu)
            self._last["memory"] = self._last["memory"] or child.exit.peak
        up = (child.ended_at or time.monotonic()) - child.started_at
        return AgentMetrics(
            cpu_usage=percent(self._last["cpu"], up),
            memory_mb=self._last["memory"] / (1 << 20),
            uptime_secs=up,
            messages_sent=child.stdin.calls if child.stdin is not None else 0,
            messages_received=child.stdout.counts.lines,
        )

    # -- what it hears and says ----------------------------------------------------------------

    def _exited(self, status: Exit) -> None:
        self.unhealthy = None
        # What it wrote last may say how it went: it is read first.
        self._child.stdout.read_ahead()
        self._standing.exited(status, now_us())

    async def write_stdin(self, data: bytes) -> None:
        """Write to its stdin; return when the pipe has all of it.

        Raises:
            CommunicationError: it has ended, or has closed its stdin.
        """
        if self._child.stdin is None:
            raise CommunicationError("the agent has no stdin")
        await self._child.stdin.write(data)

    async def close_stdin(self) -> None:
        """Let it read the end of its input."""
        if self._child.stdin is not None:
            self._child.stdin.close()

    async def read_stdout(self) -> bytes | None:
        """Return the next line of its stdout; None when there is none now."""
        await asyncio.sleep(0)
        return self._child.stdout.take()

    async def read_stderr(self) -> bytes | None:
        """Return the next line of its stderr; None when there is none now."""
        await asyncio.sleep(0)
        return self._child.stderr.take()

    async def next_stdout(self) -> bytes | None:
        """Return the next line of its stdout once there is one; None at the end."""
        return await self._child.stdout.next()

    async def next_stderr(self) -> bytes | None:
        """Return the next line of its stderr once there is one; None at the end."""
        return await self._child.stderr.next()

    async def output(self) -> AsyncIterator[OutputLine]:
        """Iterate the lines of stdout, each with the JSON object that it is, if any."""
        while (line := await self._child.stdout.next()) is not None:
            yield OutputLine(line, event_of(line) if self._parses else None)

    # -- its end -------------------------------------------------------------------------------

    async def wait(self, timeout: float | None = None) -> Exit:
        """Return how it ended, once it has: its exit code, or the signal that ended it.

        Raises:
            Timeout: it has not ended after ``timeout`` seconds; it goes on.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._child.wait()
        except TimeoutError:
            raise Timeout(f"agent {self.name} has not ended after {timeout} s") from None

    async def account(self, when: str) -> str:
        """Say for an error which command it was, how it ended, and what it said on stderr last.

        One that has closed its output and lives has a second to end. Values of its environment
        are masked.
        """
        child = self._child
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await child.wait()
                await child.wait_gone()  # what it wrote last is read then
        status = str(child.exit) if child.exit is not None else "closed its output"
        text = f"{self.command} {status} {when}"
        lines = last_said(child.stderr.tail, self._secrets, MOST_SAID).splitlines()
        said = telling(lines, LAST_LINES)
        return f"{text}: {' | '.join(said)}" if said else text

    async def signal(self, wanted: AgentSignal) -> bool:
        """Send a signal; say whether it was there to get it."""
        if wanted is AgentSignal.KILL:
            ended = self._child.exit is not None
            await self.kill()
            return not ended
        return await self._child.signal(wanted.value) > 0

    async def kill(self) -> None:
        """End its whole tree at once; one that has ended is left as it is."""
        self._child.kill()
        await self._child.wait()
        await self._child.wait_gone()

    async def pause(self, *, forced: bool = True) -> bool:
        """Stop its whole tree where it is (SIGSTOP); say whether it was there.

        With ``forced`` False it is asked to stop, by a line on its stdin
        (``{"type": "pause", "action": "pause"}``), which agents of specification 001 understand.
        """
        if not await (self._child.pause() if forced else self._ask(b"pause")):
            return False
        self._asked_to_pause = not forced
        self._paused_at = self._paused_at or time.monotonic()
        self._standing.paused(now_us())
        return True

    async def resume(self) -> bool:
        """Let it go on."""
        asked = self._asked_to_pause
        if not await (self._ask(b"resume") if asked else self._child.resume()):
            return False
        self._paused_at, self._resumed_at = None, time.monotonic()
        self._standing.resumed(now_us())
        return True

    async def _ask(self, action: bytes) -> bool:
        if self._child.exit is not None:
            return False
        await self.write_stdin(b'{"type": "pause", "action": "%s"}\n' % action)
        return True

    async def stop(self, ladder: Ladder, reason: str = "shutdown") -> Stopped:
        """Stop it step by step; see ``process.ladder``."""
        if self._child.exit is None:
            self._standing.ended_by_us = reason
        return await stop(self._child, ladder)

    async def look(self, silent_after: float) -> None:
        """Judge its health: one that is stopped (and not by us), or says nothing, is not well."""
        used = await self._child.usage()
        if self._child.exit is not None or self._paused_at is not None:
            self.unhealthy = None
        elif used.get("stopped"):
            self.unhealthy = f"stopped; said nothing for {self.silent_secs:.1f} s"
        elif self.silent_secs >= silent_after:
            self.unhealthy = f"said nothing for {self.silent_secs:.1f} s"
        else:
            self.unhealthy = None


class GracefulShutdown:
    """SIGTERM, ``timeout`` seconds, SIGKILL to the whole tree; nothing of it is left."""

    def __init__(self, timeout: float = 5) -> None:
        self.timeout = timeout

    async def shutdown(self, handle: AgentHandle) -> Stopped:
        """Stop an agent; the answer says which step ended it."""
        return await handle.stop(Ladder(grace=self.timeout))

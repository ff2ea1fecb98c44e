"""The program that is checked, and everything that it has written so far."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from retinue.errors import SpawnFailed
from retinue.keeper.tree import tree
from retinue.process.log import telling
from retinue.wire import envelope
from retinue.wire.envelope import Control, Error, Frame, Request, Response, Stream
from retinue.wire.exchange import Exchanges
from retinue.wire.faults import payload_as
from retinue.wire.payloads import Card, Invoke, InvokeOptions, Ready
from retinue.wire.reader import FrameReader
from retinue.wire.strict import BadFrame

F = TypeVar("F")
_TAIL = 20
_SHOWN = 3
_REST_SECONDS = 2.0
_MOST_OUTPUT = 64 << 20
_MOST_BAD = 1000
_LOOK_SECONDS = 0.02


class Broken(Exception):
    """The program broke the rule; the text says how."""


class NotShown(Exception):
    """The program has nothing that would show the rule; the text says what is missing."""


class Plan:
    """What is checked: the command, what its agents are given, and how long it may take."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        agent: str | None = None,
        given: Any = None,
        seconds: float = 10.0,
        start_seconds: float = 10.0,
    ) -> None:
        self.command = list(command)
        self.agent = agent
        self.given = given
        self.seconds = seconds
        self.start_seconds = start_seconds


class Peer:
    """One run of the program."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.items: list[Frame | BadFrame] = []
        self.flood: str | None = None
        self._raw: list[bytes] = []
        self._size = self._bad = 0
        self.misplaced: list[str] = []
        self.errors: list[str] = []
        self.ready: Ready | None = None
        self.cards: dict[str, Card] = {}
        self._reader = FrameReader()
        self._exchanges = Exchanges()
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Peer:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.plan.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise SpawnFailed(f"{self.plan.command[0]} cannot be started: {error}") from None
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._log())]
        return self

    async def __aexit__(self, *error: object) -> None:
        process = self._running()
        for pid in tree([process.pid]):  # also what is in a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await self._exited(_REST_SECONDS)
        # Its pipes end with it, unless one that is not its child any more holds them open.
        waiting = (await asyncio.wait(self._tasks, timeout=_REST_SECONDS))[1]
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)
        process._transport.close()  # type: ignore[attr-defined]  # there is no public way

    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    async def _read(self) -> None:
        source = self._running().stdout
        assert source is not None
        while chunk := await source.read(1 << 16):
            self._size += len(chunk)
            if self._size > _MOST_OUTPUT:
                self.flood = f"wrote more than {_MOST_OUTPUT >> 20} MiB"
                break
            self._raw.append(chunk)
            self._take(self._reader.feed(chunk))
            if self._bad > _MOST_BAD:
                self.flood = f"wrote more than {_MOST_BAD} lines that are no frames"
                break
        self._take(self._reader.rest())

    def _take(self, found: list[Frame | BadFrame]) -> None:
        for item in found:
            if isinstance(item, BadFrame):
                self._bad += 1
                if self._bad > _MOST_BAD:
                    continue
            else:
                kind = self._exchanges.take(item)
                if kind is not None:
                    what, to = type(item).__name__.lower(), item.correlation_id or "nothing"
                    self.misplaced.append(f"{kind}: {what} frame for {to}")
            self.items.append(item)
        self._news.set()

    async def _log(self) -> None:
        source = self._running().stderr
        assert source is not None
        rest = ""
        while chunk := await source.read(1 << 16):
            *lines, rest = (rest + chunk.decode(errors="replace")).split("\n")
            self.errors = [*self.errors, *lines][-_TAIL:]
            rest = rest[-4096:]
        self.errors.append(rest)

    @property
    def raw(self) -> bytes:
        """All that it has written so far."""
        return b"".join(self._raw)

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What it has written so far as plain values; lines that are no object are left out."""
        found = []
        for line in self.raw.splitlines():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                found.append(value)
        return found

    # -- saying --------------------------------------------------------------------------------

    def write(self, raw: bytes) -> None:
        """Write bytes to its stdin."""
        target = self._running().stdin
        assert target is not None
        with contextlib.suppress(OSError):
            target.write(raw)

    def send(self, frame: Frame) -> str:
        """Send a frame; return its message_id."""
        assert frame.message_id is not None
        if isinstance(frame, Request) or "operation" in getattr(frame, "payload", {}):
            self._exchanges.begin(frame.message_id)
        self.write(envelope.encode_message(frame))
        return frame.message_id

    def order(self, operation: str, **more: Any) -> str:
        """Send a control frame; return its message_id."""
        return self.send(envelope.control({"operation": operation, **more}))

    def ask(self, operation: str, **more: Any) -> str:
        """Send a request; return its message_id."""
        return self.send(envelope.request({"operation": operation, **more}))

    def invoke(self, agent: str, given: Any = None, **options: Any) -> str:
        """Send an invocation; return its message_id."""
        asked = Invoke(agent_name=agent, input=given, options=InvokeOptions(**options))
        return self.send(envelope.request(asked))

    def begin(self, message_id: str) -> None:
        """Count an id that was written by hand as one of ours."""
        self._exchanges.begin(message_id)

    def close_input(self) -> None:
        """End its input."""
        target = self._running().stdin
        assert target is not None
        target.close()

    # -- hearing -------------------------------------------------------------------------------

    async def first(self, what: str, test: Callable[[Frame], F | None], seconds: float) -> F:
        """Return what ``test`` makes of the first frame that it makes something of.

        Raises:
            Broken: none came in time; ``what`` was expected.
        """
        deadline = time.monotonic() + seconds
        seen = 0
        while True:
            self._news.clear()
            for item in self.items[seen:]:
                if not isinstance(item, BadFrame) and (found := test(item)) is not None:
                    return found
            seen = len(self.items)
            if self.flood is not None:
                raise Broken(f"{what} did not come: the program {self.flood}{self._why()}")
            if self._tasks[0].done():
                raise Broken(
                    f"{what} did not come: the program ended{self._last_words()}{self._why()}"
                )
            left = deadline - time.monotonic()
            try:
                await asyncio.wait_for(self._news.wait(), max(left, 0))
            except TimeoutError:
                raise Broken(f"{what} did not come within {seconds:g} s{self._why()}") from None

    def _last_words(self) -> str:
        said = telling([line.strip() for line in self.errors if line.strip()], _SHOWN)
        return f"; its stderr ends with: {' / '.join(said)}" if said else ""

    def _why(self) -> str:
        """Return what it wrote instead, as far as that explains why an answer is missing."""
        bad = next((item for item in reversed(self.items) if isinstance(item, BadFrame)), None)
        if bad is not None:
            return f"; what it wrote last that is no frame: {bad.message}: {bad.excerpt}"
        return f"; but {self.misplaced[-1]}" if self.misplaced else ""

    async def until_ready(self) -> Ready:
        """Wait for the ready frame and return it."""
        if self.ready is None:

            def test(frame: Frame) -> Control | None:
                known = isinstance(frame, Control) and frame.payload.get("status") == "ready"
                return frame if known and isinstance(frame, Control) else None

            frame = await self.first(
                "the ready frame (control, status ready)", test, self.plan.start_seconds
            )
            self.ready = payload_as(frame.payload, Ready)
            self.cards = self.ready.cards()
        return self.ready

    async def answer(
        self, message_id: str, what: str, seconds: float | None = None
    ) -> Response | Error:
        """Return the frame that ends an exchange."""

        def test(frame: Frame) -> Response | Error | None:
            ends = isinstance(frame, Response | Error) and frame.correlation_id == message_id
            return frame if ends and isinstance(frame, Response | Error) else None

        return await self.first(f"the answer to {what}", test, seconds or self.plan.seconds)

    def chunks(self, message_id: str) -> list[Stream]:
        """Return the stream frames of an exchange that came so far."""
        return [
            item
            for item in self.items
            if isinstance(item, Stream) and item.correlation_id == message_id
        ]

    async def ended(self, seconds: float) -> int:
        """Wait for its end and return the exit code.

        Raises:
            Broken: it does not end.
        """
        try:
            code = await self._exited(seconds)
        except TimeoutError:
            raise Broken(f"the program was still running {seconds:g} s later") from None
        if (await asyncio.wait(self._tasks[:1], timeout=_REST_SECONDS))[1]:
            raise Broken("the program has ended, but what it started holds its stdout open")
        return code

    async def _exited(self, seconds: float) -> int:
        """Return its exit code once it has one, whoever holds its pipes open.

        Raises:
            TimeoutError: it goes on.
        """
        process = self._running()
        async with asyncio.timeout(seconds):
            while process.returncode is None:  # noqa: ASYNC110 wait() waits for its pipes, too
                await asyncio.sleep(_LOOK_SECONDS)
        return process.returncode

    # -- its agents ----------------------------------------------------------------------------

    def main(self) -> str:
        """Return the agent that is invoked where any will do."""
        if self.plan.agent is not None:
            return self.plan.agent
        return "echo" if "echo" in self.cards else next(iter(self.cards))

    def named(self, name: str) -> str:
        """Return the agent of that name.

        Raises:
            NotShown: the program has none.
        """
        if name not in self.cards:
            raise NotShown(f"the program has no agent named {name}")
        return name

    def given(self) -> Any:
        """Return the input for the main agent."""
        return self.plan.given if self.plan.given is not None else [["ping"]]

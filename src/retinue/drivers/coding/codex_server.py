"""Codex's app-server: one process, many threads. It tells each turn what is said of its thread.

The server says ``-32001`` when it has as much as it takes; whoever asked waits a little longer each
time and asks again, so that an overload is a queue and not a failure. What one turn does not take
makes the whole pipe wait: its bound is the turn's own.

A message that cannot be understood fails the turn it is for, and no other one. A server that is
broken is ended at once: nothing works on that nobody hears.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retinue.domain.instance import InstanceRecord
from retinue.drivers.coding.spoken import FINISH_SECONDS, Begun, spawn
from retinue.drivers.coding.talk import Refusals, Talk, read
from retinue.drivers.coding.versions import version_in
from retinue.errors import CommunicationError, RetinueError, said
from retinue.process.ladder import Ladder, stop
from retinue.process.reading import Counts
from retinue.wire.jsonrpc import METHOD_NOT_FOUND, Call, Rpc, RpcError

if TYPE_CHECKING:
    from retinue.drivers.coding.codex import CodexInstance, CodexTurn

log = logging.getLogger(__name__)
OVERLOADED = -32001
MOST_ASKED = 32
"""How many requests may be on their way at once; Codex refuses more than about a hundred."""
FIRST_WAIT = 0.05
MOST_WAIT = 2.0


class CodexServer:
    """One app-server process, started by the first turn that needs it."""

    def __init__(self, instance: CodexInstance) -> None:
        self._instance = instance
        self._talk: Talk | None = None
        self._rpc: Rpc | None = None
        self._begun: Begun | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._asking = asyncio.Semaphore(MOST_ASKED)
        self.turns: dict[str, CodexTurn] = {}
        self.members: set[CodexTurn] = set()
        """The turns that use it, those without a thread yet, too."""
        self._full: CodexTurn | None = None
        self._refusals = Refusals(Counts())
        self._stopping: asyncio.Task[None] | None = None
        self._unclaimed: dict[str, list[Call]] = {}
        self.version: str | None = None
        self.broken: RetinueError | None = None
        self.retiring = False
        self.refusals = 0
        self.odd = 0
        self.threads = 0

    async def start(self, name: str, argv: list[str], environment: dict[str, str]) -> None:
        """Start the process and shake hands.

        Raises:
            SpawnFailed, CommunicationError: it cannot be started, or does not answer.
        """
        self._begun = await spawn(
            self._instance, name, argv, environment, stdin=True, end=self.stop
        )
        self._talk = Talk(self._begun.child)
        self._refusals = Refusals(self._begun.child.stdout.counts)
        self._rpc = Rpc(self._talk.send, None)
        self._hearing = asyncio.create_task(self._hear())
        client = {"name": "retinue", "title": "Retinue", "version": "1"}
        try:
            able = {"experimentalApi": True}  # for the end of what a turn left running
            answer = await self.call("initialize", {"clientInfo": client, "capabilities": able})
        except RpcError as error:
            raise CommunicationError(f"codex app-server: {error}") from error
        self.version = version_in(str((answer or {}).get("userAgent")))
        self._rpc.notify("initialized")

    @property
    def paused(self) -> bool:
        """Whether a person has stopped it where it is."""
        return self._begun is not None and self._begun.paused

    @property
    def record(self) -> InstanceRecord | None:
        """Its process, on record, once that is started."""
        return self._begun.record.record if self._begun is not None else None

    async def call(self, method: str, params: dict[str, Any], turn: CodexTurn | None = None) -> Any:
        """Ask, again and again while the server is overloaded; ``turn`` queues meanwhile.

        Raises:
            RpcError: it refuses for another reason.
            CommunicationError: it has ended.
        """
        assert self._rpc is not None
        wait = FIRST_WAIT
        try:
            while True:
                _queue(turn, True)
                try:
                    async with self._asking:
                        _queue(turn, False)
                        return await self._rpc.call(method, params)
                except RpcError as error:
                    if error.code != OVERLOADED:
                        raise
                self.refusals += 1
                _queue(turn, True)
                await asyncio.sleep(wait * random.uniform(0.5, 1.5))
                wait = min(wait * 2, MOST_WAIT)
        finally:
            _queue(turn, False)

    def join(self, thread: str, turn: CodexTurn) -> None:
        """Have ``turn`` told what is said of ``thread`` from now on, and since it was made."""
        if self.turns.get(thread) is turn:
            return
        self.turns[thread] = turn
        if self._begun is not None:
            self._begun.record.busy(turn.job.execution)
        self.threads += 1
        for call in self._unclaimed.pop(thread, ()):
            self._tell(turn, call)

    def leave(self, thread: str) -> None:
        """Tell nobody any more."""
        turn = self.turns.pop(thread, None)
        if turn is not None and self._begun is not None:
            self._begun.record.idle(turn.job.execution)

    def part(self, turn: CodexTurn) -> None:
        """Note that a turn has done with it, whichever threads it had."""
        for thread in [thread for thread, one in self.turns.items() if one is turn]:
            self.leave(thread)
        self.members.discard(turn)

    async def _hear(self) -> None:
        talk, rpc = self._talk, self._rpc
        assert talk is not None
        assert rpc is not None
        why: RetinueError
        try:
            await talk.lines(self._take, self._pause)
            async with asyncio.timeout(FINISH_SECONDS):
                status = await talk.child.wait()
                await talk.child.stderr.next()
            why = self._instance.place.failure(talk.child, status, "while it was needed")
        except TimeoutError:
            why = CommunicationError("codex app-server has closed its output")
        except Exception as error:
            why = CommunicationError(f"codex app-server cannot be understood: {said(error)}")
        self._look()
        self.broken = self.broken or why
        for number, turn in enumerate(list(self.members)):
            one = copy.copy(why)
            one.echo = number > 0  # it is one failure, however many turns it had
            turn.fail(one)
        rpc.close(why)
        self._instance.aside(self.stop(0.0))

    def _take(self, line: bytes) -> bool:
        if self._refusals.counts.oversize_lines != self._refusals.lines:
            self._look()
        message = read(line)
        if isinstance(message, str):
            if message.lstrip().startswith("{"):  # it would have been one
                self._tell_all(f"a line of {len(line)} bytes cannot be read: what it said is lost")
            return False  # it is in the log
        if self._rpc is None:
            return False
        try:
            call = self._rpc.hear(message)
            return call is not None and self._route(call)
        except Exception as error:  # of no thread that is known
            self.odd += 1
            log.warning("codex app-server: message %d is odd: %s", self.odd, said(error))
            return False

    def _look(self) -> None:
        """Tell all turns of lines that were too long: whose they were is not known."""
        news = self._refusals.news()
        if news is not None:
            self._tell_all(news)

    def _tell_all(self, message: str) -> None:
        for turn in list(self.members):
            turn.missed(message)

    async def _pause(self) -> None:
        """Wait for the turn that has too much; so do all others, its pipe being theirs."""
        self._look()
        full, self._full = self._full, None
        if full is not None:
            await full.room()

    def _route(self, call: Call) -> bool:
        """Tell the turn that it is for; say whether that has as much as it may."""
        thread = call.params.get("threadId")
        turn = self.turns.get(thread) if isinstance(thread, str) else None
        if turn is not None:
            self._tell(turn, call)
            self._full = turn if turn.full else None
            return self._full is not None
        if call.id is not None:
            self._refuse(call)("nobody here knows that thread")
        elif isinstance(thread, str) and call.method == "thread/tokenUsage/updated":
            self._unclaimed.setdefault(thread, []).append(call)
            if len(self._unclaimed) > 1000:  # noqa: PLR2004 of threads that nobody joined
                self._unclaimed.pop(next(iter(self._unclaimed)))
        return False

    def _tell(self, turn: CodexTurn, call: Call) -> None:
        turn.heard()
        try:
            if call.id is None:
                turn.dialect.take(call.method, call.params)
            else:
                turn.dialect.request(call, self._answer(call), self._refuse(call))
        except Exception as error:
            turn.misunderstood(error)

    def _answer(self, call: Call) -> Callable[[Any], None]:
        return lambda result: self._rpc.answer(call.id, result) if self._rpc else None

    def _refuse(self, call: Call) -> Callable[[Any], None]:
        return lambda why: (
            self._rpc.refuse(call.id, METHOD_NOT_FOUND, str(why)) if self._rpc else None
        )

    async def stop(self, grace: float) -> None:
        """End the process and all that it started; return when that is done."""
        self.broken = self.broken or CommunicationError("codex app-server is stopped")
        if self._stopping is None:
            self._stopping = self._instance.aside(self._stop(grace))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace: float) -> None:
        if self._talk is not None:
            if self._begun is not None and self._talk.child.exit is None:
                self._begun.record.draining()
            self._talk.close()
            ladder = Ladder(stdin=min(grace, 1.0) or None, grace=grace or None)
            await stop(self._talk.child, ladder)
        if self._hearing is not None:
            await asyncio.wait({self._hearing})
        if self._begun is not None:
            await self._instance.place.leave(self._begun.tmp)


def _queue(turn: CodexTurn | None, queued: bool) -> None:
    if turn is not None:
        turn.queued = queued

"""Codex's app-server: one process, many threads. It tells each turn what is said of its thread.

The server says ``-32001`` when it has as much as it takes; whoever asked waits a little longer each
time and asks again, so that an overload is a queue and not a failure. What one turn does not take
makes the whole pipe wait: its bound is the turn's own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retinue.drivers.coding.spoken import Begun, spawn
from retinue.drivers.coding.talk import Talk, read
from retinue.drivers.coding.versions import version_in
from retinue.errors import CommunicationError, RetinueError
from retinue.process.ladder import Ladder, stop
from retinue.wire.jsonrpc import METHOD_NOT_FOUND, Call, Rpc, RpcError

if TYPE_CHECKING:
    from retinue.drivers.coding.codex import CodexInstance, CodexTurn

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
        self._full: CodexTurn | None = None
        self._unclaimed: dict[str, list[Call]] = {}
        self.version: str | None = None
        self.broken: RetinueError | None = None
        self.retiring = False
        self.refusals = 0
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

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """Ask, again and again while the server is overloaded.

        Raises:
            RpcError: it refuses for another reason.
            CommunicationError: it has ended.
        """
        assert self._rpc is not None
        wait = FIRST_WAIT
        while True:
            try:
                async with self._asking:
                    return await self._rpc.call(method, params)
            except RpcError as error:
                if error.code != OVERLOADED:
                    raise
            self.refusals += 1
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(wait * 2, MOST_WAIT)

    def join(self, thread: str, turn: CodexTurn) -> None:
        """Have ``turn`` told what is said of ``thread`` from now on, and since it was made."""
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

    async def _hear(self) -> None:
        talk, rpc = self._talk, self._rpc
        assert talk is not None
        assert rpc is not None
        why: RetinueError
        try:
            await talk.lines(self._take, self._pause)
            status = await talk.child.wait()
            await talk.child.stderr.next()
            why = self._instance.place.failure(talk.child, status, "while it was needed")
        except Exception as error:
            why = CommunicationError(f"codex app-server cannot be understood: {error}")
        self.broken = why
        rpc.close(why)
        for turn in list(self.turns.values()):
            turn.fail(why)

    def _take(self, line: bytes) -> bool:
        message = read(line)
        if isinstance(message, str) or self._rpc is None:
            return False  # it is in the log
        call = self._rpc.hear(message)
        return call is not None and self._route(call)

    async def _pause(self) -> None:
        """Wait for the turn that has too much; so do all others, its pipe being theirs."""
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
        if call.id is None:
            turn.dialect.take(call.method, call.params)
        else:
            turn.dialect.request(call, self._answer(call), self._refuse(call))

    def _answer(self, call: Call) -> Callable[[Any], None]:
        return lambda result: self._rpc.answer(call.id, result) if self._rpc else None

    def _refuse(self, call: Call) -> Callable[[Any], None]:
        return lambda why: (
            self._rpc.refuse(call.id, METHOD_NOT_FOUND, str(why)) if self._rpc else None
        )

    async def stop(self, grace: float) -> None:
        """End the process and all that it started."""
        self.broken = self.broken or CommunicationError("codex app-server is stopped")
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

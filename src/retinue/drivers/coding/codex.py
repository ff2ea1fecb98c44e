"""Codex: an app-server with many threads, one per session; ``exec`` as the simple form.

Stopping a turn: ``turn/interrupt``. A server that does not heed that takes no further turns and is
ended once its others are done, at once when it has none.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from retinue.domain.agent import AgentDefinition
from retinue.domain.ids import ulid
from retinue.domain.instance import InstanceRecord
from retinue.drivers.coding.codex_dialect import CodexDialect
from retinue.drivers.coding.codex_server import CodexServer
from retinue.drivers.coding.config import CodingConfig, prompt_of
from retinue.drivers.coding.driver import CodingDriver, CodingInstance
from retinue.drivers.coding.natives import is_unknown, kept
from retinue.drivers.coding.once import CodexOnce
from retinue.drivers.coding.presets import codex_arguments, codex_environment, codex_sandbox
from retinue.drivers.coding.turn import Turn
from retinue.errors import ExecutionError, RetinueError
from retinue.interfaces import DriverContext, Job
from retinue.wire.jsonrpc import RpcError

MOST_THREADS = 1000
"""How many threads a server keeps before another one takes the new turns: each costs memory."""


class CodexTurn(Turn):
    """One turn of one thread."""

    def __init__(self, instance: CodexInstance, job: Job) -> None:
        super().__init__(instance, job)
        self.codex = instance
        self.dialect = CodexDialect(self)
        self._server: CodexServer | None = None
        self._thread: str | None = None
        self._beginning: asyncio.Task[None] | None = None

    @property
    def paused(self) -> bool:
        """Whether a person has stopped the server where it is."""
        return self._server is not None and self._server.paused

    @property
    def record(self) -> InstanceRecord | None:
        """The server, on record, once there is one."""
        return self._server.record if self._server is not None else None

    async def start(self) -> None:
        """Join the server, which is started when it is not there."""
        self._server = await self.codex.server(self)
        self._beginning = asyncio.create_task(self._begin(self._server))

    async def _begin(self, server: CodexServer) -> None:
        try:
            await self._open(server)
            assert self._thread is not None
            given = {"threadId": self._thread, "input": [_text(prompt_of(self.job))]}
            answer = await server.call("turn/start", given, self)
            self.dialect.turn = str(((answer or {}).get("turn") or {}).get("id"))
        except RpcError as error:
            self.fail(ExecutionError(f"codex: {error}", details={"code": error.code}))
        except RetinueError as error:
            self.fail(error)
        except Exception as error:
            self.misunderstood(error)

    async def _open(self, server: CodexServer) -> None:
        """Go on with the session's thread, or begin one."""
        config = self.config
        given: dict[str, Any] = {
            "cwd": str(self.instance.place.work_dir),
            "approvalPolicy": self._policy(),
            "sandbox": codex_sandbox(config),
        }
        if config.system_prompt is not None:
            given["developerInstructions"] = config.system_prompt
        answer = None
        earlier = self.native.native_session if self.native is not None else None
        if earlier is not None:
            server.join(earlier, self)
            try:
                answer = await server.call("thread/resume", {"threadId": earlier, **given}, self)
            except RpcError as error:
                if not is_unknown(error):
                    raise kept(self.config.kind, earlier, error) from error
                server.leave(earlier)
                self.native = None
                self.warn(f"codex does not know its session {earlier} any more: it begins anew",
                          reason=error.message)  # fmt: skip
        if answer is None:
            answer = await server.call("thread/start", given, self)
            self.dialect.fresh()
        self._thread = str(answer["thread"]["id"])
        server.join(self._thread, self)
        self.begun(self._thread, server.version, answer.get("model"))

    def _policy(self) -> str:
        """Return when Codex asks: where patterns decide it has to ask about everything."""
        config = self.config
        if config.approvals == "allow" and not config.deny:
            return "never"
        return "untrusted"

    async def close(self, grace: float) -> None:
        """Interrupt the turn, unless it has ended; the thread stays where it is."""
        server = self._server
        if server is None:
            return
        ended_itself = self.ended.is_set() and self.error is None
        if self._thread is not None and server.broken is None:
            if not ended_itself and not await self._quit(server, grace):
                await self.codex.retire(server)
            await self._clean(server, grace)
        if self._beginning is not None:
            self._beginning.cancel()
            await asyncio.wait({self._beginning})
        server.part(self)
        if server.broken is not None:
            await server.stop(0.0)  # its end is to be seen before the turn's is recorded
        else:
            await self.codex.left(server)

    async def _clean(self, server: CodexServer, grace: float) -> None:
        """End the commands that the turn left running: an interrupt does not touch them."""
        try:
            async with asyncio.timeout(max(grace, 0.1)):
                given = {"threadId": self._thread}
                await server.call("thread/backgroundTerminals/clean", given)
        except (TimeoutError, RpcError, RetinueError):
            pass  # a version without it; they end with the server

    async def _quit(self, server: CodexServer, grace: float) -> bool:
        """Have the turn interrupted; say whether the server did that."""
        assert self._thread is not None
        if self.dialect.completed:
            return True
        if self._beginning is not None and not self._beginning.done():
            await asyncio.wait({self._beginning}, timeout=grace)
            if not self._beginning.done():
                return False  # a turn may begin that nobody would know of
        if self.dialect.turn is None:
            return True
        try:
            async with asyncio.timeout(max(grace, 0.1)):
                given = {"threadId": self._thread, "turnId": self.dialect.turn}
                await server.call("turn/interrupt", given)
                await self.dialect.done.wait()
        except (TimeoutError, RpcError, RetinueError):
            return self.dialect.completed
        return True


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


class CodexInstance(CodingInstance):
    """An agent that is Codex, and its server."""

    def __init__(
        self,
        driver: CodingDriver,
        definition: AgentDefinition,
        config: CodingConfig,
        context: DriverContext,
    ) -> None:
        super().__init__(driver, definition, config, context)
        self._server: CodexServer | None = None
        self._starting = asyncio.Lock()

    def prepare(self) -> None:
        """Make what Codex needs to run: it does not make its own directory."""
        (self.place.home / ".codex").mkdir(mode=0o700, exist_ok=True)

    def execute(self, job: Job, /) -> Turn:
        """Perform ``job``."""
        return CodexOnce(self, job) if self.config.form == "once" else CodexTurn(self, job)

    async def server(self, turn: CodexTurn) -> CodexServer:
        """Return the server that takes new turns; ``turn`` is one of its members from now on."""
        async with self._starting:
            server = self._server
            if server is not None and server.threads >= MOST_THREADS:
                server.retiring = True
                await self.left(server)
            if server is None or server.broken is not None or server.retiring:
                if server is not None and server.broken is not None:
                    await server.stop(0.0)
                server = CodexServer(self)
                argv = [*codex_arguments(self.config, self.place.work_dir), "app-server"]
                try:
                    await server.start(f"server-{ulid()}", argv, codex_environment(self.place.home))
                except BaseException:
                    await asyncio.shield(self.aside(server.stop(0.0)))
                    raise
                self._server = server
            server.members.add(turn)
        return server

    async def retire(self, server: CodexServer) -> None:
        """Give a server that does not heed us no more turns."""
        server.retiring = True
        if self._server is server:
            self._server = None

    async def left(self, server: CodexServer) -> None:
        """Note that a turn has left; the last one of a retired server ends it."""
        if server.retiring and not server.members:
            await server.stop(self.config.stop_seconds)

    async def stop(self, grace: float, /) -> None:
        """End every turn, then the server."""
        await super().stop(grace)
        async with self._starting:
            server, self._server = self._server, None
            if server is not None:
                await server.stop(min(grace, self.config.stop_seconds))


class CodexDriver(CodingDriver):
    """Runs Codex."""

    name: ClassVar[str] = "codex"

    def instance(
        self, agent: AgentDefinition, config: CodingConfig, context: DriverContext
    ) -> CodingInstance:
        """Return an instance."""
        return CodexInstance(self, agent, config, context)

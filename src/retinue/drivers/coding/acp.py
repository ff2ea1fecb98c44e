"""Agents that speak the Agent Client Protocol, version 1; Gemini and OpenCode are presets of it.

One process per turn; the session is loaded again by id where the agent can do that. Stopping:
``session/cancel``, then the end of its input, where that is heeded, then SIGTERM, then SIGKILL.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from retinue.domain.agent import AgentDefinition
from retinue.drivers.coding.acp_dialect import AcpDialect
from retinue.drivers.coding.config import CodingConfig, plainly, prompt_of
from retinue.drivers.coding.driver import CodingDriver, CodingInstance
from retinue.drivers.coding.natives import is_unknown, kept
from retinue.drivers.coding.once import GeminiOnce, OpencodeOnce
from retinue.drivers.coding.presets import PRESETS
from retinue.drivers.coding.provider import refusal
from retinue.drivers.coding.spoken import SpokenTurn
from retinue.drivers.coding.turn import Turn
from retinue.errors import RetinueError, SpawnFailed
from retinue.interfaces import DriverContext, Job
from retinue.wire.jsonrpc import METHOD_NOT_FOUND, Rpc, RpcError

VERSION = 1
QUIET_SECONDS = 0.2
REPLAY_SECONDS = 10.0
_HTTP = range(400, 600)
_ONCE: dict[str, type[Turn]] = {"gemini": GeminiOnce, "opencode": OpencodeOnce}


class AcpTurn(SpokenTurn):
    """One turn by ACP."""

    def __init__(self, instance: CodingInstance, job: Job) -> None:
        super().__init__(instance, job)
        self._preset = PRESETS[self.config.kind]
        self.ladder = self._preset.ladder
        self.finish_seconds = self._preset.finish_seconds
        self._dialect = AcpDialect(self, instance.lent.max_result_bytes)
        self._rpc = Rpc(self._send)
        self._session: str | None = None
        self._loaded = False
        self._calls = 0

    async def start(self) -> None:
        """Start the process; one that goes on with a session may need that made ready."""
        if self.native is not None:
            home, native = self.instance.place.home, self.native.native_session
            await asyncio.to_thread(self._preset.resume, home, native)
        await super().start()

    def arguments(self) -> list[str]:
        """Return the arguments after the program."""
        return self._preset.arguments(self.config, self.instance.place.home)

    def environment(self) -> dict[str, str]:
        """Return variables that it needs."""
        return self._preset.environment(self.config)

    def _send(self, message: Any) -> None:
        if self.talk is not None:
            self.talk.send(message)

    async def greet(self) -> None:
        """Shake hands, open the session, give it the task, and wait for the end."""
        fs = {"readTextFile": False, "writeTextFile": False}
        answer = await self._rpc.call(
            "initialize",
            {
                "protocolVersion": VERSION,
                "clientCapabilities": {"fs": fs, "terminal": False},
                "clientInfo": {"name": "retinue", "title": "Retinue", "version": "1"},
            },
        )
        spoken = (answer or {}).get("protocolVersion")
        if spoken != VERSION:
            raise SpawnFailed(f"{self.config.kind} speaks ACP {spoken}; this knows {VERSION}")
        opened = await self._open(answer)
        model = self.config.model
        if model is not None and self._preset.sets_model:
            given = {"sessionId": self._session, "modelId": model}
            await self._rpc.call("session/set_model", given)
        known = (opened.get("models") or {}).get("currentModelId")
        version = (answer.get("agentInfo") or {}).get("version")
        self.begun(self._session, version, model or known)
        await self._prompt()

    async def _open(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Load the session's own, or begin one."""
        given = {"cwd": str(self.instance.place.work_dir), "mcpServers": []}
        earlier = self.native.native_session if self.native is not None else None
        if earlier is not None:
            why = "it cannot load sessions"
            if (answer.get("agentCapabilities") or {}).get("loadSession"):
                try:
                    loaded = await self._rpc.call("session/load", {"sessionId": earlier, **given})
                    self._session, self._loaded = earlier, True
                    await self._replayed()
                    return loaded or {}
                except RpcError as error:
                    if not is_unknown(error):
                        raise kept(self.config.kind, earlier, error) from error
                    why = str((error.data or {}).get("details", error.message)
                              if isinstance(error.data, dict) else error.message)  # fmt: skip
            self.native = None
            self.warn(
                f"{self.config.kind} does not go on with its session {earlier}: it begins anew",
                reason=why,
            )
        opened: dict[str, Any] = await self._rpc.call("session/new", given)
        self._session = str(opened["sessionId"])
        return opened

    async def _replayed(self) -> None:
        """Wait until what was said before has been said again: some do that after the answer."""
        seen, until = -1, asyncio.get_running_loop().time() + REPLAY_SECONDS
        while seen != self._calls and asyncio.get_running_loop().time() < until:
            seen = self._calls
            await asyncio.sleep(QUIET_SECONDS)

    async def _prompt(self) -> None:
        text = prompt_of(self.job)
        if self.config.system_prompt is not None and not self._loaded:
            text = f"{self.config.system_prompt}\n\n{text}"  # the protocol has no other place
        text = plainly(self.config.kind, text)
        self._dialect.open = True
        given = {"sessionId": self._session, "prompt": [{"type": "text", "text": text}]}
        try:
            answer = await self._rpc.call("session/prompt", given)
        except RpcError as error:
            if error.code not in _HTTP:
                raise
            self.fail(refusal(f"{self.config.kind}: {error.message}", error.code))
            return
        self._dialect.ended(answer or {})

    def hear(self, message: dict[str, Any]) -> None:
        """Take in a message."""
        call = self._rpc.hear(message)
        if call is None:
            return
        self._calls += 1
        if call.id is None:
            self._dialect.take(call)
        elif not self._dialect.request(call, lambda result: self._rpc.answer(call.id, result)):
            self._rpc.refuse(call.id, METHOD_NOT_FOUND, f"{call.method} is not supported")

    async def settle(self, why: RetinueError) -> None:
        """Let an answer that has come be the end; one that will not come fails."""
        self._rpc.close(why)
        if self._greeting is not None:
            await asyncio.wait({self._greeting})

    async def call_off(self) -> None:
        """Cancel the turn; the answer to the prompt says that it was."""
        if self._session is not None:
            self._rpc.notify("session/cancel", {"sessionId": self._session})
            for ask in self.asking.drop():  # who cancels has to answer what was asked
                ask.reply(None, "cancelled")
            if self._greeting is not None:
                await asyncio.wait({self._greeting})


class AcpInstance(CodingInstance):
    """An agent that speaks ACP."""

    def prepare(self) -> None:
        """Make what the CLI needs to run."""
        PRESETS[self.config.kind].prepare(self.config, self.place.home)

    def execute(self, job: Job, /) -> Turn:
        """Perform ``job``."""
        once = _ONCE.get(self.config.kind) if self.config.form == "once" else None
        return (once or AcpTurn)(self, job)


class AcpDriver(CodingDriver):
    """Runs agents that speak ACP."""

    name: ClassVar[str] = "acp"

    def instance(
        self, agent: AgentDefinition, config: CodingConfig, context: DriverContext
    ) -> CodingInstance:
        """Return an instance."""
        return AcpInstance(self, agent, config, context)

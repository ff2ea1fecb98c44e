"""The simple form: a CLI is run with the prompt on its stdin and writes JSON lines until it ends.

No questions, no text while it is being made, and no turn that can be called off but by a signal.
Every CLI has it: ``codex exec --json``, ``gemini -o stream-json``, ``opencode run``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from retinue.domain.event import EventType
from retinue.drivers.coding.config import plainly, prompt_of
from retinue.drivers.coding.presets import (
    PRESETS,
    codex_arguments,
    codex_environment,
    codex_sandbox,
    gemini_arguments,
)
from retinue.drivers.coding.provider import refusal, words_of
from retinue.drivers.coding.scribe import fitting, number
from retinue.drivers.coding.spoken import SpokenTurn
from retinue.errors import AgentFailed, BudgetExceeded, CommunicationError, ProviderError
from retinue.interfaces import Job
from retinue.process.child import Child
from retinue.process.ladder import Ladder

if TYPE_CHECKING:
    from retinue.drivers.coding.driver import CodingInstance


class OnceTurn(SpokenTurn):
    """One run to the end."""

    ladder = Ladder()

    async def start(self) -> None:
        """Start the process; its output does not tell which version it is."""
        await self.instance.fingerprint()
        await super().start()

    async def greet(self) -> None:
        """Give it the prompt, and the end of its input."""
        assert self.talk is not None
        child = self.talk.child
        assert child.stdin is not None
        try:
            await child.stdin.write(self.prompt().encode())
        except CommunicationError:
            return  # its exit says why
        child.stdin.close()

    def prompt(self) -> str:
        """Return what it is to do; the system prompt stands above a session's first task."""
        first = self.native is None and self.config.system_prompt
        task = prompt_of(self.job)
        text = f"{self.config.system_prompt}\n\n{task}" if first else task
        return plainly(self.config.kind, text)

    async def call_off(self) -> None:
        """There is no way but a signal."""


def _refused(error: Any) -> ProviderError:
    """Return what the model's provider said, as the CLI repeats it."""
    return refusal(words_of(error), error, error=fitting(error))


class CodexOnce(OnceTurn):
    """``codex exec --json``."""

    def arguments(self) -> list[str]:
        """Return the arguments after the program."""
        config = self.config
        common = ["--json", "--skip-git-repo-check"]
        # As an option of its own only a new session takes it.
        box = ("-c", f'sandbox_mode="{codex_sandbox(config)}"')
        start = [*codex_arguments(config, self.instance.place.work_dir), *box, "exec"]
        if self.native is not None:
            return [*start, "resume", *common, self.native.native_session, "-"]
        return [*start, *common, "-"]

    def environment(self) -> dict[str, str]:
        """Return variables that Codex needs."""
        return codex_environment(self.instance.place.home)

    _last = ""
    _failure: str | None = None

    def hear(self, message: dict[str, Any]) -> None:
        """Take in a line."""
        match message.get("type"):
            case "thread.started":
                self.begun(message.get("thread_id"), self.instance.version, self.config.model)
            case "item.started":
                self._item(message.get("item") or {}, done=False)
            case "item.completed":
                self._item(message.get("item") or {}, done=True)
            case "error":
                self.warn(str(message.get("message")), retry=message.get("message"))
            case "turn.completed":
                self._used(message.get("usage") or {})
                self.end(self._last)
            case "turn.failed":
                error = message.get("error") or {}
                self.fail(_refused(error))

    def _used(self, usage: dict[str, Any]) -> None:
        """Take what the whole thread has used until now: some of it earlier tasks."""
        now = number(usage.get("input_tokens")), number(usage.get("output_tokens"))
        before = (0, 0)
        if self.native is not None:
            before = self.native.input_tokens, self.native.output_tokens
            self.native = msgspec.structs.replace(
                self.native, input_tokens=now[0], output_tokens=now[1]
            )
        if now[0] < before[0] or now[1] < before[1]:
            before = (0, 0)  # it has begun to count anew
        self.spent(now[0] - before[0], now[1] - before[1])

    def _item(self, item: dict[str, Any], *, done: bool) -> None:
        key = str(item.get("id"))
        match item.get("type"):
            case "agent_message" if done:
                self._last = str(item.get("text", ""))
                self.say(self._last)
            case "reasoning" if done:
                self.think(str(item.get("text", "")))
            case "error" if done:
                self.warn(str(item.get("message")))
            case "command_execution" | "file_change" | "mcp_tool_call" | "web_search" as kind:
                names = ("command", "changes", "arguments", "query", "server")
                given = {name: item[name] for name in names if name in item}
                self.called(key, str(item.get("tool", kind)), given)
                if done:
                    result = item.get("aggregated_output", item.get("result"))
                    failed = item.get("status") == "failed"
                    self.answered(key, result, is_error=failed, exit_code=item.get("exit_code"))


class GeminiOnce(OnceTurn):
    """``gemini -o stream-json``."""

    def __init__(self, instance: CodingInstance, job: Job) -> None:
        super().__init__(instance, job)
        self._parts: list[str] = []

    def arguments(self) -> list[str]:
        """Return the arguments after the program."""
        argv = [*gemini_arguments(self.config, self.instance.place.home), "-o", "stream-json"]
        return argv + (["-r", self.native.native_session] if self.native is not None else [])

    def environment(self) -> dict[str, str]:
        """Return variables that it needs."""
        return PRESETS["gemini"].environment(self.config)

    def hear(self, message: dict[str, Any]) -> None:
        """Take in a line."""
        match message.get("type"):
            case "init":
                self.begun(message.get("session_id"), self.instance.version, message.get("model"))
            case "message" if message.get("role") == "assistant":
                self._parts.append(str(message.get("content", "")))
                self.say(self._parts[-1])
            case "tool_use":
                self._parts = []
                name = str(message.get("tool_name"))
                self.called(str(message.get("tool_id")), name, message.get("parameters"))
            case "tool_result":
                failed = message.get("status") != "success"
                result = message.get("error" if failed else "output")
                self.answered(str(message.get("tool_id")), result, is_error=failed)
            case "error":
                self.warn(str(message.get("message")), retry=message.get("message"))
            case "result":
                self._judge(message)

    def _judge(self, message: dict[str, Any]) -> None:
        stats = message.get("stats") or {}
        self.spent(number(stats.get("input_tokens")), number(stats.get("output_tokens")))
        if message.get("status") == "success":
            self.end("".join(self._parts))
        elif "TurnLimited" in str((message.get("error") or {}).get("type")):
            limit = f"max_turns {self.config.max_turns}"
            said = f"the task took more than it may ({limit})"
            self.fail(BudgetExceeded(said, details={"limit": limit}))
        else:
            self.fail(_refused(message.get("error")))

    def gone(self, child: Child) -> None:
        """Begin anew when it ended because it does not know the session."""
        self.lost_if(b"Error resuming session" in child.stderr.tail)


class OpencodeOnce(OnceTurn):
    """``opencode run --format json``."""

    _last = ""
    _known = False
    _done = False

    def arguments(self) -> list[str]:
        """Return the arguments after the program."""
        config = self.config
        argv = [*config.command[1:], "run", "--format", "json"]
        if config.model is not None:
            argv += ["-m", config.model]
        if config.approvals == "allow":
            argv += ["--auto"]
        return argv + (["-s", self.native.native_session] if self.native is not None else [])

    def environment(self) -> dict[str, str]:
        """Return variables that it needs."""
        return PRESETS["opencode"].environment(self.config)

    def hear(self, message: dict[str, Any]) -> None:
        """Take in a line."""
        if not self._known:
            self._known = True
            self.begun(message.get("sessionID"), self.instance.version, self.config.model)
        part = message.get("part") or {}
        match message.get("type"):
            case "step_start":
                self._done = False  # a word of its own follows, or it has not ended
            case "text":
                self._last = str(part.get("text", ""))
                self.say(self._last)
            case "reasoning":
                self.think(str(part.get("text", "")))
            case "tool_use":
                state = part.get("state") or {}
                key = str(part.get("callID"))
                self.called(key, str(part.get("tool")), state.get("input"))
                failed = state.get("status") == "error"
                result = state.get("error" if failed else "output")
                self.answered(key, result, is_error=failed)
            case "step_finish":
                tokens = part.get("tokens") or {}
                cost = part.get("cost")
                self.replied()
                self.spent(
                    number(tokens.get("input")),
                    number(tokens.get("output")),
                    float(cost) if isinstance(cost, int | float) else 0.0,
                )
                self._done = part.get("reason") == "stop"
            case "error":
                self.fail(_refused(message.get("error")))

    def gone(self, child: Child) -> None:
        """Judge the end: there is no last word, but a last step that says ``stop``."""
        said = child.stderr.tail.decode("utf-8", "replace")
        if "auto-rejecting" in said:
            quoted = self.instance.place.last_said(child.stderr.tail, 500)
            self.note(EventType.LOG, {"level": "warning", "message": quoted})
            self.fail(AgentFailed("it asked for leave, which this form refuses"))
        elif self._done and child.exit is not None and child.exit.code == 0:
            self.end(self._last)

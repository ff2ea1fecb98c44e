"""Claude Code: stream-json both ways, one process per turn, its own session resumed by id.

Stopping: an ``interrupt`` request, which ends the turn; then the end of its input; then SIGINT;
then SIGKILL to its whole tree.
"""

from __future__ import annotations

import signal
from typing import Any, ClassVar

from retinue.domain.agent import AgentDefinition
from retinue.drivers.coding.claude_dialect import LOST, ClaudeDialect
from retinue.drivers.coding.config import CodingConfig, plainly, prompt_of
from retinue.drivers.coding.driver import CodingDriver, CodingInstance
from retinue.drivers.coding.spoken import SpokenTurn
from retinue.interfaces import DriverContext, Job
from retinue.process.child import Child
from retinue.process.ladder import Ladder

ARGUMENTS = (
    *("-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"),
    *("--include-partial-messages", "--permission-prompt-tool", "stdio"),
)
"""What every turn is started with. A prompt, or any part of a task, is never among them."""
ENVIRONMENT = {
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    # Else a background task keeps the process after its result, and begins another turn later.
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
}


class ClaudeTurn(SpokenTurn):
    """One turn of Claude Code."""

    ladder = Ladder(cancel=5.0, stdin=1.0, number=signal.SIGINT)

    def __init__(self, instance: CodingInstance, job: Job) -> None:
        super().__init__(instance, job)
        self._dialect = ClaudeDialect(self, self._send)

    def arguments(self) -> list[str]:
        """Return the arguments after the program."""
        config = self.config
        argv = [*config.command[1:], *ARGUMENTS]
        for option, value in (
            ("--model", config.model),
            ("--append-system-prompt", config.system_prompt),
            ("--max-turns", config.max_turns),
            ("--max-budget-usd", self._most_cost()),
            ("--resume", self.native and self.native.native_session),
        ):
            if value is not None:
                argv += [option, str(value)]
        if not config.trust_project:
            argv += ["--setting-sources", "user"]
        if config.deny:
            argv += ["--disallowedTools", *config.deny]  # of most of its tools it asks nobody
        return argv

    def _most_cost(self) -> float | None:
        """Return what the turn may cost: what the agent may spend on a task, and what is left."""
        left = self.job.budget.left().max_cost_usd if self.job.budget is not None else None
        given = [most for most in (self.config.max_cost_usd, left) if most is not None]
        return min(given, default=None)

    def environment(self) -> dict[str, str]:
        """Return what it needs to keep to itself."""
        return {**ENVIRONMENT, "CLAUDE_CONFIG_DIR": str(self.instance.place.home / ".claude")}

    async def greet(self) -> None:
        """Give it the task."""
        content = plainly(self.config.kind, prompt_of(self.job))
        self._send({"type": "user", "message": {"role": "user", "content": content}})

    def _send(self, message: Any) -> None:
        if self.talk is not None:
            self.talk.send(message)

    def hear(self, message: dict[str, Any]) -> None:
        """Take in a message."""
        if not self._held:
            self.lost_if(self._dialect.lost(message))
        self._dialect.take(message, self.line)

    def gone(self, child: Child) -> None:
        """Begin anew when it ended because it does not know the session."""
        self.lost_if(LOST.encode() in child.stderr.tail)

    async def call_off(self) -> None:
        """Interrupt the turn; its result says that it was."""
        request = {"subtype": "interrupt"}
        self._send({"type": "control_request", "request_id": "interrupt", "request": request})
        await self._dialect.done.wait()


class ClaudeInstance(CodingInstance):
    """An agent that is Claude Code."""

    def execute(self, job: Job, /) -> ClaudeTurn:
        """Perform ``job``."""
        return ClaudeTurn(self, job)


class ClaudeDriver(CodingDriver):
    """Runs Claude Code."""

    name: ClassVar[str] = "claude"

    def instance(
        self, agent: AgentDefinition, config: CodingConfig, context: DriverContext
    ) -> CodingInstance:
        """Return an instance."""
        return ClaudeInstance(self, agent, config, context)

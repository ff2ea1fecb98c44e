"""Agents that are coding CLIs, as ``retinue.yaml`` names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from retinue.domain.agent import AGENT_ID_PATTERN
from retinue.domain.policy import BusyPolicy, Delivery
from retinue.settings.commands import SANDBOX, CommandCapability, SandboxReference

CodingKind = Literal["claude", "codex", "gemini", "opencode", "acp"]
CODING = ("claude", "codex", "gemini", "opencode", "acp")


class CodingReference(BaseModel):
    """An agent that is a coding CLI of this machine; its own session goes on with ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    driver: CodingKind = Field(
        description="which CLI: claude, codex, gemini, opencode, or acp for any other one that"
        " speaks the Agent Client Protocol"
    )
    agent_id: str = Field(
        default="", pattern=f"^({AGENT_ID_PATTERN})?$", description="the driver's name unless given"
    )
    command: tuple[str, ...] = Field(
        default=(),
        description="the program and options of its own; no shell, no part of a task; unset: the"
        " driver's name, sought on the PATH",
    )
    form: Literal["session", "once"] = Field(
        default="session",
        description="session: spoken with, streamed, asks; once: run with the prompt on its stdin"
        " (codex, gemini, opencode)",
    )
    name: str = Field(default="", description="the agent's id unless given")
    description: str = ""
    version: str = "1"
    capabilities: tuple[
        Annotated[
            CommandCapability,
            BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
            WithJsonSchema({"anyOf": [{"type": "string"}, CommandCapability.model_json_schema()]}),
        ],
        ...,
    ] = Field(
        default=(),
        description="their names, or {name, description, parameters}; unset: one, named as the"
        " agent, that takes a prompt",
    )
    model: str | None = Field(default=None, description="the model; unset: the CLI's own choice")
    system_prompt: str | None = Field(
        default=None, description="what it is told beside every session's tasks"
    )
    approvals: Literal["ask", "allow", "deny"] = Field(
        default="ask",
        description="what becomes of what it asks leave for: a question to a person, yes, or no;"
        " unset: ask, and deny in the form once, where nobody can be asked",
    )
    allow: tuple[str, ...] = Field(
        default=(), description="tools that need no leave, like Read or Web* (as in its tool calls)"
    )
    deny: tuple[str, ...] = Field(default=(), description="tools that never get it")
    question_seconds: float | None = Field(
        default=None, gt=0, description="how long a question stays open; unanswered it is a no"
    )
    sandbox: SandboxReference | bool = Field(default=False, description=SANDBOX)
    codex_sandbox: Literal["read-only", "workspace-write", "danger-full-access"] | None = Field(
        default=None,
        description="codex: the sandbox it makes itself for its commands, where `sandbox` is not"
        " set; unset: workspace-write",
    )
    trust_project: bool = Field(
        default=False,
        description="whether settings that lie in its working directory count (.claude, .gemini,"
        " opencode.json, .codex): they can run programs and give themselves leave",
    )
    max_turns: int | None = Field(
        default=None, ge=1, description="replies of the model that a task may take"
    )
    max_cost_usd: float | None = Field(
        default=None, gt=0, description="what a task may cost, where the CLI says what it costs"
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="variables for it; ${NAME} takes one of the server's",
    )
    work_dir: Path | None = Field(
        default=None, description="its working directory; unset: one of its own in data_dir"
    )
    home: Path | None = Field(
        default=None,
        description="its HOME, where a login lies; unset: one of its own in data_dir",
    )
    concurrency: int = Field(default=4, ge=1, le=1000, description="tasks at one time")
    timeout: float = Field(
        default=1800.0, gt=0, le=86_400, description="seconds for a task without a limit of its own"
    )
    silence_seconds: float = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="how long it may say nothing, while no tool runs and nobody is asked",
    )
    on_busy: BusyPolicy = Field(
        default=BusyPolicy.PARALLEL, description="what a task does while its session is busy"
    )
    delivery: Delivery = Delivery.AT_MOST_ONCE
    max_attempts: int = Field(default=3, ge=1, le=100)
    stop_seconds: float = Field(
        default=5, ge=0, le=600, description="how long a step of stopping it may take"
    )
    max_memory_mb: float | None = Field(default=None, gt=0, description="of its whole tree")
    max_cpu_percent: float | None = Field(
        default=None, gt=0, description="of its whole tree; 100 is one CPU, 10 s over it end it"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Fill in what follows from the driver's name."""
        if not isinstance(value, dict) or value.get("driver") not in CODING:
            return value
        kind = value["driver"]
        if isinstance(value.get("sandbox"), str):
            raise ValueError(
                "sandbox is true, or {network, write, read, hide}; Codex's own is codex_sandbox"
            )
        if not value.get("command"):
            if kind == "acp":
                raise ValueError("driver acp needs a command")
            value = {**value, "command": (kind,)}
        if not value.get("agent_id"):
            if kind == "acp":
                raise ValueError("driver acp needs an agent_id")
            value = {**value, "agent_id": kind}
        if value.get("form") == "once" and "approvals" not in value:
            value = {**value, "approvals": "deny"}
        return value

    @model_validator(mode="after")
    def _possible(self) -> CodingReference:
        """Refuse what the CLI cannot do, rather than ignore it."""
        kind = self.driver
        if self.form == "once" and kind in {"claude", "acp"}:
            raise ValueError(f"driver {kind} has no form once")
        if self.codex_sandbox is not None and kind != "codex":
            raise ValueError(f"driver {kind} has no sandbox of its own")
        if self.codex_sandbox not in {None, "danger-full-access"} and self.sandbox:
            raise ValueError("codex can make no sandbox of its own in another one")
        if self.max_cost_usd is not None and kind in {"codex", "gemini"}:
            raise ValueError(f"driver {kind} does not say what a task costs; set max_turns")
        silent = (kind, self.form) in {("opencode", "session"), ("codex", "once")} or kind == "acp"
        if self.max_turns is not None and silent:
            raise ValueError(
                f"driver {kind} does not say how often the model replied in form {self.form}"
            )
        self._possible_leave()
        return self

    def _possible_leave(self) -> None:
        kind = self.driver
        if kind in {"claude", "gemini", "opencode"} and set("".join(self.deny)) & set("?["):
            raise ValueError(f"deny of driver {kind} knows * only: the CLI itself is told of it")
        if self.form == "once" and self.approvals == "ask":
            raise ValueError(
                "form once can ask nobody: set approvals to deny or allow, or use form session"
            )
        if self.form == "once" and kind == "gemini" and self.home and not self.trust_project:
            raise ValueError(
                "gemini in form once does not run in a directory that is not trusted, but for a"
                " HOME of its own: set trust_project, leave out home, or use form session"
            )
        if self.form == "once" and kind == "codex":
            self._possible_for_codex_once()
        for name in ("OPENCODE_CONFIG_CONTENT", "OPENCODE_PERMISSION"):
            if kind == "opencode" and not _is_object(self.environment.get(name, "{}")):
                raise ValueError(f"{name} is merged with what leave depends on: it has to be JSON")

    def _possible_for_codex_once(self) -> None:
        if self.deny or (self.allow and self.approvals == "deny"):
            raise ValueError(
                "codex cannot be allowed or denied single tools in form once: use form session"
            )
        if self.approvals == "deny" and self.codex_sandbox not in {None, "read-only"}:
            raise ValueError(
                "codex with approvals deny in form once runs read-only: for another codex_sandbox"
                " set approvals to allow, or use form session"
            )
        if self.approvals == "deny" and self.sandbox:
            raise ValueError(
                "codex can be denied nothing in form once in a sandbox, where it makes none of its"
                " own: set approvals to allow, or use form session"
            )

    def at(self, cwd: Path) -> CodingReference:
        """Return it with its directories made absolute."""
        found: dict[str, Any] = {
            name: (cwd / path.expanduser()).absolute()
            for name in ("work_dir", "home")
            if (path := getattr(self, name)) is not None
        }
        if isinstance(self.sandbox, SandboxReference):
            found["sandbox"] = self.sandbox.at(cwd)
        return self.model_copy(update=found) if found else self


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False

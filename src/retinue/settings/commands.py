"""Agents that are command lines, as ``retinue.yaml`` names them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from retinue.domain.agent import AGENT_ID_PATTERN
from retinue.domain.policy import Delivery

SANDBOX = (
    "shut it in by bubblewrap: it reads the host and writes its own directories;"
    " or {network, write, read, hide}"
)
T = TypeVar("T")


class CommandCapability(BaseModel):
    """What a command can be asked to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=256)
    description: str = ""
    parameters: dict[str, Any] | None = Field(
        default=None, description='names and types ({"text": "string"}), or a JSON Schema'
    )


class SandboxReference(BaseModel):
    """How an agent is shut in, by bubblewrap."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: Literal["host", "loopback", "none"] = Field(
        default="host",
        description="the host's network; one of its own with nothing but its own loopback; or none",
    )
    write: tuple[Path, ...] = Field(
        default=(), description="what it may write beside its working directory, HOME and TMPDIR"
    )
    read: tuple[Path, ...] = Field(
        default=(), description="what it sees though it lies in what is hidden, as ~/.npmrc does"
    )
    hide: tuple[Path, ...] = Field(
        default=(),
        description="what it is not to see beside data_dir, the settings' files, the host's /run,"
        " /tmp and sockets, and its user's credentials",
    )

    def at(self, cwd: Path) -> SandboxReference:
        """Return it with its paths made absolute."""
        paths = {
            name: tuple((cwd / path.expanduser()).absolute() for path in getattr(self, name))
            for name in ("write", "read", "hide")
        }
        return self.model_copy(update=paths)


class CommandReference(BaseModel):
    """An agent that is a command line of this machine: one process per task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    driver: Literal["command"]
    agent_id: str = Field(pattern=f"^{AGENT_ID_PATTERN}$")
    command: tuple[str, ...] = Field(
        min_length=1, description="the program and its arguments; no shell, no part of a task"
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
    prompt: Literal["stdin", "argument", "json"] = Field(
        default="stdin",
        description="how a task reaches it: its prompt by stdin, its prompt as the last argument"
        " after --, or the whole task as one line of JSON by stdin",
    )
    stdin_open: bool = Field(
        default=False,
        description="its stdin stays open behind the prompt: `retinue agent attach` writes to it",
    )
    keep_running: bool = Field(
        default=False,
        description="its processes outlive the server, stopped or killed; the next one goes on with"
        " them",
    )
    output: Literal["text", "json", "json-lines"] = Field(
        default="text",
        description="what its stdout is: text, streamed; one JSON document; or a JSON event per"
        " line, ending with a result",
    )
    stall_seconds: float = Field(
        default=120, gt=0, description="silent for so long while it works: shown as stalled"
    )
    max_line_mb: float = Field(
        default=1, gt=0, le=64, description="of one line of json-lines; a longer one is refused"
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="variables for it; ${NAME} takes one of the server's",
    )
    work_dir: Path | None = Field(
        default=None, description="its working directory; unset: one of its own in data_dir"
    )
    concurrency: int = Field(default=4, ge=1, le=1000, description="tasks at one time")
    timeout: float = Field(
        default=300.0, gt=0, le=86_400, description="seconds for a task without a limit of its own"
    )
    delivery: Delivery = Delivery.AT_MOST_ONCE
    max_attempts: int = Field(default=3, ge=1, le=100)
    interrupt: Literal["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"] = Field(
        default="TERM", description="the signal that asks it to stop"
    )
    stop_seconds: float = Field(
        default=5, ge=0, le=600, description="how long it then has before it is killed"
    )
    max_memory_mb: float | None = Field(default=None, gt=0, description="of its whole tree")
    max_cpu_percent: float | None = Field(
        default=None,
        gt=0,
        description="of its whole tree; 100 is one CPU; throttled where the kernel"
        " lets us, else 10 s over it end it",
    )
    max_runtime_seconds: float | None = Field(
        default=None, gt=0, description="of its process, whatever the task's timeout"
    )
    max_processes: int | None = Field(default=None, ge=1, description="in its whole tree")
    max_open_files: int | None = Field(default=None, ge=16, description="of each process")
    max_file_mb: float | None = Field(default=None, gt=0, description="of each file it writes")
    sandbox: SandboxReference | bool = Field(default=False, description=SANDBOX)

    def at(self, cwd: Path) -> CommandReference:
        """Return it with its directories made absolute."""
        update: dict[str, Any] = {}
        if self.work_dir is not None:
            update["work_dir"] = (cwd / self.work_dir.expanduser()).absolute()
        if isinstance(self.sandbox, SandboxReference):
            update["sandbox"] = self.sandbox.at(cwd)
        return self.model_copy(update=update)


def environment(pick: Callable[[Mapping[str, str]], T]) -> T:
    """Return what ``pick`` takes of this process's environment, for the agents it starts."""
    return pick(os.environ)

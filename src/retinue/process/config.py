"""What a program that runs agents says: specification 001's records, and the catalogue of CLIs."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, Literal

import msgspec

from retinue.errors import InvalidContext
from retinue.process.reading import Bounds
from retinue.process.sandbox import PLAIN, Sandbox

MOST_ARGUMENT = 120 << 10
"""Bytes of one argument or variable; Linux takes 128 KiB."""
MOST_TASK = 16 << 20


class AgentStatus(StrEnum):
    """Where an agent stands; the last three are final."""

    IDLE = "idle"
    INITIALIZING = "initializing"
    RUNNING = "running"
    THINKING = "thinking"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    TERMINATED = "terminated"

    @property
    def final(self) -> bool:
        """Whether the agent has ended."""
        return self in {AgentStatus.COMPLETED, AgentStatus.FAILED, AgentStatus.TERMINATED}


class AgentSignal(Enum):
    """What can be sent to an agent."""

    INTERRUPT = signal.SIGINT
    TERMINATE = signal.SIGTERM
    KILL = signal.SIGKILL


class ResourceLimits(msgspec.Struct, frozen=True):
    """What an agent may use, its whole tree together; None: no limit.

    Past one of them it is ended, and the reason of its exit names the limit: ``limit_memory``,
    ``limit_cpu``, ``limit_runtime``, ``limit_processes``, ``limit_open_files``. Its CPU is
    throttled where the kernel lets us; elsewhere 10 s over it end it. ``max_open_files`` is for
    each process.
    """

    max_memory_mb: float | None = None
    max_cpu_percent: float | None = None
    max_runtime_secs: float | None = None
    max_processes: int | None = None
    max_open_files: int | None = None

    def for_keeper(self) -> dict[str, float]:
        """Return the limits as the keeper takes them."""
        memory = self.max_memory_mb
        given = {
            "memory_bytes": memory * (1 << 20) if memory is not None else None,
            "cpu_percent": self.max_cpu_percent,
            "runtime_seconds": self.max_runtime_secs,
            "processes": self.max_processes,
            "open_files": self.max_open_files,
            # One that opens more can just be seen to, and cannot go on with it.
            "files": self.max_open_files and self.max_open_files + 1,
        }
        return {name: value for name, value in given.items() if value is not None}


class AgentConfig(msgspec.Struct, frozen=True):
    """An agent to run: which CLI, and what it is to do.

    ``environment`` wins over what the agent inherits, which is little: see
    ``process.environment``. In a ``sandbox`` (True: the plain one) it may write its working
    directory and what the sandbox names; its TMPDIR is memory of its own.
    """

    name: str
    model_backend: str
    task: str
    context: str | None = None
    system_prompt: str | None = None
    environment: Mapping[str, str] = {}
    sandbox: Sandbox | bool = False

    @property
    def box(self) -> Sandbox | None:
        """Its sandbox, if it is to have one."""
        return self.sandbox if isinstance(self.sandbox, Sandbox) else PLAIN[self.sandbox]


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """A CLI that agents may be: an entry of a runner's catalogue.

    ``command`` is the program and its arguments. The prompt is the last argument, after ``--``
    (``argument``), or comes by stdin, which then ends (``stdin``), or is not given at all
    (``none``). ``system_prompt`` is the option that takes one; without it the system prompt stands
    at the top of the prompt. ``install`` is what to tell who does not have the program.
    """

    command: tuple[str, ...]
    prompt: Literal["argument", "stdin", "none"] = "argument"
    system_prompt: str | None = None
    environment: Mapping[str, str] = {}
    install: str | None = None


class ProcessRunnerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a runner runs its agents; the first five are specification 001's.

    Output that nobody has read is kept as ``stdout`` and ``stderr`` say; by default an agent waits
    when 1,000 lines of its stdout are unread, while of its stderr the later lines are dropped and
    counted. ``log_dir`` keeps capped files of both, per agent.
    """

    working_dir: Path | str | None = None
    enable_json_streaming: bool = True
    enable_health_checks: bool = True
    health_check_interval_secs: float = 30
    max_concurrent_agents: int | None = None
    limits: ResourceLimits = ResourceLimits()
    stdout: Bounds = Bounds()
    stderr: Bounds = Bounds(when_full="drop")
    log_dir: Path | None = None
    log_bytes: int = 1 << 20


class Moved(msgspec.Struct, frozen=True):
    """One step of an agent's timeline; ``at`` is in microseconds since 1970 (UTC)."""

    status: AgentStatus
    reason: str
    at: int


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as it is listed."""

    id: str
    name: str
    status: AgentStatus
    model_backend: str
    pid: int
    healthy: bool
    silent_secs: float
    exit_code: int | None = None


class AgentMetrics(msgspec.Struct, frozen=True):
    """What an agent's whole tree uses: ``cpu_usage`` in percent of one CPU since it began."""

    cpu_usage: float
    memory_mb: float
    uptime_secs: float
    messages_sent: int
    messages_received: int


def check(config: AgentConfig) -> None:
    """Check what a caller gave.

    Raises:
        InvalidContext: a text holds a NUL, or is larger than 16 MiB.
    """
    texts: dict[str, Any] = {
        "name": config.name,
        "task": config.task,
        "context": config.context or "",
        "system_prompt": config.system_prompt or "",
        **{f"environment {name}": name + value for name, value in config.environment.items()},
    }
    for where, text in texts.items():
        if "\0" in text:
            raise InvalidContext(f"{where} holds a NUL character")
        if len(text) > MOST_TASK:
            raise InvalidContext(f"{where} is larger than {MOST_TASK} characters")


def prompt_of(config: AgentConfig, backend: Backend) -> str:
    """Return the prompt: the system prompt (where no option takes it), the context, the task."""
    parts = [config.context, config.task]
    if backend.system_prompt is None:
        parts.insert(0, config.system_prompt)
    return "\n\n".join(part for part in parts if part)


def arguments(config: AgentConfig, backend: Backend) -> list[str]:
    """Return the arguments after the program.

    Raises:
        InvalidContext: a text is too large for an argument.
    """
    argv = list(backend.command[1:])
    if backend.system_prompt is not None and config.system_prompt:
        argv += [backend.system_prompt, _argument(config.system_prompt, "the system prompt")]
    if backend.prompt == "argument":
        argv += ["--", _argument(prompt_of(config, backend), "the prompt")]
    return argv


def _argument(text: str, what: str) -> str:
    if len(text.encode("utf-8", "surrogateescape")) > MOST_ARGUMENT:
        raise InvalidContext(
            f"{what} is too large for an argument ({MOST_ARGUMENT} bytes);"
            ' have the catalogue give it by stdin (prompt="stdin")'
        )
    return text

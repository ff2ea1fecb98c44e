"""Workers, as ``retinue.yaml`` names them: programs that live long and bring their own agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from retinue.domain.agent import AGENT_ID_PATTERN
from retinue.domain.policy import Delivery
from retinue.settings.commands import SANDBOX, SandboxReference


class WorkerReference(BaseModel):
    """A program that speaks the worker protocol on its stdin and stdout, in several processes.

    Its agents and their capabilities are those it announces.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    driver: Literal["stdio"]
    name: str = Field(pattern=f"^{AGENT_ID_PATTERN}$", description="the worker's own name")
    command: tuple[str, ...] = Field(
        default=(), description="the program and its arguments; no shell"
    )
    module_class: str | None = Field(
        default=None,
        min_length=1,
        description="in place of a command: the class of an agent-o-rama module, run by java",
    )
    classpath: str | None = Field(
        default=None, min_length=1, description="java's, for module_class; relative to work_dir"
    )
    extra_jvm_opts: tuple[str, ...] = Field(
        default=(),
        description="more options for java, after -Xss6m -Xms2g -Xmx4g -XX:+UseG1GC"
        " -Djava.awt.headless=true; the last one of a kind counts",
    )
    agents: tuple[str, ...] = Field(
        default=(), description="agents that it must have; without one of them it is not started"
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="variables for it; ${NAME} takes one of the server's",
    )
    work_dir: Path | None = Field(
        default=None, description="its working directory; unset: one of its own in data_dir"
    )
    process_pool_size: int = Field(default=3, ge=1, le=1000, description="processes, at most")
    min_processes: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="processes that run even when idle; unset: all of them",
    )
    idle_seconds: float = Field(
        default=60, ge=0, description="after which time a process beyond min_processes goes"
    )
    max_concurrent_requests: int = Field(
        default=10, ge=1, le=10_000, description="requests at one time, per process"
    )
    request_queue_size: int = Field(
        default=100, ge=0, description="tasks that may wait for it; the next is refused at once"
    )
    max_memory_mb: float = Field(
        default=4096, gt=0, description="of a process with all that it starts; over it, it is ended"
    )
    max_cpu_percent: float | None = Field(
        default=None,
        gt=0,
        description="likewise; 100 is one CPU; throttled where the kernel lets us, else 10 s"
        " over it end it",
    )
    max_processes: int | None = Field(default=None, ge=1, description="in its whole tree")
    max_open_files: int | None = Field(default=None, ge=16, description="of each process")
    sandbox: SandboxReference | bool = Field(default=False, description=SANDBOX)
    max_subprocess_lifetime_hours: float = Field(
        default=24, gt=0, description="older ones are replaced, their work done first"
    )
    restart: Literal["permanent", "transient", "temporary"] = Field(
        default="permanent",
        description="what is replaced when it ends unasked: all, what ends badly, nothing",
    )
    max_restarts: int = Field(
        default=5, ge=0, description="within restart_window; one more, and it has failed"
    )
    restart_window: float = Field(default=60, gt=0, description="seconds")
    startup_timeout: float = Field(
        default=10, gt=0, le=3600, description="seconds until its ready frame"
    )
    drain_timeout: float = Field(
        default=30, ge=0, description="seconds that work may take in a process that is replaced"
    )
    health_interval: float = Field(default=10, gt=0, description="seconds between two pings")
    health_timeout: float = Field(
        default=5, gt=0, description="seconds for an answer; without one it is replaced"
    )
    stall_seconds: float = Field(
        default=120,
        gt=0,
        description="a task that has brought nothing for so long is shown as stalled",
    )
    timeout: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="seconds for a task without a limit of its own; unset: as the agent says,"
        " else 30",
    )
    delivery: Delivery | None = Field(default=None, description="unset: as the agent says")
    max_attempts: int | None = Field(default=None, ge=1, le=100)
    max_bad_lines: int = Field(
        default=10_000,
        ge=0,
        description="lines in a row that are no frames; one more, and it is ended and replaced",
    )
    line_bytes: int = Field(
        default=1 << 20, ge=1024, le=1 << 28, description="how long a frame may be"
    )
    frame_log: bool = Field(
        default=False, description="have every frame in the log, secrets of environment masked"
    )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_processes is not None and self.min_processes > self.process_pool_size:
            raise ValueError("min_processes is more than process_pool_size")
        if bool(self.command) == (self.module_class is not None):
            raise ValueError("it needs a command, or else module_class and classpath")
        if (self.module_class is None) != (self.classpath is None):
            raise ValueError("module_class and classpath need each other")
        if self.extra_jvm_opts and self.module_class is None:
            raise ValueError("extra_jvm_opts are for module_class")
        return self

    def at(self, cwd: Path) -> WorkerReference:
        """Return it with its directories made absolute."""
        update: dict[str, Any] = {}
        if self.work_dir is not None:
            update["work_dir"] = (cwd / self.work_dir.expanduser()).absolute()
        if isinstance(self.sandbox, SandboxReference):
            update["sandbox"] = self.sandbox.at(cwd)
        return self.model_copy(update=update)

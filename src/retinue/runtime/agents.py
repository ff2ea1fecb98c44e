"""What the settings say of agents, as definitions."""

from __future__ import annotations

import importlib
import importlib.metadata
import signal
from typing import Any

import msgspec

from retinue.agent import Agent, FunctionAgent
from retinue.domain.agent import (
    AgentDefinition,
    Capability,
    HttpConfig,
    Registration,
    definition_of_remote,
)
from retinue.domain.policy import RetryPolicy
from retinue.domain.supervision import PoolPolicy, Restart, RestartPolicy
from retinue.drivers.coding import AcpDriver, ClaudeDriver, CodexDriver, CodingConfig
from retinue.drivers.coding.look import Look as Look  # noqa: PLC0414 doctor shows it
from retinue.drivers.coding.look import look
from retinue.drivers.command import CommandConfig, CommandDriver
from retinue.drivers.stdio import StdioDriver, WorkerConfig, jvm_command
from retinue.engine.roster import checked
from retinue.engine.schema import parameters_schema
from retinue.errors import InvalidInput, SettingsError
from retinue.process.capacity import MEMORY_EACH, Host, refusal
from retinue.process.environment import inherited
from retinue.process.sandbox import PLAIN, Sandbox
from retinue.settings import (
    CodingReference,
    CommandReference,
    HttpReference,
    SandboxReference,
    Settings,
    WorkerReference,
    environment,
)

_DRIVERS = {"claude": ClaudeDriver, "codex": CodexDriver}
CODING_KINDS = ("claude", "codex", "gemini", "opencode")
_PROMPT = {
    "type": "object",
    "properties": {"prompt": {"type": "string", "description": "what it is to do"}},
    "required": ["prompt"],
}


def load_agent(reference: str, arguments: dict[str, Any] | None = None) -> Agent:
    """Return the agent that ``module:Name`` names: an ``Agent`` class, object or function.

    Raises:
        SettingsError: it cannot be imported, or is none of these.
    """
    module_name, _, name = reference.partition(":")
    if not name:
        raise SettingsError(f"agent {reference!r}: write it as module:Class")
    try:
        target: Any = importlib.import_module(module_name)
        for part in name.split("."):
            target = getattr(target, part)
        if isinstance(target, type) and issubclass(target, Agent):
            target = target(**(arguments or {}))
    except Exception as error:
        raise SettingsError(
            f"agent {reference!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(target, Agent | FunctionAgent):
        raise SettingsError(f"agent {reference!r} is {type(target).__name__}, not an Agent")
    return target


def remote_agent(given: HttpReference) -> AgentDefinition:
    """Return the definition of an agent over HTTP that the configuration names.

    Raises:
        SettingsError: a capability's parameters are not valid.
    """
    try:
        registration = checked(
            Registration(
                agent_id=given.agent_id,
                name=given.name or given.agent_id,
                description=given.description,
                version=given.version,
                endpoint=given.endpoint,
                capabilities=tuple(Capability(**dict(c)) for c in given.capabilities),
                concurrency=given.concurrency,
                timeout_us=int(given.timeout * 1_000_000),
                delivery=given.delivery,
                max_attempts=given.max_attempts,
            )
        )
    except InvalidInput as error:
        raise SettingsError(f"agent {given.agent_id}: {error.message}") from None
    config = HttpConfig(endpoint=given.endpoint, secret=given.secret, trusted=True)
    return definition_of_remote(registration, config)


def command_agent(given: CommandReference) -> AgentDefinition:
    """Return the definition of an agent that is a command line.

    Raises:
        SettingsError: a capability's parameters are not valid.
    """
    limits = {
        "memory_bytes": size_of(given.max_memory_mb),
        "cpu_percent": given.max_cpu_percent,
        "runtime_seconds": given.max_runtime_seconds,
        "processes": given.max_processes,
        "open_files": given.max_open_files,
        "files": given.max_open_files and given.max_open_files + 1,
        "file_bytes": size_of(given.max_file_mb),
    }
    return AgentDefinition(
        agent_id=given.agent_id,
        name=given.name or given.agent_id,
        description=given.description,
        version=given.version,
        driver=CommandDriver.name,
        config=CommandConfig(
            command=given.command,
            prompt=given.prompt,
            output=given.output,
            environment=given.environment,
            work_dir=str(given.work_dir) if given.work_dir is not None else None,
            interrupt=signal.Signals[f"SIG{given.interrupt}"],
            stop_seconds=given.stop_seconds,
            stdin_open=given.stdin_open,
            keep_running=given.keep_running,
            line_bytes=int(given.max_line_mb * (1 << 20)),
            stall_seconds=given.stall_seconds,
            limits={name: limit for name, limit in limits.items() if limit is not None},
            sandbox=box_of(given.sandbox),
        ),
        capabilities=_capabilities(given),
        concurrency=given.concurrency,
        memory=size_of(given.max_memory_mb) or 0,
        timeout_us=int(given.timeout * 1_000_000),
        delivery=given.delivery,
        retry=RetryPolicy(max_attempts=given.max_attempts),
    )


def worker(given: WorkerReference) -> AgentDefinition:
    """Return the definition of a worker: what its processes are started for."""
    limits = {
        "memory_bytes": given.max_memory_mb * (1 << 20),
        "cpu_percent": given.max_cpu_percent,
        "processes": given.max_processes,
        "open_files": given.max_open_files,
        "files": given.max_open_files and given.max_open_files + 1,
    }
    most = given.process_pool_size
    return AgentDefinition(
        agent_id=given.name,
        name=given.name,
        driver=StdioDriver.name,
        config=WorkerConfig(
            command=given.command
            or jvm_command(given.module_class or "", given.classpath or "", given.extra_jvm_opts),
            agents=given.agents,
            environment=given.environment,
            work_dir=str(given.work_dir) if given.work_dir is not None else None,
            timeout=given.timeout,
            delivery=given.delivery,
            max_attempts=given.max_attempts,
            limits={name: limit for name, limit in limits.items() if limit is not None},
            sandbox=box_of(given.sandbox),
            line_bytes=given.line_bytes,
            max_bad_lines=given.max_bad_lines,
            frame_log=given.frame_log,
        ),
        pool=PoolPolicy(
            least=most if given.min_processes is None else given.min_processes,
            most=most,
            in_flight=given.max_concurrent_requests,
            idle_seconds=given.idle_seconds,
            lifetime_seconds=given.max_subprocess_lifetime_hours * 3600,
            drain_seconds=given.drain_timeout,
            start_seconds=given.startup_timeout,
            ping_seconds=given.health_interval,
            answer_seconds=given.health_timeout,
            stall_seconds=given.stall_seconds,
            restart=RestartPolicy(
                restart=Restart(given.restart),
                most=given.max_restarts,
                within_seconds=given.restart_window,
            ),
        ),
        queue=given.request_queue_size,
    )


def check_capacity(settings: Settings, host: Host | None = None) -> None:
    """Check that the processes which agents may be at one time fit this machine.

    Commands and coding CLIs have one per task. A worker's processes are there whatever runs. Memory
    counts as the operator set it aside: a worker's limit that is only our default is a bound for
    what has gone wrong, and no measure of what it uses.

    Raises:
        SettingsError: they do not; it says how many would.
    """
    commands = [
        given for given in settings.agents if isinstance(given, CommandReference | CodingReference)
    ]
    workers = [given for given in settings.agents if isinstance(given, WorkerReference)]
    tasks = sum(given.concurrency for given in commands)
    bound = settings.max_concurrent_executions
    most = tasks if bound is None else min(tasks, bound)
    wanted = most + sum(given.process_pool_size for given in workers)
    if not wanted:
        return
    memory = sum(given.concurrency * _counted(given) for given in commands) * most // max(tasks, 1)
    memory += sum(given.process_pool_size * _counted(given) for given in workers)
    why = refusal(wanted, host or Host.here(), memory // wanted)
    if why is not None:
        raise SettingsError(
            f"{why}: lower the agents' concurrency or the workers' process_pool_size,"
            " or set max_concurrent_executions"
        )


def _counted(given: CommandReference | CodingReference | WorkerReference) -> int:
    """Return the memory that a process of an agent counts for."""
    said = given.max_memory_mb if "max_memory_mb" in given.model_fields_set else None
    return size_of(said) or MEMORY_EACH


def coding_agent(given: CodingReference) -> AgentDefinition:
    """Return the definition of an agent that is a coding CLI.

    Raises:
        SettingsError: a capability's parameters are not valid.
    """
    limits = {"memory_bytes": size_of(given.max_memory_mb), "cpu_percent": given.max_cpu_percent}
    same = (
        *("command", "form", "model", "system_prompt", "environment", "approvals", "allow"),
        *("deny", "question_seconds", "codex_sandbox", "max_turns", "max_cost_usd"),
        *("silence_seconds", "stop_seconds", "trust_project"),
    )
    driver = _DRIVERS.get(given.driver, AcpDriver)
    return AgentDefinition(
        agent_id=given.agent_id,
        name=given.name or given.agent_id,
        description=given.description,
        version=given.version,
        driver=driver.name,
        config=CodingConfig(
            kind=given.driver,
            work_dir=str(given.work_dir) if given.work_dir is not None else None,
            home=str(given.home) if given.home is not None else None,
            limits={name: limit for name, limit in limits.items() if limit is not None},
            sandbox=box_of(given.sandbox),
            **{name: getattr(given, name) for name in same},
        ),
        capabilities=_capabilities(given),
        concurrency=given.concurrency,
        memory=size_of(given.max_memory_mb) or 0,
        timeout_us=int(given.timeout * 1_000_000),
        delivery=given.delivery,
        retry=RetryPolicy(max_attempts=given.max_attempts),
        on_busy=given.on_busy,
    )


def look_at(given: CodingReference | str, settings: Settings) -> Look:
    """Look at the CLI of an agent, or at one that no agent names; runs its ``--version``."""
    seen = environment(dict)
    if isinstance(given, str):
        found = CodingReference.model_validate({"driver": given, "home": seen.get("HOME", "/")})
        config = coding_agent(found).config
        return look(config, settings.data_dir, given, environment(inherited), seen)
    config = coding_agent(given).config
    processes = (settings.data_dir / "processes").absolute()
    return look(config, processes, given.agent_id, environment(inherited), config.environment)


def _capabilities(given: CommandReference | CodingReference) -> tuple[Capability, ...]:
    """Return what an agent can be asked; one that takes a prompt unless it says otherwise."""
    try:
        capabilities = tuple(
            Capability(
                name=c.name, description=c.description, parameters=parameters_schema(c.parameters)
            )
            for c in given.capabilities
        )
    except InvalidInput as error:
        raise SettingsError(f"agent {given.agent_id}: {error.message}") from None
    prompted = Capability(name=given.agent_id, description=given.description, parameters=_PROMPT)
    return capabilities or (prompted,)


def box_of(given: SandboxReference | bool) -> Sandbox | None:
    """Return the sandbox that an agent is to have, if any."""
    if isinstance(given, bool):
        return PLAIN[given]
    return msgspec.convert(given.model_dump(mode="json"), Sandbox)


def size_of(megabytes: float | None) -> int | None:
    """Return a size that a person gave in bytes."""
    return int(megabytes * (1 << 20)) if megabytes is not None else None

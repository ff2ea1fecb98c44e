"""Run agents as processes of a program of one's own: specification 001's runner.

::

    async with LocalProcessRunner(catalogue={"wc": Backend(command=("wc", "-w"))}) as runner:
        handle = await runner.spawn(AgentConfig("counter", "wc-cli", "how many words"))
        async for line in handle.output():
            ...

The catalogue says which CLIs there are; it is code, so no caller can bring a command line. A runner
has a keeper of its own: it does not see the agents of another one, and when the program ends, in
whatever way, its agents end with it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from types import TracebackType

import msgspec

from retinue.domain.ids import now_us, ulid
from retinue.errors import InvalidContext, IoError, NotFound, RetinueError, SpawnFailed
from retinue.process.capacity import MEMORY_EACH, Host, refusal
from retinue.process.child import Streams
from retinue.process.config import (
    MOST_ARGUMENT,
    AgentConfig,
    AgentInfo,
    AgentSignal,
    Backend,
    ProcessRunnerConfig,
    arguments,
    check,
    prompt_of,
)
from retinue.process.environment import inherited
from retinue.process.executable import directory, find, refused
from retinue.process.handle import AgentHandle
from retinue.process.link import Command, KeeperLink
from retinue.process.log import InstanceLog
from retinue.process.sandbox import Bubblewrap, Sandbox, boxed, private
from retinue.process.standing import Standing

MOST_ENDED = 1_000
"""How many ended agents are still listed; the oldest are forgotten."""


class LocalProcessRunner:
    """Spawns agents on this machine and knows what becomes of them.

    Made with a ``max_concurrent_agents`` that this machine cannot bear, it raises ``SpawnFailed``
    with the number that it could.
    """

    def __init__(
        self,
        config: ProcessRunnerConfig | None = None,
        *,
        catalogue: Mapping[str, Backend] | None = None,
    ) -> None:
        self.config = config or ProcessRunnerConfig()
        if (most := self.config.max_concurrent_agents) is not None:
            memory = self.config.limits.max_memory_mb
            each = int(memory * (1 << 20)) if memory is not None else MEMORY_EACH
            if (why := refusal(most, Host.here(), each)) is not None:
                raise SpawnFailed(f"max_concurrent_agents: {why}")
        self.catalogue = dict(catalogue or {})
        self._link = KeeperLink()
        self._bubblewrap = Bubblewrap(self._link)
        self._agents: dict[str, AgentHandle] = {}
        self._spawning = 0
        self._checking: asyncio.Task[None] | None = None
        self._feeding: set[asyncio.Task[None]] = set()

    @classmethod
    def with_config(
        cls, config: ProcessRunnerConfig, *, catalogue: Mapping[str, Backend] | None = None
    ) -> LocalProcessRunner:
        """Return a new runner with that configuration, and a catalogue of its own."""
        return cls(config, catalogue=catalogue)

    async def __aenter__(self) -> LocalProcessRunner:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every agent, and the keeper."""
        for task in (*self._feeding, self._checking):
            if task is not None:
                task.cancel()
        await self._link.close()

    # -- spawning ------------------------------------------------------------------------------

    async def spawn(self, config: AgentConfig) -> AgentHandle:
        """Start an agent.

        Raises:
            SpawnFailed: its backend is not in the catalogue, its program or working directory is
                not there or cannot be used, or ``max_concurrent_agents`` run already.
            InvalidContext: a text holds a NUL, or is too large.
            IoError: the directory of its log cannot be made.
        """
        check(config)
        backend = self._backend(config.model_backend)
        most = self.config.max_concurrent_agents
        if most is not None and self._running() + self._spawning >= most:
            raise SpawnFailed(f"{most} agents run already (max_concurrent_agents = {most})")
        self._spawning += 1
        try:
            return await self._spawn(config, backend)
        finally:
            self._spawning -= 1

    def _backend(self, name: str) -> Backend:
        backend = self.catalogue.get(name) or self.catalogue.get(name.removesuffix("-cli"))
        if backend is None:
            known = ", ".join(sorted(self.catalogue)) or "none"
            raise SpawnFailed(f"there is no backend {name!r} in the catalogue; it has: {known}")
        return backend

    def _running(self) -> int:
        return sum(not handle.status().final for handle in self._agents.values())

    async def _spawn(self, config: AgentConfig, backend: Backend) -> AgentHandle:
        name = ulid()
        command = await self._boxed(self._command(config, backend), config.box)
        log_dir = self.config.log_dir / name if self.config.log_dir is not None else None
        log = None
        if log_dir is not None:
            try:
                log_dir.mkdir(mode=0o700, parents=True)
            except OSError as error:
                raise IoError(
                    f"the log directory {log_dir} cannot be made: {error.strerror}",
                    details={"errno": error.errno},
                    outcome="not_started",
                ) from error
            log = InstanceLog(self._link.logs, log_dir, self.config.log_bytes)
        standing = Standing(now_us())
        parses = self.config.enable_json_streaming

        def heard(line: bytes) -> None:
            standing.line(line, now_us(), parse=parses)

        streams = Streams(self.config.stdout, self.config.stderr, log, heard)
        try:
            child = await self._link.spawn(command, streams, name)
        except OSError as error:
            raise refused(backend.command[0], error) from error
        handle = AgentHandle(
            child, config, standing, parses=parses, log_dir=log_dir, backend=backend
        )
        self._remember(handle)
        if backend.prompt == "stdin":
            self._feed(handle, prompt_of(config, backend))
        if self.config.enable_health_checks and self._checking is None:
            self._checking = asyncio.create_task(self._check())
        return handle

    def _command(self, config: AgentConfig, backend: Backend) -> Command:
        cwd = directory(os.path.abspath(self.config.working_dir or os.getcwd()))
        env = {**inherited(os.environ), **backend.environment}
        if config.context and len(config.context.encode()) <= MOST_ARGUMENT:
            env["AGENT_CONTEXT"] = config.context
        env.update(config.environment)
        for variable, value in env.items():
            if len(value) > MOST_ARGUMENT:
                raise InvalidContext(f"the variable {variable} is larger than {MOST_ARGUMENT}")
        path = find(backend.command[0], env.get("PATH"), cwd, backend.install)
        return Command(
            path=path,
            argv=(backend.command[0], *arguments(config, backend)),
            env=env,
            cwd=cwd,
            limits=self.config.limits.for_keeper(),
        )

    async def _boxed(self, command: Command, box: Sandbox | None) -> Command:
        """Return what runs ``command`` as it is to be run."""
        if box is None:
            return command
        bwrap = await self._bubblewrap.ready(box, inherited(os.environ))
        # /dev is the sandbox's own, so that is one place that nobody else sees.
        command = msgspec.structs.replace(command, env={**command.env, "TMPDIR": "/dev/shm"})
        box = box.within(Sandbox(hide=private(os.environ)))
        return boxed(command, box, bwrap, (command.cwd,))

    def _feed(self, handle: AgentHandle, prompt: str) -> None:
        """Write the prompt while the agent reads it; nobody waits for a slow reader."""

        async def feed() -> None:
            try:
                await handle.write_stdin(prompt.encode("utf-8", "surrogateescape"))
                await handle.close_stdin()
            except RetinueError:
                pass  # it did not want it all; how it ends says what that means

        task = asyncio.create_task(feed())
        self._feeding.add(task)
        task.add_done_callback(self._feeding.discard)

    def _remember(self, handle: AgentHandle) -> None:
        self._agents[handle.id()] = handle
        if len(self._agents) > MOST_ENDED and len(self._agents) > MOST_ENDED + self._running():
            oldest = next(i for i, known in self._agents.items() if known.status().final)
            del self._agents[oldest]

    async def spawn_many(
        self, configs: Sequence[AgentConfig], batch: int = 10
    ) -> list[AgentHandle | RetinueError]:
        """Start agents, ``batch`` at a time; return a handle or an error for each, in order."""
        started: list[AgentHandle | RetinueError] = []
        for at in range(0, len(configs), batch):
            found = await asyncio.gather(
                *(self.spawn(config) for config in configs[at : at + batch]),
                return_exceptions=True,
            )
            for one in found:
                if not isinstance(one, AgentHandle | RetinueError):
                    raise one
                started.append(one)
        return started

    # -- the agents ----------------------------------------------------------------------------

    def handle(self, agent_id: str) -> AgentHandle:
        """Return the handle of an agent.

        Raises:
            NotFound: this runner has no such agent.
        """
        found = self._agents.get(agent_id)
        if found is None:
            raise NotFound(f"no agent {agent_id}")
        return found

    async def list_agents(self) -> list[AgentInfo]:
        """List the agents, oldest first; ended ones, too."""
        return [handle.info() for handle in self._agents.values()]

    async def get_agent(self, agent_id: str) -> AgentInfo | None:
        """Return one agent; None when there is no such one."""
        found = self._agents.get(agent_id)
        return found.info() if found is not None else None

    async def signal(self, agent_id: str, wanted: AgentSignal) -> bool:
        """Send an agent a signal; say whether it was there to get it. Raises ``NotFound``."""
        return await self.handle(agent_id).signal(wanted)

    async def kill(self, agent_id: str) -> None:
        """End an agent's whole tree at once. Raises ``NotFound``."""
        await self.handle(agent_id).kill()

    async def pause(self, agent_id: str) -> bool:
        """Stop an agent where it is. Raises ``NotFound``."""
        return await self.handle(agent_id).pause()

    async def resume(self, agent_id: str) -> bool:
        """Let a paused agent go on. Raises ``NotFound``."""
        return await self.handle(agent_id).resume()

    async def _check(self) -> None:
        """Look at every agent's health, again and again: one task for all."""
        interval = self.config.health_check_interval_secs
        while True:
            await asyncio.sleep(interval)
            for handle in [h for h in self._agents.values() if not h.status().final]:
                try:
                    await handle.look(interval)
                except RetinueError:
                    continue  # its keeper is gone, and it with it

"""The ``python`` driver: an ``Agent`` object in this process.

``async`` agents run as tasks of the loop, blocking ones in a thread of their own. A task that is
cancelled has ``CANCEL_SECONDS`` to end; one that swallows its cancellation, and a thread that
never returns, is abandoned, counted, and too many of them make the agent unhealthy.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from retinue.agent import Agent, FunctionAgent
from retinue.domain.agent import AgentDefinition
from retinue.domain.ids import ulid
from retinue.drivers.python.performance import MOST_ABANDONED, Performance, settle
from retinue.errors import ExecutionError, NotSupported, SpawnFailed, said
from retinue.interfaces import DriverContext, Features, Health, InstanceHandle, Job


class PythonDriver:
    """Runs agents that are Python objects; ``config`` of the definition is the object."""

    name: ClassVar[str] = "python"
    features: ClassVar[Features] = Features(streams=True, asks=True, park="replay", there=True)

    async def start(self, agent: AgentDefinition, context: DriverContext, /) -> PythonInstance:
        """Return the instance of ``agent.config``.

        Raises:
            SpawnFailed: that is no ``Agent``.
        """
        if not isinstance(agent.config, Agent):
            raise SpawnFailed(f"{agent.agent_id}: {agent.config!r} is not an Agent")
        return PythonInstance(agent, agent.config, context)

    async def check(self, agent: AgentDefinition, /) -> None:
        """Refuse: code comes from the operator only."""
        raise NotSupported(f"agent {agent.agent_id}: Python agents cannot be registered by callers")


class PythonInstance:
    """One agent object."""

    def __init__(self, definition: AgentDefinition, agent: Agent, context: DriverContext) -> None:
        self.handle = InstanceHandle(definition.agent_id, ulid())
        self.agent = agent
        self.lent = context
        self.abandoned = 0
        self.questions: dict[str, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asking: threading.Thread | None = None
        target = agent.function if isinstance(agent, FunctionAgent) else agent.execute
        self.target: Callable[..., Any] = target
        self.generates = inspect.isgeneratorfunction(target)
        self.streams = inspect.isasyncgenfunction(target)
        self.blocks = self.generates or not (
            self.streams or inspect.iscoroutinefunction(inspect.unwrap(target))
        )

    def execute(self, job: Job, /) -> Performance:
        """Perform ``job``; see ``Instance``."""
        return Performance(self, job)

    async def answer(self, question_id: str, answer: Any, /) -> None:
        """Hand in an answer, or the error that stands for it."""
        future = self.questions.pop(question_id, None)
        if future is None or future.done():
            return
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    async def ping(self) -> Health:
        """Say whether too many calls were abandoned; else ask the agent."""
        if self.abandoned >= MOST_ABANDONED:
            return Health(False, f"{self.abandoned} calls never returned")
        ask = self.agent.health
        if type(self.agent).health is Agent.health:
            return Health(True)
        if inspect.iscoroutinefunction(inspect.unwrap(ask)):
            answer = await ask()
        elif self._asking is not None and self._asking.is_alive():
            return Health(False, "its last health check has not returned")
        else:
            answer = await self._ask_in_thread(ask)
        return Health(True) if answer in {None, True} else Health(False)

    async def _ask_in_thread(self, ask: Callable[..., Any]) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def work() -> None:
            result, failure = None, None
            try:
                result = ask()
            except BaseException as error:
                failure = error if isinstance(error, Exception) else ExecutionError(said(error))
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, future, result, failure)

        name = f"health-{self.handle.agent_id}"
        self._asking = threading.Thread(target=work, name=name, daemon=True)
        self._asking.start()
        return await future

    async def stop(self, grace: float, /) -> None:
        """Cancel what was abandoned. A thread cannot be ended; it dies with the process."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)

    def abandon(self, task: asyncio.Future[Any]) -> None:
        """Keep a call that does not end apart, until it does."""
        self.abandoned += 1

        def ended(_: object) -> None:
            self.abandoned -= 1
            if isinstance(task, asyncio.Task):
                self._tasks.discard(task)
            if not task.cancelled():
                task.exception()

        if isinstance(task, asyncio.Task):
            self._tasks.add(task)
        task.add_done_callback(ended)

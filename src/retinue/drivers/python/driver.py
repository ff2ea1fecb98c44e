"""The ``python`` driver: an ``Agent`` object in this process.

``async`` agents run as tasks of the loop, blocking ones in a thread of their own. A task that is
cancelled has ``CANCEL_SECONDS`` to end; one that swallows its cancellation, and a thread that
never returns, is abandoned, counted, and too many of them make the agent unhealthy.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from retinue.agent import Agent, FunctionAgent
from retinue.domain.agent import AgentDefinition
from retinue.domain.ids import ulid
from retinue.drivers.python.performance import MOST_ABANDONED, Performance
from retinue.errors import (
    SpawnFailed,
)
from retinue.interfaces import DriverContext, Features, Health, InstanceHandle, Job


class PythonDriver:
    """Runs agents that are Python objects; ``config`` of the definition is the object."""

    name: ClassVar[str] = "python"
    features: ClassVar[Features] = Features(streams=True, asks=True, park="replay")

    async def start(self, agent: AgentDefinition, context: DriverContext, /) -> PythonInstance:
        """Return the instance of ``agent.config``.

        Raises:
            SpawnFailed: that is no ``Agent``.
        """
        if not isinstance(agent.config, Agent):
            raise SpawnFailed(f"{agent.agent_id}: {agent.config!r} is not an Agent")
        return PythonInstance(agent, agent.config, context)


class PythonInstance:
    """One agent object."""

    def __init__(self, definition: AgentDefinition, agent: Agent, context: DriverContext) -> None:
        self.handle = InstanceHandle(definition.agent_id, ulid())
        self.agent = agent
        self.lent = context
        self.abandoned = 0
        self.questions: dict[str, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
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
        """Say whether too many calls were abandoned."""
        if self.abandoned >= MOST_ABANDONED:
            return Health(False, f"{self.abandoned} calls never returned")
        return Health(True)

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

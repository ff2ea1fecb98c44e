"""A started system, and what it can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import msgspec

from retinue.agent import Agent
from retinue.domain.ids import ulid
from retinue.errors import Conflict, InvalidInput, NotFound, RetinueError, SpawnFailed
from retinue.fleet.story import Chunk, Complete, Failed, Invoked, Listener, Story
from retinue.interfaces import Page
from retinue.orchestrator import Orchestrator
from retinue.orchestrator.invoking import DEFAULT_MS, asking_of, task_of
from retinue.runtime import Runtime
from retinue.settings import Settings
from retinue.wire.payloads import Asking, Invoke, InvokeOptions, Scalar

_PAGE = Page(limit=1000)


class Handle:
    """An invocation that is on its way; it goes on whether or not anybody holds this."""

    def __init__(self, fleet: Fleet, invoke_id: str, limit_ms: float | None = None) -> None:
        self.invoke_id = invoke_id
        self._fleet = fleet
        self._limit_ms = limit_ms

    async def result(self) -> Invoked:
        """Wait for its end.

        Raises:
            RetinueError: it failed.
        """
        return await Story(self._fleet.orchestrator, self.invoke_id, self._limit_ms).end()

    async def next_step(self) -> Invoked | Asking:
        """Wait for its end, or for a question that it waits with.

        Raises:
            RetinueError: it failed.
        """
        story = Story(self._fleet.orchestrator, self.invoke_id, self._limit_ms)
        return await story.end_or_question()

    async def cancel(self) -> None:
        """End it."""
        await self._fleet.orchestrator.cancel(self.invoke_id)


class Client:
    """One agent of a fleet."""

    def __init__(self, fleet: Fleet, agent: str) -> None:
        self.agent = agent
        self._fleet = fleet

    async def invoke(self, given: Any = msgspec.UNSET, **options: Any) -> Invoked:
        """See ``Fleet.invoke``."""
        return await self._fleet.invoke(self.agent, given, **options)

    async def invoke_async(self, given: Any = msgspec.UNSET, **options: Any) -> Handle:
        """See ``Fleet.invoke_async``."""
        return await self._fleet.invoke_async(self.agent, given, **options)

    async def invoke_streaming(self, given: Any = msgspec.UNSET, **options: Any) -> Invoked | None:
        """See ``Fleet.invoke_streaming``."""
        return await self._fleet.invoke_streaming(self.agent, given, **options)


class Fleet:
    """A started system and what it can be asked. ``start`` makes one."""

    def __init__(self, runtime: Runtime, orchestrator: Orchestrator) -> None:
        self.orchestrator = orchestrator
        self.session_id = f"fleet-{ulid()}"
        self._runtime = runtime
        self._ended = False

    @classmethod
    async def start(cls, *agents: Agent, settings: Settings | None = None) -> Self:
        """Start ``agents``, and those that ``settings`` name: workers in any language, too.

        Without settings the record is in memory, and gone at the end.

        Raises:
            SpawnFailed: a worker does not get ready; nothing is left of what was started.
            RetinueError: an agent cannot be loaded, …
        """
        runtime = Runtime(settings)
        orchestrator = await runtime.start()
        try:
            for name, failure in runtime.engine.pools.unready().items():
                raise SpawnFailed(f"worker {name}: {failure.message}", details=failure.details)
            for agent in agents:
                orchestrator.register_agent(agent)
        except BaseException:
            await runtime.stop(0)
            raise
        return cls(runtime, orchestrator)

    def client(self, agent: str) -> Client:
        """Return one agent, by its id or name.

        Raises:
            AgentNotFound: there is none.
        """
        self.orchestrator.definition(agent)
        return Client(self, agent)

    async def invoke(
        self,
        agent: str,
        given: Any = msgspec.UNSET,
        *,
        timeout_ms: float = DEFAULT_MS,
        capability: str | None = None,
        metadata: Mapping[str, Scalar] | None = None,
    ) -> Invoked:
        """Have an agent do something, and return what became of it.

        Raises:
            RetinueError: it was refused, failed or took too long.
        """
        handle = await self.invoke_async(
            agent, given, timeout_ms=timeout_ms, capability=capability, metadata=metadata
        )
        return await handle.result()

    async def invoke_async(
        self,
        agent: str,
        given: Any = msgspec.UNSET,
        *,
        timeout_ms: float = DEFAULT_MS,
        capability: str | None = None,
        metadata: Mapping[str, Scalar] | None = None,
    ) -> Handle:
        """Have an agent do something; return as soon as that is recorded.

        Raises:
            RetinueError: it was refused.
        """
        asked = Invoke(
            agent_name=agent,
            input=given,
            metadata=dict(metadata) if metadata is not None else None,
            options=InvokeOptions(timeout_ms=timeout_ms, capability=capability),
        )
        accepted = await self.orchestrator.submit(
            task_of(self.orchestrator, asked, self.session_id)
        )
        return Handle(self, accepted.execution_id, timeout_ms)

    async def invoke_streaming(
        self,
        agent: str,
        given: Any = msgspec.UNSET,
        *,
        on_chunk: Chunk | None = None,
        on_complete: Complete | None = None,
        on_error: Failed | None = None,
        **options: Any,
    ) -> Invoked | None:
        """Have an agent do something and hear of it; callbacks may be ``async``.

        Returns what became of it, None when that was told to ``on_error``. ``options`` are those
        of ``invoke``.
        """
        listener = Listener(on_chunk, on_complete, on_error)
        try:
            handle = await self.invoke_async(agent, given, **options)
            limit = options.get("timeout_ms", DEFAULT_MS)
            story = Story(self.orchestrator, handle.invoke_id, limit, agent, listener)
            done = await story.end()
        except RetinueError as error:
            if on_error is None:
                raise
            await listener.failed(error)
            return None
        await listener.completed(done)
        return done

    def handle(self, invoke_id: str) -> Handle:
        """Return the handle of an earlier invocation."""
        return Handle(self, invoke_id)

    async def pending_human_inputs(self, invoke_id: str | None = None) -> list[Asking]:
        """Return the open questions, of one invocation or of all; at most 1000."""
        listed = await self.orchestrator.questions(_PAGE)
        return [
            asking_of(question)
            for question in listed.items
            if invoke_id in {None, question.execution_id}
        ]

    async def provide_human_input(self, invoke_id: str, input_id: str, value: Any) -> None:
        """Answer a question; the agent that asked goes on.

        Raises:
            InvalidInput: there is no such question, it was answered, or the answer does not fit.
        """
        try:
            question = await self.orchestrator.question(input_id)
            if question.execution_id != invoke_id:
                raise NotFound(f"invocation {invoke_id} asks no question {input_id}")
            await self.orchestrator.answer(input_id, value)
        except (NotFound, Conflict) as error:
            raise InvalidInput(error.message, details={"input_id": input_id}) from None

    async def shutdown(self, timeout_ms: float = 5000) -> bool:
        """Stop; what runs may finish within that time. Return whether it all did."""
        if self._ended:
            return True
        self._ended = True
        return await self._runtime.stop(timeout_ms / 1000)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.shutdown()

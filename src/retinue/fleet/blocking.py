"""A fleet for programs without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from retinue.agent import Agent
from retinue.errors import ShuttingDown
from retinue.fleet.fleet import Fleet, Handle
from retinue.fleet.story import Invoked
from retinue.settings import Settings
from retinue.wire.payloads import Asking

T = TypeVar("T")


class BlockingHandle:
    """An invocation that is on its way; see ``Handle``."""

    def __init__(self, fleet: BlockingFleet, handle: Handle) -> None:
        self.invoke_id = handle.invoke_id
        self._fleet = fleet
        self._handle = handle

    def result(self) -> Invoked:
        """Wait for its end."""
        return self._fleet.wait(self._handle.result())

    def next_step(self) -> Invoked | Asking:
        """Wait for its end, or for a question that it waits with."""
        return self._fleet.wait(self._handle.next_step())

    def cancel(self) -> None:
        """End it."""
        self._fleet.wait(self._handle.cancel())


class BlockingClient:
    """One agent of a fleet; see ``Client``."""

    def __init__(self, fleet: BlockingFleet, agent: str) -> None:
        self.agent = agent
        self._fleet = fleet

    def invoke(self, given: Any = msgspec.UNSET, **options: Any) -> Invoked:
        """See ``Fleet.invoke``."""
        return self._fleet.invoke(self.agent, given, **options)

    def invoke_async(self, given: Any = msgspec.UNSET, **options: Any) -> BlockingHandle:
        """See ``Fleet.invoke_async``."""
        return self._fleet.invoke_async(self.agent, given, **options)

    def invoke_streaming(self, given: Any = msgspec.UNSET, **options: Any) -> Invoked | None:
        """See ``Fleet.invoke_streaming``."""
        return self._fleet.invoke_streaming(self.agent, given, **options)


class BlockingFleet:
    """A fleet on an event loop of its own, in a thread; its methods wait and return.

    Callbacks run in that thread. The methods mean what those of ``Fleet`` mean; ``result`` and
    ``next_step`` are those of a handle.
    """

    def __init__(self, *agents: Agent, settings: Settings | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fleet", daemon=True)
        self._thread.start()
        try:
            self._fleet = self.wait(Fleet.start(*agents, settings=settings))
        except BaseException:
            self._close()
            raise

    @classmethod
    def start(cls, *agents: Agent, settings: Settings | None = None) -> Self:
        """Start it; the same as making one."""
        return cls(*agents, settings=settings)

    def client(self, agent: str) -> BlockingClient:
        """Return one agent, by its id or name."""

        async def known() -> None:
            self._fleet.client(agent)

        self.wait(known())
        return BlockingClient(self, agent)

    def handle(self, invoke_id: str) -> BlockingHandle:
        """Return the handle of an earlier invocation."""
        return BlockingHandle(self, self._fleet.handle(invoke_id))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the fleet's loop do ``work``, and return what comes of it."""
        if not self._thread.is_alive():
            work.close()
            raise ShuttingDown("this fleet was shut down")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def invoke(self, agent: str, given: Any = msgspec.UNSET, **options: Any) -> Invoked:
        """Have an agent do something, and return what became of it."""
        return self.wait(self._fleet.invoke(agent, given, **options))

    def invoke_async(
        self, agent: str, given: Any = msgspec.UNSET, **options: Any
    ) -> BlockingHandle:
        """Have an agent do something; return as soon as that is recorded."""
        return BlockingHandle(self, self.wait(self._fleet.invoke_async(agent, given, **options)))

    def result(self, invoke_id: str) -> Invoked:
        """Wait for an invocation's end."""
        return self.wait(self._fleet.handle(invoke_id).result())

    def next_step(self, invoke_id: str) -> Invoked | Asking:
        """Wait for an invocation's end, or for a question that it waits with."""
        return self.wait(self._fleet.handle(invoke_id).next_step())

    def invoke_streaming(
        self, agent: str, given: Any = msgspec.UNSET, **options: Any
    ) -> Invoked | None:
        """Have an agent do something, with callbacks."""
        return self.wait(self._fleet.invoke_streaming(agent, given, **options))

    def pending_human_inputs(self, invoke_id: str | None = None) -> list[Asking]:
        """Return the open questions."""
        return self.wait(self._fleet.pending_human_inputs(invoke_id))

    def provide_human_input(self, invoke_id: str, input_id: str, value: Any) -> None:
        """Answer a question."""
        self.wait(self._fleet.provide_human_input(invoke_id, input_id, value))

    def shutdown(self, timeout_ms: float = 5000) -> bool:
        """Stop; return whether all that ran finished within that time."""
        if not self._thread.is_alive():
            return True
        try:
            return self.wait(self._fleet.shutdown(timeout_ms))
        finally:
            self._close()

    def _close(self) -> None:
        ending = self._loop.shutdown_default_executor()
        asyncio.run_coroutine_threadsafe(ending, self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

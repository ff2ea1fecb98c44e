"""A fleet for programs without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from retinue.agent import Agent
from retinue.errors import ShuttingDown
from retinue.fleet.fleet import Fleet
from retinue.fleet.story import Invoked
from retinue.settings import Settings
from retinue.wire.payloads import Asking

T = TypeVar("T")


class BlockingFleet:
    """A fleet on an event loop of its own, in a thread; its methods wait and return.

    Callbacks run in that thread. The other methods mean what those of ``Fleet`` mean.
    """

    def __init__(self, *agents: Agent, settings: Settings | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fleet", daemon=True)
        self._thread.start()
        try:
            self._fleet = self._run(Fleet.start(*agents, settings=settings))
        except BaseException:
            self._close()
            raise

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._thread.is_alive():
            work.close()
            raise ShuttingDown("this fleet was shut down")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def invoke(self, agent: str, given: Any = None, **options: Any) -> Invoked:
        """Have an agent do something, and return what became of it."""
        return self._run(self._fleet.invoke(agent, given, **options))

    def invoke_async(self, agent: str, given: Any = None, **options: Any) -> str:
        """Have an agent do something; return its invoke_id as soon as that is recorded."""
        return self._run(self._fleet.invoke_async(agent, given, **options)).invoke_id

    def result(self, invoke_id: str) -> Invoked:
        """Wait for an invocation's end."""
        return self._run(self._fleet.handle(invoke_id).result())

    def next_step(self, invoke_id: str) -> Invoked | Asking:
        """Wait for an invocation's end, or for a question that it waits with."""
        return self._run(self._fleet.handle(invoke_id).next_step())

    def invoke_streaming(self, agent: str, given: Any = None, **options: Any) -> Invoked | None:
        """Have an agent do something, with callbacks."""
        return self._run(self._fleet.invoke_streaming(agent, given, **options))

    def pending_human_inputs(self, invoke_id: str | None = None) -> list[Asking]:
        """Return the open questions."""
        return self._run(self._fleet.pending_human_inputs(invoke_id))

    def provide_human_input(self, invoke_id: str, input_id: str, value: Any) -> None:
        """Answer a question."""
        self._run(self._fleet.provide_human_input(invoke_id, input_id, value))

    def shutdown(self, timeout_ms: float = 5000) -> bool:
        """Stop; return whether all that ran finished within that time."""
        if not self._thread.is_alive():
            return True
        try:
            return self._run(self._fleet.shutdown(timeout_ms))
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

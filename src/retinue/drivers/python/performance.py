"""One execution by one Python agent object: its task or thread, and the events it emits.

The agent runs on the loop or in a thread of its own; its events queue here until the journal has
taken them, and an agent that writes faster than that waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from retinue.agent import Context, FunctionAgent, data_of, enter
from retinue.domain.event import EventData, EventType
from retinue.domain.execution import Task
from retinue.domain.ids import ulid
from retinue.domain.principal import Authority, Role
from retinue.errors import (
    Cancelled,
    ExecutionError,
    InvalidInput,
    InvalidResult,
    NotSupported,
    RetinueError,
    SpawnFailed,
    said,
)
from retinue.interfaces import Job

if TYPE_CHECKING:
    from retinue.drivers.python.driver import PythonInstance

CANCEL_SECONDS = 2.0
MOST_ABANDONED = 16
MOST_QUEUED = 1_000
MOST_UNREAD = 100_000


class Performance:
    """One execution by one agent object: an async context manager that iterates its events."""

    def __init__(self, instance: PythonInstance, job: Job) -> None:
        self._instance = instance
        self._job = job
        self._answers = list(job.answers)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._events: deque[EventData] = deque()
        self._bell: asyncio.Future[None] | None = None
        self._drained: asyncio.Event | None = None
        self._runs: set[concurrent.futures.Future[Any]] = set()
        self._work: asyncio.Future[Any] | None = None
        self._closed = False
        self.agent_id = instance.handle.agent_id
        self.execution_id = job.execution.id
        self.session_id = job.execution.session_id
        self.attempt = job.execution.attempt

    async def __aenter__(self) -> AsyncIterator[EventData]:
        if self._instance.abandoned >= MOST_ABANDONED:
            raise SpawnFailed(
                f"{self._instance.abandoned} earlier calls of this agent never returned"
            )
        context = contextvars.copy_context()
        context.run(enter, Context(self))
        if self._instance.blocks:
            self._work = self._in_thread(context)
        else:
            # By this name the engine knows who holds up the loop.
            name = f"agent {self.agent_id}, execution {self.execution_id}"
            self._work = self._loop.create_task(self._call(), context=context, name=name)
        self._work.add_done_callback(self._ring)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        self._release()
        for waiting in tuple(self._runs):
            # The agent's thread waits there; it is to find out that its execution is over.
            waiting.cancel()
        work = self._work
        if work is None or work.done():
            return
        work.cancel()
        if isinstance(work, asyncio.Task):
            await asyncio.wait({work}, timeout=CANCEL_SECONDS)
            if not work.done():
                self._instance.abandon(work)

    def _ring(self, _: object = None) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def __aiter__(self) -> AsyncIterator[EventData]:
        return self

    async def __anext__(self) -> EventData:
        work = self._work
        if work is None:
            raise StopAsyncIteration
        while not self._events:
            if work.done():
                self._work = None
                return EventData(EventType.COMPLETED, {"result": data_of(_result(work))})
            self._bell = self._loop.create_future()
            await self._bell
        if len(self._events) <= MOST_QUEUED:
            self._release()
        return self._events.popleft()

    # -- running the agent ---------------------------------------------------------------------

    async def _call(self) -> Any:
        target = self._instance.target
        arguments = self._arguments()
        try:
            if self._instance.streams:
                return await self._join(target(**arguments))
            return await target(**arguments)
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException as error:
            # sys.exit() in an agent ends the agent, not the loop it runs on.
            raise ExecutionError(said(error)) from error

    def _arguments(self) -> dict[str, Any]:
        agent = self._instance.agent
        job = self._job
        if isinstance(agent, FunctionAgent):
            return agent.arguments(job.parameters, Context(self))
        task = {
            "capability": job.execution.capability,
            "parameters": job.parameters,
            "context": job.context if job.context is not None else {},
            "intent": job.intent,
            "session_id": job.execution.session_id,
            "execution_id": job.execution.id,
        }
        return {"task": task}

    async def _join(self, pieces: AsyncIterator[Any]) -> str:
        texts = []
        size = 0
        async for piece in pieces:
            texts.append(str(piece))
            size = self._grown(size, texts[-1])
            self.emit(EventType.CONTENT_CHUNK, {"content": texts[-1]})
            await self._room()
        return "".join(texts)

    def _grown(self, size: int, piece: str) -> int:
        """Return the size of a streamed result with one more piece, within the limit."""
        size += len(piece)
        limit = self._instance.lent.max_result_bytes
        if size > limit:
            raise InvalidResult(f"the agent's result is larger than {limit} bytes")
        return size

    def _in_thread(self, context: contextvars.Context) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()

        def work() -> None:
            try:
                result = context.run(self._block)
            except BaseException as error:
                failure = error if isinstance(error, Exception) else ExecutionError(said(error))
                self._on_loop(settle, future, None, failure)
            else:
                self._on_loop(settle, future, result, None)

        name = f"agent-{self._instance.handle.agent_id}"
        thread = threading.Thread(target=work, name=name, daemon=True)
        abandoned = self._loop.create_future()
        future.add_done_callback(
            lambda f: self._instance.abandon(abandoned) if f.cancelled() else None
        )
        self._returned = abandoned
        thread.start()
        return future

    def _block(self) -> Any:
        try:
            result = self._instance.target(**self._arguments())
            if not self._instance.generates:
                return result
            texts = []
            size = 0
            for piece in result:
                texts.append(str(piece))
                size = self._grown(size, texts[-1])
                self.emit(EventType.CONTENT_CHUNK, {"content": texts[-1]})
            return "".join(texts)
        finally:
            self._on_loop(_returned, self._returned)

    def _on_loop(self, call: Callable[..., None], *values: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *values)
        except RuntimeError:
            pass  # the loop is closed: the process is going, and nobody waits any more

    # -- the agent's side ----------------------------------------------------------------------

    def emit(self, kind: EventType, data: dict[str, Any]) -> None:
        """Queue one event; from any thread."""
        event = EventData(kind, data)
        if threading.get_ident() != self._thread:
            if len(self._events) > MOST_QUEUED:
                asyncio.run_coroutine_threadsafe(self._room(), self._loop).result()
            self._on_loop(self._put, event)
        elif len(self._events) > MOST_UNREAD:
            raise ExecutionError(
                f"the agent emitted {MOST_UNREAD} events without ever awaiting anything"
            )
        else:
            self._put(event)

    def _put(self, event: EventData) -> None:
        if not self._closed:
            self._events.append(event)
            self._ring()

    async def _room(self) -> None:
        """Wait until the journal has caught up with the agent."""
        await asyncio.sleep(0)
        while len(self._events) > MOST_QUEUED and not self._closed:
            self._drained = self._drained or asyncio.Event()
            await self._drained.wait()

    def _release(self) -> None:
        """Let the agent go on writing."""
        if self._drained is not None:
            self._drained.set()
            self._drained = None

    async def call(
        self, capability: str | None, parameters: Any, agent: str | None, timeout: float | None
    ) -> Any:
        """Have another agent do something, in this session; return its data."""
        execution = self._job.execution
        task = Task(
            session_id=execution.session_id,
            capability=capability,
            agent_id=agent,
            parameters=parameters if parameters is not None else {},
            deadline_us=int(timeout * 1_000_000) if timeout is not None else None,
        )
        authority = Authority(
            owner=execution.owner,
            created_by=execution.created_by,
            from_agent=self._instance.handle.agent_id,
            parent_id=execution.id,
            depth=execution.depth + 1,
        )
        return await self._instance.lent.submit(task, authority)

    async def ask(
        self,
        prompt: str,
        schema: dict[str, Any] | None,
        timeout: float | None,
        kind: str,
        role: str,
    ) -> Any:
        """Ask a person and wait for the answer; one given to an earlier attempt counts."""
        if not isinstance(prompt, str):
            raise InvalidInput("the prompt of a question is a text")
        if role not in {Role.OPERATOR, Role.ADMIN}:
            raise InvalidInput("a question is for the role operator or admin")
        for place, (asked, given) in enumerate(self._answers):
            if asked == prompt:
                del self._answers[place]
                note = f"answered already, to an earlier attempt: {prompt}"
                self.emit(EventType.LOG, {"level": "info", "message": note})
                return given
        if self._closed:
            raise Cancelled("the execution is over")
        question_id = ulid()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._instance.questions[question_id] = future
        data = {
            "question_id": question_id,
            "prompt": prompt,
            "schema": schema,
            "timeout": timeout,
            "kind": kind,
            "role": role,
        }
        self.emit(EventType.INPUT_REQUIRED, data)
        try:
            return await future
        finally:
            self._instance.questions.pop(question_id, None)

    def run(self, waiting: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop, from the agent's thread."""
        if threading.get_ident() == self._thread:
            waiting.close()
            raise NotSupported("run() is for blocking agents; await it instead")
        future = asyncio.run_coroutine_threadsafe(waiting, self._loop)
        self._runs.add(future)
        try:
            if self._closed:
                future.cancel()
            return future.result()
        finally:
            self._runs.discard(future)


def settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    """Give a future its result, or its error, unless nobody waits for it any more."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _result(work: asyncio.Future[Any]) -> Any:
    """Return what the agent returned; what it raised becomes a typed error."""
    try:
        return work.result()
    except asyncio.CancelledError:
        raise ExecutionError("the agent cancelled itself") from None
    except RetinueError as error:
        if error.outcome == "not_started":
            # A call of the agent's own was refused. The agent itself did run.
            error.outcome = "failed"
        raise
    except BaseException as error:
        raise ExecutionError(said(error), details={"exception": type(error).__name__}) from error


def _returned(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)

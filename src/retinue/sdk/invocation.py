"""One invocation in a worker: it runs the agent and writes every frame about it.

Exactly one terminal frame goes out, and nothing after it, whatever the agent still does: a blocking
agent whose invocation is over finds out at the next thing it wants of its context.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from retinue.agent import Context, FunctionAgent, data_of, enter
from retinue.domain.event import EventType
from retinue.domain.ids import ulid
from retinue.domain.strictjson import NotJson, check
from retinue.errors import (
    Cancelled,
    ExecutionError,
    InvalidInput,
    InvalidResult,
    NotSupported,
    RetinueError,
    Timeout,
    Unanswered,
    said,
)
from retinue.sdk.catalog import Served
from retinue.wire import envelope
from retinue.wire.faults import fault_of
from retinue.wire.payloads import Asking, Invoke, InvokeOptions, Note
from retinue.wire.streams import Narration, answer

if TYPE_CHECKING:
    from retinue.sdk.worker import Worker

_NO_OPTIONS = InvokeOptions()


class Invocation:
    """Performs one ``agent.invoke`` request; what stands behind the agent's ``Context``."""

    def __init__(self, worker: Worker, message_id: str, asked: Invoke, served: Served) -> None:
        metadata = asked.metadata or {}
        self._worker = worker
        self._asked = asked
        self._served = served
        self._options = asked.options or _NO_OPTIONS
        self._narration = Narration(
            message_id,
            only=self._options.stream_node,
            accumulated=self._options.accumulated,
            line_bytes=worker.line_bytes,
        )
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._left: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waits = 0
        self._tokens = 0
        self._ran = False
        self._runs: set[Any] = set()
        self._task: asyncio.Task[None] | None = None
        self._questions: dict[str, asyncio.Future[Any]] = {}
        self._answered: set[str] = set()
        self.closed = False
        self.message_id = message_id
        self.agent_id = served.name
        given = metadata.get("invoke_id")
        self.execution_id = str(given) if given else ulid()
        self.session_id = str(metadata.get("session_id") or "")
        attempt = metadata.get("attempt")
        self.attempt = attempt if isinstance(attempt, int) else 1

    # -- from beginning to end -----------------------------------------------------------------

    def start(self) -> None:
        """Begin; a task of the loop sees it through."""
        if self._options.timeout_ms is not None:
            self._left = self._options.timeout_ms / 1000
            self._arm()
        context = contextvars.copy_context()
        context.run(enter, Context(self))
        self._task = self._worker.loop.create_task(self._perform(), context=context)
        # Not the coroutine's own last act: one that is cancelled at once never begins.
        self._task.add_done_callback(lambda _: self._worker.ended(self))

    async def _perform(self) -> None:
        try:
            served = self._served
            if served.agent is None:
                await self._worker.in_thread(served.load)
            node = self._options.stream_node
            if node is not None and node not in served.nodes:
                raise InvalidInput(
                    f"agent {served.name} has no node {node}",
                    details={"path": "$.payload.options.stream_node", "nodes": list(served.nodes)},
                )
            arguments = self._arguments()
            self._ran = True
            if served.blocks:
                answered = await self._worker.in_thread(
                    contextvars.copy_context().run, self._block, arguments
                )
            elif served.streams:
                answered = await self._join(served.target(**arguments))
            else:
                answered = await served.target(**arguments)
            self._succeed(data_of(answered))
        except asyncio.CancelledError:
            self.fail(ExecutionError("the agent cancelled itself"))
        except RetinueError as error:
            self.fail(error)
        except BaseException as error:
            self.fail(ExecutionError(said(error), details={"exception": type(error).__name__}))

    def _arguments(self) -> dict[str, Any]:
        served, asked = self._served, self._asked
        capability = served.capability(self._options.capability)
        parameters = served.parameters(capability, asked.input)
        if isinstance(served.agent, FunctionAgent):
            return served.agent.arguments(parameters, Context(self))
        task = {
            "capability": capability.name,
            "parameters": parameters,
            "context": asked.context if asked.context is not None else {},
            "intent": asked.intent,
            "session_id": self.session_id,
            "execution_id": self.execution_id,
            "metadata": asked.metadata or {},
        }
        return {"task": task}

    def _block(self, arguments: dict[str, Any]) -> Any:
        result = self._served.target(**arguments)
        if not self._served.generates:
            return result
        texts = []
        for piece in result:
            texts.append(str(piece))
            self._say({"content": texts[-1]})
        return "".join(texts)

    async def _join(self, pieces: AsyncIterator[Any]) -> str:
        texts = []
        async for piece in pieces:
            texts.append(str(piece))
            self._say({"content": texts[-1]})
        return "".join(texts)

    def _succeed(self, result: Any) -> None:
        try:
            check(result)
        except NotJson as error:
            raise InvalidResult(f"the agent's result: {error}") from None
        metadata = {
            "invoke_id": self.execution_id,
            "duration_ms": int((time.monotonic() - self._began) * 1000),
            "tokens_used": self._tokens,
        }
        with self._lock:
            if self.closed:
                self._worker.late += 1
                return
            for line in self._narration.complete():
                self._worker.output.send(line)
            for line in answer(self.message_id, result, metadata, self._worker.line_bytes):
                self._worker.output.send(line)
            self.closed = True

    def fail(self, error: RetinueError) -> None:
        """End with an error, unless it has ended."""
        if self._ran and error.outcome == "not_started":
            # Something that the agent wanted was refused. The agent itself did run.
            error.outcome = "failed"
        fault = fault_of(error)
        try:
            check(fault.details)
            check(fault.message)
        except NotJson as wrong:
            text = fault.message.replace("\0", "").encode("utf-8", "replace").decode()
            details = {"details_left_out": wrong.reason}
            fault = fault_of(type(error)(text, details=details, outcome=error.outcome))
        frame = envelope.error(self.message_id, fault)
        with self._lock:
            if self.closed:
                return
            line = envelope.encode_checked(frame)
            if len(line) > self._worker.line_bytes:
                short = type(error)(fault.message[:1000], outcome=error.outcome)
                line = envelope.encode_checked(envelope.error(self.message_id, fault_of(short)))
            self.closed = True
            self._worker.output.send(line)

    def end(self, error: RetinueError) -> None:
        """End it from outside: its caller hears at once, its agent is cancelled."""
        if self.closed:
            return
        self.fail(error)
        self._disarm()
        for waiting in tuple(self._runs):
            waiting.cancel()
        if self._task is not None:
            self._task.cancel()

    # -- its time ------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._left is not None and not self.closed and not self._waits:
            self._since = time.monotonic()
            self._timer = self._worker.loop.call_later(max(self._left, 0), self._late)

    def _disarm(self) -> None:
        """Stop the clock: a question does not count."""
        if self._timer is not None and self._left is not None:
            self._timer.cancel()
            self._timer = None
            self._left -= time.monotonic() - self._since

    def _late(self) -> None:
        limit = self._options.timeout_ms or 0
        elapsed = int((time.monotonic() - self._began) * 1000)
        self.end(
            Timeout(
                f"Agent invocation timed out after {limit:g}ms",
                details={"elapsed_ms": elapsed, "agent_state": "processing"},
            )
        )

    # -- the agent's side ----------------------------------------------------------------------

    def emit(self, kind: EventType, data: dict[str, Any]) -> None:
        """Write what the agent says; from any thread."""
        if self.closed:
            raise Cancelled("the invocation is over")
        if kind is EventType.CONTENT_CHUNK:
            self._say(data)
            return
        if kind is EventType.USAGE:
            self._tokens += int(data.get("input_tokens", 0)) + int(data.get("output_tokens", 0))
        if self._options.stream:
            note = envelope.control(Note(event=kind.value, data=data), to=self.message_id)
            line = envelope.encode_message(note)
            with self._lock:
                if not self.closed:
                    self._worker.output.send(self._fitting(line))

    def _fitting(self, line: bytes) -> bytes:
        if len(line) > self._worker.line_bytes:
            raise InvalidInput(f"that is larger than a frame may be ({self._worker.line_bytes})")
        return line

    def _say(self, data: dict[str, Any]) -> None:
        if not self._options.stream:
            return
        try:
            check(data["content"])
        except NotJson as error:
            raise InvalidResult(f"the agent's text: {error}") from None
        node = data.get("node_name") or self._served.name
        with self._lock:
            if self.closed:
                return
            lines = self._narration.say(node, data["content"], reset=bool(data.get("is_reset")))
            for line in lines:
                self._worker.output.send(line)

    async def call(
        self, capability: str | None, parameters: Any, agent: str | None, timeout: float | None
    ) -> Any:
        """Have another agent do something: the parent is asked to."""
        options = InvokeOptions(
            capability=capability, timeout_ms=timeout * 1000 if timeout is not None else None
        )
        asked = Invoke(
            agent_name=agent or "",
            input=parameters if parameters is not None else {},
            metadata={"invoke_id": self.execution_id, "session_id": self.session_id},
            options=options,
        )
        return await self._worker.ask_parent(asked, within=self.message_id)

    async def ask(
        self,
        prompt: str,
        schema: dict[str, Any] | None,
        timeout: float | None,
        kind: str,
        role: str,
    ) -> Any:
        """Ask a person and wait for the answer; the clock stands still meanwhile."""
        if not isinstance(prompt, str):
            raise InvalidInput("the prompt of a question is a text")
        if self.closed:
            raise Cancelled("the invocation is over")
        asking = Asking(
            invoke_id=self.execution_id,
            input_id=ulid(),
            prompt=prompt,
            schema=schema,
            timeout_ms=timeout * 1000 if timeout is not None else None,
            kind=kind,
            role=role,
        )
        line = self._fitting(envelope.encode_message(envelope.control(asking, to=self.message_id)))
        future: asyncio.Future[Any] = self._worker.loop.create_future()
        self._questions[asking.input_id] = future
        self._waits += 1
        self._disarm()
        try:
            self._worker.output.send(line)
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise Unanswered(f"nobody answered within {timeout} seconds: {prompt}") from None
        finally:
            self._waits -= 1
            self._questions.pop(asking.input_id, None)
            self._answered.add(asking.input_id)
            self._arm()

    def asks(self, input_id: str) -> bool:
        """Whether it waits for the answer to that question."""
        future = self._questions.get(input_id)
        return future is not None and not future.done()

    def provide(self, input_id: str, value: Any, error: RetinueError | None) -> None:
        """Hand in an answer.

        Raises:
            InvalidInput: there is no such question, or it was answered.
        """
        future = self._questions.get(input_id)
        if future is None or future.done():
            known = future is not None or input_id in self._answered
            raise InvalidInput(
                f"question {input_id} {'was answered already' if known else 'is not known'}",
                details={"path": "$.payload.input_id", "input_id": input_id},
            )
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def run(self, waiting: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop, from the agent's thread."""
        if threading.get_ident() == self._worker.home:
            waiting.close()
            raise NotSupported("run() is for blocking agents; await it instead")
        future = asyncio.run_coroutine_threadsafe(waiting, self._worker.loop)
        self._runs.add(future)
        try:
            if self.closed:
                future.cancel()
            return future.result()
        finally:
            self._runs.discard(future)


def threaded(
    loop: asyncio.AbstractEventLoop, name: str, call: Callable[..., Any], *values: Any
) -> asyncio.Future[Any]:
    """Run ``call`` in a thread of its own, which the program's end does not wait for."""
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def work() -> None:
        result, failure = None, None
        try:
            result = call(*values)
        except BaseException as error:
            failure = error if isinstance(error, Exception) else ExecutionError(said(error))
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:
            pass  # the loop is closed: the program is ending, and nobody waits any more

    threading.Thread(target=work, name=name, daemon=True).start()
    return future

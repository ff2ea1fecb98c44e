"""One execution, told to a parent: its events become frames, its end the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from retinue.domain.event import Event, EventType
from retinue.domain.execution import Task
from retinue.domain.question import Question, QuestionState
from retinue.domain.strictjson import loads
from retinue.errors import (
    Cancelled,
    Gone,
    HumanInputRequired,
    InvalidInput,
    NotFound,
    RetinueError,
    ShuttingDown,
    Timeout,
    error_from,
)
from retinue.wire import envelope
from retinue.wire.inputs import named
from retinue.wire.payloads import Asking, Invoke, InvokeOptions, Note
from retinue.wire.streams import Narration, answer

if TYPE_CHECKING:
    from retinue.server.stdio.door import StdioDoor

DEFAULT_MS = 30_000.0
_NOTES = frozenset(
    {
        EventType.THINKING,
        EventType.TOOL_CALL,
        EventType.TOOL_RESULT,
        EventType.PROGRESS,
        EventType.LOG,
        EventType.USAGE,
    }
)
_NO_OPTIONS = InvokeOptions()


class Telling:
    """Answers the request ``message_id`` with what becomes of an execution.

    ``asked`` is None where the execution was asked for earlier.
    """

    def __init__(
        self,
        door: StdioDoor,
        message_id: str,
        asked: Invoke | None,
        *,
        stop_at_questions: bool = False,
    ) -> None:
        options = (asked.options if asked is not None else None) or _NO_OPTIONS
        self._door = door
        self._to = message_id
        self._asked = asked
        self._options = options
        self._stops = stop_at_questions
        self._began = time.monotonic()
        self._limit_ms = options.timeout_ms if options.timeout_ms is not None else DEFAULT_MS
        self._tokens = 0
        self._node = ""
        self._narration = Narration(
            message_id,
            only=options.stream_node,
            accumulated=options.accumulated,
            line_bytes=door.line_bytes,
        )

    # -- what is asked -------------------------------------------------------------------------

    def task(self) -> Task:
        """Return the task.

        Raises:
            AgentNotFound: there is no such agent.
            InvalidInput: capability, node or metadata are not valid.
        """
        asked, options = self._asked, self._options
        assert asked is not None
        name, parameters = self._capability(asked, options)
        metadata = dict(asked.metadata or {})
        session_id = metadata.get("session_id")
        if session_id is not None and not isinstance(session_id, str):
            raise InvalidInput(
                "metadata.session_id is a text", details={"path": "$.payload.metadata.session_id"}
            )
        if self._limit_ms <= 0:
            raise InvalidInput(
                "timeout_ms is more than 0", details={"path": "$.payload.options.timeout_ms"}
            )
        context = asked.context if isinstance(asked.context, dict) else {}
        given = asked.input if asked.input is not msgspec.UNSET else {}
        return Task(
            session_id=session_id or self._door.session_id,
            capability=name,
            agent_id=asked.agent_name or None,
            parameters=named(given, parameters),
            context={**context, "metadata": metadata} if metadata or context else None,
            intent=asked.intent,
            deadline_us=int(self._limit_ms * 1000),
            priority=options.priority,
            idempotency_key=options.idempotency_key,
        )

    def _capability(self, asked: Invoke, options: InvokeOptions) -> tuple[str, Any]:
        """Return which capability is meant, and its parameters' schema."""
        path = "$.payload.options.capability"
        orchestrator = self._door.orchestrator
        if not asked.agent_name:
            if options.capability is None:
                raise InvalidInput(
                    "agent_name is missing", details={"path": "$.payload.agent_name"}
                )
            found = orchestrator.capability(options.capability)
            return options.capability, found.parameters if found is not None else None
        definition = orchestrator.definition(asked.agent_name)
        self._node = definition.agent_id
        nodes = definition.nodes or (definition.agent_id,)
        if options.stream_node is not None and options.stream_node not in nodes:
            raise InvalidInput(
                f"agent {asked.agent_name} has no node {options.stream_node}",
                details={"path": "$.payload.options.stream_node", "nodes": list(nodes)},
            )
        known = {c.name: c for c in definition.capabilities}
        wanted = options.capability
        if wanted is None and len(known) == 1:
            wanted = next(iter(known))
        if wanted is None or wanted not in known:
            fault = f"has no capability {wanted}" if wanted else "has several: name one"
            raise InvalidInput(
                f"agent {asked.agent_name} {fault}",
                details={"path": path, "capabilities": list(known)},
            )
        return wanted, known[wanted].parameters

    # -- what becomes of it --------------------------------------------------------------------

    async def within(self, timeout_ms: float | None, work: Awaitable[None]) -> None:
        """Wait no longer than that; the execution itself goes on.

        Raises:
            Timeout: it has not ended.
        """
        try:
            async with asyncio.timeout(timeout_ms / 1000 if timeout_ms is not None else None):
                await work
        except TimeoutError:
            raise Timeout(
                f"it has not ended within {timeout_ms:g}ms, and goes on",
                details={"elapsed_ms": self._elapsed()},
            ) from None

    async def follow(self, execution_id: str, *, after: int = 0) -> None:
        """Tell of the execution from event ``after`` on, until its request is answered.

        Raises:
            RetinueError: it ended without a result, or this system stops first.
        """
        door = self._door
        batches = door.orchestrator.follow(execution_id, after=after, principal=door.principal)
        async with aclosing(batches) as events:
            async for some in events:
                for event in some:
                    if await self._tell(execution_id, event):
                        return
        raise ShuttingDown(
            "the system is shutting down; the execution is kept and goes on later",
            details={"invoke_id": execution_id},
        )

    async def _tell(self, execution_id: str, event: Event) -> bool:
        """Tell of one event; return whether that was the answer."""
        data = loads(event.data)
        kind = event.type
        if kind is EventType.CONTENT_CHUNK:
            if self._options.stream:
                node = data.get("node_name") or self._node or execution_id
                reset = bool(data.get("is_reset"))
                for line in self._narration.say(node, data.get("content", ""), reset=reset):
                    self._door.send(line)
        elif kind is EventType.ATTEMPT_STARTED:
            self._narration.reset()
        elif kind is EventType.INPUT_REQUIRED:
            return await self._question(data["question_id"])
        elif kind in _NOTES:
            self._note(kind, data)
        elif kind is EventType.COMPLETED:
            if data.get("erased"):
                raise Gone(
                    f"the result of {execution_id} was erased", details={"invoke_id": execution_id}
                )
            self._succeed(execution_id, data)
            return True
        elif kind is EventType.TRUNCATED:
            raise Gone(
                f"what became of {execution_id} was removed", details={"invoke_id": execution_id}
            )
        else:
            raise await self._failure(execution_id, kind, data)
        return False

    def _note(self, kind: EventType, data: dict[str, Any]) -> None:
        if kind is EventType.USAGE:
            self._tokens += data.get("input_tokens", 0) + data.get("output_tokens", 0)
        if self._options.stream:
            note = envelope.control(Note(event=kind.value, data=data), to=self._to)
            line = envelope.encode_checked(note)
            if len(line) <= self._door.line_bytes:
                self._door.send(line)

    async def _question(self, question_id: str) -> bool:
        door = self._door
        try:
            question = await door.orchestrator.question(question_id, door.principal)
        except NotFound:
            return False
        if question.state is not QuestionState.OPEN:
            return False
        asking = asking_of(question)
        if self._stops:
            ids = msgspec.to_builtins(asking)
            door.reply(self._to, {"status": "human_input_required", "human_input": ids})
            return True
        if self._options.human_input == "error":
            raise HumanInputRequired(
                f"the agent asks: {question.prompt}", details=msgspec.to_builtins(asking)
            )
        if self._asked is not None:
            door.send(envelope.encode_checked(envelope.control(asking, to=self._to)))
        return False

    def _succeed(self, execution_id: str, data: dict[str, Any]) -> None:
        metadata = {
            "invoke_id": execution_id,
            "duration_ms": self._elapsed(),
            "tokens_used": self._tokens,
        }
        for line in self._narration.complete():
            self._door.send(line)
        result = data.get("result")
        for line in answer(self._to, result, metadata, self._door.line_bytes):
            self._door.send(line)

    async def _failure(
        self, execution_id: str, kind: EventType, data: dict[str, Any]
    ) -> RetinueError:
        ids = {"invoke_id": execution_id}
        if kind is EventType.CANCELLED:
            return Cancelled(details={**data, **ids})
        details = {**(data.get("details") or {}), **ids}
        code, message = data.get("code"), data.get("error")
        error = error_from({"code": code, "message": message, "details": details})
        elapsed = self._elapsed()
        if isinstance(error, Timeout) and self._asked is not None and elapsed >= self._limit_ms:
            error.message = f"Agent invocation timed out after {self._limit_ms:g}ms"
            execution = await self._door.orchestrator.execution(execution_id, self._door.principal)
            state = "processing" if execution.started_at is not None else "queued"
            error.details |= {"elapsed_ms": elapsed, "agent_state": state}
        return error

    def _elapsed(self) -> int:
        return int((time.monotonic() - self._began) * 1000)


def asking_of(question: Question) -> Asking:
    """Return a stored question as its frame's payload."""
    expires = question.expires_at
    return Asking(
        invoke_id=question.execution_id,
        input_id=question.id,
        prompt=question.prompt,
        schema=loads(question.schema) if question.schema is not None else None,
        timeout_ms=(expires - question.created_at) / 1000 if expires is not None else None,
        kind=question.kind.value,
        role=question.role.value,
    )

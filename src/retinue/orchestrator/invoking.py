"""``agent.invoke`` (specification 000) as a task, and an execution's end as its caller hears of it.

What the doors share that speak that specification: over stdio, and in Python.
"""

from __future__ import annotations

from typing import Any

import msgspec

from retinue.domain.event import EventType
from retinue.domain.execution import Task
from retinue.domain.principal import Principal
from retinue.domain.question import Question, QuestionState
from retinue.domain.strictjson import loads
from retinue.errors import (
    Cancelled,
    Conflict,
    Gone,
    InvalidInput,
    NotFound,
    Pending,
    RetinueError,
    Timeout,
    error_from,
)
from retinue.interfaces import Page
from retinue.orchestrator.agents import Agents
from retinue.orchestrator.tasks import Tasks
from retinue.wire.faults import limit_us
from retinue.wire.inputs import named
from retinue.wire.payloads import Asking, Invoke, InvokeOptions, Provide

DEFAULT_MS = 30_000.0
_NO_OPTIONS = InvokeOptions()
_PAGE = Page(limit=1000)


def task_of(agents: Agents, asked: Invoke, session_id: str) -> Task:
    """Return the task that is asked for; ``session_id`` is for one that names no session.

    Raises:
        AgentNotFound: there is no such agent.
        InvalidInput: capability, node or metadata are not valid.
    """
    options = asked.options or _NO_OPTIONS
    limit_ms = options.timeout_ms if options.timeout_ms is not None else DEFAULT_MS
    name, parameters = _capability(agents, asked, options)
    metadata = dict(asked.metadata or {})
    given_session = metadata.get("session_id")
    if given_session is not None and not isinstance(given_session, str):
        raise InvalidInput(
            "metadata.session_id is a text", details={"path": "$.payload.metadata.session_id"}
        )
    context = asked.context if isinstance(asked.context, dict) else {}
    given = asked.input if asked.input is not msgspec.UNSET else {}
    return Task(
        session_id=given_session or session_id,
        capability=name,
        agent_id=asked.agent_name or None,
        parameters=named(given, parameters),
        context={**context, "metadata": metadata} if metadata or context else None,
        intent=asked.intent,
        deadline_us=limit_us(limit_ms),
        priority=options.priority,
        idempotency_key=options.idempotency_key,
    )


def _capability(agents: Agents, asked: Invoke, options: InvokeOptions) -> tuple[str, Any]:
    """Return which capability is meant, and its parameters' schema."""
    if not asked.agent_name:
        if options.capability is None:
            raise InvalidInput("agent_name is missing", details={"path": "$.payload.agent_name"})
        found = agents.capability(options.capability)
        return options.capability, found.parameters if found is not None else None
    definition = agents.definition(asked.agent_name)
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
            details={"path": "$.payload.options.capability", "capabilities": list(known)},
        )
    return wanted, known[wanted].parameters


def result_in(kind: EventType, data: dict[str, Any], invoke_id: str) -> Any:
    """Return the result that an execution's last event brings.

    Raises:
        RetinueError: it brings none; the error is that of the execution.
    """
    ids = {"invoke_id": invoke_id}
    if kind is EventType.COMPLETED and not data.get("erased"):
        return data.get("result")
    if kind in {EventType.COMPLETED, EventType.TRUNCATED}:
        if data.get("result") is not None:
            return data["result"]
        raise Gone(f"what became of {invoke_id} was erased or removed", details=ids)
    if kind is EventType.CANCELLED:
        raise Cancelled(details={**data, **ids})
    details = {**(data.get("details") or {}), **ids}
    told = {"code": data.get("code"), "message": data.get("error"), "details": details}
    raise error_from({**told, "retryable": data.get("retryable")})


def unanswered(invoke_id: str) -> Pending:
    """Return what is said of an accepted invocation when this system stops before it ends.

    It is no refusal: whoever sends it again has it done twice.
    """
    return Pending(
        "the system is shutting down; the invocation was accepted, and where its record is kept it"
        " goes on later: ask for its result instead of sending it again",
        details={"invoke_id": invoke_id},
    )


def timed_out(error: RetinueError, limit_ms: float, elapsed_ms: int, *, started: bool) -> None:
    """Say it in specification 000's words, where the time that ran out was the invocation's own."""
    if isinstance(error, Timeout) and elapsed_ms >= limit_ms:
        error.message = f"Agent invocation timed out after {limit_ms:g}ms"
        state = "processing" if started else "queued"
        error.details |= {"elapsed_ms": elapsed_ms, "agent_state": state}


def asking_of(question: Question) -> Asking:
    """Return a stored question as specification 000 has it."""
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


def begun(invoke_id: str) -> dict[str, Any]:
    """Return the answer's payload for an invocation that nobody waits for."""
    ids = {"invoke_id": invoke_id}
    return {"status": "success", "result": ids, "metadata": ids, **ids}


async def pending(
    tasks: Tasks, invoke_id: str | None, principal: Principal
) -> list[dict[str, Any]]:
    """Return the open questions of an invocation (None: of all of the caller's).

    Raises:
        NotFound: there is no such invocation.
    """
    if invoke_id is not None:
        await tasks.execution(invoke_id, principal)
    found: list[dict[str, Any]] = []
    page = _PAGE
    while True:
        listed = await tasks.questions(page, principal)
        found += [
            msgspec.to_builtins(asking_of(question))
            for question in listed.items
            if invoke_id in {None, question.execution_id}
        ]
        if listed.next_cursor is None:
            return found
        page = msgspec.structs.replace(_PAGE, cursor=listed.next_cursor)


async def provide(tasks: Tasks, given: Provide, principal: Principal) -> dict[str, str]:
    """Answer a question; return its two ids.

    Raises:
        InvalidInput: there is no such question, it is not open any more, the answer does not fit.
    """
    path = {"path": "$.payload.input_id"}
    try:
        question = await tasks.question(given.input_id, principal)
    except NotFound:
        question = None
    if question is None or question.execution_id != given.invoke_id:
        raise InvalidInput(
            f"invocation {given.invoke_id} asks no question {given.input_id}", details=path
        )
    if question.state is not QuestionState.OPEN:
        raise InvalidInput(
            f"question {given.input_id} is {question.state.value} already", details=path
        )
    try:
        await tasks.answer(given.input_id, given.value, principal)
    except Conflict as error:
        raise InvalidInput(error.message, details=path) from None
    return {"invoke_id": given.invoke_id, "input_id": given.input_id}

"""How an attempt's end becomes events, a RESPONSE and the caller's reply."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from retinue.domain.contract import ContractType, Draft, status_of
from retinue.domain.event import EventData, EventType
from retinue.domain.execution import Execution, State
from retinue.domain.ids import ulid
from retinue.domain.question import Question
from retinue.domain.strictjson import NotJson, check, dumps, loads
from retinue.errors import (
    Cancelled,
    Gone,
    HumanInputRequired,
    RetinueError,
    Timeout,
    error_from,
)

log = logging.getLogger(__name__)
MOST_MESSAGE = 16_384


class Reply(msgspec.Struct, frozen=True):
    """What the caller gets. ``data`` is the result as JSON bytes; ``error`` an error object."""

    execution_id: str
    contract_id: str
    agent_id: str | None
    state: State
    data: bytes | None = None
    error: dict[str, Any] | None = None

    @property
    def success(self) -> bool:
        """Whether the execution completed."""
        return self.state is State.COMPLETED


class End(msgspec.Struct, frozen=True):
    """How an execution ends."""

    state: State
    event: EventData
    body: bytes
    error: RetinueError | None = None


def completed(body: bytes, data: dict[str, Any] | None = None) -> End:
    """Return the end of an execution whose agent gave ``body`` (JSON) as its result.

    ``data`` is what else the event says: ``usage``, or that the result was ``cached``.
    """
    return End(State.COMPLETED, EventData(EventType.COMPLETED, data or {}), body)


def _storable(error: RetinueError) -> None:
    """Bound what an agent's error says, and take out what the ledger cannot keep."""
    text = error.message[:MOST_MESSAGE].replace("\0", "\N{REPLACEMENT CHARACTER}")
    error.message = text.encode("utf-8", "replace").decode()
    try:
        check(error.details, MOST_MESSAGE)
    except NotJson as fault:
        error.details = {"details_left_out": fault.reason}


def failed(error: RetinueError) -> End:
    """Return the end of an execution that ``error`` ended."""
    _storable(error)
    body = dumps(error.as_dict())
    if isinstance(error, Cancelled):
        return End(
            State.CANCELLED, EventData(EventType.CANCELLED, dict(error.details)), body, error
        )
    state = State.TIMED_OUT if isinstance(error, Timeout) else State.FAILED
    data = {
        "error": error.message,
        "code": error.code,
        "retryable": error.retryable,
        "details": error.details,
    }
    return End(state, EventData(EventType.FAILED, data), body, error)


def response(execution: Execution, end: End) -> Draft:
    """Return the RESPONSE contract of an execution that ends so."""
    return Draft(
        id=ulid(),
        type=ContractType.RESPONSE,
        from_agent=execution.agent_id or "orchestrator",
        to_agent=execution.from_agent,
        capability=None,
        status=status_of(end.state),
        execution_id=execution.id,
        body=end.body,
    )


def reply(execution: Execution, end: End) -> Reply:
    """Return what the caller of an execution that ends so gets."""
    return Reply(
        execution.id,
        execution.request_id,
        execution.agent_id,
        end.state,
        end.body if end.error is None else None,
        end.error.as_dict() if end.error is not None else None,
    )


def pending(execution: Execution, question: Question) -> Reply:
    """Return what a caller gets who does not wait for the answer to ``question``."""
    error = HumanInputRequired(
        f"the agent asks: {question.prompt}",
        details={
            "question_id": question.id,
            "execution_id": question.execution_id,
            "prompt": question.prompt,
            "schema": loads(question.schema) if question.schema is not None else None,
            "kind": question.kind.value,
        },
    )
    return Reply(
        execution.id,
        execution.request_id,
        execution.agent_id,
        State.INPUT_REQUIRED,
        None,
        error.as_dict(),
    )


def reply_of(execution: Execution, body: bytes | None) -> Reply:
    """Return the reply of an execution that ended earlier or elsewhere, from the ledger.

    Raises:
        Gone: its result was erased, or removed by retention.
    """
    if execution.state is State.COMPLETED:
        if body is None:
            raise Gone(
                f"the result of execution {execution.id} was erased or removed",
                details={"execution_id": execution.id},
            )
        return Reply(execution.id, execution.request_id, execution.agent_id, execution.state, body)
    if body is not None:
        error = msgspec.json.decode(body)
    else:
        said = f"execution {execution.id} {execution.state.value}; what it said was erased"
        error = {
            "code": execution.error_code or "E_INTERNAL",
            "message": said,
            "retryable": False,
            "details": {"erased": True},
        }
    return Reply(
        execution.id, execution.request_id, execution.agent_id, execution.state, None, error
    )


def result_of(answer: Reply) -> Any:
    """Return the reply's data, decoded.

    Raises:
        RetinueError: the reply is an error.
    """
    if answer.error is not None:
        raise error_from(answer.error)
    return loads(answer.data if answer.data is not None else b"null")


def ids_of(execution: Execution) -> dict[str, Any]:
    """Return what a log line says of an execution, for ``extra``."""
    ids = {"agent_id": execution.agent_id, "session_id": execution.session_id}
    return {"execution_id": execution.id, **ids}


def report(execution: Execution, error: RetinueError) -> None:
    """Log that an execution failed; the traceback of an agent's mistake is nowhere else."""
    cause = error.__cause__
    level = logging.INFO if cause is None else logging.WARNING
    text, fields = f"execution failed: {error.message}", ids_of(execution)
    log.log(level, "%s", text, extra=fields, exc_info=cause)

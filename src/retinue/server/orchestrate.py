"""``POST /v1/orchestrate``: the hot route. Submit a task, wait, answer with its result.

The result's bytes go from the ledger's record into the answer as they are.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec

from retinue.domain.budget import Limit
from retinue.domain.execution import Task
from retinue.domain.ids import iso, microseconds, now_us
from retinue.domain.policy import MOST_PRIORITY, BusyPolicy
from retinue.domain.session import SESSION_ID_PATTERN, check_session_id
from retinue.domain.strictjson import decode
from retinue.errors import InvalidInput
from retinue.orchestrator import Reply
from retinue.server.errors import ErrorBody
from retinue.server.records import NULL, SessionId, Time, Ulid, Word, raw
from retinue.server.routing import Call, Operation, encode, record

MOST_TIMEOUT_MS = 30 * 24 * 3600 * 1000

_KEY = re.compile(r"[\x20-\x7e]{1,255}\Z")

IDEMPOTENCY = {
    "Idempotency-Key": (
        "The same key with the same body joins the first execution, for 24 hours; "
        "with another body it is a conflict.",
        {"type": "string", "pattern": "^[\\x20-\\x7e]{1,255}$"},
    )
}


class TaskBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task: who shall do what, in which session. `capability` or `agent_id` is needed."""

    # Not both of them absent, or null. As a choice between two it would be shown as two records.
    SCHEMA: ClassVar[dict[str, Any]] = {
        "not": {"properties": {name: {"type": "null"} for name in ("capability", "agent_id")}}
    }
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "session_id": "session_001",
        "capability": "echo",
        "parameters": {"text": "Hello, world!"},
    }

    session_id: Annotated[
        SessionId,
        msgspec.Meta(
            description=f"Groups tasks; matches {SESSION_ID_PATTERN} and is not '.' or '..'.",
            examples=["session_001"],
        ),
    ]
    capability: (
        Annotated[Word, msgspec.Meta(description="What shall be done.", examples=["echo"])] | None
    ) = None
    parameters: Annotated[
        dict[str, Any],
        msgspec.Meta(
            description="What the capability takes; checked against its schema.",
            examples=[{"text": "Hello, world!"}],
        ),
    ] = {}
    context: Annotated[Any, msgspec.Meta(description="Handed to the agent as it is.")] = None
    intent: (
        Annotated[str, msgspec.Meta(description="What it is for; kept in the record.")] | None
    ) = None
    agent_id: (
        Annotated[Word, msgspec.Meta(description="The id or name of the agent that shall do it.")]
        | None
    ) = None
    timeout_ms: (
        Annotated[
            int,
            msgspec.Meta(
                ge=1,
                le=MOST_TIMEOUT_MS,
                description="Milliseconds from acceptance (or `run_at`) to the reply; else the"
                " agent's own.",
            ),
        ]
        | None
    ) = None
    budget: (
        Annotated[
            Limit,
            msgspec.Meta(description="What the task, and what it has others do, may spend."),
        ]
        | None
    ) = None
    priority: Annotated[
        int,
        msgspec.Meta(
            ge=-MOST_PRIORITY,
            le=MOST_PRIORITY,
            description="Higher ones leave the queue first; waiting makes up for a low one.",
        ),
    ] = 0
    run_at: (
        Annotated[
            datetime,
            msgspec.Meta(
                tz=True,
                description="When it shall run, with a time zone; unset or past: now.",
                examples=["2026-01-31T06:00:00Z"],
            ),
        ]
        | None
    ) = None
    on_busy: (
        Annotated[
            BusyPolicy,
            msgspec.Meta(
                description="What it does while an earlier task of its session has not ended:"
                " `parallel` runs beside it, `reject` is refused (409), `enqueue` waits until all"
                " earlier ones have ended, `interrupt` cancels them first. Unset: as the agent"
                " says, which is `parallel` unless it says otherwise.",
            ),
        ]
        | None
    ) = None

    def task(self, idempotency_key: str | None) -> Task:
        """Return the task.

        Raises:
            InvalidInput: the session id is not valid, or nothing says who shall do it.
        """
        check_session_id(self.session_id)
        if self.capability is None and self.agent_id is None:
            raise InvalidInput(
                "$.capability: missing; give a capability, an agent_id, or both",
                details={"path": "$.capability"},
            )
        return Task(
            session_id=self.session_id,
            capability=self.capability,
            agent_id=self.agent_id,
            parameters=self.parameters,
            context=self.context,
            intent=self.intent,
            deadline_us=self.timeout_ms * 1000 if self.timeout_ms is not None else None,
            priority=self.priority,
            budget=self.budget,
            idempotency_key=idempotency_key,
            run_at=microseconds(self.run_at) if self.run_at is not None else None,
            on_busy=self.on_busy,
        )


class AwaitedTaskBody(TaskBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task whose reply the caller waits for."""

    on_question: Annotated[
        Literal["wait", "return"],
        msgspec.Meta(
            description=(
                "When the agent asks a person: `wait` for the answer and the reply, or `return`"
                " E_HUMAN_INPUT_REQUIRED with the question at once; the execution goes on waiting."
            ),
        ),
    ] = "wait"


class TaskReply(msgspec.Struct, frozen=True, kw_only=True):
    """How an accepted task ended. `error` and `error_info` are there when it did not succeed."""

    success: bool
    data: msgspec.Raw
    contract_id: Ulid
    agent_id: str | None
    timestamp: Time
    execution_id: Ulid
    error: str | msgspec.UnsetType = msgspec.UNSET
    error_info: ErrorBody | msgspec.UnsetType = msgspec.UNSET


B = TypeVar("B", bound=TaskBody)


async def task_of(call: Call, kind: type[B]) -> tuple[Task, B]:
    """Return the task that a request carries, and the body it came in.

    Raises:
        InvalidInput: it is not valid; the message says what and where.
    """
    key = idempotency_key(call)
    body = record(decode(await call.read()), kind)
    return body.task(key), body


def idempotency_key(call: Call) -> str | None:
    """Return the key that a request carries.

    Raises:
        InvalidInput: it is not valid.
    """
    key = call.header(b"idempotency-key")
    if key is not None and _KEY.match(key) is None:
        raise InvalidInput(
            "Idempotency-Key must be 1 to 255 printable ASCII characters",
            details={"path": "Idempotency-Key"},
        )
    return key


def reply_bytes(reply: Reply) -> bytes:
    """Return the answer that stands for ``reply``."""
    timestamp = iso(now_us())
    if reply.error is None:
        return encode(
            TaskReply(
                success=True,
                data=raw(reply.data),
                contract_id=reply.contract_id,
                agent_id=reply.agent_id,
                timestamp=timestamp,
                execution_id=reply.execution_id,
            )
        )
    error = ErrorBody(
        code=str(reply.error.get("code") or "E_INTERNAL"),
        message=str(reply.error.get("message") or ""),
        retryable=bool(reply.error.get("retryable")),
        details=reply.error.get("details") or {},
    )
    return encode(
        TaskReply(
            success=False,
            data=NULL,
            contract_id=reply.contract_id,
            agent_id=reply.agent_id,
            timestamp=timestamp,
            execution_id=reply.execution_id,
            error=error.message,
            error_info=error,
        )
    )


async def orchestrate(call: Call) -> bytes:
    """Have a task done and wait for its reply.

    Before the task is accepted, what is wrong has an HTTP status. Once it is accepted the answer
    is 200: `success` says how it ended, `error` and `error_info` why it failed. `contract_id` is
    the REQUEST's. With an `Idempotency-Key` a repeated request gets the first one's reply.
    """
    task, body = await task_of(call, AwaitedTaskBody)
    until_asked = body.on_question == "return"
    accepted = await call.orchestrator.submit(task, call.principal)
    waiting = call.orchestrator.reply(accepted, until_asked=until_asked)
    reply = await call.while_there(waiting)
    return reply_bytes(reply) if reply is not None else b""  # nobody is there to read it


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/orchestrate",
        endpoint=orchestrate,
        tag="tasks",
        body=AwaitedTaskBody,
        gives=TaskReply,
        errors=(410, 404, 409, 429, 507),
        headers=IDEMPOTENCY,
    ),
)

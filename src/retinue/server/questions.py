"""Questions: what running executions ask of a person."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from retinue.domain.ids import iso
from retinue.domain.principal import Role
from retinue.domain.question import Question, QuestionKind, QuestionState
from retinue.server.records import Query, Time, Ulid, raw, when
from retinue.server.routing import Call, Operation, encode


class QuestionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An open question. `schema` is the JSON Schema of its answer, if it has one.

    `kind` is `approval` when leave to go on is asked for (answer `true` or `false`); `role` is the
    least that who answers must be.
    """

    question_id: Ulid
    execution_id: Ulid
    attempt: int
    prompt: str
    schema: msgspec.Raw
    state: QuestionState
    created_at: Time
    expires_at: Time | None
    kind: QuestionKind
    role: Role


class QuestionList(msgspec.Struct, frozen=True, kw_only=True):
    """Open questions, oldest first."""

    questions: list[QuestionRecord]
    total: int
    next_cursor: str | None


class QuestionQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which questions."""


class AnswerBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer: any JSON value."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"answer": "the left one"}

    answer: Any


class AnswerReply(msgspec.Struct, frozen=True, kw_only=True):
    """The question is answered; the execution that asked goes on."""

    question_id: Ulid
    state: QuestionState


def question_record(question: Question) -> QuestionRecord:
    """Return a question as it is shown."""
    return QuestionRecord(
        question_id=question.id,
        execution_id=question.execution_id,
        attempt=question.attempt,
        prompt=question.prompt,
        schema=raw(question.schema),
        state=question.state,
        created_at=iso(question.created_at),
        expires_at=when(question.expires_at),
        kind=question.kind,
        role=question.role,
    )


async def list_questions(call: Call) -> bytes:
    """List the open questions."""
    query = call.query(QuestionQuery)
    listing = await call.orchestrator.questions(query.page, call.principal)
    return encode(
        QuestionList(
            questions=[question_record(question) for question in listing.items],
            total=listing.total,
            next_cursor=listing.next_cursor,
        )
    )


async def answer(call: Call) -> bytes:
    """Answer an open question, once."""
    question_id = call.ulid("question_id", "question")
    given = await call.record(AnswerBody)
    await call.orchestrator.answer(question_id, given.answer, call.principal)
    return encode(AnswerReply(question_id=question_id, state=QuestionState.ANSWERED))


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/questions",
        endpoint=list_questions,
        tag="questions",
        query=QuestionQuery,
        gives=QuestionList,
    ),
    Operation(
        method="POST",
        path="/v1/questions/{question_id}/answer",
        endpoint=answer,
        tag="questions",
        body=AnswerBody,
        gives=AnswerReply,
        errors=(409, 507),
    ),
)

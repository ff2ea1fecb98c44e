"""Questions: an execution waits for a person."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from retinue.domain.principal import Role


class QuestionState(StrEnum):
    """``lost``: the run that asked died with the question open, and could not be kept.

    ``withdrawn``: the agent does not want an answer any more, and goes on.
    """

    OPEN = "open"
    ANSWERED = "answered"
    EXPIRED = "expired"
    LOST = "lost"
    WITHDRAWN = "withdrawn"


class QuestionKind(StrEnum):
    """What a person is asked for: a value, or leave to go on."""

    INPUT = "input"
    APPROVAL = "approval"


class Question(msgspec.Struct, kw_only=True):
    """A stored question. ``answer`` and ``schema`` are JSON bytes.

    ``closed_seq`` is the number of its execution's last event when it was answered, or ended
    unanswered: there the digest of the events takes that in. ``answer_hash`` stays when the answer
    is erased. ``role`` is the least that who answers must be.
    """

    id: str
    execution_id: str
    attempt: int
    owner: str
    prompt: str
    schema: bytes | None
    state: QuestionState
    answer: bytes | None
    answered_by: str | None
    created_at: int
    expires_at: int | None
    closed_seq: int | None = None
    answer_hash: bytes | None = None
    kind: QuestionKind = QuestionKind.INPUT
    role: Role = Role.OPERATOR

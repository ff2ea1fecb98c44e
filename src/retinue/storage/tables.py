"""The tables as both stores see them: columns in order, their types, and records to rows.

A record's fields are named and ordered as its table's columns, so that one line turns the one
into the other; ``Column`` types are PostgreSQL's, for ``unnest``.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from retinue.domain.agent import StoredAgent
from retinue.domain.audit import AuditRow
from retinue.domain.contract import Contract, ContractStatus, ContractType
from retinue.domain.event import Event, EventType
from retinue.domain.execution import Execution, Hold, State
from retinue.domain.instance import InstanceRecord, InstanceState
from retinue.domain.outbox import Lane, Parked
from retinue.domain.policy import BusyPolicy, Delivery
from retinue.domain.principal import ApiKey, Role
from retinue.domain.question import Question, QuestionKind, QuestionState
from retinue.domain.retention import Checkpoint, Mark
from retinue.domain.session import Session

R = TypeVar("R", bound=msgspec.Struct)

# field → PostgreSQL type, where it is not text
_TYPES = {
    "digest": "bytea",
    "body": "bytea",
    "body_hash": "bytea",
    "hash": "bytea",
    "head": "bytea",
    "schema": "bytea",
    "answer": "bytea",
    "detail": "bytea",
    "data": "bytea",
    "fingerprint": "bytea",
    "definition": "bytea",
    "handle": "bytea",
    "answer_hash": "bytea",
    "data_hash": "bytea",
}
_NUMBERS = frozenset(
    "priority attempt max_attempts last_seq deadline_at run_at cancel_requested_at created_at "
    "started_at finished_at request_n response_n depth seq at n updated_at completed failed "
    "cancelled expires_at revoked_at pid lease_until last_batch stopped_at count limit_ now "
    "first_n last_n due_at tries failed_at revision removed_at closed_seq latest began audit_n "
    "pending rank interrupted kept state_at ended_at exit_code exit_signal cpu_us peak_bytes "
    "messages_in messages_out".split()
)


def sql_type(column: str, table: str = "") -> str:
    """Return the PostgreSQL type of a column."""
    if column in _NUMBERS:
        return "bigint"
    if column == "hash" and table == "api_key":
        return "text"
    return _TYPES.get(column, "text")


TABLES: dict[str, tuple[str, ...]] = {
    "execution": Execution.__struct_fields__,
    "event": Event.__struct_fields__,
    "contract": Contract.__struct_fields__,
    "session": Session.__struct_fields__,
    "question": Question.__struct_fields__,
    "api_key": ApiKey.__struct_fields__,
    "audit": AuditRow.__struct_fields__,
    "outbox": Lane.__struct_fields__,
    "parked": Parked.__struct_fields__,
    "agent_definition": StoredAgent.__struct_fields__,
    "checkpoint": Checkpoint.__struct_fields__,
    "mark": Mark.__struct_fields__,
    "instance": InstanceRecord.__struct_fields__,
    "erased_event": ("execution_id", "seq", "data_hash"),
}

_ENUMS: dict[type[msgspec.Struct], dict[str, type]] = {
    Execution: {"state": State, "delivery": Delivery, "hold": Hold, "on_busy": BusyPolicy},
    Event: {"type": EventType},
    Contract: {"type": ContractType, "status": ContractStatus},
    Question: {"state": QuestionState, "kind": QuestionKind, "role": Role},
    ApiKey: {"role": Role},
    InstanceRecord: {"state": InstanceState},
}
_ENUM_PLACES = {
    record: [(record.__struct_fields__.index(name), enum) for name, enum in fields.items()]
    for record, fields in _ENUMS.items()
}


def row_of(record: msgspec.Struct) -> list[Any]:
    """Turn a record into its row; enumerations become plain text."""
    values = list(msgspec.structs.astuple(record))
    for place, _ in _ENUM_PLACES.get(type(record), ()):
        value = values[place]
        if value is not None:
            values[place] = value.value
    return values


def record_of(record: type[R], row: Any) -> R:
    """Turn a row into its record."""
    values = list(row)
    for place, enum in _ENUM_PLACES.get(record, ()):
        if values[place] is not None:
            values[place] = enum(values[place])
    return record(**dict(zip(record.__struct_fields__, values, strict=True)))


UPDATED = (
    "state",
    "agent_id",
    "attempt",
    "worker",
    "last_seq",
    "digest",
    "deadline_at",
    "run_at",
    "cancel_requested_at",
    "started_at",
    "finished_at",
    "outcome",
    "error_code",
    "cursor",
    "response_id",
    "response_n",
    "priority",
    "rank",
    "hold",
    "reason",
    "interrupted",
    "id",
)
"""What ``update_execution`` sets, in its parameters' order; the id comes last."""


def changes_of(e: Execution) -> tuple[Any, ...]:
    """Return the parameters of ``update_execution`` for ``e``."""
    return (
        e.state.value,
        e.agent_id,
        e.attempt,
        e.worker,
        e.last_seq,
        e.digest,
        e.deadline_at,
        e.run_at,
        e.cancel_requested_at,
        e.started_at,
        e.finished_at,
        e.outcome,
        e.error_code,
        e.cursor,
        e.response_id,
        e.response_n,
        e.priority,
        e.rank,
        e.hold.value,
        e.reason,
        e.interrupted,
        e.id,
    )

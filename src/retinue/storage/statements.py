"""What a batch program may ask of a store: a closed set of statements.

A program yields them and is sent the answers; it never touches a database itself.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import msgspec

from retinue.domain.execution import Execution
from retinue.domain.result import Result
from retinue.domain.session import Session

T = TypeVar("T")


class Executions(msgspec.Struct, frozen=True):
    """Lock these executions; answered with the records found, by id."""

    ids: list[str]


class Heads(msgspec.Struct, frozen=True):
    """Lock these sessions' heads, making those that are missing; answered by (owner, id)."""

    keys: list[tuple[str, str]]
    at: int


class Query(msgspec.Struct, frozen=True):
    """Run a named statement once per row of parameters; answered with all rows returned."""

    name: str
    rows: list[tuple[Any, ...]]


class Insert(msgspec.Struct, frozen=True):
    """Insert rows into a table, columns in the table's order."""

    table: str
    rows: list[list[Any]]


class Change(msgspec.Struct, frozen=True):
    """Run a named statement once per row of parameters; nothing is answered."""

    name: str
    rows: list[tuple[Any, ...]]


class Saved(msgspec.Struct, frozen=True):
    """Tell the store which executions and heads it now holds (for its cache); no statement."""

    executions: list[Execution]
    heads: list[Session]


Statement = Executions | Heads | Query | Insert | Change | Saved
Steps = Generator[Statement, Any, T]
Program = Steps[list[Result]]

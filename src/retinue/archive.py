"""The part of the Store seam that walks over the whole record: for verification and retention.

Kept apart from what tasks need: every read here is one page of a walk, bounded by rows and, where
rows hold bodies, by bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from retinue.domain.audit import AuditRow
from retinue.domain.contract import Contract
from retinue.domain.event import Event
from retinue.domain.execution import Execution, State
from retinue.domain.question import Question
from retinue.domain.retention import Checkpoint, Mark


class Standing(msgspec.Struct, frozen=True):
    """An execution as a walk over all of them sees it.

    ``contract`` is the id of what stands at its REQUEST's place, None when nothing does; ``cut``
    is the last place that was removed from its session's chain.
    """

    id: str
    owner: str
    session_id: str
    agent_id: str | None
    state: State
    outcome: str | None
    request_id: str
    request_n: int
    contract: str | None
    cut: int | None


class Beginning(msgspec.Struct, frozen=True):
    """The first contract that a session's chain still has: its time and its id."""

    owner: str
    session_id: str
    at: int
    id: str


class Ended(msgspec.Struct, frozen=True):
    """An execution that has events: when it ended, if it has."""

    id: str
    finished_at: int | None
    removed: bool


class Archive(Protocol):
    """What walks over the whole record read, page by page: verification and retention."""

    async def contracts_after(
        self, place: tuple[str, str, int], owner: str | None, limit: int, /
    ) -> list[Contract]:
        """Return the contracts after a place of all chains, in order; bounded by bytes too."""
        ...

    async def hashes_at(
        self, places: Sequence[tuple[str, str, int]], /
    ) -> dict[tuple[str, str, int], bytes]:
        """Return the hashes of the contracts at these places, of those that are there."""
        ...

    async def executions_of(self, ids: Sequence[str], /) -> list[Execution]:
        """Return these executions."""
        ...

    async def events_after(
        self, ids: Sequence[str], place: tuple[str, int], limit: int, /
    ) -> list[tuple[Event, bytes | None]]:
        """Return events of these executions after a place, in order; bounded by bytes too.

        Each comes with the hash that stands for its data if that was erased.
        """
        ...

    async def questions_of(self, ids: Sequence[str], /) -> list[Question]:
        """Return all questions of these executions, closed ones too."""
        ...

    async def marks_of(self, ids: Sequence[str], /) -> list[Mark]:
        """Return what was removed or erased of these executions (or contracts)."""
        ...

    async def audit_rows(self, numbers: Sequence[int], /) -> list[AuditRow]:
        """Return these rows of the audit."""
        ...

    async def checkpoints(
        self, first: tuple[str, str], last: tuple[str, str], /
    ) -> list[Checkpoint]:
        """Return the checkpoints of the sessions from ``first`` to ``last``."""
        ...

    async def standing_after(
        self, execution_id: str, owner: str | None, limit: int, /
    ) -> list[Standing]:
        """Return where the executions after an id stand, in order."""
        ...

    async def stray_event(self, after: str, last: str | None, /) -> tuple[str, int] | None:
        """Return an event without execution, with an id after ``after`` and up to ``last``."""
        ...

    async def stray_question(self) -> str | None:
        """Return a question without execution."""
        ...

    async def with_events(self, after: str, limit: int, /) -> list[Ended]:
        """Return the executions after an id that have events, in order."""
        ...

    async def newest_but(self, count: int, before: str | None, /) -> str | None:
        """Return the id of the ``count``-th newest execution (of those before ``before``)."""
        ...

    async def beginnings(self, after: tuple[str, str], limit: int, /) -> list[Beginning]:
        """Return where the chains of the sessions after one begin, in order."""
        ...

    async def unswept(self, now: int, /) -> bool:
        """Say whether something marked, or a key that has expired at ``now``, is to go."""
        ...

"""Retention and erasure: what may go, and what stays to say so. Pure.

What is removed or erased leaves a mark that names the row of the audit chain that says who did it
and when. A session whose first contracts were removed has a checkpoint: the place and the hash of
the last one removed, from which its chain goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from retinue.domain.contract import ContractStatus, ContractType
from retinue.domain.execution import TERMINAL, State

CUT = "retention.contracts"
RETIRE = "retention.events"
ERASE = frozenset({"execution.erase", "session.erase"})

REMOVED, GONE_ERASED = "removed", "erased"


class Bounds(msgspec.Struct, frozen=True):
    """What is old: ended before ``before`` (microseconds UTC), or an id below ``below``."""

    before: int = 0
    below: str = ""

    def old(self, ended_at: int, row_id: str) -> bool:
        """Say whether what ended at ``ended_at`` is old enough to go."""
        return ended_at < self.before or row_id < self.below

    @property
    def none(self) -> bool:
        """Whether nothing is old."""
        return not self.before and not self.below


class Mark(msgspec.Struct, kw_only=True):
    """What became of an execution (or of a contract that has none), and where the audit says so.

    ``removed``: its events are gone. ``erased``: its bodies are, and what its events held.
    ``pending`` is 1 until the last event was dealt with.
    """

    id: str
    kind: str
    audit_n: int
    at: int
    pending: int


class Checkpoint(msgspec.Struct, kw_only=True):
    """Where a session's chain begins now: place and hash of the last contract removed.

    ``completed``, ``failed`` and ``cancelled`` count the RESPONSEs removed, ``began`` and
    ``latest`` are the first and the latest time of what was removed, ``audit_n`` the row of the
    audit that says so.
    """

    owner: str
    session_id: str
    n: int
    hash: bytes
    completed: int
    failed: int
    cancelled: int
    began: int
    latest: int
    audit_n: int


def told(point: Checkpoint) -> dict[str, Any]:
    """Return what the audit says of a checkpoint."""
    counts = {"completed": point.completed, "failed": point.failed, "cancelled": point.cancelled}
    times = {"began": point.began, "latest": point.latest}
    return {"to": point.n, "hash": bytes(point.hash).hex(), **counts, **times}


class Link(msgspec.Struct, frozen=True):
    """A contract at the beginning of a chain, and how its execution stands."""

    n: int
    id: str
    type: str
    status: str | None
    at: int
    hash: bytes
    execution_id: str | None
    state: str | None
    finished_at: int | None
    response_n: int | None
    removed: bool


def cut_at(links: Sequence[Link], bounds: Bounds, needed: int | None) -> int:
    """Return how many of ``links``, from the first on, may be removed together.

    Both sides of an exchange go or none: a prefix is closed when each of its REQUESTs has its
    RESPONSE in it. What has not ended, is not old, or is needed from place ``needed`` on, ends it.
    """
    count, furthest = 0, 0
    for number, link in enumerate(links, 1):
        if needed is not None and link.n >= needed:
            break
        if link.type == ContractType.REQUEST:
            if not _may_go(link, bounds):
                break
            furthest = max(furthest, link.n + 1 if link.execution_id is None else _end(link))
        if furthest <= link.n:
            count = number
    return count


def _may_go(link: Link, bounds: Bounds) -> bool:
    if link.execution_id is None:
        return bounds.old(link.at, link.id)
    if link.state is None or State(link.state) not in TERMINAL or link.finished_at is None:
        return False
    return link.removed and bounds.old(link.finished_at, link.execution_id)


def _end(link: Link) -> int:
    return link.response_n if link.response_n is not None else 1 << 62


def counted(links: Sequence[Link]) -> dict[str, int]:
    """Return how many RESPONSEs of each status there are."""
    found = {status.value: 0 for status in _ENDED}
    for link in links:
        if link.status is not None:
            found[link.status] += 1
    return found


_ENDED = (ContractStatus.COMPLETED, ContractStatus.FAILED, ContractStatus.CANCELLED)

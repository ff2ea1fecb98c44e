"""The outbox: what other services have still to be told of the chains.

A lane stands for the places ``first_n`` to ``last_n`` of one session's chain that one sink has not
taken yet. It grows in the commit of the contracts it stands for, and goes when its last one is
taken. One worker at a time holds it, so a session is delivered in the order of its chain.
"""

from __future__ import annotations

import msgspec


class Lane(msgspec.Struct, kw_only=True):
    """What one sink has still to take of one session.

    ``worker`` is the epoch that delivers it now. ``tries`` counts how often the sink said no to
    the contract at ``first_n``; ``error`` is why the last delivery failed, at ``failed_at``.
    """

    sink: str
    owner: str
    session_id: str
    first_n: int
    last_n: int
    due_at: int
    tries: int
    worker: str | None
    error: str | None
    failed_at: int | None


class Parked(msgspec.Struct, kw_only=True):
    """A contract that a sink will not take: kept to be shown, and delivered when asked."""

    sink: str
    owner: str
    session_id: str
    n: int
    contract_id: str
    tries: int
    error: str
    at: int

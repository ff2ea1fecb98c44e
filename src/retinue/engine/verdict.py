"""What a verification finds: the first row that does not fit, or that all do."""

from __future__ import annotations

import msgspec

UNREADABLE = (TypeError, ValueError, KeyError, AttributeError, msgspec.MsgspecError)
"""What reading a row raises that holds no value of ours."""


class Fault(msgspec.Struct, frozen=True):
    """A row that does not fit: which chain, its place ``n`` in it, and what is wrong."""

    chain: str
    n: int
    reason: str
    id: str | None = None


class Verdict(msgspec.Struct, frozen=True):
    """What a verification found. ``fault`` is the first one; None means all chains hold."""

    sessions: int
    contracts: int
    events: int
    audits: int
    fault: Fault | None = None

    @property
    def ok(self) -> bool:
        """Whether every chain holds."""
        return self.fault is None


class Broken(Exception):
    """Something does not fit."""

    def __init__(self, chain: str, n: int, reason: str, row_id: str | None = None) -> None:
        super().__init__(reason)
        self.fault = Fault(chain, n, reason, row_id)


class Progress:
    """What was verified so far, and where we are, for a row that holds what no row of ours does."""

    def __init__(self) -> None:
        self.sessions = self.contracts = self.events = self.audits = 0
        self.at: tuple[str, int, str | None] = ("session", 1, None)

    def verdict(self, fault: Fault | None) -> Verdict:
        """Return the verdict."""
        return Verdict(self.sessions, self.contracts, self.events, self.audits, fault)


def stored(value: bytes) -> bytes:
    """Return a stored value that must be bytes; SQLite keeps whatever was put there."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{type(value).__name__} where bytes belong")
    return bytes(value)


def session_name(owner: str, session_id: str) -> str:
    """Return how a session's chain is named."""
    return f"session {session_id} of {owner}"

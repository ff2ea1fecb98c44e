"""An instance: one live incarnation of an agent that is a process, and its state machine.

::

    starting ──► ready ⇄ busy ──► draining ──► stopped | failed
       │           ▲  ▲    ▲                      ▲
       │           │  └─ paused ──────────────────┤
       │           └──── lost ────────────────────┤
       └──────────────────────────────────────────┘

``stopped``: it ended as it should, or because somebody asked. ``failed``: it ended otherwise, by a
limit, or nobody knows how. Both are final: a restart is another instance. ``paused`` and ``lost``
(its node is away) are left for where it was before. Every state that is not final can end, and
drain. A move that is not drawn raises.

Agents that are objects of our own process have no such record.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from retinue.errors import IllegalTransition


class InstanceState(StrEnum):
    """Where an instance stands."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    PAUSED = "paused"
    DRAINING = "draining"
    LOST = "lost"
    STOPPED = "stopped"
    FAILED = "failed"


_S = InstanceState
ENDED = frozenset({_S.STOPPED, _S.FAILED})
_LAST = ENDED | {_S.DRAINING, _S.LOST}

EDGES: dict[InstanceState, frozenset[InstanceState]] = {
    _S.STARTING: _LAST | {_S.READY, _S.BUSY, _S.PAUSED},
    _S.READY: _LAST | {_S.BUSY, _S.PAUSED},
    _S.BUSY: _LAST | {_S.READY, _S.PAUSED},
    _S.PAUSED: _LAST | {_S.READY, _S.BUSY},
    _S.DRAINING: ENDED | {_S.LOST},
    _S.LOST: ENDED | {_S.READY, _S.BUSY, _S.PAUSED, _S.DRAINING},
    _S.STOPPED: frozenset(),
    _S.FAILED: frozenset(),
}


def move(state: InstanceState, to: InstanceState) -> InstanceState:
    """Return ``to`` when the machine has the edge ``state → to``.

    Raises:
        IllegalTransition: it does not.
    """
    if to not in EDGES[state]:
        raise IllegalTransition(f"an instance cannot go from {state} to {to}")
    return to


_WORDS = {
    _S.STARTING: "initializing",
    _S.READY: "idle",
    _S.BUSY: "running",
    _S.PAUSED: "paused",
    _S.DRAINING: "running",
    _S.LOST: "lost",
    _S.FAILED: "failed",
}
MOST_MOVES = 40
"""How much of a timeline is kept: the beginning and the latest."""


class Moved(msgspec.Struct, frozen=True):
    """From ``at`` (microseconds UTC) on it was so, in specification 001's word, and why."""

    at: int
    status: str
    reason: str | None = None


class Seen(msgspec.Struct, kw_only=True):
    """What is shown of an instance beside its record: kept in its handle, which nobody selects by.

    ``status`` is how it ended, where its own last word or ours says more than its exit code.
    ``dropped`` and ``refused`` count lines of its output and their bytes: what was read and not
    kept, what was too long; ``log_lost`` are bytes that are missing in its log. ``measured_at`` is
    when its use of CPU and memory was measured last.
    """

    status: str | None = None
    timeline: list[Moved] = []
    dropped: tuple[int, int] = (0, 0)
    refused: tuple[int, int] = (0, 0)
    log_lost: int = 0
    measured_at: int = 0

    def moved(self, at: int, status: str, reason: str | None) -> None:
        """Note where it stands from now on."""
        last = self.timeline[-1] if self.timeline else None
        if last is not None and (last.status, last.reason) == (status, reason):
            return
        if len(self.timeline) >= MOST_MOVES:
            del self.timeline[MOST_MOVES // 2]
        self.timeline.append(Moved(at, status, reason))


class InstanceRecord(msgspec.Struct, kw_only=True):
    """The stored record of one supervised process. Times are microseconds UTC.

    ``worker`` is the epoch of ours that supervises it, on ``node``. ``execution_id`` and
    ``attempt`` are what it works on (None: nothing now). ``handle`` is the driver's, as JSON: what
    is needed to find the process again; it is stored before the process runs, and the pid is added.
    Beside that it holds what is only shown, ``Seen``.
    ``kept`` is 1 when it is to live on without us. ``cpu_us`` and ``peak_bytes`` count its whole
    tree, ``messages_in`` what it was sent, ``messages_out`` what came; they are its last values
    once it has ended. ``reason`` says why it is in its state.
    """

    instance_id: str
    owner: str
    agent_id: str
    driver: str
    node: str
    worker: str
    execution_id: str | None
    attempt: int | None
    state: InstanceState
    kept: int
    handle: bytes
    created_at: int
    started_at: int | None = None
    state_at: int = 0
    ended_at: int | None = None
    reason: str | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    cpu_us: int = 0
    peak_bytes: int = 0
    messages_in: int = 0
    messages_out: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing of it lives any more."""
        return self.state in ENDED

    def to(self, state: InstanceState, at: int, reason: str | None = None) -> None:
        """Go to ``state``; where it is there already, only the reason is taken.

        Raises:
            IllegalTransition: its machine has no such edge.
        """
        if state is not self.state:
            self.state = move(self.state, state)
            self.state_at = at
            if state in ENDED:
                self.ended_at = at
        self.reason = reason

    def found(self) -> dict[str, Any]:
        """Return its handle, decoded."""
        handle: dict[str, Any] = msgspec.json.decode(self.handle)
        return handle

    def seen(self) -> Seen:
        """Return what is shown of it beside this."""
        return msgspec.convert(self.found().get("seen", {}), Seen)

    def show(self, seen: Seen) -> None:
        """Keep what is shown of it."""
        self.handle = msgspec.json.encode({**self.found(), "seen": seen})

    @property
    def word(self) -> str:
        """Specification 001's word for where it stands, as far as the record alone says it."""
        if self.state is _S.STOPPED:
            return "completed" if self.exit_code == 0 else "terminated"
        if self.state is _S.FAILED and self.exit_signal is not None:
            return "terminated"
        return _WORDS[self.state]

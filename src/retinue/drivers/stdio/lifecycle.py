"""Where a worker's process stands, in specification 000's words (§2.2). Pure.

::

    initializing ─► ready ⇄ busy ─► streaming ─► ready
                              └────────┴─► error ─► ready         any ─► shutdown | crashed

Many requests may be under way: it is busy while one is, streaming once one has brought a chunk,
and in error from a failure of its own until it is heard of again.
"""

from __future__ import annotations

from enum import StrEnum

from retinue.errors import IllegalTransition


class Stage(StrEnum):
    """The states of specification 000."""

    INITIALIZING = "initializing"
    READY = "ready"
    BUSY = "busy"
    STREAMING = "streaming"
    ERROR = "error"
    SHUTDOWN = "shutdown"
    CRASHED = "crashed"


_S = Stage
_LAST = frozenset({_S.SHUTDOWN, _S.CRASHED})
EDGES: dict[Stage, frozenset[Stage]] = {
    _S.INITIALIZING: _LAST | {_S.READY},
    _S.READY: _LAST | {_S.BUSY},
    _S.BUSY: _LAST | {_S.READY, _S.STREAMING, _S.ERROR},
    _S.STREAMING: _LAST | {_S.READY, _S.ERROR},
    _S.ERROR: _LAST | {_S.READY},
    _S.SHUTDOWN: frozenset(),
    _S.CRASHED: frozenset(),
}


class Lifecycle:
    """One process's way through them."""

    __slots__ = ("stage",)

    def __init__(self) -> None:
        self.stage = Stage.INITIALIZING

    def to(self, stage: Stage) -> None:
        """Go to ``stage``.

        Raises:
            IllegalTransition: the machine has no such edge.
        """
        if stage not in EDGES[self.stage]:
            raise IllegalTransition(f"a worker cannot go from {self.stage} to {stage}")
        self.stage = stage

    def ready(self) -> None:
        """Note that its ready frame came."""
        self.to(Stage.READY)

    def began(self) -> None:
        """Note that a request went out."""
        self._again()
        if self.stage is Stage.READY:
            self.to(Stage.BUSY)

    def streamed(self) -> None:
        """Note that a chunk came."""
        self._again()
        if self.stage is Stage.READY:
            self.to(Stage.BUSY)
        if self.stage is Stage.BUSY:
            self.to(Stage.STREAMING)

    def ended(self, left: int, *, failed: bool) -> None:
        """Note that a request ended, ``left`` are under way; ``failed``: by the worker's fault."""
        if self.stage not in {Stage.BUSY, Stage.STREAMING}:
            return
        if failed:
            self.to(Stage.ERROR)
        elif not left:
            self.to(Stage.READY)

    def _again(self) -> None:
        if self.stage is Stage.ERROR:
            self.to(Stage.READY)

    def over(self, *, asked: bool) -> None:
        """Note that it was told to end, or has ended by itself."""
        if self.stage not in _LAST:
            self.to(Stage.SHUTDOWN if asked else Stage.CRASHED)

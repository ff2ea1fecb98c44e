"""Where one agent stands, judged from its lines and its exit. Pure: no process, no clock but given.

::

    initializing ─► running ⇄ thinking ─► completed | failed | terminated     (final: exactly one)
                       └─ paused ─┘

A line that is a JSON object may say more than text does: ``thought_update`` and ``status_update``
move it, ``result`` and an unrecoverable ``error`` say how it will have ended. Without such a line
the exit code says it.
"""

from __future__ import annotations

import json
from typing import Any

from retinue.process.child import Exit
from retinue.process.config import AgentStatus, Moved

MOST_MOVES = 1_000
_LIVE = {"running": AgentStatus.RUNNING, "thinking": AgentStatus.THINKING}
_OUTCOME = {"completed": True, "failed": False}


class Standing:
    """An agent's status and how it came there."""

    def __init__(self, now: int) -> None:
        self.status = AgentStatus.INITIALIZING
        self.timeline = [Moved(self.status, "spawned", now)]
        self.succeeded: bool | None = None
        self.ended_by_us: str | None = None
        self.events = 0
        self.texts = 0
        self._before_pause = AgentStatus.RUNNING

    def move(self, status: AgentStatus, reason: str, now: int) -> None:
        """Go to ``status``; a final one is never left."""
        if status is self.status or self.status.final:
            return
        self.status = status
        if len(self.timeline) >= MOST_MOVES:
            del self.timeline[MOST_MOVES // 2]  # the beginning and the latest moves are kept
        self.timeline.append(Moved(status, reason, now))

    def line(self, line: bytes, now: int, *, parse: bool) -> None:
        """Take in one line of stdout."""
        event = event_of(line) if parse else None
        if event is None:
            self.texts += 1
        else:
            self.events += 1
        if self.status in {AgentStatus.INITIALIZING, AgentStatus.RUNNING, AgentStatus.THINKING}:
            wanted = self._told(event) if event is not None else None
            if wanted is not None:
                self.move(wanted, str(event and event.get("type")), now)
            elif self.status is AgentStatus.INITIALIZING:
                self.move(AgentStatus.RUNNING, "first output", now)

    def _told(self, event: dict[str, Any]) -> AgentStatus | None:
        kind = event.get("type")
        if not isinstance(kind, str):
            return None
        if kind == "thought_update":
            return AgentStatus.THINKING
        if kind == "status_update":
            word = event.get("status")
            if isinstance(word, str):
                self.succeeded = _OUTCOME.get(word, self.succeeded)
                return _LIVE.get(word)
        elif kind == "result":
            self.succeeded = not event.get("is_error", False)
        elif kind == "error" and event.get("recoverable") is False:
            self.succeeded = False
        elif kind in {"output", "progress_update"}:
            return AgentStatus.RUNNING
        return None

    def paused(self, now: int) -> None:
        """Note that it was stopped where it is."""
        if self.status is not AgentStatus.PAUSED:
            self._before_pause = self.status
            self.move(AgentStatus.PAUSED, "paused", now)

    def resumed(self, now: int) -> None:
        """Note that it goes on."""
        if self.status is AgentStatus.PAUSED:
            self.move(self._before_pause, "resumed", now)

    def exited(self, status: Exit, now: int) -> None:
        """Judge how it ended."""
        if status.reason is not None or status.signal is not None or self.ended_by_us is not None:
            # Who stopped it counts, not the code it found to exit with.
            why = self.ended_by_us or status.reason or str(status)
            final = AgentStatus.TERMINATED
        else:
            success = self.succeeded if self.succeeded is not None else status.code == 0
            final = AgentStatus.COMPLETED if success else AgentStatus.FAILED
            why = str(status)
        self.move(final, why, now)


def event_of(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a line is; None: it is text."""
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None

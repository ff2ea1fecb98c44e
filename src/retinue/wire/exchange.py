"""Which frame answers which, from the side that asks: pure bookkeeping of one pipe.

A request is open from ``begin`` to its first response or error frame. What comes later, or is to
nothing that was asked, is named by its kind and belongs to nobody.
"""

from __future__ import annotations

from collections import OrderedDict

from retinue.errors import Conflict
from retinue.wire.envelope import Control, Error, Frame, Response, Stream

KEPT = 4096
"""Of how many ended requests we remember that they were ours."""


class Exchanges:
    """The requests of one pipe that are open, and the last ones that have ended."""

    def __init__(self, kept: int = KEPT) -> None:
        self._open: dict[str, set[str]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._kept = kept

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._open

    def begin(self, message_id: str) -> None:
        """Open an exchange.

        Raises:
            Conflict: one with that id is open.
        """
        if message_id in self._open:
            raise Conflict(f"request {message_id} is in progress")
        self._open[message_id] = set()
        self._ended.pop(message_id, None)

    def end(self, message_id: str) -> None:
        """Close an exchange that nobody waits for any more; what still comes is late."""
        if self._open.pop(message_id, None) is not None:
            self._ended[message_id] = None
            if len(self._ended) > self._kept:
                self._ended.popitem(last=False)

    def take(self, frame: Frame) -> str | None:
        """Take a frame; return what is wrong with it (one of ``strict.KINDS``), None: nothing.

        A good response or error frame ends its exchange.
        """
        if isinstance(frame, Stream):
            return self._chunk(frame)
        if not isinstance(frame, Response | Error):
            return None if not isinstance(frame, Control) else self._about(frame)
        to = frame.correlation_id
        if to is None:
            return None if isinstance(frame, Error) else "unknown_correlation"
        if to in self._open:
            self.end(to)
            return None
        return "second_terminal" if to in self._ended else "unknown_correlation"

    def _chunk(self, frame: Stream) -> str | None:
        to = frame.correlation_id or ""
        complete = self._open.get(to)
        if complete is None:
            return "late_chunk" if to in self._ended else "unknown_correlation"
        node = frame.payload.node_name
        if node in complete:
            return "late_chunk"
        if frame.payload.is_complete:
            complete.add(node)
        return None

    def _about(self, frame: Control) -> str | None:
        """Judge a control frame: most are about nothing that was asked, and that is right."""
        if "operation" not in frame.payload:
            return None
        to = frame.correlation_id
        if to is None or to == frame.message_id or to in self._open:
            return None
        return "late_chunk" if to in self._ended else "unknown_correlation"

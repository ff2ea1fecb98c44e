"""From a command's stdout to events and a result. Pure: bytes in, events out.

``text``: every piece is streamed, all of it together is the result. ``json``: one document, which
is the result; nothing is streamed. ``json-lines``: a line that is a JSON object is an event by its
``type``, any other line is text:

==========================================  =====================================================
``output``, ``content_chunk``               text (``content``)
``thought_update``, ``thinking``            thinking (``content``)
``progress_update``, ``progress``           progress, its other fields as they are
``status_update``                           progress, its other fields as they are
``tool_call``, ``tool_result``, ``usage``   the event of that name, its other fields as they are
``result``                                  the end: ``result``, or ``error`` with ``is_error``
``error``                                   the end, unless ``recoverable``: then a warning
``lifecycle``, ``heartbeat``, all others    log; a heartbeat at the level debug
==========================================  =====================================================
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Any

from retinue.domain.event import EventData, EventType
from retinue.domain.strictjson import decode
from retinue.errors import AgentFailed, InvalidInput, InvalidResult

_PIECE = 64 * 1024
_BLOCK = 256 * 1024
_MOST_FRESH = 1000
_TEXT = {"output": EventType.CONTENT_CHUNK, "content_chunk": EventType.CONTENT_CHUNK}
_THOUGHT = {"thought_update": EventType.THINKING, "thinking": EventType.THINKING}
_AS_IT_IS = {
    "progress_update": EventType.PROGRESS,
    "progress": EventType.PROGRESS,
    "status_update": EventType.PROGRESS,
    "tool_call": EventType.TOOL_CALL,
    "tool_result": EventType.TOOL_RESULT,
    "usage": EventType.USAGE,
}
_LEVELS = {"heartbeat": "debug", "error": "warning"}


class Text:
    """Text that grows by pieces of any size, and takes hardly more memory than its UTF-8."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._fresh: list[str] = []
        self._size = 0

    def append(self, piece: str) -> None:
        """Put a piece at its end."""
        self._fresh.append(piece)
        self._size += len(piece)
        if self._size >= _BLOCK or len(self._fresh) >= _MOST_FRESH:
            self._blocks.append("".join(self._fresh).encode("utf-8", "surrogatepass"))
            self._fresh.clear()
            self._size = 0

    def clear(self) -> None:
        """Forget it."""
        self._blocks.clear()
        self._fresh.clear()
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            yield block.decode("utf-8", "surrogatepass")
        yield from self._fresh


class Dialect:
    """What has been said so far. ``take`` and ``rest`` return events, ``result`` the end."""

    lines = False

    def __init__(self, most: int) -> None:
        self._most = most
        self._parts = Text()
        self._size = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, piece: bytes) -> list[EventData]:
        """Take in a piece of the output.

        Raises:
            InvalidResult: the result grows beyond what one may have.
        """
        return self._text(self._decoder.decode(piece))

    def rest(self) -> list[EventData]:
        """Return what is left at the end of the output."""
        return self._text(self._decoder.decode(b"", True))

    @property
    def ended(self) -> bool:
        """Whether the output itself said that it is over, and how."""
        return False

    def result(self) -> Any:
        """Return the result.

        Raises:
            AgentFailed: the output says that it failed.
            InvalidResult: the output is no result.
        """
        return "".join(self._parts)

    def _text(self, text: str) -> list[EventData]:
        if not text:
            return []
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
        self._size += len(text)
        if self._size <= self._most:
            self._parts.append(text)
        else:
            self._outgrown()
        return self._shown(text)

    def _outgrown(self) -> None:
        """Refuse text that would make a result which is larger than one may be."""
        raise InvalidResult(
            f"the command's output is larger than {self._most} bytes (max_result_bytes)"
        )

    def _shown(self, text: str) -> list[EventData]:
        return [
            EventData(EventType.CONTENT_CHUNK, {"content": text[at : at + _PIECE]})
            for at in range(0, len(text), _PIECE)
        ]


class JsonDocument(Dialect):
    """The whole output is one JSON value."""

    def _shown(self, text: str) -> list[EventData]:
        return []

    def result(self) -> Any:
        """Return the value."""
        try:
            return decode("".join(self._parts).encode())
        except InvalidInput as error:
            raise InvalidResult(f"the command's output is no result: {error.message}") from None


class JsonLines(Dialect):
    """Each line is an event, or text."""

    lines = True

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._end: dict[str, Any] | None = None
        self.after_end = 0

    @property
    def ended(self) -> bool:
        """Whether there was a ``result`` or a final ``error``."""
        return self._end is not None

    def take(self, piece: bytes) -> list[EventData]:
        """Take in a line."""
        if self._end is not None:
            self.after_end += 1
            return []
        event = _object(piece)
        if event is None:
            return self._text(piece.decode("utf-8", "replace"))
        return self._event(event)

    def _event(self, event: dict[str, Any]) -> list[EventData]:
        kind = event.pop("type", None)
        if not isinstance(kind, str):
            return [_log(event)]
        if kind in _TEXT:
            return self._text(str(event.get("content", "")))
        if kind in _THOUGHT:
            return [EventData(_THOUGHT[kind], {"content": str(event.get("content", ""))})]
        if kind in _AS_IT_IS:
            return [EventData(_AS_IT_IS[kind], event)]
        if kind == "result" or (kind == "error" and not event.get("recoverable")):
            self._end = {**event, "is_error": kind == "error" or bool(event.get("is_error"))}
            return []
        return [_log({"type": kind, **event})]

    def result(self) -> Any:
        """Return what the ``result`` line holds; without the field, the text before it."""
        if self._end is None:
            raise InvalidResult("the command ended without a result line")
        if self._end["is_error"]:
            said = self._end.get("error", self._end.get("message", self._end.get("result")))
            raise AgentFailed(said if isinstance(said, str) else str(said or "the agent failed"))
        if "result" in self._end:
            return self._end["result"]
        if self._size > self._most:
            super()._outgrown()
        return "".join(self._parts)

    def _outgrown(self) -> None:
        self._parts.clear()  # it is streamed, and needed only where no result is said


def _object(line: bytes) -> dict[str, Any] | None:
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        value = decode(line)
    except InvalidInput:
        return None
    return value if isinstance(value, dict) else None


def _log(event: dict[str, Any]) -> EventData:
    said = event.get("message")
    kind = event.get("type", "said")
    text = said if isinstance(said, str) else str(kind)
    level = _LEVELS.get(kind, "info") if isinstance(kind, str) else "info"
    return EventData(EventType.LOG, {"level": level, "message": text, "data": event})


DIALECTS: dict[str, type[Dialect]] = {
    "text": Dialect,
    "json": JsonDocument,
    "json-lines": JsonLines,
}

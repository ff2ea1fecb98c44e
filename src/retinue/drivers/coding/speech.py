"""What a CLI says of its answer, as pieces of text, and which of them count.

A model's stream that is cut is begun again, and what it had said until then is said once more. So
the text that counts is kept: a piece that takes it back (``is_reset``) says all of it again, as it
does wherever text streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from retinue.domain.event import EventData, EventType

MOST_TEXT = 64 * 1024


class Speech:
    """The text of one turn. ``mask`` hides ``secrets``, those that come in two pieces, too."""

    def __init__(self, secrets: Iterable[str], mask: Callable[[str], str]) -> None:
        self._secrets = tuple(secrets)
        self._mask = mask
        self._whole: list[str] = []
        self._waiting: list[str] = []
        self.size = 0
        """How much waits, in characters; ``MOST_TEXT`` is as much as one event takes."""
        self.place = 0
        """How much has been said that counts."""

    def add(self, text: str) -> None:
        """Take a piece."""
        if not isinstance(text, str):
            raise TypeError(f"text is {type(text).__name__}")
        size = len(text)
        self._waiting.append(text)
        self.size += size
        self.place += size

    def take(self, *, last: bool) -> EventData | None:
        """Return what waits as an event; not ``last``: what may become a secret waits on."""
        if not self._waiting:
            return None
        said = "".join(self._waiting)
        text = self._mask(said) if self._secrets else said
        held = "" if last else self.beginning(text)
        self._waiting = [held] if held else []
        self.size = len(held)
        self._whole.append(said[: len(said) - len(held)])
        text = text[: len(text) - len(held)]
        return EventData(EventType.CONTENT_CHUNK, {"content": text}) if text else None

    def back(self, place: int) -> list[EventData]:
        """Take back what was said behind ``place``; return the events that say so."""
        if place >= self.place:
            return []
        text = "".join(self._whole + self._waiting)[:place]
        self._whole, self._waiting, self.size = [text], [], 0
        self.place = len(text)
        text = self._mask(text)
        pieces = [text[at : at + MOST_TEXT] for at in range(0, len(text), MOST_TEXT)] or [""]
        said: list[dict[str, Any]] = [{"content": piece} for piece in pieces]
        said[0]["is_reset"] = True
        return [EventData(EventType.CONTENT_CHUNK, data) for data in said]

    def beginning(self, text: str) -> str:
        """Return the end of ``text`` that a secret begins with: it waits for what follows."""
        longest = ""
        for secret in self._secrets:
            for size in range(min(len(secret) - 1, len(text)), len(longest), -1):
                if text.endswith(secret[:size]):
                    longest = secret[:size]
                    break
        return longest

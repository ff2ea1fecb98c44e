"""What a dialect tells of a CLI's output, and to whom.

A dialect reads one CLI's messages and tells a ``Scribe``; it does no I/O, so that a recorded
conversation is all that is needed to test one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from retinue.domain.event import EventType
from retinue.errors import RetinueError

MOST_WHOLE = 256 * 1024
MOST_BYTES = 512 * 1024
MOST_DEPTH = 40
"""How deep a value in an event may be nested; the journal takes 64 levels in all."""
MOST_VALUE = 64 * 1024
"""Bytes of a tool's arguments or result that go into an event."""


class Ask(NamedTuple):
    """What a CLI asks leave for; ``reply(allowed, why)`` answers it, once.

    ``allowed`` None: there will be no answer, the turn is over.
    """

    key: str
    tool: str
    arguments: Any
    prompt: str
    reply: Callable[[bool | None, str], None]


class Scribe(Protocol):
    """Takes down what a CLI does in one turn."""

    def begun(self, native: str | None, version: str | None, model: str | None) -> None:
        """Note which session of the CLI's own this is, and which version speaks."""
        ...

    def say(self, text: str) -> None:
        """Take text of the answer."""
        ...

    @property
    def place(self) -> int:
        """How much of the answer has been said."""
        ...

    def back(self, place: int) -> None:
        """Take back what was said of the answer behind ``place``: it will be said again."""
        ...

    def think(self, text: str) -> None:
        """Take a piece of thought."""
        ...

    def called(self, key: str, tool: str, arguments: Any, **more: Any) -> None:
        """Note that a tool is called; ``key`` is the call's own."""
        ...

    def answered(self, key: str, result: Any, *, is_error: bool = False, **more: Any) -> None:
        """Note what a tool answered."""
        ...

    def note(self, kind: EventType, data: dict[str, Any]) -> None:
        """Take any other event."""
        ...

    def warn(self, message: str, **more: Any) -> None:
        """Take a warning: a retry, a refusal."""
        ...

    def replied(self) -> None:
        """Count one reply of the model."""
        ...

    def spent(self, tokens_in: int, tokens_out: int, cost: float = 0.0, **more: Any) -> None:
        """Take what was spent since the last time."""
        ...

    def settled(self, total: float) -> None:
        """Take what the CLI says its whole session has cost until now."""
        ...

    def ask(self, ask: Ask) -> None:
        """Take what the CLI asks leave for."""
        ...

    def withdrawn(self, key: str) -> None:
        """Note that the CLI does not want an answer any more."""
        ...

    def end(self, result: Any) -> None:
        """Note that the turn has ended well."""
        ...

    def fail(self, error: RetinueError) -> None:
        """Note that the turn has failed."""
        ...


def bounded(value: Any, depth: int = MOST_DEPTH) -> Any:
    """Return ``value`` with what is too long or too deep in it cut; the log has the rest."""
    if isinstance(value, str):
        if len(value) <= MOST_VALUE:
            return value
        return f"{value[:MOST_VALUE]}… ({len(value) - MOST_VALUE} characters more)"
    if isinstance(value, dict | list) and value and not depth:
        return f"… (nested deeper than {MOST_DEPTH} levels)"
    if isinstance(value, dict):
        return {str(key): bounded(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [bounded(item, depth - 1) for item in value[:1000]]
    return value


def fitting(value: Any) -> Any:
    """Return ``value`` so that it fits into an event, whatever it is made of."""
    found = bounded(value)
    text = json.dumps(found, ensure_ascii=False) if isinstance(found, dict | list) else ""
    large = len(text) > MOST_WHOLE or len(text.encode("utf-8", "replace")) > MOST_BYTES
    return bounded(text) if large else found


def number(value: Any) -> int:
    """Return a count that a CLI gave; 0 when it is none."""
    return value if isinstance(value, int) and value > 0 else 0


def text_of(content: Any) -> str:
    """Return the text of a message's content, whichever way it is written."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        inner = content.get("text", content.get("content"))
        return text_of(inner) if inner is not None else ""
    if isinstance(content, list):
        return "".join(text_of(part) for part in content)
    return ""

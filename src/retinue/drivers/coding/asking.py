"""What a CLI asks leave for in one turn, and how that is put to a person.

What is asked shows all that would be allowed: every argument by its name, and where one is cut,
how much of it is not shown.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from retinue.domain.ids import ulid
from retinue.drivers.coding.scribe import Ask, fitting

MOST_SHOWN = 10_000
LEAST_SHOWN = 200
MOST_NAMES = 100


class Opened(NamedTuple):
    """The question that is open."""

    id: str
    ask: Ask


class Asking:
    """What was asked and not answered yet; one question is open at a time."""

    def __init__(self) -> None:
        self._waiting: dict[str, Ask] = {}
        self._open: Opened | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting) or self._open is not None

    def add(self, ask: Ask) -> None:
        """Take what is asked."""
        self._waiting[ask.key] = ask

    def open(self) -> Opened | None:
        """Open the next question, unless one is open."""
        if self._open is not None or not self._waiting:
            return None
        ask = self._waiting.pop(next(iter(self._waiting)))
        self._open = Opened(ulid(), ask)
        return self._open

    def close(self, question_id: str | None = None) -> Ask | None:
        """Take the open question away, if there is one, and it is this one."""
        now = self._open
        if now is None or question_id not in {None, now.id}:
            return None
        self._open = None
        return now.ask

    def withdraw(self, key: str) -> Opened | None:
        """Forget what was asked under ``key``; return it when it was open."""
        self._waiting.pop(key, None)
        now = self._open
        if now is None or now.ask.key != key:
            return None
        self._open = None
        return now

    @property
    def opened(self) -> Opened | None:
        """The open question."""
        return self._open

    def drop(self) -> list[Ask]:
        """Take away all that was asked."""
        first = [self._open.ask] if self._open is not None else []
        found = [*first, *self._waiting.values()]
        self._waiting.clear()
        self._open = None
        return found


def wording(tool: str, given: Any) -> str:
    """Return how leave is asked for: the tool, and everything that it is given."""
    return f"May it use {tool}? {_shown(given)}".rstrip()


def _shown(given: Any) -> str:
    if not isinstance(given, dict):
        return _cut(_text(given), MOST_SHOWN) if given is not None else ""
    if len(given) == 1:
        (value,) = given.values()
        return _cut(_text(value), MOST_SHOWN)
    texts = {str(name): _text(value) for name, value in given.items()}
    long = [text for text in texts.values() if len(text) > LEAST_SHOWN]
    rest = MOST_SHOWN - sum(len(text) for text in texts.values() if len(text) <= LEAST_SHOWN)
    most = max(rest // max(len(long), 1), LEAST_SHOWN)
    shown = list(texts.items())[:MOST_NAMES]
    # A further line of a value is never taken for another argument.
    lines = [
        f"\n{_cut(name, LEAST_SHOWN)}: {_cut(text, most).replace(chr(10), chr(10) + '    ')}"
        for name, text in shown
    ]
    if len(texts) > len(shown):
        lines.append(f"\n… ({len(texts) - len(shown)} further arguments are not shown)")
    return "".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return msgspec.json.encode(fitting(value)).decode()


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[:most]}… ({len(text) - most} of {len(text)} characters are not shown)"

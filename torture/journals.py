"""The two journals that a run is judged by, as files of JSON lines.

The *client journal* holds an intent before each send and the answer after it; the *effect journal*
a line per attempt that did its work. Lines are appended with one ``os.write`` and without fsync:
what is killed here are processes, never the machine.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Effect:
    """An attempt did its work, in the process ``pid``."""

    execution_id: str
    attempt: int
    capability: str
    marker: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class Intent:
    """A client is about to send a task. ``waits``: for its reply, not only its acceptance."""

    send: str
    marker: str
    capability: str
    waits: bool
    key: str | None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The whole answer has arrived."""

    send: str
    status: int
    body: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """The connection broke, or nothing came in time."""

    send: str
    why: str


@dataclass(kw_only=True)
class Exchange:
    """A send and what came of it; neither answer nor reason: the run ended first."""

    intent: Intent
    answer: Answered | None = None
    lost: Unanswered | None = None

    @property
    def acknowledged(self) -> bool:
        """Whether the server said that the task is done, or accepted."""
        return self.answer is not None and self.answer.status in {200, 202}

    @property
    def execution_id(self) -> str | None:
        """The execution that the answer names."""
        if self.answer is None:
            return None
        body = self.answer.body
        found = body.get("execution_id") or (body.get("details") or {}).get("execution_id")
        return str(found) if found else None


class Lines:
    """A file that lines are appended to, by any number of processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def write(self, record: Effect | Intent | Answered | Unanswered) -> None:
        """Append one record."""
        if self._fd is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o600)
        line = json.dumps(dataclasses.asdict(record)).encode() + b"\n"
        if os.write(self._fd, line) != len(line):
            raise OSError(f"{self._path} took only a part of a line")

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_effects(path: Path) -> list[Effect]:
    """Return the effects, in the order in which they happened."""
    return [Effect(**record) for record in _records(path)]


def read_exchanges(path: Path) -> list[Exchange]:
    """Return the sends in their order, each with its answer."""
    found: dict[str, Exchange] = {}
    for record in _records(path):
        if "marker" in record:
            found[record["send"]] = Exchange(intent=Intent(**record))
        elif "status" in record:
            found[record["send"]].answer = Answered(**record)
        else:
            found[record["send"]].lost = Unanswered(**record)
    return list(found.values())


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]

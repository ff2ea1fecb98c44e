"""A blocking agent with a real job: what lies in a directory of the user's own.

It reads below one root only, follows no symbolic link out of it, and is bounded in files, bytes
and seconds, so that it always comes back, if need be with part of the answer, and says so.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retinue.agent import Agent, AgentCapability, Options, current
from retinue.errors import InvalidInput
from retinue.examples.languages import language

PARAMETERS = {
    "type": "object",
    "properties": {
        "path": {
            "type": "string",
            "default": ".",
            "maxLength": 4096,
            "description": "the directory (or file), relative to the one that may be surveyed",
        }
    },
    "additionalProperties": False,
}
SKIPPED = frozenset(
    ".git .hg .svn .jj node_modules .venv venv __pycache__ .mypy_cache .ruff_cache .pytest_cache"
    " .tox .nox .eggs .idea .gradle .terraform .next .retinue target dist build".split()
)
MOST_FILES = 50_000
MOST_SECONDS = 30.0
MOST_SEARCHED = 4 << 20  # bytes of one file that are searched for notes; its lines all count
MOST_NOTES = 100
MOST_LARGEST = 10
_CHUNK = 1 << 20
_HEAD = 8192
_MOST_TEXT = 200
_PROGRESS_SECONDS = 0.25
_WORDS = r"(?:TODO|FIXME|XXX|HACK)"
# Behind the mark of a comment, or followed by a colon: prose that mentions the word is none.
_NOTE = re.compile(
    rf"(?:#|//|\*|--|;|<!--|%)[ \t]*({_WORDS}\b.*)|\b({_WORDS}(?:\([^)\n]{{0,60}}\))?:.*)"
)


class SurveyAgent(Agent):
    """Counts files, lines and languages, and lists the largest files and the open notes."""

    options = Options(concurrency=4, timeout=120, delivery="idempotent")

    def __init__(self, root: Path) -> None:
        super().__init__(
            agent_id="agent_survey_001",
            name="Survey Agent",
            description="Surveys a directory: languages, sizes, largest files, open notes",
        )
        self.root = root

    def execute(self, task: dict[str, Any]) -> Any:
        """Survey the directory. Blocking, so it runs in a thread of its own."""
        path = task["parameters"].get("path", ".")
        root = self.root.resolve()
        try:
            target = (root / path).resolve()
            if not target.is_relative_to(root):
                raise InvalidInput(f"{path} is outside of the directory that may be surveyed")
            if not target.exists():
                raise InvalidInput(f"there is no {path}")
        except (OSError, ValueError, RuntimeError) as error:
            raise InvalidInput(f"{path} cannot be read: {error}") from None
        survey = Survey(target)
        for message in survey.run():
            current().progress(None, message)
        return {"success": True, "data": {"path": path, **survey.result()}}

    def get_capabilities(self) -> list[AgentCapability]:
        """Return ``survey_repository``."""
        return [
            AgentCapability(
                "survey_repository",
                "Survey a directory: languages, lines, largest files, TODO and FIXME notes",
                PARAMETERS,
            )
        ]


class Survey:
    """One pass over a directory (or one file)."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._deadline = time.monotonic() + MOST_SECONDS
        self._seen = 0
        self._languages: dict[str, list[int]] = {}
        self._files: list[tuple[int, str, int]] = []
        self._notes: list[dict[str, Any]] = []
        self._totals = {"files": 0, "lines": 0, "bytes": 0, "notes": 0}
        self._skipped = {"directories": 0, "binary": 0, "unreadable": 0, "links": 0}
        self._note: str | None = None

    def run(self) -> Iterator[str]:
        """Read everything; now and then yield how far it is."""
        due = time.monotonic() + _PROGRESS_SECONDS
        yield "reading the directory"
        for path in self._walk():
            if self._out_of_bounds():
                break
            self._read(path)
            if time.monotonic() >= due:
                due = time.monotonic() + _PROGRESS_SECONDS
                yield f"{self._totals['files']} files, {self._totals['lines']} lines"
        yield f"{self._totals['files']} files, {self._totals['lines']} lines: done"

    def result(self) -> dict[str, Any]:
        """Return what was found."""
        totals = self._totals
        ranked = sorted(self._languages.items(), key=lambda item: (-item[1][1], item[0]))
        return {
            "files": totals["files"],
            "lines": totals["lines"],
            "bytes": totals["bytes"],
            "languages": [
                {
                    "language": name,
                    "files": files,
                    "lines": lines,
                    "share": round(100 * lines / max(totals["lines"], 1), 1),
                }
                for name, (files, lines) in ranked
            ],
            "largest": [
                {"file": name, "bytes": size, "lines": lines}
                for size, name, lines in sorted(self._files, key=lambda f: (-f[0], f[1]))
            ],
            "todos": {"total": totals["notes"], "items": self._notes},
            "skipped": self._skipped,
            "complete": self._note is None,
            "note": self._note,
        }

    def _out_of_bounds(self) -> bool:
        self._seen += 1
        if self._seen > MOST_FILES:
            self._note = f"it stopped after {MOST_FILES} files"
        return self._late() or self._note is not None

    def _late(self) -> bool:
        if time.monotonic() <= self._deadline:
            return False
        self._note = f"it stopped after {MOST_SECONDS:.0f} seconds"
        return True

    def _walk(self) -> Iterator[Path]:
        """Yield the files, in a stable order; a directory at a time, so memory stays bounded."""
        if not self._target.is_dir():
            yield self._target
            return
        waiting = [self._target]
        while waiting and not self._late():
            try:
                with os.scandir(waiting.pop()) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError:
                self._skipped["unreadable"] += 1
                continue
            if any(entry.name == "pyvenv.cfg" for entry in entries):
                self._skipped["directories"] += 1
                continue
            below = []
            for entry in entries:
                if entry.is_symlink():
                    self._skipped["links"] += 1
                elif entry.is_dir(follow_symlinks=False):
                    if entry.name in SKIPPED:
                        self._skipped["directories"] += 1
                    else:
                        below.append(Path(entry.path))
                else:
                    yield Path(entry.path)
            waiting.extend(reversed(below))

    def _read(self, path: Path) -> None:
        try:
            # Neither a pipe that blocks nor a link that was put there meanwhile.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            with open(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    self._skipped["unreadable"] += 1
                    return
                start = file.read(MOST_SEARCHED)
                if _binary(start):
                    self._skipped["binary"] += 1
                    return
                size, lines, last = len(start), start.count(b"\n"), start[-1:]
                while (chunk := file.read(_CHUNK)) and not self._late():
                    size, lines, last = size + len(chunk), lines + chunk.count(b"\n"), chunk[-1:]
        except OSError:
            self._skipped["unreadable"] += 1
            return
        self._count(path, start, size, lines + (last not in {b"", b"\n"}))

    def _count(self, path: Path, start: bytes, size: int, lines: int) -> None:
        base = self._target if path != self._target else self._target.parent
        # A name need not be UTF-8; what we answer must be.
        name = os.fsencode(path.relative_to(base)).decode(errors="replace")
        totals = self._totals
        totals["files"] += 1
        totals["lines"] += lines
        totals["bytes"] += size
        of_language = self._languages.setdefault(language(path.name, start[:_HEAD]), [0, 0])
        of_language[0] += 1
        of_language[1] += lines
        self._files.append((size, name, lines))
        if len(self._files) > 2 * MOST_LARGEST:
            self._files = sorted(self._files, key=lambda f: (-f[0], f[1]))[:MOST_LARGEST]
        text = _text(start)
        at, line = 0, 1
        for match in _NOTE.finditer(text):
            totals["notes"] += 1
            if len(self._notes) < MOST_NOTES:
                line += text.count("\n", at, match.start())
                at = match.start()
                note = (match[1] or match[2]).replace("\0", "").strip()[:_MOST_TEXT]
                self._notes.append({"file": name, "line": line, "text": note})


_MARKS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be", b"\xef\xbb\xbf": "utf-8-sig"}


def _binary(start: bytes) -> bool:
    return b"\0" in start[:_HEAD] and start[:2] not in _MARKS


def _text(start: bytes) -> str:
    """Decode the start of a file, whatever its encoding: what cannot be read is replaced."""
    encoding = _MARKS.get(start[:3]) or _MARKS.get(start[:2]) or "utf-8"
    return start.decode(encoding, errors="replace")

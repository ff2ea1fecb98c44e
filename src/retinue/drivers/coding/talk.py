"""A process that is spoken with in lines of JSON.

Out of it comes only what ``encode`` made, one object per line: one line that is no JSON would end
Claude Code. Into it may come anything: a line that is no object is handed on as text. What is sent
within one turn of the loop is one write.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import msgspec

from retinue.errors import CommunicationError
from retinue.process.child import Child
from retinue.process.reading import Counts

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
MOST_LINE = 8 << 20
MOST_DEPTH = 200
"""How deep a value may be nested; what is deeper is cut. Tools are called with anything."""
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')
_ESCAPES = (b"\\u0000", b"\\ud", b"\\uD")


class Refusals:
    """Which lines of a child were too long to be read, as far as that was told."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.lines = 0
        """How many were told of; ``news`` is for when ``counts`` says another number."""
        self._bytes = 0

    def news(self) -> str | None:
        """Say what was refused since the last time; None: nothing."""
        now = self.counts.oversize_lines, self.counts.oversize_bytes
        lines, size = now[0] - self.lines, now[1] - self._bytes
        self.lines, self._bytes = now
        if not lines:
            return None
        some = f"a line of {size} bytes was" if lines == 1 else f"{lines} lines ({size} bytes) were"
        return f"{some} refused: at most {MOST_LINE} are read, what it said is lost"


class Talk:
    """The two ends of one child."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self._waiting: list[bytes] = []
        self._sending: asyncio.Task[None] | None = None

    def send(self, message: Any) -> None:
        """Send one message; what cannot be sent shows as the end of the output."""
        self._waiting.append(_encode(message) + b"\n")
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._waiting:
                data = b"".join(self._waiting)
                self._waiting.clear()
                if self.child.stdin is not None:
                    await self.child.stdin.write(data)
        except CommunicationError:
            self._waiting.clear()
        finally:
            self._sending = None

    async def sent(self) -> None:
        """Return when everything is written, or cannot be."""
        while self._sending is not None:
            await asyncio.wait({self._sending})

    async def lines(self, each: Callable[[bytes], bool], pause: Callable[[], Any]) -> None:
        """Give every line to ``each`` until the output ends.

        What is there is taken without asking the loop for each line. ``pause`` is called, and
        awaited, whenever nothing is, and when ``each`` says that enough was given for now.
        """
        stdout = self.child.stdout
        while True:
            line = stdout.take()
            if line is None:
                await pause()
                line = await stdout.next()
                if line is None:
                    return
            if each(line):
                await pause()

    def close(self) -> None:
        """Stop sending, and end its input."""
        if self._sending is not None:
            self._sending.cancel()
        if self.child.stdin is not None:
            self.child.stdin.close()


def read(line: bytes) -> dict[str, Any] | str:
    """Return the object that a line is, else its text; without what no event may hold."""
    try:
        found = _decode(line)
    except (ValueError, msgspec.DecodeError, RecursionError):
        found = _read_slowly(line)
    if not isinstance(found, dict):
        return clean(line.decode("utf-8", "replace").rstrip("\r\n"))
    if b"\\u" in line and any(escape in line for escape in _ESCAPES):
        whole: dict[str, Any] = cleaned(found)
        return whole
    return found


def _read_slowly(line: bytes) -> Any:
    """Read what is JSON to others: half a surrogate pair, bytes that are no UTF-8."""
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        return cleaned(json.loads(line.decode("utf-8", "replace"), parse_constant=str))
    except (ValueError, RecursionError):
        return None


def part(line: bytes, *names: str) -> bytes | None:
    """Return a part of the object that a line is as it was written, byte for byte."""
    tokens = list(_TOKEN.finditer(line))
    at = 0
    try:
        for name in names:
            value = None
            at += 1  # into the object
            while tokens[at].group() != b"}":
                key = json.loads(tokens[at].group().decode("utf-8", "replace"))
                end = _end(tokens, at + 2)
                value = at + 2 if key == name else value
                at = end + 2 if tokens[end + 1].group() == b"," else end + 1
            if value is None:
                return None
            at = value
        return line[tokens[at].start() : tokens[_end(tokens, at)].end()]
    except (IndexError, ValueError):
        return None


def _end(tokens: list[re.Match[bytes]], at: int) -> int:
    """Return where the value ends that begins at a token."""
    depth = 0
    while True:
        token = tokens[at].group()
        depth += (token in b"{[") - (token in b"}]")
        if depth == 0:
            return at
        at += 1


def clean(text: str) -> str:
    """Return ``text`` without what cannot be stored."""
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def cleaned(value: Any, depth: int = MOST_DEPTH) -> Any:
    """Return a JSON value without what cannot be stored."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict | list) and not depth:
        return "…"
    if isinstance(value, dict):
        return {clean(key): cleaned(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item, depth - 1) for item in value]
    return value

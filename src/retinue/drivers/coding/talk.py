"""A process that is spoken with in lines of JSON.

Out of it comes only what ``encode`` made, one object per line: one line that is no JSON would end
Claude Code. Into it may come anything: a line that is no object is handed on as text. What is sent
within one turn of the loop is one write.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec

from retinue.errors import CommunicationError
from retinue.process.child import Child

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_ESCAPES = (b"\\u0000", b"\\ud", b"\\uD")


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


def clean(text: str) -> str:
    """Return ``text`` without what cannot be stored."""
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def cleaned(value: Any) -> Any:
    """Return a JSON value without what cannot be stored."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return value

"""Which lines are JSON at all: ``domain.strictjson``'s rules, and no key twice in one object.

Every refusal has a ``kind``, one of ``KINDS``, by which it is counted.

A line is decoded once, and once more encoded: objects that hold a key twice come out with fewer
colons than they went in with. Only a line in doubt (an escape, unusual depth or length) is walked.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from retinue.domain.strictjson import MAX_DEPTH, MAX_DIGITS, NotJson, check
from retinue.errors import InvalidInput

KINDS = {
    "not_json": "the line is not JSON",
    "encoding": "the line is not UTF-8",
    "nul": "the line, or a string in it, holds a NUL character",
    "nan": "a number is NaN, infinite or too large",
    "surrogate": "a string holds half of a surrogate pair",
    "too_deep": "nested too deep",
    "duplicate_key": "an object holds the same key twice",
    "oversize": "the line is longer than the limit",
    "incomplete": "the stream ended in the middle of a line",
    "not_an_object": "the line is JSON, but not an object",
    "unknown_type": "`type` is none of request, response, stream, error, control",
    "invalid_frame": "a field is missing or has a value that it cannot have",
    "version": "the major version of the protocol is another one",
    "unknown_correlation": "the answer is to nothing that was asked",
    "duplicate_id": "a request has the message_id of another one that is in progress",
    "second_terminal": "the request was answered already",
    "late_chunk": "a stream frame came after its node, or its request, was complete",
}
"""Everything that can be wrong with a frame, in words."""

_EXCERPT = 200
_HEAD = 1024
_FIELDS = {
    name: re.compile(rb'"%s"\s*:\s*"([^"\\]{1,200})"' % name.encode())
    for name in ("type", "message_id", "correlation_id")
}
_NAN = re.compile(rb"[\[:,]\s*(?:NaN|-?Infinity)|\A\s*(?:NaN|-?Infinity)")
_LONG = MAX_DIGITS + 1
_DIGITS = re.compile(rb"\d{%d}" % _LONG)
_ESCAPE = b"\\u"
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class BadFrame(InvalidInput):
    """A line that is no frame, or a frame out of place.

    ``kind`` is one of ``KINDS``, ``excerpt`` the line's beginning. ``message_id``,
    ``correlation_id`` and ``declared`` (its type) are the frame's own, where it could be
    ``decoded``; else ``made_out`` looks for them.
    """

    def __init__(
        self,
        kind: str,
        reason: str | None = None,
        line: bytes = b"",
        *,
        message_id: str | None = None,
        correlation_id: str | None = None,
        declared: str | None = None,
        decoded: bool = False,
    ) -> None:
        super().__init__(reason or KINDS[kind], details={"bad_frame": kind})
        self.kind_of_fault = kind
        self._head = line[:_HEAD]
        self.message_id = message_id
        self.correlation_id = correlation_id
        self.declared = declared
        self._decoded = decoded

    @property
    def excerpt(self) -> str:
        """The line's beginning."""
        return self._head[:_EXCERPT].decode("utf-8", "backslashreplace")

    def made_out(self, field: str) -> str | None:
        """Return ``message_id``, ``correlation_id`` or ``type``, found in a line that is no JSON.

        It may stand anywhere in the line's beginning, so it is no more than likely.
        """
        known = {"message_id": self.message_id, "correlation_id": self.correlation_id}
        value = self.declared if field == "type" else known[field]
        if value is not None or self._decoded:
            return value
        found = _FIELDS[field].search(self._head)
        return found.group(1).decode("utf-8", "replace") if found is not None else None


def decode_strictly(line: bytes) -> Any:
    """Return what a line holds, as plain values.

    Raises:
        BadFrame: it is not JSON as the ledger keeps it.
    """
    try:
        value = _decode(line)
    except RecursionError:
        raise BadFrame("too_deep", None, line) from None
    except UnicodeDecodeError:
        raise BadFrame("encoding", None, line) from None
    except (msgspec.MsgspecError, ValueError) as error:
        kind = _fault(line, text := str(error))
        reason = f"{KINDS[kind]}: {text}" if kind == "not_json" else KINDS[kind]
        raise BadFrame(kind, reason, line) from None
    if _ESCAPE in line or _in_doubt(line):
        _walk(line, value)
    elif line.count(b":") != _encode(value).count(b":"):
        raise BadFrame("duplicate_key", None, line)
    return value


def _in_doubt(line: bytes) -> bool:
    """Say whether a line may be too deep, or hold an integer that is too long."""
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH:
        return True
    return len(line) > _LONG and _DIGITS.search(line) is not None


def _walk(line: bytes, value: Any) -> None:
    try:
        check(value)
    except NotJson as error:
        kind = "nan"
        if "NUL" in error.reason:
            kind = "nul"
        elif "nested" in error.reason:
            kind = "too_deep"
        elif "surrogate" in error.reason:
            kind = "surrogate"
        raise BadFrame(kind, str(error), line) from None
    import json  # noqa: PLC0415 seldom needed, and a worker is to be ready soon

    try:
        json.loads(line, object_pairs_hook=_each_once)
    except _TwiceError as twice:
        raise BadFrame("duplicate_key", f"the key {twice} stands twice", line) from None


class _TwiceError(Exception):
    """A key stands twice."""


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise _TwiceError(repr(key[:80]))
        seen.add(key)


def _fault(line: bytes, said: str) -> str:
    if b"\0" in line:
        return "nul"
    if "out of range" in said or _NAN.search(line) is not None:
        return "nan"
    if "truncated" in said and re.search(rb"\\u[dD][89abAB]", line):
        return "surrogate"
    return "not_json"

"""JSON as every door and every store accepts it.

One decoder for input and one encoder for what agents return, with the same rule on both sides:
what is refused here is exactly what one of the stores, or a peer, could not hold. Refused are
NaN and infinities, NUL characters, lone surrogates, integers of more than ``MAX_DIGITS`` digits,
nesting deeper than ``MAX_DEPTH``, keys that are no strings, and anything that is not a JSON type.
Of a key that is there twice the last one counts, and only that one is kept. Values keep their
exact bytes afterwards.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

from retinue.errors import InvalidInput, TooLarge

MAX_DEPTH = 64
MAX_DIGITS = 1_000
_NAMED_DEPTH = 8  # a path says where this deep, and no longer grows below

# Half of a surrogate pair whose other half does not follow.
_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
_LARGEST = 10**MAX_DIGITS
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class NotJson(ValueError):
    """A value cannot be written as JSON; ``path`` says where, ``reason`` why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class TooMuch(NotJson):
    """A value is larger than the limit."""


def decode(raw: bytes) -> Any:
    """Decode a body into plain Python values.

    Raises:
        InvalidInput: it is not JSON, or holds something the ledger cannot keep; the message says
            what and where.
    """
    if not raw:
        raise InvalidInput("the body is empty; send JSON")
    try:
        value = _decode(raw)
    except RecursionError:
        raise InvalidInput(f"$: nested deeper than {MAX_DEPTH} levels") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        reason = str(error)
        if "truncated" in reason and _HALF.search(raw):
            reason = "a string holds a lone surrogate"
        raise InvalidInput(f"the body is not valid JSON: {reason}") from None
    try:
        check(value)
    except NotJson as error:
        raise InvalidInput(str(error), details={"path": error.path}) from None
    return value


def check(value: Any, limit: int | None = None) -> None:
    """Check that ``value`` is JSON as the ledger keeps it.

    Args:
        value: what an agent returned or a caller sent, already decoded.
        limit: bound on the encoded size in bytes; counted roughly and from below, so that a
            huge value is refused before it is encoded.

    Raises:
        NotJson: with the path and the reason.
        TooMuch: past ``limit``.
    """
    left = limit if limit is not None else 1 << 62
    # An explicit stack: the depth of the value must not become the depth of our own stack.
    stack: list[tuple[Any, str, int]] = [(value, "$", 0)]
    while stack:
        item, path, depth = stack.pop()
        kind = type(item)
        if kind is str:
            _check_text(item, path)
            left -= len(item)
        elif kind is dict:
            if depth >= MAX_DEPTH:
                raise NotJson(path, f"nested deeper than {MAX_DEPTH} levels")
            left -= 2
            for key, child in item.items():
                if type(key) is not str:
                    raise NotJson(path, f"a key is {type(key).__name__}, not a string")
                _check_text(key, path)
                left -= len(key) + 4
                stack.append((child, f"{path}.{key}" if depth < _NAMED_DEPTH else path, depth + 1))
        elif kind is list or kind is tuple:
            if depth >= MAX_DEPTH:
                raise NotJson(path, f"nested deeper than {MAX_DEPTH} levels")
            left -= 2 + len(item)
            if left < 0:
                raise TooMuch(path, f"larger than {limit} bytes")
            stack.extend((child, f"{path}[]", depth + 1) for child in item)
        else:
            _check_scalar(item, kind, path)
            left -= 4
        if left < 0:
            raise TooMuch(path, f"larger than {limit} bytes")


def _check_text(text: str, path: str) -> None:
    if text.isascii():
        if "\0" in text:
            raise NotJson(path, "a string holds a NUL character")
        return
    if "\0" in text:
        raise NotJson(path, "a string holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotJson(path, "a string holds a lone surrogate") from None


def _check_scalar(item: Any, kind: type, path: str) -> None:
    if item is None or kind is bool:
        return
    if kind is float:
        if not math.isfinite(item):
            raise NotJson(path, "a number is NaN or infinite")
    elif kind is int:
        if not -_LARGEST < item < _LARGEST:
            raise NotJson(path, f"an integer has more than {MAX_DIGITS} digits")
    else:
        raise NotJson(path, f"a value of type {kind.__name__} is not JSON")


def encode(value: Any, limit: int | None = None) -> bytes:
    """Check ``value`` and return it as JSON bytes.

    Raises:
        NotJson: it is not JSON (see ``check``).
        TooMuch: it is larger than ``limit`` bytes.
    """
    check(value, limit)
    return bounded(_encode(value), limit)


def bounded(raw: bytes, limit: int | None) -> bytes:
    """Return ``raw`` unless it is longer than ``limit``."""
    if limit is not None and len(raw) > limit:
        raise TooMuch("$", f"larger than {limit} bytes")
    return raw


def dumps(value: Any) -> bytes:
    """Encode a value of our own making, which needs no check."""
    return _encode(value)


def loads(raw: bytes) -> Any:
    """Decode bytes that this module encoded."""
    return _decode(raw)


def body_within(length: int, limit: int) -> None:
    """Refuse a body of ``length`` bytes past ``limit``.

    Raises:
        TooLarge: it is.
    """
    if length > limit:
        raise TooLarge(
            f"the body is larger than {limit} bytes", details={"limit": limit, "received": length}
        )

"""What a model's provider said no with, as a CLI repeats it, and whether it will do later."""

from __future__ import annotations

import re
from typing import Any

from retinue.drivers.coding.scribe import text_of
from retinue.errors import ProviderBusy, ProviderError

_STATUS = re.compile(r"(?<![\w.:/-])([45]\d\d)(?![\w.:/-]*\d)")
_LATER = frozenset({408, 425, 429})
_WORDS = re.compile(r"overloaded|rate.?limit|too many requests|internal.?server.?error", re.I)
_NAMES = ("statusCode", "httpStatusCode", "status", "code")
_FAILED = range(500, 600)
_HTTP = range(400, 600)


def refusal(said: str, told: Any = None, **details: Any) -> ProviderError:
    """Return the error for what a provider said.

    ``told`` is what the CLI tells about it beside the words: a status somewhere in it, maybe.
    Too many requests, and whatever is wrong at the provider, will do later; a key that is not
    valid, a request that is not, will not.
    """
    status = status_of(told) or status_of(said)
    later = status in _LATER or status in _FAILED
    if status is None:
        later = _WORDS.search(f"{said} {told}") is not None
    found = {**details, "status": status} if status is not None else details
    return (ProviderBusy if later else ProviderError)(said, details=found)


def status_of(told: Any) -> int | None:
    """Return the HTTP status that is told of, in whichever way."""
    if isinstance(told, int):
        return told if told in _HTTP else None
    if isinstance(told, str):
        found = _STATUS.search(told)
        return int(found.group(1)) if found else None
    if isinstance(told, dict):
        named = [told[name] for name in _NAMES if name in told]
        for one in (*named, *(v for v in told.values() if isinstance(v, dict))):
            status = status_of(one)
            if status is not None:
                return status
    return None


def words_of(error: Any) -> str:
    """Return what an error says to a person."""
    for one in (error, error.get("data") if isinstance(error, dict) else None):
        if isinstance(one, dict) and one.get("message"):
            return str(one["message"])
    return str(text_of(error) or error)

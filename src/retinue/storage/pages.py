"""Pages: conditions, cursors, and how much is read at once.

A page is bounded by its rows and by their bytes: rows hold bodies of up to many megabytes, and
what one reader asks for must not be what a process runs out of memory by.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from retinue.errors import InvalidInput
from retinue.interfaces import Listing
from retinue.storage.tables import TABLES

R = TypeVar("R", bound=msgspec.Struct)


def columns(table: str, prefix: str = "") -> str:
    """Return the columns of a table, as a query names them."""
    return ", ".join(prefix + column for column in TABLES[table])


def encode_cursor(*place: Any) -> str:
    """Turn a place in a list into the opaque text a caller gets."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def decode_cursor(cursor: str, *kinds: type) -> tuple[Any, ...]:
    """Turn a caller's cursor back into a place.

    Raises:
        InvalidInput: it is none of ours.
    """
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        place = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        place = None
    if (
        not isinstance(place, list)
        or [type(item) for item in place] != list(kinds)
        or any(type(item) is str and "\0" in item for item in place)
        or any(type(item) is int and not 0 <= item < 1 << 63 for item in place)
    ):
        raise InvalidInput("cursor is not one that this list returned", details={"path": "cursor"})
    return tuple(place)


class Where:
    """Conditions and their parameters, joined by AND."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.values: list[Any] = []

    def add(self, text: str, *values: Any) -> None:
        """Add a condition and its parameters."""
        self.parts.append(text)
        self.values.extend(values)

    def equal(self, **columns: Any) -> None:
        """Add that columns are equal to values; None is any."""
        for column, value in columns.items():
            if value is not None:
                self.add(f"{column} = ?", value)

    def __str__(self) -> str:
        return " WHERE " + " AND ".join(self.parts) if self.parts else ""


def fitting(sizes: Sequence[int], most_bytes: int) -> int:
    """Return how many rows of these sizes make a page: one at least, however large it is."""
    left = most_bytes
    for count, size in enumerate(sizes):
        left -= size
        if left < 0:
            return max(count, 1)
    return len(sizes)


def listing(items: list[R], total: int, more: bool, place: Any) -> Listing[R]:
    """Return a page of a list; ``place`` makes the cursor's parts of the last item."""
    return Listing(items, total, encode_cursor(*place(items[-1])) if more else None)

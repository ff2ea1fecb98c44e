"""What SQLite's errors mean: whose fault they are, and what a caller gets to hear."""

from __future__ import annotations

import sqlite3

from retinue.errors import (
    Conflict,
    InvalidInput,
    StoreBroken,
    StoreDamaged,
    StoreFull,
    StoreUnavailable,
)

STORES_FAULT = (sqlite3.OperationalError, sqlite3.InternalError, sqlite3.NotSupportedError)
"""What fails a whole batch; anything else is the fault of one intent in it."""

_BASE = 0xFF
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# After a failed fsync the kernel takes what it could not write for written: the next one succeeds
# and means nothing. Nothing may be acknowledged on that word any more.
_BROKEN = frozenset({sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC})


def _code(error: BaseException) -> int:
    return int(getattr(error, "sqlite_errorcode", 0) or 0)


def is_full(error: BaseException) -> bool:
    """Say whether there was no space."""
    return isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_FULL


def is_broken(error: BaseException) -> bool:
    """Say whether the disk did not take what was written: the store must not go on."""
    return isinstance(error, sqlite3.Error) and _code(error) in _BROKEN


def translate(error: Exception, place: object = "in memory") -> Exception:
    """Return our error for one of SQLite's, in the store at ``place``; others as they are."""
    match error:
        case sqlite3.IntegrityError():
            return Conflict(f"the store refuses a record: {error}")
        case sqlite3.DataError() if _code(error) & _BASE not in _DAMAGED:
            return InvalidInput(f"the store cannot hold a value: {error}")
        case OverflowError() | UnicodeError():
            return InvalidInput(f"the store cannot hold a value: {error}")
        case sqlite3.Error():
            code = _code(error)
            if code == sqlite3.SQLITE_FULL:
                return StoreFull()
            if code & _BASE in _DAMAGED:
                return StoreDamaged(
                    f"the store {place} is damaged: {error}", details={"store": str(place)}
                )
            if code in _BROKEN:
                return StoreBroken(
                    f"the disk under the store {place} failed: {error}; nothing more is"
                    " acknowledged"
                )
            return StoreUnavailable(f"the store does not answer: {error}; nothing was acknowledged")
    return error

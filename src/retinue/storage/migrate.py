"""The numbered migrations of a store's schema."""

from __future__ import annotations

from importlib import resources

from retinue.errors import StoreUnavailable


def migrations(dialect: str) -> list[tuple[int, str]]:
    """Return the numbered migrations of a dialect, in order."""
    folder = resources.files("retinue.storage") / "migrations" / dialect
    found = [(int(f.name[:4]), f.read_text()) for f in folder.iterdir() if f.name[:4].isdigit()]
    return sorted(found)


def missing(dialect: str, version: int) -> list[tuple[int, str]]:
    """Return the migrations that a store of ``version`` still needs, in order.

    Raises:
        StoreUnavailable: the store is newer than this program.
    """
    known = migrations(dialect)
    newest = known[-1][0]
    if version > newest:
        raise StoreUnavailable(
            f"the store is of version {version}, newer than this Retinue knows"
            f" ({newest}); install the newer Retinue",
            details={"version": version, "known": newest},
        )
    return [(number, script) for number, script in known if number > version]

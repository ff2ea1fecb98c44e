"""Types that the records of several resources share, and lists."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from retinue.domain.ids import iso
from retinue.domain.session import SESSION_ID_PATTERN
from retinue.interfaces import Page

ULID_PATTERN = "^[0-7][0-9A-HJKMNP-TV-Z]{25}$"
MOST_ROWS = 1000
# As `check_session_id` does; the check itself is that one's, which says it better.
SESSION_ID_SCHEMA = rf"^(?!\.{{1,2}}$){SESSION_ID_PATTERN}$"

SessionId = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": SESSION_ID_SCHEMA})]
Ulid = Annotated[str, msgspec.Meta(pattern=ULID_PATTERN)]
Time = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
Limit = Annotated[int, msgspec.Meta(ge=1, le=MOST_ROWS)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]

NULL = msgspec.Raw(b"null")


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a list is asked for; ``cursor`` is the last page's ``next_cursor``.

    A page may have fewer rows than `limit` where they are large.
    """

    limit: Limit = 100
    cursor: (
        Annotated[
            str,
            msgspec.Meta(
                extra_json_schema={"minLength": 1},
                description="The `next_cursor` of the page before; nothing else is one.",
            ),
        ]
        | None
    ) = None

    @property
    def page(self) -> Page:
        """The page asked for."""
        return Page(self.limit, self.cursor)


def raw(body: bytes | None) -> msgspec.Raw:
    """Return JSON bytes as they are; None becomes null."""
    return msgspec.Raw(body) if body is not None else NULL


def when(at: int | None) -> str | None:
    """Return a time as it is shown."""
    return iso(at) if at is not None else None


def error_of(body: bytes | None) -> dict[str, Any] | None:
    """Return the error object that a failed exchange's body is."""
    return msgspec.json.decode(body) if body is not None else None

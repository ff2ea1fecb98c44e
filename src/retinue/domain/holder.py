"""Who has a store open."""

from __future__ import annotations

import msgspec


class Holder(msgspec.Struct, frozen=True, omit_defaults=True):
    """A process that has a store open, and the URL it serves on (None: it serves none).

    Of those that share a PostgreSQL database also the epoch, and the machine unless it is this one.
    """

    pid: int
    url: str | None = None
    worker: str | None = None
    node: str | None = None

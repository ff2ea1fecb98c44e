"""What a command that outlives its server leaves in its directory, and how far that was taken.

``stdin`` is the whole prompt, ``stdout`` and ``stderr`` all that it wrote, ``exit.json`` how it
ended. Every event carries the place in stdout at which it was made, so that the next server reads
the same bytes again up to there, for what they mean, and takes events from there on.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from retinue.keeper.door import EXIT_FILE
from retinue.process.child import Streams
from retinue.process.reading import Bounds


class Place(NamedTuple):
    """Behind ``offset`` bytes of stdout, and ``events`` of those that come next."""

    offset: int = 0
    events: int = 0

    def written(self, instance_id: str) -> str:
        """Return it as a cursor: it means something for this instance only."""
        return f"{instance_id}:{self.offset}+{self.events}"

    @classmethod
    def read(cls, cursor: str | None, instance_id: str) -> Place:
        """Return what a cursor says; one of another instance, or none: the beginning."""
        whose, _, place = (cursor or "").partition(":")
        if whose != instance_id:
            return cls()
        offset, _, events = place.partition("+")
        return cls(int(offset), int(events))


class Progress:
    """How far an output was taken; it drops the events that are in the ledger already."""

    def __init__(self, instance_id: str, behind: Place) -> None:
        self._instance_id = instance_id
        self._behind = behind
        self._at = Place()

    def cursors(self, count: int, offset: int) -> list[str | None]:
        """Return a cursor for each of the ``count`` events made of the output up to ``offset``.

        None: that event is in the ledger already.
        """
        found: list[str | None] = []
        for i in range(1, count + 1):
            # The last one of a piece of output is its end; more of them may come at the same end.
            if i == count and offset > self._at.offset:
                place = Place(offset, 0)
            else:
                place = Place(self._at.offset, self._at.events + i)
            found.append(place.written(self._instance_id) if place > self._behind else None)
        if offset > self._at.offset:
            self._at = Place(offset, 0)
        else:
            self._at = Place(offset, self._at.events + count)
        return found


def streams_of(
    directory: Path, *, lines: bool, line_bytes: int = Bounds().line_bytes, seam: int = 0
) -> Streams:
    """Return how the output of one that is kept is read."""
    bounds = Bounds(lines=lines, line_bytes=line_bytes)
    return Streams(bounds, Bounds(lines=False, most=0), spool=directory, seam=seam)


def prepare(directory: Path, given: bytes | None) -> None:
    """Make the directory of one that is to be kept, with all that it will read."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in ("stdout", "stderr", EXIT_FILE):
        (directory / old).unlink(missing_ok=True)
    if given is not None:
        (directory / "stdin").write_bytes(given)

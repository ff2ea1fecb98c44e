"""What is wrong with what a worker writes: all of it is counted, a little of it is noted.

A worker may write nothing but rubbish, as fast as a pipe takes it. So a fault costs little: a few
lines of the log in each second, and a number for the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PER_SECOND = 20


class Complaints:
    """Notes faults, ``PER_SECOND`` of them; ``in_a_row`` have come since something was right."""

    def __init__(self, note: Callable[[str], None], most: int) -> None:
        self.in_a_row = 0
        self._note = note
        self._most = most
        self._second = 0
        self._noted = 0
        self._kept_back = 0

    def well(self) -> None:
        """Note that something was right."""
        self.in_a_row = 0

    def of(self, kind: str, text: Callable[[], str]) -> None:
        """Note a fault; ``text`` is asked for only where it is shown."""
        self.say(lambda: f"bad frame ({kind}): {text()}")

    def say(self, text: Callable[[], str]) -> None:
        """Note a line, unless there were too many in this second."""
        second = int(time.monotonic())
        if second != self._second:
            self.rest()
            self._second, self._noted = second, 0
        if self._noted >= PER_SECOND:
            self._kept_back += 1
            return
        self._noted += 1
        self._note(text())

    def rest(self) -> None:
        """Say how many were not shown."""
        if self._kept_back:
            self._note(f"{self._kept_back} more like these are counted and not shown")
            self._kept_back = 0

    def too_many(self) -> str | None:
        """Count a line that is no frame; return why there is no use in going on, if so."""
        self.in_a_row += 1
        if self.in_a_row <= self._most:
            return None
        return f"it wrote more than {self._most} lines in a row that are no frames (max_bad_lines)"

"""Notice that a keeper does not answer: somebody stopped it, or it hangs.

Its agents would go on without limits, and every question to it would wait for ever. It is looked at
while it has agents, or something to answer, and is asked something when it has been silent; what it
says, whatever that is, shows that it works. Time in which this process did not run itself does not
count: each look adds no more than its own interval.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from retinue.keeper.seal import STOPPED_SECONDS, stopped

LOOK_SECONDS = 0.25
ASK_SECONDS = 5.0
"""How long it may say nothing before it is asked whether it is there."""
SILENT_SECONDS = 20.0
"""How long it may say nothing although it was asked: much, for the machine may be busy."""


class Patience(msgspec.Struct):
    """How long a keeper has been silent; pure. ``waits``: it has something to answer."""

    silent: float = 0.0
    standing: float = 0.0

    def judge(self, *, heard: bool, waits: bool, still: bool) -> str | None:
        """Take in one look; return why it counts as gone. ``still``: it is stopped."""
        self.silent = 0.0 if heard else self.silent + LOOK_SECONDS
        self.standing = self.standing + LOOK_SECONDS if still and not heard else 0.0
        if self.standing > STOPPED_SECONDS:
            return f"it was stopped, and said nothing for {self.silent:g} s"
        if waits and self.silent >= SILENT_SECONDS:
            return f"it said nothing for {self.silent:g} s"
        return None

    @property
    def asks(self) -> bool:
        """Whether it has been silent for so long that it is to be asked something."""
        return self.silent >= ASK_SECONDS


class Watch:
    """Looks at a keeper while there is a reason to.

    ``waits`` says whether it has something to answer, ``needed`` whether it has agents; ``ask``
    asks it something, ``gone`` hears why it counts as gone.
    """

    def __init__(
        self,
        waits: Callable[[], bool],
        needed: Callable[[], bool],
        ask: Callable[[], None],
        gone: Callable[[str], None],
    ) -> None:
        self._waits = waits
        self._needed = needed
        self._ask = ask
        self._gone = gone
        self._patience = Patience()
        self._heard = False
        self._timer: asyncio.TimerHandle | None = None

    def heard(self) -> None:
        """Note that it said something."""
        self._heard = True

    def begin(self, loop: asyncio.AbstractEventLoop, pid: int) -> None:
        """Look at keeper ``pid`` from now on; harmless when we do."""
        if self._timer is None:
            self._patience, self._heard = Patience(), False
            self._timer = loop.call_later(LOOK_SECONDS, self._look, loop, pid)

    def end(self) -> None:
        """Look at it no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop, pid: int) -> None:
        self._timer = None
        heard, self._heard = self._heard, False
        waits = self._waits()
        if not waits and not self._needed():
            return
        why = self._patience.judge(heard=heard, waits=waits, still=stopped(pid))
        if why is not None:
            self._gone(why)
            return
        self._timer = loop.call_later(LOOK_SECONDS, self._look, loop, pid)
        if self._patience.asks and not waits:
            self._ask()

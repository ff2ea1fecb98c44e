"""How the health checks of one agent went, as a pure decision.

One bad check says little; ``MOST_FAILURES`` in a row take the agent out of routing, and a good
one brings it back.
"""

from __future__ import annotations

import msgspec

MOST_FAILURES = 3
MOST_REASON = 500


class Pulse(msgspec.Struct):
    """``last_good`` is when a check last went well (microseconds UTC)."""

    failures: int = 0
    last_good: int | None = None
    reason: str | None = None

    @property
    def offline(self) -> bool:
        """Whether no task may be routed to the agent."""
        return self.failures >= MOST_FAILURES

    def good(self, at: int) -> None:
        """Take in a check that went well."""
        self.failures = 0
        self.last_good = at
        self.reason = None

    def bad(self, reason: str) -> None:
        """Take in a check that did not, and why; the text is the agent's own, so it is bounded."""
        self.failures += 1
        text = reason[:MOST_REASON].replace("\0", "\N{REPLACEMENT CHARACTER}")
        self.reason = text.encode("utf-8", "replace").decode()

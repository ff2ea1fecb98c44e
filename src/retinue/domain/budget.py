"""Budgets: what a task, and everything it has others do, may spend.

An agent's spending is journaled as ``usage`` events. Each is charged to its execution's budget and
to those of all its ancestors; the first limit that is passed ends the execution.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Cost = Annotated[float, msgspec.Meta(ge=0)]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent. Costs are US dollars."""

    input_tokens: _Count = 0
    output_tokens: _Count = 0
    cost_usd: _Cost = 0.0

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.input_tokens + self.output_tokens

    def plus(self, other: Usage) -> Usage:
        """Return the sum of both."""
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the data of a ``usage`` event."""
        return msgspec.structs.asdict(self)


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most that may be spent; None is no limit."""

    max_tokens: _Count | None = None
    max_cost_usd: _Cost | None = None

    def passed(self, spent: Usage) -> str | None:
        """Name the limit that ``spent`` goes past."""
        if self.max_tokens is not None and spent.tokens > self.max_tokens:
            return f"max_tokens {self.max_tokens}"
        if self.max_cost_usd is not None and spent.cost_usd > self.max_cost_usd + 1e-9:
            return f"max_cost_usd {self.max_cost_usd:g}"
        return None


class Budget:
    """What one execution may spend, within what its ancestors may."""

    def __init__(
        self, limit: Limit | None, *, parent: Budget | None = None, spent: Usage | None = None
    ) -> None:
        self.limit = limit or Limit()
        self.parent = parent
        self.spent = spent or Usage()

    def charge(self, usage: Usage) -> str | None:
        """Add ``usage``, here and above; name the first limit that was passed."""
        self.spent = self.spent.plus(usage)
        above = self.parent.charge(usage) if self.parent is not None else None
        return self.limit.passed(self.spent) or above

    def refuses(self, estimate: Usage) -> str | None:
        """Name the limit that spending ``estimate`` now would pass: to be asked before paying."""
        own = self.limit.passed(self.spent.plus(estimate))
        if own is not None or self.parent is None:
            return own
        return self.parent.refuses(estimate)

    def left(self) -> Limit:
        """Return what may still be spent, by the tightest limit here and above."""
        tokens, cost = self.limit.max_tokens, self.limit.max_cost_usd
        mine = Limit(
            max_tokens=None if tokens is None else max(tokens - self.spent.tokens, 0),
            max_cost_usd=None if cost is None else max(cost - self.spent.cost_usd, 0.0),
        )
        return mine if self.parent is None else tightest(mine, self.parent.left())


def tightest(one: Limit, other: Limit) -> Limit:
    """Return the limit that keeps both."""
    return Limit(
        max_tokens=_least(one.max_tokens, other.max_tokens),
        max_cost_usd=_least(one.max_cost_usd, other.max_cost_usd),
    )


def _least(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)

"""The group-commit writer: what all callers want written becomes one commit.

Callers put intents in from the event loop and await their results. One batch is under way at a
time; meanwhile the next one grows. A batch that fails as a whole is tried again intent by intent
only when the fault was not the store's, so that one bad intent cannot fail its neighbours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from retinue.domain.intent import Finish, Intent, Result, Submit
from retinue.storage.program import split

MOST = 512
MOST_BYTES = 8 << 20


class Waiting:
    """An intent and the future its caller awaits. ``size`` is roughly its bytes."""

    __slots__ = ("future", "intent", "size")

    def __init__(self, intent: Intent, future: asyncio.Future[Result]) -> None:
        self.intent = intent
        self.future = future
        self.size = _size(intent)


def _size(intent: Intent) -> int:
    kind = type(intent)
    if kind is Submit:
        return 512 + len(intent.request.body)  # type: ignore[union-attr]
    if kind is Finish:
        return 512 + len(intent.response.body)  # type: ignore[union-attr]
    return 1024


Answered = list[tuple[asyncio.Future[Result], Any]]
"""Futures with their result, or the exception they get."""


def take(waiting: deque[Waiting]) -> list[Waiting]:
    """Take the next batch."""
    return split(waiting, MOST, MOST_BYTES)


def settle(answered: Answered) -> None:
    """Resolve the futures of a batch; runs on the event loop. Callers that left are skipped."""
    for future, result in answered:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

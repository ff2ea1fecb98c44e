"""The group-commit writer: what all callers want written becomes one commit.

Callers put intents in from the event loop and await their results. One batch is under way at a
time; meanwhile the next one grows. A batch that fails as a whole is tried again intent by intent
only when the fault was not the store's, so that one bad intent cannot fail its neighbours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from retinue.domain.intent import (
    AdoptInstance,
    Answer,
    Append,
    Ask,
    Cancel,
    CloseQuestion,
    CutChain,
    Erase,
    Expire,
    Finish,
    Intent,
    Prioritize,
    Promote,
    Requeue,
    Submit,
)
from retinue.domain.result import Result

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
    if kind is Append:
        # Only text is large in number; any other event is bounded one by one.
        texts: list[str] = [e.data.get("content", "") for e in intent.events]  # type: ignore[union-attr]
        return 512 + sum(map(len, texts))
    return 1024


Answered = list[tuple[asyncio.Future[Result], Any]]
"""Futures with their result, or the exception they get."""


def take(waiting: deque[Waiting], most: int = MOST, most_bytes: int = MOST_BYTES) -> list[Waiting]:
    """Take the next batch off ``waiting``, bounded by count and by bytes.

    An execution has one intent in a batch: its later ones stay behind, in order, so that a flood
    from one run leaves room for all the others.
    """
    taken: list[Waiting] = []
    held: list[Waiting] = []
    seen: set[str] = set()
    size = 0
    while waiting and len(taken) < most and size < most_bytes:
        item = waiting.popleft()
        touched = _touched(item.intent)
        if touched is not None:
            if touched in seen:
                held.append(item)
                continue
            seen.add(touched)
        taken.append(item)
        size += item.size
    waiting.extendleft(reversed(held))
    return taken


def _touched(intent: Intent) -> str | None:
    kind = type(intent)
    if kind is Append or kind is Finish or kind is Requeue or kind is Ask:
        return intent.fence.execution_id  # type: ignore[union-attr]
    if kind is Cancel or kind is Expire or kind is Promote or kind is Prioritize:
        return intent.execution_id  # type: ignore[union-attr]
    if kind is Answer or kind is CloseQuestion:
        return intent.question_id  # type: ignore[union-attr]
    if kind is AdoptInstance:
        return fence.execution_id if (fence := intent.fence) is not None else None  # type: ignore[union-attr]
    if kind is CutChain or kind is Erase:
        return f"{intent.owner}/{intent.session_id}"  # type: ignore[union-attr]
    return None


def settle(answered: Answered) -> None:
    """Resolve the futures of a batch; runs on the event loop. Callers that left are skipped."""
    for future, result in answered:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

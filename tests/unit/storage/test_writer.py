"""Which intents share a batch."""

import asyncio
from collections import deque

from retinue.domain.event import EventData, EventType
from retinue.domain.ids import now_us
from retinue.domain.intent import Append, Fence, Intent
from retinue.domain.result import Ok, Result
from retinue.storage.writer import Waiting, settle, take
from retinue.testing.store_samples import execution, submit


def append(execution_id: str, number: int) -> Append:
    event = EventData(EventType.CONTENT_CHUNK, {"number": number})
    return Append(Fence(execution_id, 1, "w"), (event,), now_us())


def waiting(*intents: Intent) -> deque[Waiting]:
    return deque(Waiting(intent, asyncio.get_running_loop().create_future()) for intent in intents)


async def test_one_run_has_one_intent_in_a_batch_and_keeps_its_order() -> None:
    line = waiting(
        *(append("a", i) for i in range(4)), append("b", 0), append("b", 1), append("c", 0)
    )
    batches = []
    while batch := take(line, most=3):
        batches.append([(x.intent.fence.execution_id, x.intent.events[0].data["number"])
                        for x in batch if isinstance(x.intent, Append)])  # fmt: skip
    assert batches == [
        [("a", 0), ("b", 0), ("c", 0)],
        [("a", 1), ("b", 1)],
        [("a", 2)],
        [("a", 3)],
    ]


async def test_what_stays_behind_is_before_what_came_later() -> None:
    line = waiting(append("a", 0), append("a", 1), append("b", 0), append("a", 2))
    assert len(take(line, most=2)) == 2
    assert [x.intent.events[0].data for x in line if isinstance(x.intent, Append)] == [
        {"number": 1},
        {"number": 2},
    ]


async def test_a_batch_is_bounded_by_bytes() -> None:
    line = waiting(*(submit(execution(), body=b"x" * 1000) for _ in range(10)))
    assert len(take(line, most_bytes=3000)) == 2
    assert len(take(line, most_bytes=1)) == 1


async def test_a_caller_that_left_is_passed_over() -> None:
    futures: list[asyncio.Future[Result]] = [
        asyncio.get_running_loop().create_future() for _ in range(3)
    ]
    futures[0].cancel()
    settle([(futures[0], Ok()), (futures[1], Ok()), (futures[2], ValueError("no"))])
    assert await futures[1] == Ok()
    assert isinstance(futures[2].exception(), ValueError)

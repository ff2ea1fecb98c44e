"""Somebody who asks how a service is does not wait for it."""

import asyncio
import time
from typing import ClassVar

import pytest

from retinue.engine import watch as watching
from retinue.engine.feed import Pace
from retinue.engine.watch import Watch
from retinue.interfaces import Health


class Peer:
    name: ClassVar[str] = "peer"

    def __init__(self) -> None:
        self.answers: asyncio.Queue[Health] = asyncio.Queue()
        self.checks = 0
        self.closed = False

    async def check(self) -> Health:
        self.checks += 1
        return await self.answers.get()

    async def close(self) -> None:
        self.closed = True


async def test_the_first_to_ask_waits_a_moment_and_no_one_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "FIRST_SECONDS", 0.05)
    peer = Peer()
    watch = Watch(peer, every=0.01)
    before = time.monotonic()
    assert (await watch.known()).healthy is False
    assert time.monotonic() - before < 2
    peer.answers.put_nowait(Health(healthy=True))
    while watch.health is None:
        await asyncio.sleep(0)
    assert (await watch.known()).healthy is True
    while peer.checks == 1:
        await asyncio.sleep(0.001)
    assert (await watch.known()).healthy is True  # though the second check hangs
    watch.heard(Health(healthy=False, reason="a call failed"))
    assert (await watch.known()).reason == "a call failed"
    await watch.stop()
    assert peer.closed


async def test_it_is_stopped_before_it_began() -> None:
    peer = Peer()
    await Watch(peer).stop()
    assert (peer.checks, peer.closed) == (0, True)


def test_waits_double_up_to_the_longest_with_jitter() -> None:
    pace = Pace(first_wait=1.0)
    for failures, full in ((1, 1.0), (2, 2.0), (5, 16.0), (9, 100.0), (5000, 100.0)):
        waits = {pace.wait(failures, 100.0) for _ in range(50)}
        assert all(full / 2 <= wait <= full for wait in waits)
        assert len(waits) > 40

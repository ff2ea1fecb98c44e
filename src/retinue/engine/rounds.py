"""Looks after the processes of this worker all the time: which of them is stalled, what they use.

Nobody has to ask: a stalled one is named in the log, and what an instance used is in the store
from time to time, so it is known of one that goes with its server. An instance whose silence is
judged costs nothing; measuring one costs its keeper a look at its tree, so they take turns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

import msgspec

from retinue.domain.ids import now_us
from retinue.domain.instance import InstanceState
from retinue.engine.attempt import Attempt
from retinue.engine.instances import Instances, Live

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.5
MEASURE_SECONDS = 30.0
"""How often each is measured when nobody looks."""


class Silence(msgspec.Struct, frozen=True):
    """For how many seconds a live instance has been silent; None: that does not apply to it.

    ``stalled`` says that it is too long.
    """

    output: float | None = None
    event: float | None = None
    busy: float | None = None
    stalled: bool = False


def silence_of(live: Live, attempts: Sequence[Attempt]) -> Silence:
    """Return how long nothing has come of what an instance works on.

    What waits for a person, or is paused, is not silent. One that speaks without working, because
    it answers pings, is judged by the events of its work alone, by the one that is silent longest.
    """
    if live.process is None or live.record.ended:
        return Silence()
    now = time.monotonic()
    output = max(now - live.process.heard.at, 0.0)
    works = live.record.state is InstanceState.BUSY
    events = [max(now - a.heard_at, 0.0) for a in attempts if not a.asking]
    if not works or not events:
        return Silence(output)
    longest = max(events)
    silent = longest if live.pings else min(longest, output)
    begun = min((a.execution.started_at or now_us()) for a in attempts)
    busy = max(now_us() - begun, 0) / 1_000_000
    return Silence(output, longest, busy, silent > live.stall_seconds)


class Rounds:
    """The rounds of one worker."""

    def __init__(self, instances: Instances, running: Mapping[str, Attempt]) -> None:
        self._instances = instances
        self._running = running
        self._loop: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[object]] = set()

    def silence(self, live: Live) -> Silence:
        """Return how long nothing has come of what an instance works on."""
        return silence_of(live, self.attempts(live))

    def attempts(self, live: Live) -> list[Attempt]:
        """Return the attempts that an instance works on."""
        return [self._running[id_] for id_ in live.work if id_ in self._running]

    def start(self) -> None:
        """Begin."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End."""
        tasks = {task for task in (self._loop, *self._asking) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self._look()
            except Exception:
                log.exception("the agents' processes could not be looked after")

    def _look(self) -> None:
        live = list(self._instances.live.values())
        for one in live:
            self._judge(one)
        # One is not waited for: its keeper may take its time.
        due = [one for one in live if one.unmeasured >= MEASURE_SECONDS and one.process is not None]
        most = int(len(live) * LOOK_SECONDS / MEASURE_SECONDS) + 1 - len(self._asking)
        for one in sorted(due, key=lambda one: one.unmeasured, reverse=True)[: max(most, 0)]:
            task = asyncio.create_task(one.measure())
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    def _judge(self, live: Live) -> None:
        stalled = self.silence(live).stalled
        if live.note_stalled(stalled) and stalled:
            ids = {"agent_id": live.record.agent_id, "execution_id": live.record.execution_id}
            log.warning(
                "agent %s is stalled: nothing has come from instance %s for %g s",
                *(live.record.agent_id, live.id, live.stall_seconds),
                extra=ids,
            )

"""The sweep: one server after the other ends at the next crash point; each start is a recovery.

Every point is reached by the same *play*, a handful of tasks, questions and cancellations that
between them have every kind of intent written. Points that only a recovery passes are armed from
the start of a process that finds work of a killed one. A point that is not reached is a violation:
a sweep that passes nothing proves nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from torture import ledger, points
from torture.callers import Wish
from torture.checker import Violation
from torture.http import Broken, ask
from torture.rig import Rig, RigFailed, until
from torture.servers import Died, Server

MOST_PLAYS = 5
END_SECONDS = 20.0
ORPHANS = 3
ORPHAN_MS = 1500
_POLL = 0.02
_BROAD = 9
"""More than the agents' slots, so that some have to queue."""


@dataclass(frozen=True, kw_only=True)
class Crash:
    """Where to end a server. ``starting``: while it takes over, else while it serves."""

    point: str
    nth: int = 1
    starting: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the server is told."""
        told = ("--crash", self.point, "--nth", str(self.nth))
        return (*told, "--armed") if self.starting else told

    def __str__(self) -> str:
        return f"{self.point} at start" if self.starting else f"{self.point} {self.nth}"


def crashes(only: tuple[str, ...], random: Random, sample: int | None) -> list[Crash]:
    """Return the crashes of a sweep in the order of its seed: all, those named, or a sample."""
    found = [Crash(point=point, nth=random.choice((1, 1, 2))) for point in points.SERVING]
    found += [Crash(point=point) for point in points.AT_STOP]
    found += [Crash(point=point, starting=True) for point in points.AT_START]
    if only:
        return [crash for crash in found if crash.point in only]
    random.shuffle(found)
    return found if sample is None else found[:sample]


@dataclass
class Told:
    """What the callers of a sweep were told besides the tasks' replies."""

    cancelled: list[str] = field(default_factory=list)
    answered: dict[str, str] = field(default_factory=dict)


async def run(rig: Rig, chosen: list[Crash]) -> list[Violation]:
    """End the one server at each of ``chosen``, and start it again; it is in use at the end."""
    (server,) = rig.servers
    missed: list[Violation] = []
    told = Told()
    for number, crash in enumerate(chosen):
        rig.kill(server)
        reached = (
            await _while_starting(rig, server, crash, number)
            if crash.starting
            else await _while_serving(rig, server, crash, number, told)
        )
        if reached:
            rig.crashes += 1
        else:
            missed.append(Violation("missed", str(crash), "the point was not reached"))
    rig.kill(server)
    server.crash = ()
    await rig.start(server)
    await rig.settle()
    return [*missed, *[v async for v in _kept(rig, told)]]


async def _while_serving(rig: Rig, server: Server, crash: Crash, number: int, told: Told) -> bool:
    server.crash = crash.arguments
    await rig.start(server)
    if crash.point in points.AT_STOP:
        await play(rig, server, f"{number}", told)
        server.terminate()
        return await _ended(rig, server)
    for turn in range(MOST_PLAYS):
        await play(rig, server, f"{number}.{turn}", told)
        if not server.lives:
            return await _ended(rig, server)
    return False


async def _while_starting(rig: Rig, server: Server, crash: Crash, number: int) -> bool:
    """Leave running work behind by a kill, then end the process that takes it over."""
    server.crash = ()
    await rig.start(server)
    await until("earlier work ends", lambda: _idle(rig))
    for capability in ("once", "again", "same"):
        for each in range(ORPHANS):
            marker = f"{number}.{capability}.{each}"
            parameters = {"delay_ms": ORPHAN_MS}
            wish = Wish(marker=marker, capability=capability, waits=False, parameters=parameters)
            await rig.client.send(server.url, wish)

    async def all_run() -> bool:
        return len(await ledger.running(rig.database)) == 3 * ORPHANS

    await until("what is to be taken over runs", all_run)
    rig.kill(server)
    server.crash = crash.arguments
    server.spawn()
    try:
        # It may serve first: on PostgreSQL the lease of the one before has to run out.
        rig.doors.open(server.name, await server.ready())
    except Died:
        pass
    return await _ended(rig, server)


async def _idle(rig: Rig) -> bool:
    return not await ledger.unfinished(rig.database)


async def _ended(rig: Rig, server: Server) -> bool:
    """Whether the server ended at its point, and not in another way."""
    status = await server.ended(END_SECONDS) if server.lives else server.status
    rig.ended(server)
    if status not in {0, points.STATUS}:
        raise RigFailed(f"{server.name} ended with {status}:\n{server.log[-2000:]}")
    return status == points.STATUS


# -- the play ----------------------------------------------------------------------------------


async def play(rig: Rig, server: Server, name: str, told: Told) -> None:
    """Have every kind of intent written; return when all is answered or the server is gone."""
    url = server.url
    acts: list[Coroutine[Any, Any, object]] = [
        rig.client.send(url, wish) for wish in _wishes(f"{name}/")
    ]
    acts.append(_cancel(rig, url, Wish(marker=f"{name}/stop", capability="once", **_slow()), told))
    acts.append(_narrow(rig, url, name, told))
    acts.append(_answer(rig, server, name, told))
    for done in await asyncio.gather(*acts, return_exceptions=True):
        if isinstance(done, BaseException) and not isinstance(done, Broken):
            raise done


def _slow() -> dict[str, Any]:
    return {"waits": False, "parameters": {"delay_ms": 5000}}


def _wishes(name: str) -> Iterator[Wish]:
    """Yield the tasks that need no more than to be sent."""
    for each in range(_BROAD):
        parameters = {"delay_ms": 30, "chunks": each % 3}
        waits = each % 2 == 0
        yield Wish(marker=f"{name}{each}", capability="once", waits=waits, parameters=parameters)
    failing = {"delay_ms": 5, "failures": 1}
    yield Wish(marker=f"{name}again", capability="again", parameters=failing)
    keyed = {"delay_ms": 5, "chunks": 1}
    for _ in range(2):
        yield Wish(
            marker=f"{name}key", capability="same", key=f"key-{name}", parameters=keyed, waits=True
        )
    yield Wish(marker=f"{name}parent", capability="delegate", parameters={"delay_ms": 5})
    yield Wish(marker=f"{name}nobody", capability="nobody-does-this")
    silent = {"delay_ms": 5, "wait_ms": 50}
    yield Wish(marker=f"{name}silence", capability="ask", waits=False, parameters=silent)


async def _cancel(rig: Rig, url: str, wish: Wish, told: Told) -> None:
    """Have something begun, and cancel it."""
    answer = await rig.client.send(url, wish)
    if answer is None or answer.status != 202:
        return
    execution_id = answer.body["execution_id"]
    status, found = await ask(url, "POST", f"/v1/executions/{execution_id}/cancel")
    if status == 200 and found["state"] == "cancelled":
        told.cancelled.append(execution_id)


async def _narrow(rig: Rig, url: str, name: str, told: Told) -> None:
    """Fill the one slot of an agent; behind it one task expires and one is cancelled."""
    hold = {"delay_ms": 200}
    holder = Wish(marker=f"{name}/hold", capability="narrow", waits=False, parameters=hold)
    if await rig.client.send(url, holder) is None:
        return
    late = Wish(
        marker=f"{name}/late", capability="narrow", waits=False, parameters=hold, timeout_ms=40
    )
    queued = Wish(marker=f"{name}/queued", capability="narrow", waits=False, parameters=hold)
    await asyncio.gather(rig.client.send(url, late), _cancel(rig, url, queued, told))
    # The play goes on until the agent is free again: so long its expired one is seen to.
    await rig.client.send(url, Wish(marker=f"{name}/last", capability="narrow", waits=True))


async def _answer(rig: Rig, server: Server, name: str, told: Told) -> None:
    """Have a question asked, and answer it."""
    wish = Wish(marker=f"{name}/ask", capability="ask", waits=False, parameters={"wait_ms": 60_000})
    answer = await rig.client.send(server.url, wish)
    if answer is None or answer.status != 202:
        return
    execution_id = answer.body["execution_id"]
    while server.lives:
        _, listed = await ask(server.url, "GET", "/v1/questions?limit=1000")
        mine = [q for q in listed["questions"] if q["execution_id"] == execution_id]
        if mine:
            path = f"/v1/questions/{mine[0]['question_id']}/answer"
            status, _ = await ask(server.url, "POST", path, {"answer": name})
            if status == 200:
                told.answered[mine[0]["question_id"]] = name
            return
        _, found = await ask(server.url, "GET", f"/v1/executions/{execution_id}")
        if found["state"] in ledger.TERMINAL:
            return
        await asyncio.sleep(_POLL)


async def _kept(rig: Rig, told: Told) -> Any:
    """Yield what callers were told of cancellations and answers and the ledger does not hold."""
    rows = await ledger.query(rig.database, "SELECT id, state FROM execution")
    states = dict(rows)
    for execution_id in told.cancelled:
        state = states.get(execution_id)
        if state != "cancelled":
            yield Violation("lost", execution_id, f"it was cancelled, and is {state}")
    rows = await ledger.query(rig.database, "SELECT id, answer FROM question")
    answers = {row[0]: json.loads(bytes(row[1])) for row in rows if row[1] is not None}
    for question_id, value in told.answered.items():
        if answers.get(question_id) != value:
            said = f"it was answered with {value}, and holds {answers.get(question_id)}"
            yield Violation("lost", question_id, said)

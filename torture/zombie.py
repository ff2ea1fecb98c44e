"""The zombie: a worker that is stopped in the middle of its work, outlives its lease, and wakes.

Two servers share a PostgreSQL database. One is frozen (SIGSTOP) while it runs tasks; the other one
takes them over; then the first one goes on (SIGCONT), believing that nothing has happened.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from torture import journals, ledger
from torture.callers import Wish
from torture.checker import Violation
from torture.http import ask
from torture.journals import Answered
from torture.rig import Report, Rig, until
from torture.servers import Server

SHORT_MS = 600
ENDLESS_MS = 120_000
NEW_SECONDS = 0.12
_REFUSALS = ("not ended here", "late end refused")


@dataclass(kw_only=True)
class Story:
    """What happened, for a test to judge."""

    report: Report
    taken_seconds: float
    """From the freeze until nothing was left to the zombie."""
    frozen: list[str]
    """The executions that the zombie ran when it was frozen."""
    refused: set[str]
    """Those of which its log says that its write was refused."""
    epochs: list[tuple[str, bool]]
    """Its epochs, and whether each goes on."""
    awake: Answered | None
    """What it answered to a task after it woke."""
    awake_pid: int | None
    """Which process did that task."""
    pid: int

    def faults(self) -> Iterator[Violation]:
        """Yield what is wrong with it."""
        if not self.frozen:
            yield Violation("zombie", "rig", "it ran nothing when it was frozen")
        for execution_id in set(self.frozen) - self.refused:
            yield Violation("zombie", execution_id, "its late end was not refused")
        if [alive for _, alive in self.epochs] != [False, True]:
            yield Violation("zombie", "epochs", f"they are {self.epochs}")
        if self.awake is None or self.awake.body.get("success") is not True:
            yield Violation("zombie", "awake", f"it answered {self.awake}")
        if self.awake_pid != self.pid:
            yield Violation("zombie", "awake", f"process {self.awake_pid} did it")


async def tell(rig: Rig, tasks: int = 3) -> Story:
    """Play it with ``tasks`` of each kind."""
    zombie, other = rig.servers
    wishes = [
        *_wishes("short", "once", SHORT_MS, tasks),
        *_wishes("repeated", "again", SHORT_MS, tasks),
        # Only the loss of the lease can stop these.
        *_wishes("endless", "once", ENDLESS_MS, tasks),
    ]
    sends = [asyncio.create_task(rig.client.send(zombie.url, wish)) for wish in wishes]
    try:
        return await _play(rig, zombie, other, sends)
    finally:
        for send in sends:
            send.cancel()
        await asyncio.gather(*sends, return_exceptions=True)


async def _play(
    rig: Rig, zombie: Server, other: Server, sends: list[asyncio.Task[Answered | None]]
) -> Story:
    async def all_run() -> bool:
        return len(await ledger.running(rig.database)) == len(sends)

    async def all_ended() -> bool:
        return not await ledger.unfinished(rig.database)

    async def idle() -> bool:
        _, listed = await ask(zombie.url, "GET", "/v1/agents")
        return not any(agent["running"] for agent in listed["agents"])

    await until("all tasks run", all_run)
    rig.freezes += 1
    zombie.freeze()
    try:
        began = time.monotonic()
        frozen = await _taken_over(rig, zombie)
        taken = time.monotonic() - began
        await until("what was taken over ends", all_ended)
    finally:
        zombie.thaw()
    await _begun_anew(rig, zombie)
    await until("what it lost is stopped", idle)
    await asyncio.gather(*sends)
    awake = await rig.client.send(zombie.url, Wish(marker="awake", capability="once"))
    epochs = await ledger.workers(rig.database, zombie.pid)
    violations = [v for server in (zombie, other) for v in await rig.stop(server)]
    report = await rig.compare(violations)
    effects = journals.read_effects(rig.directory / "effects.jsonl")
    return Story(
        report=report,
        taken_seconds=taken,
        frozen=frozen,
        refused=refusals(zombie.log),
        epochs=epochs,
        awake=awake,
        awake_pid=next((e.pid for e in effects if e.marker == "awake"), None),
        pid=zombie.pid,
    )


async def sweep(rig: Rig, rounds: int, random: Random) -> None:
    """Freeze one server after the other under load, each until the others have its work.

    Some are new: a process has more moments to be frozen in while it does everything for the
    first time.
    """
    for number in range(rounds):
        await rig.pause()
        server = random.choice(rig.servers)
        if number % 2:
            rig.kill(server)
            await rig.start(server)
            await asyncio.sleep(random.uniform(0, NEW_SECONDS))
        rig.freezes += 1
        server.freeze()
        try:
            await _taken_over(rig, server)
        finally:
            server.thaw()
        await _begun_anew(rig, server)


async def _taken_over(rig: Rig, frozen: Server) -> list[str]:
    """Wait until nothing is left to a frozen server; return what it ran when it was frozen."""
    epoch, _ = (await ledger.workers(rig.database, frozen.pid))[-1]

    async def left() -> list[str]:
        return [i for i, worker in await ledger.running(rig.database) if worker == epoch]

    async def buried() -> bool:
        _, alive = (await ledger.workers(rig.database, frozen.pid))[-1]
        return not alive and not await left()

    ran = await left()
    await until("the other server takes all over", buried)
    return ran


async def _begun_anew(rig: Rig, server: Server) -> None:
    async def new_epoch() -> bool:
        return (await ledger.workers(rig.database, server.pid))[-1][1]

    await until("a new epoch begins", new_epoch)


def _wishes(name: str, capability: str, delay_ms: int, count: int) -> list[Wish]:
    return [
        Wish(marker=f"{name} {n}", capability=capability, parameters={"delay_ms": delay_ms})
        for n in range(count)
    ]


def refusals(log: str) -> set[str]:
    """Return the executions of which a server's log says that a late write was refused."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return {line["execution_id"] for line in lines if line["message"].startswith(_REFUSALS)}

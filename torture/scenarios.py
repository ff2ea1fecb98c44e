"""What the torture consists of: one run each, on a store of its own."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from retinue.interfaces import Store
from retinue.storage.postgres import PostgresStore
from retinue.storage.sqlite import SqliteStore
from retinue.testing.servers import PostgresServer
from torture import ledger, machine, power, sweep, zombie
from torture import subscribers as following
from torture.callers import Wish
from torture.checker import Violation
from torture.image import Image
from torture.machine import Size
from torture.outage import Outages
from torture.overload import TIMES, broken, press
from torture.rig import Plan, Report, Rig

ENDLESS_MS = 60_000
_SHORT_GRACE = 0.5
_FOR_EVER = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much of it."""

    callers: int
    kills: int
    """On SQLite."""
    kills_shared: int
    """On PostgreSQL: of one server, and again of two."""
    kills_hasty: int
    freezes: int
    drains: int
    poisons: int
    outages: int
    subscribers: int
    overload_seconds: float
    programs: int
    """That the stores and their model are compared on."""
    points: int | None
    """How many crash points of a sweep; None: all."""
    cuts: int
    cuts_normal: int
    """Of the store that does not wait for the disk."""


QUICK = Profile(
    callers=8,
    kills=10,
    kills_shared=4,
    kills_hasty=4,
    freezes=2,
    drains=2,
    poisons=1,
    outages=4,
    subscribers=60,
    overload_seconds=8.0,
    programs=40,
    points=8,
    cuts=4,
    cuts_normal=5,
)
FULL = Profile(
    callers=20,
    kills=100,
    kills_shared=40,
    kills_hasty=5,
    freezes=20,
    drains=15,
    poisons=5,
    outages=40,
    subscribers=500,
    overload_seconds=60.0,
    programs=300,
    points=None,
    cuts=20,
    cuts_normal=5,
)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A way to torture. ``shared``: on PostgreSQL. ``control``: it must lose something."""

    name: str
    run: Callable[[Path, Plan, Profile], Coroutine[Any, Any, Report]]
    servers: int = 1
    shared: bool = False
    control: bool = False


async def kill(directory: Path, plan: Plan, profile: Profile) -> Report:
    """Kill servers under load."""
    async with Rig(directory, plan) as rig:
        rig.load.start()
        await rig.sweep(profile.kills_shared if plan.database else profile.kills)
        return await rig.finish()


async def hasty(directory: Path, plan: Plan, profile: Profile) -> Report:
    """Kill a server whose store acknowledges before it commits."""
    # So few callers that nothing has to queue: the reply of what was queued is read from the
    # store, and so committed.
    async with Rig(directory, replace(plan, store="hasty", callers=4)) as rig:
        rig.load.start()
        await rig.sweep(profile.kills_hasty)
        return await rig.finish()


async def poison(directory: Path, plan: Plan, profile: Profile) -> Report:
    """Run tasks that kill their server each time: as often as their policy allows, no more."""
    violations: list[Violation] = []
    async with Rig(directory, plan) as rig:
        for number in range(profile.poisons):
            for capability, allowed in (("once", 1), ("again", 3), ("same", 5)):
                marker = f"{capability} {number}"
                parameters = {"delay_ms": 200, "deaths": _FOR_EVER}
                wish = Wish(
                    marker=marker, capability=capability, waits=False, parameters=parameters
                )
                deaths = await rig.outlast(wish)
                if deaths != allowed:
                    violations.append(Violation("poison", marker, f"it killed {deaths} times"))
        report = await rig.finish()
    report.violations += violations
    return report


async def drain(directory: Path, plan: Plan, profile: Profile) -> Report:
    """Stop servers in order under load; one of them while it does what will not end in time."""
    random = Random(plan.seed)
    async with Rig(directory, replace(plan, grace_seconds=_SHORT_GRACE)) as rig:
        rig.load.start()
        for number in range(profile.drains):
            await rig.pause()
            server = random.choice(rig.servers)
            parameters = {"delay_ms": ENDLESS_MS}
            endless = Wish(
                marker=f"endless {number}", capability="once", waits=False, parameters=parameters
            )
            await rig.client.send(server.url, endless)
            await rig.drain(server)
        return await rig.finish()


async def freeze(directory: Path, plan: Plan, profile: Profile) -> Report:
    """Freeze workers under load until their work is taken over, then let them go on."""
    async with Rig(directory, plan) as rig:
        rig.load.start()
        await zombie.sweep(rig, profile.freezes, Random(plan.seed))
        return await rig.finish()


async def tell(directory: Path, plan: Plan, _: Profile) -> Report:
    """Follow one zombie closely."""
    async with Rig(directory, plan) as rig:
        story = await zombie.tell(rig)
    story.report.violations += story.faults()
    return story.report


async def outages(directory: Path, plan: Plan, profile: Profile) -> Report:
    """Kill a database under its servers, cut its connections, make it read-only."""
    postgres = PostgresServer()
    try:
        await asyncio.to_thread(postgres.start)
        database = await asyncio.to_thread(postgres.create_database, "outages")
        async with Rig(directory, replace(plan, database=database)) as rig:
            away = Outages(rig, postgres, Random(plan.seed))
            rig.load.start()
            for blow in (away.killed, away.storm, away.read_only):
                await rig.pause()
                rig.outages += 1
                await blow()
            while rig.outages < profile.outages:
                await rig.pause()
                rig.outages += 1
                await away.any()()
            report = await rig.finish()
    finally:
        await asyncio.to_thread(postgres.close)
    report.answered = away.recovered
    report.violations += away.violations
    return report


async def subscribers(directory: Path, plan: Plan, profile: Profile) -> Report:
    """Kill a server under subscribers that drop and come back all the time."""
    async with Rig(directory, plan) as rig:
        found = await following.sweep(
            rig, subscribers=profile.subscribers, kills=2, random=Random(plan.seed)
        )
        report = await rig.finish()
    report.violations += found
    return report


async def overload(directory: Path, plan: Plan, profile: Profile) -> Report:
    """Ask five times as much as a server can do."""
    # The agent takes six at once, of 20 ms each.
    task = json.dumps({
        "session_id": "s%d",
        "capability": "once",
        "parameters": {"marker": "overload", "delay_ms": 20},
    })  # fmt: skip
    settings = {"max_requests": 48, "queue_bound": 40}
    began = time.monotonic()
    async with Rig(directory, replace(plan, settings=settings)) as rig:
        (server,) = rig.servers
        await press(server, callers=40, seconds=1, task=task)
        peak = await press(server, callers=40, seconds=profile.overload_seconds / 2, task=task)
        before = server.memory
        over = await press(
            server,
            callers=400,
            seconds=profile.overload_seconds,
            pause=400 / (peak.goodput * TIMES),
            task=task,
        )
        said = broken(peak, over, server.memory - before)
        await rig.settle()
        violations = await rig.stop(server)
        fault = await ledger.verify(rig.database)
        found = await ledger.read(rig.database)
    said += [fault] if fault else []
    if any(e.state != "completed" for e in found.executions.values()):
        said.append("not all that was accepted completed")
    return Report(
        seed=plan.seed,
        kills=0,
        freezes=0,
        drains=0,
        outages=0,
        seconds=time.monotonic() - began,
        sends=peak.statuses.total() + over.statuses.total(),
        acknowledged=peak.statuses[200] + over.statuses[200],
        executions=len(found.executions),
        effects=len(found.executions),
        retaken=0,
        violations=[*violations, *(Violation("overload", server.name, text) for text in said)],
        directory=directory,
    )


async def points(directory: Path, plan: Plan, profile: Profile) -> Report:
    """End the server at every crash point."""
    chosen = sweep.crashes(plan.points, Random(plan.seed), profile.points)
    async with Rig(directory, plan) as rig:
        missed = await sweep.run(rig, chosen)
        report = await rig.finish()
    report.violations += missed
    return report


async def cut(directory: Path, plan: Plan, profile: Profile) -> Report:
    """Cut the power under load."""
    with Image(directory) as image:
        async with Rig(directory, replace(plan, data=image.path / "data")) as rig:
            rig.load.start()
            faults = await power.sweep(rig, image, profile.cuts)
            report = await rig.finish()
    report.violations += faults
    return report


async def cut_normal(directory: Path, plan: Plan, profile: Profile) -> Report:
    """Cut the power of a store that does not wait for the disk."""
    with Image(directory) as image:
        plan = replace(plan, data=image.path / "data", store="normal")
        async with Rig(directory, plan) as rig:
            rig.load.start()
            faults = await power.sweep(rig, image, profile.cuts_normal)
            report = await rig.finish()
    report.violations += faults
    return report


async def machines(directory: Path, plan: Plan, profile: Profile) -> Report:
    """Run programs of steps on SQLite, PostgreSQL and a model, and compare."""
    assert plan.database is not None
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    stores: list[Store] = [
        SqliteStore(directory / "retinue.db"),
        PostgresStore(plan.database, lease_seconds=_FOR_EVER),
    ]
    began = time.monotonic()
    size = Size(profile.programs, 50)
    violations: list[Violation] = []
    try:
        await asyncio.to_thread(machine.run_on, stores, size, plan.seed)
    except AssertionError as error:
        violations.append(
            Violation("machines", "program", "".join(traceback.format_exception(error)))
        )
    seconds = time.monotonic() - began
    return Report(seed=plan.seed, seconds=seconds, examples=size.examples, violations=violations)


SCENARIOS = (
    Scenario(name="kill", run=kill),
    Scenario(name="kill-postgres", run=kill, shared=True),
    Scenario(name="kill-one-of-two", run=kill, shared=True, servers=2),
    Scenario(name="zombie", run=tell, shared=True, servers=2),
    Scenario(name="freeze-one-of-two", run=freeze, shared=True, servers=2),
    Scenario(name="points", run=points),
    Scenario(name="points-postgres", run=points, shared=True),
    Scenario(name="power", run=cut),
    Scenario(name="power-control", run=cut_normal, control=True),
    Scenario(name="machines", run=machines, shared=True),
    Scenario(name="poison", run=poison),
    Scenario(name="drain", run=drain),
    Scenario(name="drain-one-of-two", run=drain, shared=True, servers=2),
    Scenario(name="outages", run=outages),
    Scenario(name="outages-of-two", run=outages, servers=2),
    Scenario(name="overload", run=overload),
    Scenario(name="subscribers", run=subscribers),
    Scenario(name="control", run=hasty, control=True),
)

"""The rig: servers on one store, callers, kills at seeded random moments, and the comparison.

::

    async with Rig(directory, Plan(seed=7)) as rig:
        rig.load.start()
        await rig.sweep(kills=20)
        report = await rig.finish()
    assert not report.violations, report

The seed decides what callers ask and when servers die; what meets what is the machine's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self, TypeVar

from torture import checker, journals, ledger, measure
from torture.callers import Client, Doors, Load, Wish
from torture.checker import Evidence, Violation
from torture.http import Broken, ask
from torture.journals import Lines
from torture.servers import Died, Server

T = TypeVar("T")
SETTLE_SECONDS = 30.0
TAKEN_OVER = "took over from dead workers"
NEWS_SECONDS = 30.0
_POLL = 0.02


class RigFailed(Exception):
    """What the rig waited for did not come about."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to torture. Without ``database`` the store is SQLite, and there is one server."""

    seed: int
    database: str | None = None
    data: Path | None = None
    """Where the SQLite store lies, if not in the run's directory."""
    servers: int = 1
    callers: int = 8
    pause: tuple[float, float] = (0.3, 0.8)
    """Seconds of load between a server's readiness and the next kill."""
    at_start: float = 0.15
    """How often a kill is followed by one of the server that is just starting."""
    lease_seconds: float = 1.5
    grace_seconds: float = 10.0
    store: str | None = None
    """A store that does not keep its promise, for a control."""
    points: tuple[str, ...] = ()
    """The crash points of a sweep; none: all, or those of the profile."""
    settings: dict[str, Any] = field(default_factory=dict)
    """More of the servers' settings."""


@dataclass(kw_only=True)
class Report:
    """What a run did, and what was wrong with it."""

    seed: int
    seconds: float = 0.0
    examples: int = 0
    """How many programs a state machine went through."""
    kills: int = 0
    freezes: int = 0
    drains: int = 0
    outages: int = 0
    crashes: int = 0
    """How many crash points ended a server."""
    cuts: int = 0
    """How many power cuts there were."""
    sends: int = 0
    acknowledged: int = 0
    executions: int = 0
    effects: int = 0
    retaken: int = 0
    """How many attempts were taken over from a process that was gone."""
    ready: list[float] = field(default_factory=list)
    """Seconds from each start to readiness."""
    answered: list[float] = field(default_factory=list)
    """Seconds from each kill to the next acknowledgement."""
    resumed: list[float] = field(default_factory=list)
    """Seconds from a kill until an execution that it interrupted went on, or was ended."""
    violations: list[Violation] = field(default_factory=list)
    directory: Path = Path()

    @property
    def lost(self) -> int:
        """How many acknowledgements the ledger does not keep."""
        return self._count("lost", "changed")

    @property
    def repeated(self) -> int:
        """How much work was done more often than allowed."""
        return self._count("repeated", "twice")

    def as_dict(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        plain = dataclasses.asdict(self)
        del plain["directory"]
        plain["violations"] = [str(violation) for violation in self.violations]
        return {**plain, "lost": self.lost, "repeated": self.repeated}

    def _count(self, *rules: str) -> int:
        return sum(violation.rule in rules for violation in self.violations)

    def __str__(self) -> str:
        shown = "\n".join(f"  {violation}" for violation in self.violations[:20])
        return (
            f"seed {self.seed}: {self.kills} kills, {self.acknowledged} acknowledged,"
            f" {len(self.violations)} violations\n{shown}"
        )


class Rig:
    """Servers, callers and journals of one run, in a directory of its own."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.plan = plan
        self.directory = directory
        self.data = plan.data or directory / "data"
        self.database = plan.database or ledger.database_in(self.data)
        self.kills: list[int] = []
        self.freezes = 0
        self.drains = 0
        self.outages = 0
        self.crashes = 0
        self.cuts = 0
        self.answered: list[float] = []
        self.doors = Doors()
        self._random = Random(plan.seed)
        self._started = time.monotonic()
        self._clients = Lines(directory / "clients.jsonl")
        self.client = Client(self._clients)
        self.load = Load(self.doors, self.client, callers=plan.callers, seed=plan.seed)
        # Bound, but nobody listens: a service that is down, for as long as the run goes on.
        self._nobody = socket.socket()
        self._nobody.bind(("127.0.0.1", 0))
        self.servers = [
            Server(
                f"server{number}",
                directory,
                directory / "retinue.yaml",
                {"TRACE_URL": f"http://127.0.0.1:{self._nobody.getsockname()[1]}"},
                store=plan.store,
            )
            for number in range(plan.servers)
        ]

    def configure(self) -> None:
        """Write the servers' ``retinue.yaml`` (which may be JSON)."""
        self.directory.mkdir(parents=True, exist_ok=True)
        effects = str(self.directory / "effects.jsonl")
        settings = {
            "port": 0,
            "data_dir": str(self.data),
            "database_url": self.plan.database,
            "lease_seconds": self.plan.lease_seconds,
            "grace_seconds": self.plan.grace_seconds,
            "examples": False,
            "entry_points": False,
            "log_format": "json",
            "agents": [
                recorder("once", effects, "at_most_once"),
                recorder("again", effects, "at_least_once"),
                recorder("same", effects, "idempotent", max_attempts=5),
                recorder("delegate", effects, "at_least_once", kind="Delegate"),
                recorder("ask", effects, "at_most_once", kind="Asker"),
                recorder("narrow", effects, "at_most_once", concurrency=1),
            ],
            **self.plan.settings,
        }
        (self.directory / "retinue.yaml").write_text(json.dumps(settings))

    async def __aenter__(self) -> Self:
        self.configure()
        try:
            for server in self.servers:
                server.spawn()
            for server in self.servers:
                self.doors.open(server.name, await server.ready())
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        for server in self.servers:
            server.kill()
        await self.load.abandon()
        self._clients.close()
        self._nobody.close()

    # -- torture -------------------------------------------------------------------------------

    async def sweep(self, kills: int) -> None:
        """Kill one server after the other, under load, and start each again."""
        for number in range(kills):
            await self.pause()
            if self.plan.store is not None:
                await self.progress()  # what was just acknowledged is what the control may lose
            server = self._random.choice(self.servers)
            self.kill(server)
            killed = time.monotonic()
            if number and self._random.random() < self.plan.at_start:
                await self._kill_starting(server)
            await self.start(server)
            await self.progress()
            self.answered.append(self.client.last_at - killed)

    async def pause(self) -> None:
        """Wait until something is acknowledged, then let the load go on for a random while."""
        await self.progress()
        await asyncio.sleep(self._random.uniform(*self.plan.pause))

    def kill(self, server: Server) -> None:
        """Kill a server now."""
        self.kills.append(time.time_ns() // 1000)
        server.kill()
        self.doors.close(server.name)

    def ended(self, server: Server) -> None:
        """Take in that a server has ended by itself."""
        self.kills.append(time.time_ns() // 1000)
        self.doors.close(server.name)

    async def start(self, server: Server) -> None:
        """Start a server again, and wait until it serves."""
        server.spawn()
        self.doors.open(server.name, await server.ready())

    async def _kill_starting(self, server: Server) -> None:
        """Kill a server somewhere between its start and its readiness."""
        server.spawn()
        await asyncio.sleep(self._random.uniform(0, min(server.ready_seconds)))
        self.kill(server)

    async def progress(self) -> None:
        """Wait for the next acknowledgement.

        Raises:
            RigFailed: there is none.
        """
        try:
            async with asyncio.timeout(NEWS_SECONDS):
                await self.client.news()
        except TimeoutError:
            logs = "\n".join(server.log[-2000:] for server in self.servers)
            raise RigFailed(
                f"seed {self.plan.seed}: nothing was acknowledged for {NEWS_SECONDS} s\n{logs}"
            ) from None

    async def outlast(self, wish: Wish) -> int:
        """Start the one server again whenever ``wish`` kills it; return how often it died.

        Returns once the execution has ended. For wishes that do not wait.
        """
        (server,) = self.servers
        answer = await self.client.send(server.url, wish)
        if answer is None or answer.status != 202:
            raise RigFailed(f"{wish.marker} was not accepted: {answer}")
        path = f"/v1/executions/{answer.body['execution_id']}"
        deaths = 0
        while True:
            try:
                if not server.lives:
                    deaths += 1
                    self.kills.append(time.time_ns() // 1000)
                    await self.start(server)
                _, found = await ask(server.url, "GET", path)
                if found["state"] in ledger.TERMINAL:
                    return deaths
                await asyncio.sleep(_POLL)
            except Broken:
                await server.ended()
            except Died:
                continue

    async def drain(self, server: Server) -> float:
        """Stop a server by SIGTERM under load and start it again; return how long it took to end.

        Raises:
            RigFailed: it ended with an error, left work behind as running, or found some.
        """
        self.drains += 1
        asked = time.monotonic()
        server.terminate()
        status = await server.ended(self.plan.grace_seconds + 10)
        seconds = time.monotonic() - asked
        self.doors.close(server.name)
        if status:
            raise RigFailed(f"{server.name} ended with {status}:\n{server.log[-2000:]}")
        if left := await self._left_by(server):
            raise RigFailed(f"{server.name} left work as running: {left}")
        said = len(server.log)
        await self.start(server)
        if not self.kills and not self.freezes and TAKEN_OVER in server.log[said:]:
            raise RigFailed(f"{server.name} found orphans: {server.log[said:]}")
        return seconds

    async def _left_by(self, server: Server) -> list[str]:
        """Return the executions that are recorded as running in a server's process."""
        epochs = {epoch for epoch, _ in await ledger.workers(self.database, server.pid)}
        return [i for i, epoch in await ledger.running(self.database) if epoch in epochs]

    # -- the end -------------------------------------------------------------------------------

    async def finish(self) -> Report:
        """Let the callers and the servers end in order, and compare."""
        await self.load.stop()
        await self.settle()
        violations = [v for server in self.servers for v in await self.stop(server)]
        return await self.compare(violations)

    async def settle(self) -> None:
        """Wait until every execution has ended, or too long."""
        end = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < end:
            if not await ledger.unfinished(self.database):
                return
            await asyncio.sleep(_POLL)

    async def stop(self, server: Server) -> list[Violation]:
        """Stop a server by SIGTERM; say what was wrong with its end."""
        self.doors.close(server.name)
        server.terminate()
        status = await server.ended(self.plan.grace_seconds + 10)
        if status:
            return [
                Violation("exit", server.name, f"it ended with {status}:\n{server.log[-2000:]}")
            ]
        return []

    async def compare(self, violations: list[Violation] | None = None) -> Report:
        """Compare journals and ledger. No server may run any more."""
        exchanges = journals.read_exchanges(self.directory / "clients.jsonl")
        effects = journals.read_effects(self.directory / "effects.jsonl")
        fault = await ledger.verify(self.database)
        found = await ledger.read(self.database)
        evidence = Evidence(
            exchanges=exchanges,
            effects=effects,
            ledger=found,
            fault=fault,
            orderly=not (self.kills or self.freezes or self.outages),
        )
        return Report(
            seed=self.plan.seed,
            kills=len(self.kills),
            freezes=self.freezes,
            drains=self.drains,
            outages=self.outages,
            crashes=self.crashes,
            cuts=self.cuts,
            seconds=time.monotonic() - self._started,
            sends=len(exchanges),
            acknowledged=sum(exchange.acknowledged for exchange in exchanges),
            executions=len(found.executions),
            effects=len(effects),
            retaken=measure.retaken(found),
            ready=[seconds for server in self.servers for seconds in server.ready_seconds],
            answered=self.answered,
            resumed=measure.resumed(found, self.kills),
            violations=[*(violations or []), *checker.judge(evidence)],
            directory=self.directory,
        )


def recorder(
    agent_id: str,
    journal: str,
    delivery: str,
    *,
    max_attempts: int = 3,
    concurrency: int = 6,
    kind: str = "Recorder",
) -> dict[str, Any]:
    """Return the entry of ``retinue.yaml`` for one of the agents."""
    return {
        "agent": f"torture.agents:{kind}",
        "arguments": {
            "agent_id": agent_id,
            "journal": journal,
            "delivery": delivery,
            "max_attempts": max_attempts,
            "concurrency": concurrency,
        },
    }


async def until(what: str, look: Callable[[], Awaitable[T]], seconds: float = 30.0) -> T:
    """Wait until ``look`` returns something true, and return it.

    Raises:
        RigFailed: it does not within ``seconds``; the message says what was waited for.
    """
    end = time.monotonic() + seconds
    while not (found := await look()):
        if time.monotonic() > end:
            raise RigFailed(f"not after {seconds} s: {what}")
        await asyncio.sleep(_POLL)
    return found

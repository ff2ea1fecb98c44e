"""Run the contenders of a scenario in turn (A B C, A B C), each in a fresh process.

Interleaving is what makes the ratios worth something on a machine whose speed changes by the
minute: whatever slows one contender slows its neighbours of the same round too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import environment
from bench.scenarios import Contender, Scenario
from retinue.testing.servers import PostgresServer


@dataclass(frozen=True)
class Plan:
    """How long and how often, and where the databases go."""

    rounds: int
    warm: float
    seconds: float
    directory: Path
    quick: bool
    peers: bool


@dataclass
class Results:
    """What a scenario's contenders printed: a list of rounds for each, and why some have none."""

    rounds: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run(scenario: Scenario, plan: Plan, say: Callable[[str], None]) -> Results:
    """Run every round of ``scenario``."""
    if not scenario.postgres:
        return _run(scenario, plan, say, None)
    with PostgresServer(settings={"max_connections": "200"}) as server:
        return _run(scenario, plan, say, server)


def _run(
    scenario: Scenario, plan: Plan, say: Callable[[str], None], server: PostgresServer | None
) -> Results:
    results = Results()
    for contender in scenario.contenders:
        if contender.peer and not plan.peers:
            results.skipped[contender.name] = "peers were left out"
    for number in range(1, plan.rounds + 1):
        for contender in scenario.contenders:
            name = contender.name
            if name in results.skipped or name in results.failed:
                continue
            with _database(server) as database:
                line = start(contender, plan, database)
            if "skipped" in line:
                results.skipped[name] = line["skipped"]
            elif "failed" in line:
                results.failed[name] = line["failed"]
            else:
                results.rounds.setdefault(name, []).append(line)
            say(f"{scenario.name} {number}/{plan.rounds} {name}: {_brief(line)}")
    return results


def _brief(line: dict[str, Any]) -> str:
    for word in ("skipped", "failed"):
        if word in line:
            return f"{word}: {line[word].splitlines()[0]}"
    return f"{line['per_second']:,.0f}/s"


@contextlib.contextmanager
def _database(server: PostgresServer | None) -> Iterator[str | None]:
    """Yield the address of an empty database, dropped afterwards."""
    if server is None:
        yield None
        return
    yield server.create_database("bench")
    server.drop_database("bench")


def start(contender: Contender, plan: Plan, database: str | None = None) -> dict[str, Any]:
    """Run one contender once and return its line, or ``{"failed": why}``."""
    interpreter = str(environment.python()) if contender.peer else sys.executable
    command = [interpreter, "-m", contender.module]
    command += ["--warm", str(plan.warm), "--seconds", str(plan.seconds)]
    command += ["--directory", str(plan.directory), *contender.arguments]
    if database is not None:
        command += ["--database", database]
    if plan.quick:
        command += contender.quick
    process = subprocess.Popen(
        command,
        cwd=environment.CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A group of its own: what a contender started ends with it.
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=plan.warm + plan.seconds + contender.patience)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return {"failed": f"it did not end within {error.timeout:.0f} s"}
    try:
        line = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        line = None
    if process.returncode or not isinstance(line, dict):
        said = err.strip().splitlines() or [f"it ended with {process.returncode}"]
        return {"failed": "\n".join([said[-1], *said[-20:-1]])}
    return line

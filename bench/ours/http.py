"""Retinue over HTTP: ``wrk`` posts echo tasks to a server in a process of its own.

``--door durable`` is ``POST /v1/orchestrate`` on a fresh SQLite file; afterwards its chains must
hold two contracts for each answered request. ``--door echo`` is the same server's ``/bench/echo``,
which stores nothing, and ``--door bare`` another server without anything of the product.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from bench import wrk
from bench.environment import CHECKOUT
from bench.load import TEXT, Run, arguments, report, scratch, skip
from bench.ours.echo import chained
from bench.ours.fill import session_name
from retinue.settings.model import ALIASES, PREFIX

PATHS = {"durable": "/v1/orchestrate", "echo": "/bench/echo", "bare": "/v1/orchestrate"}
STOP_SECONDS = 15


def command(door: str, database: Path) -> list[str]:
    """Return what starts the server."""
    if door == "bare":
        return [sys.executable, "-m", "bench.ours.plain"]
    return [sys.executable, "-m", "bench.ours.served", str(database)]


def environment() -> dict[str, str]:
    """Return ours without anything that would set the server up otherwise."""
    return {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) and k not in ALIASES}


def bodies(sessions: int) -> list[bytes]:
    """Return one task for each session."""
    made = []
    for number in range(sessions):
        task = {
            "session_id": session_name(number),
            "capability": "echo",
            "parameters": {"text": TEXT},
        }
        made.append(json.dumps(task).encode())
    return made


def check(url: str, body: bytes) -> None:
    """POST one task and stop unless it is echoed."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            reply = json.load(answer)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"the server answered {error.code}: {error.read()[:300]!r}") from None
    # /bench/echo gives back all parameters.
    if reply["data"] not in (TEXT, {"text": TEXT}):
        raise SystemExit(f"the server answered {reply}")


def measure(run: Run, database: Path) -> dict[str, Any]:
    """Start the server, post, stop it; return the line."""
    door = run.options.door
    tasks = bodies(run.options.sessions)
    server = subprocess.Popen(
        command(door, database),
        cwd=CHECKOUT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        base = server.stdout.readline().strip()
        if not base:
            raise SystemExit(f"the server ended with {server.wait()} before it served")
        url = base + PATHS[door]
        check(url, tasks[0])
        line = wrk.post(url, tasks, connections=run.callers, seconds=run.seconds, warm=run.warm)
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    line["rss_mb"] = round(used.ru_maxrss / 1024, 1)
    if line["non_2xx"] or line["socket_errors"]:
        line["failed"] = f"{line['non_2xx']} refusals, {line['socket_errors']} socket errors"
    return line


def main() -> None:
    """Measure, check the database, report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--door", choices=sorted(PATHS), default="durable")
        parser.add_argument("--sessions", type=int, default=64)

    run = arguments("Echo over HTTP, posted by wrk", more)
    if wrk.find() is None:
        skip(wrk.MISSING)
    with scratch(run) as directory:
        database = directory / "retinue.db"
        line = measure(run, database)
        if run.options.door == "durable":
            # wrk cuts off what is under way when its time is over: those tasks are in the chains
            # without having been answered. Fewer than answered there may never be.
            contracts = chained(database)
            if contracts < 2 * (line["total"] + 1):
                raise SystemExit(f"{line['total'] + 1} answered, {contracts} contracts")
            line["contracts"] = contracts
    report(line)


if __name__ == "__main__":
    main()

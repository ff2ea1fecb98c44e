"""One execution streamed to many readers: what reaches them, from the first event to the last.

The server and the readers are processes of their own. Each round an agent emits its events as fast
as they are taken, once all readers have seen its first one; a round is over when every reader has
the terminal event, and each must have got them all, in a row. ``--door bare`` is a server that
keeps the events of a round in a list and sends each reader what it has not seen, as one chunk:
no store, no journal, no routing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench.environment import CHECKOUT
from bench.load import Run, arguments, percentile, report, scratch
from bench.ours.http import STOP_SECONDS, environment

EVENTS = 3000


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST ``body`` and return the answer."""
    content = json.dumps(body).encode()
    request = urllib.request.Request(
        url + path, data=content, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def task(capability: str, **parameters: Any) -> dict[str, Any]:
    """Return the body that has an agent do something."""
    return {"session_id": "bench", "capability": capability, "parameters": parameters}


def once(url: str, readers: int, number: int) -> dict[str, Any]:
    """Stream one execution to all readers; return what they saw."""
    name = f"round-{number}"
    made = post(url, "/v1/executions", task("emit", name=name, count=EVENTS))
    path = f"/v1/executions/{made['execution_id']}/events"
    command = [sys.executable, "-m", "bench.ours.readers", url, path, str(readers)]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise SystemExit("the readers did not come to their first event")
        post(url, "/v1/orchestrate", task("begin", name=name))
        seen: dict[str, Any] = json.loads(process.stdout.readline())
    if set(seen["events"]) != {EVENTS + 2}:
        raise SystemExit(f"the readers got {sorted(set(seen['events']))}, not {EVENTS + 2} events")
    return seen


def measure(run: Run, directory: Path) -> dict[str, Any]:
    """Start the server, stream for as long as asked, stop it; return the line."""
    module = {"product": "bench.ours.served", "bare": "bench.ours.sse_plain"}[run.options.door]
    server = subprocess.Popen(
        [sys.executable, "-m", module, str(directory / "retinue.db")],
        cwd=CHECKOUT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    readers = run.options.readers
    rounds: list[dict[str, Any]] = []
    try:
        url = server.stdout.readline().strip()
        once(url, readers, 0)
        end = time.monotonic() + run.warm + run.seconds
        while not rounds or time.monotonic() < end:
            rounds.append(once(url, readers, len(rounds) + 1))
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    times = sorted(seconds for seen in rounds for seconds in seen["seconds"])
    delivered = readers * EVENTS * len(rounds)
    return {
        "per_second": round(delivered / sum(seen["all"] for seen in rounds), 1),
        "p50_ms": round(percentile(times, 0.5) * 1e3, 3),
        "p99_ms": round(percentile(times, 0.99) * 1e3, 3),
        "rounds": len(rounds),
        "readers": readers,
        "bytes_per_event": round(rounds[-1]["bytes"] / (EVENTS + 2)),
    }


def main() -> None:
    """Measure and report."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--door", choices=("product", "bare"), default="product")
        parser.add_argument("--readers", type=int, default=100)

    run = arguments("One execution to many readers, server-sent events", more)
    with scratch(run) as directory:
        report(measure(run, directory))


if __name__ == "__main__":
    main()

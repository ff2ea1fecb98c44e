"""Drive an HTTP server with ``wrk``: POST bodies over many connections, and read what it saw.

``wrk`` is a program of its own; without it the HTTP scenarios are skipped, and the skip says how to
get it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("post.lua")
MISSING = (
    "wrk is not installed (Debian, Ubuntu: apt-get install wrk; Fedora: dnf install wrk; "
    "macOS: brew install wrk)"
)


class WrkFailed(RuntimeError):
    """wrk ended without a result."""


def find() -> str | None:
    """Return the path of ``wrk``, or None when there is none."""
    return shutil.which("wrk")


def post(
    url: str,
    bodies: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    warm: float = 0.0,
    threads: int = 1,
) -> dict[str, Any]:
    """POST ``bodies`` (each one line) in turn to ``url``; return the rate, latencies and failures.

    The warm-up is a run of its own whose numbers are dropped (its answered requests are counted in
    ``total``). ``non_2xx`` counts answers of 400 and above, ``socket_errors`` everything that got
    no answer.

    Raises:
        WrkFailed: it is not there, or could not run.
    """
    wrk = find()
    if wrk is None:
        raise WrkFailed(MISSING)
    total = 0
    if warm > 0:
        total = int(_run(wrk, url, bodies, connections, threads, warm)["requests"])
    seen = _run(wrk, url, bodies, connections, threads, seconds)
    measured = seen["micros"] / 1e6
    return {
        "per_second": round(seen["requests"] / measured, 1),
        "p50_ms": round(seen["p50_us"] / 1e3, 3),
        "p90_ms": round(seen["p90_us"] / 1e3, 3),
        "p99_ms": round(seen["p99_us"] / 1e3, 3),
        "counted": seen["requests"],
        "total": total + int(seen["requests"]),
        "non_2xx": seen["status"],
        "socket_errors": seen["connect"] + seen["read"] + seen["write"] + seen["timeout"],
    }


def _run(
    wrk: str, url: str, bodies: Sequence[bytes], connections: int, threads: int, seconds: float
) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(b"\n".join(bodies) + b"\n")
        file.flush()
        # wrk takes whole seconds only.
        duration = max(round(seconds), 1)
        command = [wrk, f"-t{threads}", f"-c{connections}", f"-d{duration}s", "--timeout", "10s"]
        ended = subprocess.run(
            [*command, "--script", str(SCRIPT), url],
            env={**os.environ, "BENCH_BODIES": file.name},
            capture_output=True,
            text=True,
            timeout=duration + 60,
            check=False,
        )
    for line in ended.stdout.splitlines():
        if line.startswith("bench "):
            seen: dict[str, Any] = json.loads(line.removeprefix("bench "))
            return seen
    said = (ended.stderr or ended.stdout).strip().splitlines()
    raise WrkFailed(said[-1] if said else f"wrk ended with {ended.returncode} and said nothing")

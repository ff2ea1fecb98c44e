"""``make bench``: run the scenarios, print what they say, keep it as JSON.

Targets are shown beside what was reached; falling short of one is a finding, not a failure, and the
command succeeds. It fails only when a contender could not be measured at all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import environment, report, rounds
from bench.scenarios import SCENARIOS

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    options = _options()
    chosen = [s for s in SCENARIOS if not options.only or s.name in options.only]
    peers = not options.no_peers and any(c.peer for s in chosen for c in s.contenders)
    if peers:
        try:
            environment.prepare()
        except environment.NoPeers as error:
            _say(f"the peers are left out, their environment cannot be made: {error}")
            peers = False
    plan = rounds.Plan(
        rounds=options.rounds or (1 if options.quick else 5),
        warm=0.5 if options.quick else 2.0,
        seconds=options.seconds or (1.0 if options.quick else 3.0),
        directory=options.directory,
        quick=options.quick,
        peers=peers,
    )
    started = datetime.now(UTC)
    record: dict[str, Any] = {
        "started": started.isoformat(timespec="seconds"),
        "machine": machine(plan.directory),
        "plan": {"rounds": plan.rounds, "warm": plan.warm, "seconds": plan.seconds},
        "scenarios": {},
    }
    sys.stdout.write(_heading(record) + "\n")
    failed = False
    for scenario in chosen:
        results = rounds.run(scenario, plan, _say)
        sys.stdout.write("\n" + report.table(scenario, results) + "\n")
        sys.stdout.flush()
        record["scenarios"][scenario.name] = report.as_dict(scenario, results)
        failed = failed or bool(results.failed)
        # After every scenario: an interrupted run keeps what it has.
        _keep(record, started)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure Retinue beside a probe and its peers."
    )
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=names,
        help=f"run this scenario; may be repeated ({', '.join(names)})",
    )
    parser.add_argument("--rounds", type=int, help="rounds of each scenario (5)")
    parser.add_argument("--seconds", type=float, help="measured seconds of each run (3)")
    parser.add_argument("--quick", action="store_true", help="one short round, a smaller store")
    parser.add_argument("--no-peers", action="store_true", help="leave other systems out")
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where the databases are made (the system's temporary directory)",
    )
    return parser.parse_args()


def machine(directory: Path) -> dict[str, Any]:
    """Return what the numbers depend on."""
    return {
        "cpus": os.cpu_count(),
        "load1": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "filesystem": filesystem(directory),
    }


def filesystem(directory: Path) -> str:
    """Return the type of the file system that holds ``directory``, where the kernel tells."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    best, kind = "", "unknown"
    path = str(directory.resolve())
    for line in mounts.read_text().splitlines():
        _, at, this, *_ = line.split()
        inside = path == at or path.startswith(at.rstrip("/") + "/")
        if inside and len(at) >= len(best):
            best, kind = at, this
    return kind


def _heading(record: dict[str, Any]) -> str:
    where, plan = record["machine"], record["plan"]
    lines = [
        f"{where['cpus']} CPUs, load {where['load1']}, Python {where['python']}, SQLite"
        f" {where['sqlite']} on {where['filesystem']};"
        f" {plan['rounds']} rounds of {plan['seconds']:g} s, medians"
    ]
    if where["filesystem"] in {"tmpfs", "ramfs"}:
        lines.append(
            "warning: the databases lie in memory, so nothing here is durable;"
            " name a directory on a disk with --directory"
        )
    return "\n".join(lines)


def _say(line: str) -> None:
    sys.stderr.write(f"bench: {line}\n")
    sys.stderr.flush()


def _keep(record: dict[str, Any], started: datetime) -> None:
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    (RESULTS / f"{started:%Y%m%dT%H%M%SZ}.json").write_text(text)
    (RESULTS / "latest.json").write_text(text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

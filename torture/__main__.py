"""``make torture``: run the scenarios, print what they found, keep it as JSON.

It fails when a promise was broken, or a negative control was not caught. What cannot be done on
this machine is skipped, and says why. The seed is printed first; with it a run can be repeated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import secrets
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retinue.testing.servers import PostgresServer
from torture.image import NoImages
from torture.points import AT_START, AT_STOP, SERVING
from torture.rig import Plan, Report
from torture.scenarios import FULL, QUICK, SCENARIOS, Profile, Scenario

_HEADINGS = (
    "scenario", "blows", "sends", "acked", "runs", "retaken", "lost", "repeated", "violations",
    "ready", "answered", "resumed", "seconds", "verdict",
)  # fmt: skip
_SHOWN = 20
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    options = _options()
    profile = FULL if options.full else QUICK
    seed = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
    chosen = [s for s in SCENARIOS if not options.only or s.name in options.only]
    _say(f"seed {seed}")
    started = datetime.now(UTC)
    record: dict[str, Any] = {
        "started": started.isoformat(timespec="seconds"),
        "seed": seed,
        "profile": "full" if options.full else "quick",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "scenarios": {},
    }
    rows: list[tuple[str, ...]] = []
    failed: list[str] = []
    directory = Path(tempfile.mkdtemp(prefix="retinue-torture-"))
    with ExitStack() as stack:
        postgres: PostgresServer | None = None
        if any(scenario.shared for scenario in chosen):
            postgres = stack.enter_context(PostgresServer())
        for scenario in chosen:
            plan = _plan(scenario, profile, seed, postgres, tuple(options.point or ()))
            report, broken = _run(scenario, profile, directory / scenario.name, plan)
            verdict = broken or _verdict(scenario, report)
            rows.append(_row(scenario, report, verdict))
            record["scenarios"][scenario.name] = report.as_dict() | {"verdict": verdict}
            _keep(record, started)
            if not verdict.startswith(("ok", "skipped")):
                failed.append(scenario.name)
    _say("\n".join(table(rows)))
    if not failed:
        shutil.rmtree(directory)
        return 0
    only = " ".join(f"--only {name}" for name in failed)
    size = " --full" if options.full else ""
    _say(f"failed. Again: {sys.executable} -m torture{size} --seed {seed} {only}")
    _say(f"What the runs left is in {directory}")
    return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m torture", description="Crash Retinue, then check what it promised."
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few minutes (the default)")
    size.add_argument("--full", action="store_true", help="many more of everything")
    parser.add_argument("--seed", type=int, help="what to ask and when to kill; random if absent")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[scenario.name for scenario in SCENARIOS],
        help="run this scenario; may be repeated (%(choices)s)",
    )
    parser.add_argument(
        "--point",
        action="append",
        metavar="POINT",
        choices=sorted({*SERVING, *AT_STOP, *AT_START}),
        help="sweep this crash point only; may be repeated (torture/points.py lists them)",
    )
    return parser.parse_args()


def _plan(
    scenario: Scenario,
    profile: Profile,
    seed: int,
    postgres: PostgresServer | None,
    points: tuple[str, ...],
) -> Plan:
    database: str | None = None
    if scenario.shared:
        assert postgres is not None
        database = postgres.create_database(scenario.name)
    return Plan(
        seed=seed,
        database=database,
        servers=scenario.servers,
        callers=profile.callers,
        points=points,
    )


def _run(
    scenario: Scenario, profile: Profile, directory: Path, plan: Plan
) -> tuple[Report, str | None]:
    """Run a scenario; return its report, and a verdict when it did not come to an end."""
    _say(f"{scenario.name} …")
    try:
        report = asyncio.run(scenario.run(directory, plan, profile))
    except NoImages as error:
        return Report(seed=plan.seed), f"skipped: {error}"
    except Exception:
        _say(traceback.format_exc())
        return Report(seed=plan.seed), "broke off"
    for violation in [] if scenario.control else report.violations[:_SHOWN]:
        _say(f"  {violation}")
    return report, None


def _verdict(scenario: Scenario, report: Report) -> str:
    if scenario.control:
        return "ok: caught" if report.lost else "FAILED: not caught"
    return "FAILED" if report.violations else "ok"


def _row(scenario: Scenario, report: Report, verdict: str) -> tuple[str, ...]:
    blows = (
        (report.crashes, "points"),
        (report.cuts, "cuts"),
        (report.kills - report.crashes - report.cuts, "killed"),
        (report.freezes, "frozen"),
        (report.drains, "drained"),
        (report.outages, "outages"),
        (report.examples, "examples"),
    )
    return (
        scenario.name,
        ", ".join(f"{count} {what}" for count, what in blows if count > 0),
        *(str(n) for n in (report.sends, report.acknowledged, report.executions, report.retaken)),
        *(str(n) for n in (report.lost, report.repeated, len(report.violations))),
        *(
            f"{max(seconds):.2f}" if seconds else ""
            for seconds in (report.ready, report.answered, report.resumed)
        ),
        f"{report.seconds:.1f}",
        verdict,
    )


def _keep(record: dict[str, Any], started: datetime) -> None:
    """Write what is known so far: an interrupted run keeps it."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    (RESULTS / f"{started:%Y%m%dT%H%M%SZ}.json").write_text(text)
    (RESULTS / "latest.json").write_text(text)


def table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of the table; times are the longest, in seconds."""
    lines = [_HEADINGS, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(_HEADINGS))]
    for line in lines:
        yield "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

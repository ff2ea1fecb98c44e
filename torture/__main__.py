"""``make torture``: run the scenarios, print what they found, fail when a promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from retinue.testing.servers import PostgresServer
from torture.rig import Plan, Report
from torture.scenarios import FULL, QUICK, SCENARIOS, Profile, Scenario

_HEADINGS = (
    "scenario", "blows", "sends", "acked", "runs", "retaken", "lost", "repeated", "violations",
    "ready", "answered", "resumed", "seconds", "verdict",
)  # fmt: skip
_SHOWN = 20


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    options = _options()
    profile = FULL if options.full else QUICK
    seed = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
    chosen = [s for s in SCENARIOS if not options.only or s.name in options.only]
    _say(f"seed {seed}")
    rows: list[tuple[str, ...]] = []
    failed: list[str] = []
    directory = Path(tempfile.mkdtemp(prefix="retinue-torture-"))
    with ExitStack() as stack:
        postgres: PostgresServer | None = None
        if any(scenario.shared for scenario in chosen):
            postgres = stack.enter_context(PostgresServer())
        for scenario in chosen:
            report = _run(scenario, profile, seed, directory / scenario.name, postgres)
            ok = report is not None and _holds(scenario, report)
            rows.append(_row(scenario, report, ok))
            if not ok:
                failed.append(scenario.name)
    _say("\n".join(table(rows)))
    if not failed:
        shutil.rmtree(directory)
        return 0
    only = " ".join(f"--only {name}" for name in failed)
    size = " --full" if options.full else ""
    _say(f"failed. Again: python -m torture{size} --seed {seed} {only}")
    _say(f"What the runs left is in {directory}")
    return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m torture", description="Crash Retinue, then check what it promised."
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="less than a minute (the default)")
    size.add_argument("--full", action="store_true", help="many more of everything")
    parser.add_argument("--seed", type=int, help="what to ask and when to kill; random if absent")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[scenario.name for scenario in SCENARIOS],
        help="run this scenario; may be repeated (%(choices)s)",
    )
    return parser.parse_args()


def _run(
    scenario: Scenario,
    profile: Profile,
    seed: int,
    directory: Path,
    postgres: PostgresServer | None,
) -> Report | None:
    database: str | None = None
    if scenario.shared:
        assert postgres is not None
        database = postgres.create_database(scenario.name)
    plan = Plan(seed=seed, database=database, servers=scenario.servers, callers=profile.callers)
    _say(f"{scenario.name} …")
    try:
        report = asyncio.run(scenario.run(directory, plan, profile))
    except Exception:
        _say(traceback.format_exc())
        return None
    for violation in [] if scenario.control else report.violations[:_SHOWN]:
        _say(f"  {violation}")
    return report


def _holds(scenario: Scenario, report: Report) -> bool:
    if scenario.control:
        return report.lost > 0
    return not report.violations


def _row(scenario: Scenario, report: Report | None, ok: bool) -> tuple[str, ...]:
    if report is None:
        return (scenario.name, *[""] * (len(_HEADINGS) - 2), "broke off")
    blows = (
        (report.kills, "killed"),
        (report.freezes, "frozen"),
        (report.drains, "drained"),
        (report.outages, "outages"),
    )
    verdict = "ok" if ok else "FAILED"
    if scenario.control:
        verdict = "ok: caught" if ok else "FAILED: not caught"
    return (
        scenario.name,
        ", ".join(f"{count} {what}" for count, what in blows if count),
        *(str(n) for n in (report.sends, report.acknowledged, report.executions, report.retaken)),
        *(str(n) for n in (report.lost, report.repeated, len(report.violations))),
        *(
            f"{max(seconds):.2f}" if seconds else ""
            for seconds in (report.ready, report.answered, report.resumed)
        ),
        f"{report.seconds:.1f}",
        verdict,
    )


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

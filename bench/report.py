"""From rounds to medians, ratios and targets: as a table for people, as JSON for the next run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.rounds import Results
from bench.scenarios import Scenario, Target

MEDIANS = ("per_second", "p50_ms", "p99_ms", "cpu_us_per_task", "rss_mb")


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and the least and the most of them."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: list[float]) -> Spread | None:
        """Return the spread of ``values``, or None when there are none."""
        if not values:
            return None
        return Spread(statistics.median(values), min(values), max(values))

    def as_dict(self) -> dict[str, float]:
        """Return it for the JSON file."""
        return {
            "median": round(self.median, 4),
            "min": round(self.least, 4),
            "max": round(self.most, 4),
        }


def ratios(results: Results, name: str, of: str, metric: str = "per_second") -> Spread | None:
    """Return ``name``'s metric over ``of``'s, round by round."""
    mine = results.rounds.get(name, [])
    others = results.rounds.get(of, [])
    pairs = [(a[metric], b[metric]) for a, b in zip(mine, others, strict=False)]
    return Spread.of([a / b for a, b in pairs if b])


def reached(results: Results, target: Target) -> Spread | None:
    """Return what a target's contender reached, or None when it did not run."""
    if target.of is not None:
        return ratios(results, target.contender, target.of, target.metric)
    rounds = results.rounds.get(target.contender, [])
    return Spread.of([line[target.metric] for line in rounds])


def verdict(target: Target, spread: Spread | None) -> str:
    """Return PASS or SHORT, or ``-`` when there is nothing to judge."""
    if spread is None or math.isnan(spread.median):
        return "-"
    met = spread.median <= target.bound if target.at_most else spread.median >= target.bound
    return "PASS" if met else "SHORT"


# -- for people ----------------------------------------------------------------------------------

HEAD = ("", "", "p50", "p99", "CPU/task", "memory", "ratio", "(least to most)")


def table(scenario: Scenario, results: Results) -> str:
    """Return a scenario's results as lines of text."""
    lines = [f"{scenario.name}: {scenario.title}"]
    rows: list[tuple[str, ...]] = [(HEAD[0], scenario.unit, *HEAD[2:])]
    notes: list[str] = []
    for contender in scenario.contenders:
        name = contender.name
        if name in results.rounds:
            rows.append(_row(scenario, results, name))
        for word, why in (("skipped", results.skipped), ("FAILED", results.failed)):
            if name in why:
                notes.append(f"  {name} {word}: {why[name]}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    for row in rows:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(("  " + "  ".join([first, *rest])).rstrip())
    lines += notes
    lines += _targets(scenario, results)
    return "\n".join(lines)


def _row(scenario: Scenario, results: Results, name: str) -> tuple[str, ...]:
    rounds = results.rounds[name]
    middle = medians(rounds)
    ratio = ratios(results, name, scenario.contenders[0].name)
    return (
        name,
        f"{middle['per_second']:,.0f}",
        latency(middle["p50_ms"]),
        latency(middle["p99_ms"]),
        latency(middle["cpu_us_per_task"] / 1e3) if "cpu_us_per_task" in middle else "",
        f"{middle['rss_mb']:.0f} MB" if "rss_mb" in middle else "",
        times(ratio.median) if ratio is not None else "",
        f"({times(ratio.least)} to {times(ratio.most)})" if ratio is not None else "",
    )


def _targets(scenario: Scenario, results: Results) -> list[str]:
    rows: list[tuple[str, str, str]] = []
    for target in scenario.targets:
        spread = reached(results, target)
        show = times if target.of is not None else shown(target.metric)
        sign = "<=" if target.at_most else ">="
        if target.of is not None:
            what = "" if target.metric == "per_second" else f"{target.metric.partition('_')[0]} "
            said = f"{target.contender}: {what}{sign} {target.bound:g}x {target.of}"
        else:
            said = f"{target.contender}: {target.metric.partition('_')[0]} {sign} "
            said += show(target.bound)
        if spread is None:
            rows.append((said, "not measured", "-"))
        else:
            found = f"reached {show(spread.median)} ({show(spread.least)} to {show(spread.most)})"
            rows.append((said, found, verdict(target, spread)))
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"  target  {a.ljust(widths[0])}  {b.ljust(widths[1])}  {c}" for a, b, c in rows]


def latency(ms: float) -> str:
    """Return milliseconds as people read them."""
    if ms < 0.1:
        return f"{ms * 1000:.1f} us"
    return f"{ms:.2f} ms" if ms < 10 else f"{ms:,.0f} ms"


def shown(metric: str) -> Callable[[float], str]:
    """Return what shows a metric's values."""
    if metric.endswith("_ms"):
        return latency
    return (lambda mb: f"{mb:,.0f} MB") if metric.endswith("_mb") else (lambda n: f"{n:,.0f}")


def times(ratio: float) -> str:
    """Return a ratio as people read it."""
    if ratio >= 10:
        return f"{ratio:,.0f}x"
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.4f}x"


# -- for the next run ----------------------------------------------------------------------------


def medians(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median of each measured number over the rounds."""
    found = {}
    for metric in MEDIANS:
        values = [line[metric] for line in rounds if line.get(metric) is not None]
        if values:
            found[metric] = statistics.median(values)
    return found


def as_dict(scenario: Scenario, results: Results) -> dict[str, Any]:
    """Return a scenario's results for the JSON file."""
    baseline = scenario.contenders[0].name
    contenders: dict[str, Any] = {}
    for contender in scenario.contenders:
        name = contender.name
        if name in results.rounds:
            ratio = ratios(results, name, baseline)
            contenders[name] = {
                "median": medians(results.rounds[name]),
                "ratio": ratio.as_dict() if ratio is not None else None,
                "rounds": results.rounds[name],
            }
        for word, why in (("skipped", results.skipped), ("failed", results.failed)):
            if name in why:
                contenders.setdefault(name, {})[word] = why[name]
    targets = []
    for target in scenario.targets:
        spread = reached(results, target)
        targets.append(
            {
                "contender": target.contender,
                "of": target.of,
                "metric": target.metric,
                "at_most" if target.at_most else "at_least": target.bound,
                "reached": spread.as_dict() if spread is not None else None,
                "verdict": verdict(target, spread),
            }
        )
    return {
        "title": scenario.title,
        "baseline": baseline,
        "contenders": contenders,
        "targets": targets,
    }

"""From raw rows to a chart: three agents, each given what the one before found.

python examples/data_workflow.py [FILE.csv] [--group COLUMN] [--value COLUMN] [--out chart.svg]

Without a file a small sample is used. Rows that cannot be used are dropped, and counted by why.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import math
import statistics
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from retinue import Agent, AgentCapability, Runtime

SESSION = "data_001"
SAMPLE = """city,day,temperature
Oslo,1,4.5
Oslo,2,5.0
Oslo,2,5.0
Oslo,3,
Rome,1,18.5
Rome,2,n/a
Rome,3,21.5
Cairo,1,29.0
Cairo,2,31.5
Cairo,3,30.0
,1,12.0
"""


class DataCleaningAgent(Agent):
    """Keeps the rows that can be used."""

    def __init__(self) -> None:
        super().__init__("agent_clean_001", "Data Cleaning Agent", "Makes rows usable")

    def get_capabilities(self) -> list[AgentCapability]:
        """Return ``clean_data``."""
        parameters = {"csv": "string", "group": "string", "value": "string"}
        return [AgentCapability("clean_data", "Keep the usable rows of a table", parameters)]

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Clean a table."""
        given = task["parameters"]
        reader = csv.DictReader(io.StringIO(given["csv"]))
        missing = {given["group"], given["value"]} - set(reader.fieldnames or ())
        if missing:
            return {"success": False, "error": f"no column {', '.join(sorted(missing))}"}
        rows: list[dict[str, Any]] = []
        dropped = {"repeated": 0, "no group": 0, "no number": 0}
        seen = set()
        for row in reader:
            group = (row[given["group"]] or "").strip()
            value = _number(row[given["value"]])
            if tuple(row.values()) in seen:
                dropped["repeated"] += 1
            elif not group:
                dropped["no group"] += 1
            elif value is None:
                dropped["no number"] += 1
            else:
                rows.append({"group": group, "value": value})
            seen.add(tuple(row.values()))
        return {"success": True, "data": {"rows": rows, "dropped": dropped}}


class AnalysisAgent(Agent):
    """Computes figures."""

    def __init__(self) -> None:
        super().__init__("agent_analysis_001", "Analysis Agent", "Computes figures by group")

    def get_capabilities(self) -> list[AgentCapability]:
        """Return ``analyze``."""
        return [AgentCapability("analyze", "Figures of each group of rows", {"rows": "array"})]

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Compute each group's figures."""
        groups: dict[str, list[float]] = {}
        for row in task["parameters"]["rows"]:
            groups.setdefault(row["group"], []).append(row["value"])
        if not groups:
            return {"success": False, "error": "there are no rows to analyze"}
        figures = [
            {
                "group": name,
                "count": len(values),
                "mean": round(statistics.fmean(values), 3),
                "median": round(statistics.median(values), 3),
                "deviation": round(statistics.pstdev(values), 3),
                "least": min(values),
                "most": max(values),
            }
            for name, values in sorted(groups.items())
        ]
        return {"success": True, "data": {"figures": figures}}


class VisualizationAgent(Agent):
    """Draws charts."""

    def __init__(self) -> None:
        super().__init__("agent_chart_001", "Visualization Agent", "Draws charts as SVG")

    def get_capabilities(self) -> list[AgentCapability]:
        """Return ``visualize``."""
        parameters = {"title": "string", "figures": "array"}
        return [AgentCapability("visualize", "Draw the means as a bar chart", parameters)]

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Draw one bar per group."""
        title, figures = task["parameters"]["title"], task["parameters"]["figures"]
        return {"success": True, "data": {"format": "svg", "image": bars(title, figures)}}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def bars(title: str, figures: list[dict[str, Any]]) -> str:
    """Return a bar chart of the groups' means; bars below zero hang down."""
    width, top, room, step = 120 + 80 * len(figures), 50, 220, 80
    means = [figure["mean"] for figure in figures]
    high, low = max(0.0, *means), min(0.0, *means)
    scale = room / ((high - low) or 1.0)
    zero = top + high * scale
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + room + 50}"'
        ' font-family="sans-serif" font-size="13">',
        f'<text x="20" y="28" font-size="17">{escape(title)}</text>',
    ]
    for place, figure in enumerate(figures):
        mean, x = figure["mean"], 60 + place * step
        height = abs(mean) * scale
        y = zero - height if mean >= 0 else zero
        lines += [
            f'<rect x="{x}" y="{y:.1f}" width="50" height="{height:.1f}" fill="#4a7fb5"/>',
            f'<text x="{x}" y="{y - 5:.1f}">{mean:g}</text>',
            f'<text x="{x}" y="{top + room + 30}">{escape(figure["group"])}</text>',
        ]
    lines.append(f'<line x1="40" y1="{zero:.1f}" x2="{width - 20}" y2="{zero:.1f}" stroke="#222"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


async def main() -> int:
    """Take a table from raw rows to a chart."""
    parser = argparse.ArgumentParser(description="From raw rows to a chart.")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--group", default="city")
    parser.add_argument("--value", default="temperature")
    parser.add_argument("--out", type=Path, default=Path("chart.svg"))
    given = parser.parse_args()
    table = given.file.read_text() if given.file else SAMPLE
    # Each step is given what those before it found, by name.
    found: dict[str, Any] = {
        "csv": table,
        "group": given.group,
        "value": given.value,
        "title": f"Mean {given.value} by {given.group}",
    }
    takes = {
        "clean_data": ("csv", "group", "value"),
        "analyze": ("rows",),
        "visualize": ("title", "figures"),
    }
    async with Runtime() as orchestrator:
        for agent in (DataCleaningAgent(), AnalysisAgent(), VisualizationAgent()):
            orchestrator.register_agent(agent)
        for capability in ["clean_data", "analyze", "visualize"]:
            parameters = {name: found[name] for name in takes[capability]}
            task = {"capability": capability, "parameters": parameters}
            reply = await orchestrator.orchestrate(SESSION, task)
            if not reply["success"]:
                print(f"{capability}: {reply['error']}", file=sys.stderr)
                return 1
            found |= reply["data"]
    given.out.write_text(found["image"])
    dropped = ", ".join(f"{count} {why}" for why, count in found["dropped"].items())
    print(f"{len(found['rows'])} rows kept; dropped: {dropped}")
    for figure in found["figures"]:
        print(f"  {figure['group']}: mean {figure['mean']:g} of {figure['count']}")
    print(f"chart: {given.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))

"""Draw a picture from words: one agent, one capability, one task.

python examples/text_to_image.py "A serene landscape with a lake" --style realistic --out lake.svg

The picture is an SVG: what the prompt names is drawn, and everything else about it follows from
the prompt's hash, so the same words always give the same picture.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from retinue import Agent, AgentCapability, Runtime

WIDTH, HEIGHT, HORIZON = 480, 320, 190
STYLES = {
    # sky above, sky below, ground, stroke width
    "realistic": ("#7fb2e5", "#e8f1f8", "#5d8a4a", 0.0),
    "sunset": ("#3b2a5c", "#f29e5c", "#4a3b2f", 0.0),
    "night": ("#070b1f", "#1d2b53", "#10181c", 0.0),
    "sketch": ("#ffffff", "#ffffff", "#ffffff", 1.5),
}
SKY, LAND, WATER, GROWTH = (
    {"sun", "moon", "star", "stars", "sky"},
    {"landscape", "mountain", "mountains", "hill", "hills", "valley"},
    {"lake", "sea", "river", "water", "serene", "ocean"},
    {"tree", "trees", "forest", "wood", "garden", "landscape"},
)


class ImageGenAgent(Agent):
    """Draws what a prompt names."""

    def __init__(self) -> None:
        super().__init__("agent_image_001", "Image Generation Agent", "Draws pictures from words")

    def get_capabilities(self) -> list[AgentCapability]:
        """Return ``text_to_image``."""
        style = {"enum": sorted(STYLES), "default": "realistic"}
        parameters = {"prompt": {"type": "string", "minLength": 1}, "style": style}
        return [AgentCapability("text_to_image", "Draw a picture as SVG", parameters)]

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Draw."""
        prompt = task["parameters"]["prompt"]
        style = task["parameters"].get("style", "realistic")
        svg, drawn = draw(prompt, style)
        data = {"format": "svg", "width": WIDTH, "height": HEIGHT, "drawn": drawn, "image": svg}
        return {"success": True, "data": data}


def draw(prompt: str, style: str) -> tuple[str, list[str]]:
    """Return the picture, and what is in it."""
    words = {word.strip(".,;:!?'\"").lower() for word in prompt.split()}
    dice = random.Random(hashlib.sha256(f"{style}\n{prompt}".encode()).digest())
    above, below, ground, stroke = STYLES[style]
    line = f'stroke="#222" stroke-width="{stroke}"' if stroke else ""
    shapes: list[str] = []
    drawn: list[str] = []
    if words & SKY or style in {"sunset", "night"}:
        drawn.append("sky light")
        x, y = dice.randrange(60, WIDTH - 60), dice.randrange(40, 100)
        color = "#f4f1de" if style == "night" or "moon" in words else "#ffd35c"
        shapes.append(f'<circle cx="{x}" cy="{y}" r="24" fill="{color}" {line}/>')
    if words & LAND:
        drawn.append("mountains")
        shapes += [_mountain(dice, ground, line) for _ in range(dice.randrange(2, 5))]
    shapes.append(
        f'<rect y="{HORIZON}" width="{WIDTH}" height="{HEIGHT - HORIZON}" fill="{ground}" {line}/>'
    )
    if words & WATER:
        drawn.append("water")
        x, width = dice.randrange(140, 340), dice.randrange(90, 160)
        shapes.append(
            f'<ellipse cx="{x}" cy="255" rx="{width}" ry="26" fill="#6fa8dc" opacity="0.9" {line}/>'
        )
    if words & GROWTH:
        drawn.append("trees")
        shapes += [_tree(dice, line) for _ in range(dice.randrange(4, 9))]
    sky = (
        '<defs><linearGradient id="sky" x1="0" y1="0" x2="0" y2="1">'
        f'<stop offset="0" stop-color="{above}"/><stop offset="1" stop-color="{below}"/>'
        "</linearGradient></defs>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="url(#sky)"/>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">'
    title = f"<title>{escape(prompt)} ({style})</title>"
    return "\n".join([head, title, sky, *shapes, "</svg>"]) + "\n", drawn or ["a plain"]


def _mountain(dice: random.Random, color: str, line: str) -> str:
    left, width = dice.randrange(-60, WIDTH - 120), dice.randrange(140, 280)
    peak = f"{left + width // 2},{dice.randrange(60, 130)}"
    return (
        f'<polygon points="{left},{HORIZON} {peak} {left + width},{HORIZON}" fill="{color}"'
        f' opacity="0.7" {line}/>'
    )


def _tree(dice: random.Random, line: str) -> str:
    x, y = dice.randrange(10, WIDTH - 10), dice.randrange(HORIZON + 20, HEIGHT - 10)
    size = (y - HORIZON) // 2 + 14
    return (
        f'<rect x="{x - 2}" y="{y - 8}" width="4" height="8" fill="#5b4030"/>'
        f'<polygon points="{x - size // 2},{y - 8} {x},{y - 8 - size} {x + size // 2},{y - 8}"'
        f' fill="#2f6b3a" {line}/>'
    )


async def main() -> int:
    """Have one picture drawn and write it to a file."""
    parser = argparse.ArgumentParser(description="Draw a picture from words.")
    parser.add_argument("prompt", nargs="?", default="A serene landscape")
    parser.add_argument("--style", default="realistic", help=", ".join(sorted(STYLES)))
    parser.add_argument("--out", type=Path, default=Path("image.svg"))
    given = parser.parse_args()
    async with Runtime() as orchestrator:
        orchestrator.register_agent(ImageGenAgent())
        result = await orchestrator.orchestrate(
            session_id="design_001",
            task={
                "capability": "text_to_image",
                "parameters": {"prompt": given.prompt, "style": given.style},
            },
        )
    if not result["success"]:
        print(f"it was not drawn: {result['error']}", file=sys.stderr)
        return 1
    data = result["data"]
    given.out.write_text(data["image"])
    print(f"{given.out}: {data['width']}x{data['height']}, {', '.join(data['drawn'])}")
    return 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))

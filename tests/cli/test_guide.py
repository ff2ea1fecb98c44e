"""The guide to agents is run as it is printed: its files written, its commands typed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.cli.conftest import SECONDS, Place

GUIDE = Path(__file__).parents[2] / "docs" / "guide-agents.md"
_BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.requirement("003.extension-guide")
def test_the_guide_works_as_it_stands(place: Place) -> None:
    text = GUIDE.read_text()
    files: dict[str, str] = {}
    typed: list[tuple[str, list[str]]] = []
    for language, name, body in _BLOCK.findall(text):
        if language == "console":
            for line in body.splitlines():
                if line.startswith("$ "):
                    typed.append((line[2:], []))
                else:
                    typed[-1][1].append(line)
        elif name:
            # Blocks of one file follow each other, with a line between them.
            files[name] = f"{files[name]}\n{body}" if name in files else body
    assert files.keys() == {"my_agents.py", "retinue.yaml", "test_my_agents.py", "shouting.py"}
    assert len(typed) == 5
    for name, body in files.items():
        place.write(name, body.replace("\n\n  - ", "\n  - "))
    for command, expected in typed:
        done = subprocess.run(
            ["sh", "-c", f"{command} 2>&1"],
            cwd=place.directory,
            env=place.environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        printed = [line for line in done.stdout.splitlines() if not line.startswith("· ")]
        assert len(printed) == len(expected), (command, done.stdout)
        for line, wanted in zip(printed, expected, strict=True):
            # pytest adds how long it took.
            assert line.startswith(wanted), (command, done.stdout)


@pytest.mark.requirement("003.extension-guide")
def test_the_guide_has_the_five_steps() -> None:
    steps = re.findall(r"^## (\d)\. (.*)$", GUIDE.read_text(), re.MULTILINE)
    assert [number for number, _ in steps] == ["1", "2", "3", "4", "5"]
    words = ("class", "execute", "get_capabilities", "Register", "Test")
    for (_, title), word in zip(steps, words, strict=True):
        assert word in title

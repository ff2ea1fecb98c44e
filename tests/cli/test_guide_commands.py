"""The guide to command lines is run as it is printed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.cli.conftest import SECONDS, Place

GUIDE = Path(__file__).parents[2] / "docs" / "guide-commands.md"
_FILE = re.compile(r"^```\w+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_guide_to_command_lines_works_as_it_stands(place: Place) -> None:
    text = GUIDE.read_text()
    files = dict(_FILE.findall(text))
    assert files.keys() == {"retinue.yaml", "planner.py"}
    for name, body in files.items():
        place.write(name, body)
    (session,) = _CONSOLE.findall(text)
    runs = [run.partition("\n") for run in session.removeprefix("$ ").split("\n$ ")]
    assert len(runs) == 2
    for command, _, expected in runs:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=place.directory,
            env=place.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == expected.strip(), (command, done.stdout, done.stderr)

"""The guides to command lines and to workers are run as they are printed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.cli.conftest import SECONDS, Place

DOCS = Path(__file__).parents[2] / "docs"
_FILE = re.compile(r"^```\w+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("guide", "program", "count"),
    [("guide-commands.md", "planner.py", 2), ("guide-workers.md", "my_worker.py", 1)],
)
def test_the_guide_works_as_it_stands(place: Place, guide: str, program: str, count: int) -> None:
    text = (DOCS / guide).read_text()
    files = dict(_FILE.findall(text))
    assert files.keys() == {"retinue.yaml", program}
    for name, body in files.items():
        place.write(name, body)
    (session,) = _CONSOLE.findall(text)
    runs = [run.partition("\n") for run in session.removeprefix("$ ").split("\n$ ")]
    assert len(runs) == count
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

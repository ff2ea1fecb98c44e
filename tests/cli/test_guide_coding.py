"""The guide to coding CLIs: its configuration is valid, and its commands run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.cli.conftest import SECONDS, Place

from retinue.testing.coding_agent import install

GUIDE = Path(__file__).parents[2] / "docs" / "guide-coding-clis.md"


def test_the_guide_to_coding_clis_works_as_it_stands(place: Place) -> None:
    text = GUIDE.read_text()
    (configuration,) = re.findall(r"^```yaml retinue.yaml\n(.*?)^```$", text, re.M | re.S)
    place.write("retinue.yaml", configuration)
    install(place.directory / "bin", "claude", "codex")
    (session,) = re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S)
    commands = [line.removeprefix("$ ") for line in session.splitlines()]
    assert len(commands) == 3
    path = f"{place.directory / 'bin'}:{place.environment['PATH']}"
    keys = {"ANTHROPIC_API_KEY": "x", "OPENAI_API_KEY": "y", "ORCHESTRATOR_PORT": "0"}
    for command in commands:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=place.directory,
            env=place.environment | keys | {"PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert done.stdout.strip() == '"Now fix what you found"'

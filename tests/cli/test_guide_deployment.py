"""The guide to deployments is run as it is printed: a database, keys, a server, its callers."""

import re
import subprocess
from pathlib import Path

from tests.cli.conftest import SECONDS, Place

GUIDE = Path(__file__).parents[2] / "docs" / "guide-deployment.md"
_BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def typed(place: Place, command: str, **environment: str) -> list[str]:
    """Return the lines that a command prints."""
    done = subprocess.run(
        ["sh", "-c", f"exec 2>&1; {command}"],
        cwd=place.directory,
        env=place.environment | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.stdout.splitlines()


def test_the_guide_to_deployments_works_as_it_stands(place: Place, postgres_url: str) -> None:
    consoles: list[list[tuple[str, list[str]]]] = []
    for language, name, body in _BLOCK.findall(GUIDE.read_text()):
        if language == "console":
            block: list[tuple[str, list[str]]] = []
            for line in body.splitlines():
                if line.startswith("$ "):
                    block.append((line[2:], []))
                else:
                    block[-1][1].append(line)
            consoles.append(block)
        elif name:
            text = re.sub(r"postgresql://\S+", postgres_url, body)
            assert (text != body) is (name == ".env")
            place.write(name, text)
    keys, calls = consoles
    for command, expected in keys:
        assert expected == []
        said = typed(place, command)
        assert len(said) == 2, (command, said)
        assert said[0].startswith("key 0"), said
    for key in ("ops", "shop", "wall"):
        assert (place.directory / f"{key}.key").read_text().startswith("rtn_")
    with place.serve("--host", "0.0.0.0") as server:
        (named, _), *calls = calls
        assert named == "export RETINUE_URL=http://127.0.0.1:8888"
        for command, expected in calls:
            said = typed(place, command, RETINUE_URL=server.url)
            assert said == expected, command
    assert server.code == 0
    assert not (place.directory / ".retinue" / "retinue.db").exists(), "it was not PostgreSQL"

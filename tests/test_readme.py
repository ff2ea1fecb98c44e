"""What the README shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()
RETINUE = Path(sys.executable).parent / "retinue"


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_agent_of_the_readme_runs(tmp_path: Path) -> None:
    (tmp_path / "my_agents.py").write_text(block("python"))
    (tmp_path / "retinue.yaml").write_text(block("yaml"))
    command = re.search(r"\$ retinue (run greet .*)\n", README)
    assert command is not None
    done = subprocess.run(
        [RETINUE, *command.group(1).split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Hello, Ada! Hello, Ada! " in done.stdout


def test_its_links_lead_somewhere() -> None:
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / target).exists(), target

"""The coding CLIs in a runner's catalogue, and what a runner says of one that is not there."""

import json
from pathlib import Path

import pytest

from retinue.errors import SpawnFailed
from retinue.process import CODING_CLIS, AgentConfig, LocalProcessRunner, ProcessRunnerConfig
from retinue.testing.coding_agent import install


@pytest.mark.requirement("001.backend-claude", "001.backend-opencode", "001.backend-more")
@pytest.mark.parametrize("name", sorted(CODING_CLIS))
async def test_a_backend_runs_a_cli_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "bin", name)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    config = ProcessRunnerConfig(working_dir=tmp_path)
    async with LocalProcessRunner(config, catalogue=CODING_CLIS) as runner:
        environment = {"HOME": str(tmp_path)}
        given = AgentConfig("it", name, "--odd [[say hello]]", environment=environment)
        handle = await runner.spawn(given)
        lines = [json.loads(line.raw) async for line in handle.output()]
        assert (await handle.wait()).code == 0
    said = json.dumps(lines)
    assert "hello" in said
    assert any("session" in key.lower() or key == "thread_id" for line in lines for key in line)


async def test_one_that_is_not_there_says_how_it_is_installed(tmp_path: Path) -> None:
    async with LocalProcessRunner(catalogue=CODING_CLIS) as runner:
        environment = {"PATH": str(tmp_path)}
        with pytest.raises(SpawnFailed, match="npm install -g @openai/codex"):
            await runner.spawn(AgentConfig("it", "codex", "x", environment=environment))

"""What this machine can bear is checked at the start, and the number that fits is named."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retinue.errors import SettingsError, SpawnFailed
from retinue.process import LocalProcessRunner, ProcessRunnerConfig, ResourceLimits
from retinue.process.capacity import FILES_EACH, FILES_KEPT, Host, fits, percent, refusal
from retinue.runtime import check_capacity
from retinue.settings import CommandReference, Settings, WorkerReference

AMPLE = 1 << 40


@pytest.mark.parametrize(
    ("host", "most", "what"),
    [
        (Host(FILES_KEPT + 10 * FILES_EACH, AMPLE, AMPLE), 10, "open files"),
        (Host(AMPLE, 61, AMPLE), 20, "processes"),
        (Host(AMPLE, AMPLE, 100 << 20), 12, "memory"),
        (Host(10, AMPLE, AMPLE), 0, "open files"),
    ],
)
def test_the_scarcest_thing_says_how_many_fit(host: Host, most: int, what: str) -> None:
    assert fits(host) == (most, what)
    assert refusal(most, host) is None
    refused = refusal(most + 1, host)
    assert refused is not None
    assert refused.endswith(f"its {what} {'is' if what == 'memory' else 'are'} enough for {most}")


def test_an_agents_own_limit_counts(tmp_path: Path) -> None:
    host = Host(AMPLE, AMPLE, 1000 << 20)
    agent = CommandReference(
        driver="command", agent_id="a", command=("x",), concurrency=10, max_memory_mb=200
    )
    settings = Settings(data_dir=tmp_path, agents=(agent,))
    with pytest.raises(SettingsError, match=r"10 agents .* memory is enough for 5"):
        check_capacity(settings, host)
    check_capacity(settings.model_copy(update={"max_concurrent_executions": 5}), host)
    check_capacity(Settings(data_dir=tmp_path), Host(0, 0, 0))


def worker(**more: Any) -> WorkerReference:
    return WorkerReference(driver="stdio", name="w", command=("x",), **more)


@pytest.mark.requirement("001.capacity")
def test_a_workers_processes_count(tmp_path: Path) -> None:
    few = Host(FILES_KEPT + 10 * FILES_EACH, AMPLE, AMPLE)
    agent = CommandReference(driver="command", agent_id="a", command=("x",), concurrency=6)
    settings = Settings(data_dir=tmp_path, agents=(agent, worker(process_pool_size=4)))
    check_capacity(settings, few)
    more = settings.model_copy(update={"agents": (agent, worker(process_pool_size=5))})
    with pytest.raises(SettingsError, match=r"11 agents .* open files are enough for 10"):
        check_capacity(more, few)
    # Only what runs per task is bounded by how many tasks run.
    check_capacity(more.model_copy(update={"max_concurrent_executions": 5}), few)
    alone = Settings(data_dir=tmp_path, agents=(worker(process_pool_size=11),))
    with pytest.raises(SettingsError, match=r"11 agents .*process_pool_size"):
        check_capacity(alone.model_copy(update={"max_concurrent_executions": 1}), few)


@pytest.mark.requirement("001.capacity")
def test_a_workers_memory_counts_as_its_operator_sets_it_aside(tmp_path: Path) -> None:
    small = Host(AMPLE, AMPLE, 1 << 30)
    # Three processes that may have 4 GiB each by default, and are not what they may be.
    check_capacity(Settings(data_dir=tmp_path, agents=(worker(),)), small)
    said = worker(max_memory_mb=4096)
    with pytest.raises(SettingsError, match=r"3 agents .* memory is enough for 0"):
        check_capacity(Settings(data_dir=tmp_path, agents=(said,)), small)
    agent = CommandReference(
        driver="command", agent_id="a", command=("x",), concurrency=2, max_memory_mb=100
    )
    beside = worker(process_pool_size=2, max_memory_mb=400)
    check_capacity(Settings(data_dir=tmp_path, agents=(agent, beside)), small)
    beside = worker(process_pool_size=2, max_memory_mb=420)
    with pytest.raises(SettingsError, match="memory is enough for 3"):
        check_capacity(Settings(data_dir=tmp_path, agents=(agent, beside)), small)


@pytest.mark.requirement("001.capacity")
def test_a_runner_that_wants_more_than_there_is_is_refused() -> None:
    LocalProcessRunner(config=ProcessRunnerConfig(max_concurrent_agents=1))
    limits = ResourceLimits(max_memory_mb=1 << 30)
    with pytest.raises(SpawnFailed, match=r"2 agents .* memory is enough for 0"):
        LocalProcessRunner(config=ProcessRunnerConfig(max_concurrent_agents=2, limits=limits))


@pytest.mark.requirement("001.capacity")
def test_a_server_that_wants_more_than_there_is_does_not_start(tmp_path: Path) -> None:
    text = (
        "examples: false\nport: 0\nagents:\n"
        "  - {driver: command, agent_id: a, command: [cat], concurrency: 200}\n"
    )
    (tmp_path / "retinue.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "retinue", "serve"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (328, 328)),
    )
    assert done.returncode != 0
    assert "200 agents at one time do not fit this machine" in done.stderr
    assert "its open files are enough for 50" in done.stderr


@pytest.mark.requirement("001.metrics")
def test_no_moment_uses_more_than_there_is() -> None:
    assert percent(0.5, 2.0) == 25.0
    assert percent(20.0, 2.0) == 1000.0  # of ten CPUs: it may run elsewhere
    assert percent(0.05, 0.001) == 100.0 * (os.cpu_count() or 1)
    assert percent(0.05, 0.0) == 0.0

"""One worker's process, from Python: started, asked, ended; and nothing of it is left."""

import os
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from tests.process.rig import alive, until

from retinue.errors import SpawnFailed
from retinue.worker import WorkerProcess

PROGRAM = Path(__file__).parents[1] / "engine" / "misbehaving.py"
COMMAND = (sys.executable, "-I", "-S", "-u", str(PROGRAM))


def left() -> tuple[int, list[str], list[str]]:
    """Return what this process holds: descriptors, threads (the loop's own apart), files."""
    threads = [t.name for t in threading.enumerate() if not t.name.startswith("asyncio_")]
    made = [
        name for name in os.listdir(tempfile.gettempdir()) if name.startswith("retinue-worker-")
    ]
    return len(os.listdir("/proc/self/fd")), threads, made


@pytest.fixture(autouse=True)
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.requirement("000.process-api")
async def test_it_is_spawned_healthy_and_after_its_shutdown_nothing_is_left() -> None:
    before = left()
    worker = await WorkerProcess.spawn(*COMMAND, "agents=a,b", environment={"X": "1"})
    assert worker.agents == ["a", "b"]
    health = await worker.healthy()
    assert health
    assert health.healthy is True
    assert 0 < health.latency_ms < 5000
    assert worker.alive()
    await worker.shutdown()
    await worker.shutdown()  # harmless
    assert not worker.alive()
    assert not alive(worker.pid)
    assert not await worker.healthy()
    assert left() == before


@pytest.mark.requirement("000.process-api")
async def test_paths_mean_what_they_mean_to_who_spawns_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "here" / "my_worker.py").write_text(PROGRAM.read_text())
    monkeypatch.chdir(tmp_path / "here")
    async with await WorkerProcess.spawn(sys.executable, "my_worker.py") as worker:
        assert os.readlink(f"/proc/{worker.pid}/cwd") == str(tmp_path / "here")
    below = Path("below")
    async with await WorkerProcess.spawn(
        sys.executable, "../my_worker.py", work_dir=below
    ) as worker:
        assert os.readlink(f"/proc/{worker.pid}/cwd") == str(tmp_path / "here" / "below")


@pytest.mark.requirement("000.process-api")
async def test_one_that_has_died_is_neither_alive_nor_healthy() -> None:
    before = left()
    async with await WorkerProcess.spawn(*COMMAND) as worker:
        os.kill(worker.pid, 9)
        await until(lambda: not worker.alive())
        assert not await worker.healthy()
    assert left() == before


@pytest.mark.requirement("000.process-api")
async def test_one_that_does_not_become_ready_leaves_nothing() -> None:
    before = left()
    with pytest.raises(SpawnFailed, match=r"not ready within 0.2 s"):
        await WorkerProcess.spawn(*COMMAND, "start=silent", startup_timeout=0.2)
    with pytest.raises(SpawnFailed, match="no module x"):
        await WorkerProcess.spawn(*COMMAND, "start=refuse")
    with pytest.raises(SpawnFailed, match="does not exist"):
        await WorkerProcess.spawn("/absent")
    assert left() == before

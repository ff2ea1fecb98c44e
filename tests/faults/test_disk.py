"""The disk fills up, or breaks: nothing is acknowledged that is not kept, and reads go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torture import ledger
from torture.http import Broken, Connection, ask
from torture.servers import Server

if TYPE_CHECKING:
    from tests.faults.conftest import Start

RESUMED_SECONDS = 5.0
MEBIBYTE = 1 << 20


@contextlib.contextmanager
def mounted(kind: str, directory: Path) -> Iterator[Path]:
    """Yield a small file system of its own: in memory, or ext4 in a file."""
    place = directory / "small"
    place.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    else:
        image = directory / "image"
        with image.open("wb") as file:
            file.truncate(24 * MEBIBYTE)
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("there is no mkfs.ext4")
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(place)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    with mounted(request.param, tmp_path) as place:
        yield place


def fill(place: Path) -> Path:
    """Take all the space there is, to the last byte, and return the file that has it."""
    ballast = place / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (MEBIBYTE, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    if not file.write(b"x" * size):
                        break
            os.fsync(file.fileno())
    return ballast


async def submit(link: Connection, value: str, capability: str = "reflect", **more: Any) -> Any:
    """Send a task and return the answer."""
    body = {"session_id": "s", "capability": capability, "parameters": more or {"value": value}}
    return await link.send("POST", "/v1/executions", body)


async def until_refused(link: Connection) -> list[str]:
    """Submit until the answer is 507; return what was accepted."""
    accepted: list[str] = []
    for n in range(20_000):
        status, answer = await submit(link, f"{n}" + "x" * 2000)
        if status == 507:
            assert answer["code"] == "E_STORE_FULL"
            assert answer["retryable"] is True
            return accepted
        assert status == 202, answer
        accepted.append(answer["execution_id"])
    raise AssertionError("the disk never fills up")


async def ended(server: Server, execution_id: str, seconds: float = 20) -> dict[str, Any]:
    """Return an execution once it has ended."""
    async with asyncio.timeout(seconds):
        while True:
            _, found = await ask(server.url, "GET", f"/v1/executions/{execution_id}")
            if found["state"] in ledger.TERMINAL:
                return dict(found)
            await asyncio.sleep(0.02)


async def test_a_full_disk_refuses_writes_and_nothing_else(
    small: Path, start: Start, tmp_path: Path
) -> None:
    server = await start(data_dir=str(small / "data"))
    link = await Connection.open(server.url)
    flag = tmp_path / "flag"
    _, running = await submit(link, "", "until", path=str(flag))
    _, streaming = await submit(link, "", "until", path=str(tmp_path / "other"))
    ballast = fill(small)
    accepted = await until_refused(link)
    for _ in range(20):
        fill(small)  # what was let go of in between
        status, _ = await submit(link, "x" * 5000)
        assert status == 507
    # What runs comes to its end while there is no space for saying so.
    flag.touch()
    # Reads go on.
    status, health = await ask(server.url, "GET", "/v1/health")
    assert status == 200, health
    for path in ("/v1/contracts?limit=3", "/v1/status", "/v1/ledger/verify", "/v1/executions"):
        status, answer = await ask(server.url, "GET", path)
        assert status == 200, answer
    ballast.unlink()
    freed = time.monotonic()
    while (await submit(link, "again"))[0] != 202:
        assert time.monotonic() - freed < RESUMED_SECONDS
        await asyncio.sleep(0.05)
    assert (await ended(server, running["execution_id"]))["state"] == "completed"
    (tmp_path / "other").touch()
    assert (await ended(server, streaming["execution_id"]))["state"] == "completed"
    for execution_id in accepted:
        assert (await ended(server, execution_id))["state"] == "completed"
    status, verdict = await ask(server.url, "GET", "/v1/ledger/verify")
    assert (status, verdict["ok"]) == (200, True), verdict
    assert verdict["contracts"] >= 2 * len(accepted)
    link.close()
    server.terminate()
    assert await server.ended() == 0
    said = server.log
    assert "retinue.db is full: new tasks are refused" in said
    assert "retinue.db has room again: new tasks are taken" in said


async def test_a_server_starts_on_a_full_disk_and_its_work_goes_on_later(
    small: Path, start: Start, tmp_path: Path
) -> None:
    server = await start(data_dir=str(small / "data"))
    link = await Connection.open(server.url)
    flag = tmp_path / "flag"
    _, running = await submit(link, "", "until", path=str(flag))
    ballast = fill(small)
    accepted = await until_refused(link)
    link.close()
    server.kill()
    again = await start(data_dir=str(small / "data"))
    status, _ = await ask(again.url, "GET", f"/v1/executions/{running['execution_id']}")
    assert status == 200
    ballast.unlink()
    link = await Connection.open(again.url)
    freed = time.monotonic()
    while (await submit(link, "again"))[0] != 202:
        assert time.monotonic() - freed < RESUMED_SECONDS
        await asyncio.sleep(0.05)
    link.close()
    left = await ended(again, running["execution_id"])
    assert (left["state"], left["outcome"]) == ("failed", "unknown")
    for execution_id in accepted:
        assert (await ended(again, execution_id))["state"] in {"completed", "failed"}
    status, verdict = await ask(again.url, "GET", "/v1/ledger/verify")
    assert (status, verdict["ok"]) == (200, True), verdict


async def test_a_failed_fsync_ends_the_server(start: Start, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    server = await start()
    link = await Connection.open(server.url)
    accepted = [(await submit(link, str(n)))[1]["execution_id"] for n in range(50)]
    await submit(link, "", "until", path=str(tmp_path / "never"))
    inject = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO"]
    tracer = subprocess.Popen(  # noqa: ASYNC220 it only starts
        ["strace", "-f", "-qq", "-p", str(server.pid), "-o", str(tmp_path / "trace"), *inject],
        stderr=subprocess.DEVNULL,
    )
    try:
        statuses: list[int] = []
        with contextlib.suppress(Broken):  # it ends while we ask
            async with asyncio.timeout(20):
                while server.lives:
                    status, answer = await submit(link, "late")
                    statuses.append(status)
                    if status == 202:
                        accepted.append(answer["execution_id"])
                    await asyncio.sleep(0.01)
        if tracer.poll() is not None and server.lives:
            pytest.skip("strace may not trace here")
        assert statuses.count(503) >= 1
        # Not one more after the first that was refused.
        assert 202 not in statuses[statuses.index(503) :]
        assert await server.ended(15) == 1
    finally:
        link.close()
        tracer.terminate()
        tracer.wait()
    assert "the disk under the store" in server.log
    assert "disk I/O error" in server.log
    again = await start()
    for execution_id in accepted:
        assert (await ended(again, execution_id))["state"] in {"completed", "failed"}
    assert (await ask(again.url, "GET", "/v1/ledger/verify"))[1]["ok"] is True


def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / ".retinue").mkdir()
    (tmp_path / ".retinue" / "retinue.db").write_bytes(b"no database, whatever it is called" * 100)
    command = [sys.executable, "-m", "retinue", "ledger", "verify"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "E_STORE_DAMAGED" in done.stderr
    assert ".retinue/retinue.db is damaged" in done.stderr
    assert "backup" in done.stderr
    assert "may pass" not in done.stderr

"""A stop ends the process, whatever the agents do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

AGENTS = """
import asyncio
from retinue import capability, Options


@capability(options=Options(timeout=0.2))
async def stubborn() -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass


@capability()
async def leaves() -> None:
    raise SystemExit(3)
"""


def test_an_agent_that_swallows_its_cancellation_does_not_keep_the_process(
    tmp_path: Path,
) -> None:
    (tmp_path / "stubborn_agents.py").write_text(AGENTS)
    (tmp_path / "retinue.yaml").write_text(
        "agents: ['stubborn_agents:stubborn', 'stubborn_agents:leaves']\ngrace_seconds: 1\n"
    )
    retinue = Path(sys.executable).parent / "retinue"
    server = subprocess.Popen(
        [retinue, "serve", "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        for name, code in (("leaves", "E_INTERNAL"), ("stubborn", "E_TIMEOUT")):
            body = {"session_id": "s", "capability": name, "parameters": {}}
            reply = httpx.post(f"{url}/v1/orchestrate", json=body, timeout=20).json()
            assert reply["error_info"]["code"] == code
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)
        assert server.returncode == 0
        assert time.monotonic() - began < 15
    finally:
        server.kill()
        server.communicate()

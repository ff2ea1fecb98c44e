"""What the tests of processes share: short ways to start one, and what /proc says."""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from retinue.keeper.tree import mark_of, pids, stat
from retinue.process.child import Child, Streams
from retinue.process.environment import inherited
from retinue.process.link import Command, KeeperLink

Start = Callable[..., Awaitable[Child]]


def _no_sandbox() -> str:
    """Return why this machine can make no sandbox; empty when it can."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed (Debian: apt-get install bubblewrap)"
    argv = ["bwrap", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "--proc", "/proc"]
    done = subprocess.run([*argv, "true"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no sandbox on this host: {done.stderr.strip()}"


NO_SANDBOX = _no_sandbox()
needs_sandbox = pytest.mark.skipif(bool(NO_SANDBOX), reason=NO_SANDBOX)


async def begin(
    link: KeeperLink, argv: tuple[str, ...], cwd: Path, streams: Streams | None, **more: Any
) -> Child:
    env = inherited(os.environ)
    command = Command(path=argv[0], argv=argv, env=env, cwd=str(cwd), **more)
    return await link.spawn(command, streams or Streams())


def marked(scope: str) -> list[int]:
    """Return the living processes that keepers of ``scope`` started."""
    return [
        pid
        for pid in pids()
        if (mark_of(pid) or "").startswith(scope + ":")
        and (found := stat(pid)) is not None
        and found.state != "Z"
    ]


def alive(pid: int) -> bool:
    found = stat(pid)
    return found is not None and found.state != "Z"


async def until(condition: Callable[[], object], seconds: float = 10.0) -> float:
    """Wait for a condition; return how long it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, "it never came true"
        await asyncio.sleep(0.002)
    return time.monotonic() - begun

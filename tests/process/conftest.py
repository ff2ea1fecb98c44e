"""A keeper for each test, and short ways to start a process under it."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.process.rig import Start, begin, marked

from retinue.process.child import Child, Streams
from retinue.process.link import KeeperLink


@pytest.fixture
async def link() -> AsyncIterator[KeeperLink]:
    keeper = KeeperLink()
    yield keeper
    await keeper.close()
    assert marked(keeper.scope) == []


@pytest.fixture
def python(link: KeeperLink, tmp_path: Path) -> Start:
    """Start a Python program."""

    async def start(program: str, streams: Streams | None = None, **more: Any) -> Child:
        argv = (sys.executable, "-I", "-S", "-u", "-c", program)
        return await begin(link, argv, tmp_path, streams, **more)

    return start


@pytest.fixture
def shell(link: KeeperLink, tmp_path: Path) -> Start:
    """Start a shell script."""

    async def start(script: str, streams: Streams | None = None, **more: Any) -> Child:
        return await begin(link, ("/bin/sh", "-c", script), tmp_path, streams, **more)

    return start

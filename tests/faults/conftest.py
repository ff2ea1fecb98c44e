"""Servers in processes of their own, to which faults are done."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from torture.servers import Server

FLEET = ("large", "loud", "reflect", "until", "single", "busy")

Start = Callable[..., Awaitable[Server]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start servers that end with the test: give a ``prefix``, an ``environment``, settings.

    A server gets a directory of its own unless ``data_dir`` names one.
    """
    started: list[Server] = []

    async def begin(
        *,
        prefix: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        **settings: Any,
    ) -> Server:
        name = f"server{len(started)}"
        config = tmp_path / f"{name}.yaml"
        given = {
            "port": 0,
            "data_dir": str(tmp_path / "data"),
            "examples": False,
            "entry_points": False,
            "log_format": "json",
            "grace_seconds": 1,
            "agents": [f"tests.faults.fleet:{agent}" for agent in FLEET],
            **settings,
        }
        config.write_text(json.dumps(given))
        server = Server(name, tmp_path, config, environment or {}, prefix=prefix)
        started.append(server)
        server.spawn()
        await server.ready()
        return server

    async with AsyncExitStack() as stack:
        yield begin
        for server in started:
            stack.callback(server.kill)

"""``retinue worker list | scale | restart``, against a running server."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import SECONDS, Place, Server

PROGRAM = Path(__file__).parents[1] / "engine" / "misbehaving.py"


@pytest.fixture
def server(place: Place) -> Iterator[Server]:
    worker = {
        "driver": "stdio",
        "name": "w",
        "command": [sys.executable, "-I", "-S", str(PROGRAM)],
        "process_pool_size": 1,
    }
    common = {"examples": False, "entry_points": False, "grace_seconds": 1}
    place.write("retinue.yaml", json.dumps({**common, "agents": [worker]}))
    with place.serve() as server:
        yield server


@pytest.mark.requirement("000.scale")
def test_a_worker_is_listed_scaled_and_restarted(place: Place, server: Server) -> None:
    assert "worker w is run by" in place.call("doctor").out
    table = place.call("worker", "list").out.splitlines()
    assert table[1].split()[:3] == ["w", "ready", "ready"]
    scaled = place.call("worker", "scale", "w", "2")
    assert (scaled.code, scaled.out) == (0, "w has 2 to 2 processes\n")
    deadline = time.monotonic() + SECONDS
    while len(place.call("worker", "list", "--json").json["workers"][0]["instances"]) < 2:
        assert time.monotonic() < deadline
    assert place.call("worker", "restart", "w").code == 0
    missing = place.call("worker", "scale", "x", "2")
    assert missing.code != 0
    assert "no pool x" in missing.err

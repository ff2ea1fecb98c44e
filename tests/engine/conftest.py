"""A started system for each test, with no fleet and an in-memory ledger unless asked."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retinue import Orchestrator, Runtime, Settings


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    """A started runtime over a SQLite file."""
    system = Runtime(Settings(data_dir=tmp_path, examples=False, entry_points=False))
    await system.start()
    yield system
    await system.stop(grace=1)


@pytest.fixture
def orchestrator(runtime: Runtime) -> Orchestrator:
    """Its orchestrator."""
    return runtime.orchestrator

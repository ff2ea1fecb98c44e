"""Real CLIs against a fake model: only ``make test-cli`` collects these tests."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.live.programs import PACKAGES, program, wanted
from tests.process.rig import marked

from retinue import Runtime, Settings
from retinue.settings import CodingReference
from retinue.testing.model_server import ModelServer

CHOSEN = wanted(os.environ.get("RETINUE_CLIS", "").split())
collect_ignore_glob = [] if CHOSEN else ["test_*.py"]
Start = Callable[..., Awaitable[Runtime]]


@pytest.fixture(params=[kind for kind in PACKAGES if kind in CHOSEN])
def kind(request: pytest.FixtureRequest) -> str:
    """Each CLI that was asked for."""
    found: str = request.param
    return found


@pytest.fixture
def models() -> Iterator[ModelServer]:
    """The model they talk to."""
    with ModelServer() as server:
        yield server


def given(kind: str, models: ModelServer) -> dict[str, Any]:
    """Return what an agent needs so that a CLI talks to the fake model."""
    match kind:
        case "codex":
            options = {
                "model_provider": "fake",
                "model_providers.fake.name": "fake",
                "model_providers.fake.base_url": f"{models.url}/v1",
                "model_providers.fake.env_key": "FAKE_KEY",
                "model_providers.fake.wire_api": "responses",
                "model_providers.fake.request_max_retries": 1,
                "model_providers.fake.stream_max_retries": 1,
            }
            words = [w for key, v in options.items() for w in ("-c", f"{key}={json.dumps(v)}")]
            return {"words": words, "environment": {"FAKE_KEY": "x"}, "model": "fake-model"}
        case "gemini":
            environment = {"GEMINI_API_KEY": "fake", "GOOGLE_GEMINI_BASE_URL": models.url}
            return {"environment": environment, "model": "gemini-2.5-flash"}
        case "claude":
            environment = {"ANTHROPIC_API_KEY": "sk-fake", "ANTHROPIC_BASE_URL": models.url}
            return {"environment": environment | {"CLAUDE_CODE_MAX_RETRIES": "2"}}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{models.url}/v1", "apiKey": "x"},
        "models": {"fake-model": {}},
    }
    content = {"model": "fake/fake-model", "provider": {"fake": provider}}
    return {"environment": {"OPENCODE_CONFIG_CONTENT": json.dumps(content)}}


@pytest.fixture
async def started(tmp_path: Path, models: ModelServer) -> AsyncIterator[Start]:
    """Start a system with one real CLI; stop it and see that nothing is left."""
    systems: list[Runtime] = []

    async def start(kind: str, **more: Any) -> Runtime:
        needs = given(kind, models)
        words = needs.pop("words", [])
        path = more.pop("path", str(program(kind)))
        agent = {"driver": kind, "command": (path, *words), **needs, **more}
        system = Runtime(
            Settings(
                data_dir=tmp_path / "data",
                examples=False,
                entry_points=False,
                agents=(CodingReference.model_validate(agent),),
            )
        )
        await system.start()
        systems.append(system)
        return system

    yield start
    for system in systems:
        await system.stop(grace=0)
    assert [pid for system in systems for pid in marked(system.keeper.scope)] == []


def relayed(kind: str, models: ModelServer, directory: Path) -> tuple[str, Path]:
    """Return a program that runs a CLI where only the model is, and the file it is reached by."""
    from retinue.drivers.coding.place import native_of  # noqa: PLC0415 only here

    file, script = directory / "model", directory / kind
    real = native_of(kind, str(program(kind)))
    relay = Path(__file__).with_name("relay.py")
    start = f"{sys.executable} -I -S {relay} {file} {models.port} {real}"
    script.write_text(f'#!/bin/sh\nexec {start} "$@"\n')
    script.chmod(0o755)
    return str(script), file


def watched(kind: str, directory: Path) -> tuple[str, Path]:
    """Return a program that runs a CLI and keeps which connections it asks for."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is needed to see which connections a CLI asks for")
    from retinue.drivers.coding.place import native_of  # noqa: PLC0415 only here

    log = directory / "connections"
    log.mkdir()
    script = directory / kind
    trace = f"{strace} -f -qq -e trace=connect,sendto -e signal=none"
    real = native_of(kind, str(program(kind)))
    script.write_text(f'#!/bin/sh\nexec {trace} -o {log}/$$ {real} "$@"\n')
    script.chmod(0o755)
    return str(script), log

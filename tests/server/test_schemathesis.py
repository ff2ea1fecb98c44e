"""Requests made from the OpenAPI document, good and bad, alone and in sequence.

Every check of schemathesis is on. Valid data may be answered 422 only where the document cannot
say more: a cursor has to come from a list, an event to be there, parameters to suit the capability.
"""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from torture.rig import recorder
from torture.servers import Server

# Each has a time of its own: one that comes last would else get what the others leave, or nothing.
PHASES = {"examples,coverage": 25, "fuzzing": 15, "stateful": 15}
SEED = "1"
CONFIGURATION = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 401, 403, 404, 405, 409, 422, 429, "5xx"]
"""
ASKING = {
    "session_id": "s",
    "capability": "ask",
    "parameters": {"marker": "m", "wait_ms": 3_600_000},
}


def schemathesis(directory: Path, url: str, key: str, phases: str, seconds: int) -> str:
    """Run some phases in a process of their own, for a bounded time; return what it said."""
    configuration = directory / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    program = Path(sys.executable).with_name("schemathesis")
    command = [str(program), "--config-file", str(configuration), "--no-color", "run"]
    command += [f"{url}/openapi.json", "--header", f"Authorization: Bearer {key}"]
    command += ["--checks", "all", "--phases", phases]
    command += ["--seed", SEED, "--max-time", str(seconds), "--continue-on-failure"]
    command += ["--warnings", "off", "--generation-database", "none"]
    ended = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=60, check=False
    )
    said = ended.stdout[-8000:] + ended.stderr[-2000:]
    assert ended.returncode == 0, said
    return said


def unexpected(log: str) -> list[str]:
    """Return the lines before tracebacks that are not an agent's own failure, and errors."""
    lines = log.splitlines()
    led = [lines[at - 1] for at, line in enumerate(lines) if line.startswith("Traceback") and at]
    # Whoever has made up an agent's parameters gets its exception, which is logged as such.
    said = [line for line in led if " retinue.engine.outcome: execution failed: " not in line]
    return said + [line for line in lines if re.match(r"\S+ (error|critical) ", line)]


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
async def test_the_document_is_kept_to(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    database = request.getfixturevalue("postgres_url") if store == "postgres" else None
    configuration = tmp_path / "retinue.yaml"
    # Room for more than those that ask: else who calls it waits as long as they do.
    journal = str(tmp_path / "effects.jsonl")
    asker = recorder("ask", journal, "at_most_once", kind="Asker", concurrency=64)
    settings = {
        "port": 0,
        "data_dir": str(tmp_path / "data"),
        "database_url": database,
        "examples": True,
        "survey_root": str(tmp_path),
        "entry_points": False,
        "grace_seconds": 0.5,
        "agents": [asker],
    }
    configuration.write_text(json.dumps(settings))
    server = Server("server", tmp_path, configuration, {})
    server.spawn()
    try:
        url = await server.ready()
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            made = await client.post("/v1/keys", json={"name": "admin", "role": "admin"})
            key = made.json()["secret"]
            client.headers["Authorization"] = f"Bearer {key}"
            for _ in range(20):
                assert (await client.post("/v1/executions", json=ASKING)).status_code == 202
            said = {
                phases: await asyncio.to_thread(schemathesis, tmp_path, url, key, phases, seconds)
                for phases, seconds in PHASES.items()
            }
            # Else the rest of the run met nothing but 401.
            assert (await client.get("/v1/keys")).status_code == 200
    finally:
        server.kill()
    # What ran out of time before it began would find nothing, and say nothing of it.
    assert re.search(r"Coverage \(in .*\n\s+✅ +[1-9]", said["examples,coverage"]), said
    assert re.search(r"Fuzzing \(in .*\n\s+✅ +[1-9]", said["fuzzing"]), said
    assert re.search(r"Scenarios: +[1-9]", said["stateful"]), said
    assert re.search(r"API Links: +[1-9]\d* covered", said["stateful"]), said
    assert unexpected(server.log) == []

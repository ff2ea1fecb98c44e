"""Specification 003's own requests, word for word, against ``retinue serve``.

They name port 8888. ``curl`` is told to connect elsewhere by its configuration file, so that the
commands stay as they are written and the test takes any free port.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

RETINUE = Path(sys.executable).with_name("retinue")

HEALTH = "curl http://localhost:8888/v1/health"
AGENTS = "curl http://localhost:8888/v1/agents"
ECHO = """\
curl -X POST http://localhost:8888/v1/orchestrate \\
  -H "Content-Type: application/json" \\
  -d '{"session_id": "test", "capability": "echo", "parameters": {"text": "hi"}}'
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``retinue serve`` as a user starts it, on a free port; its URL."""
    directory = tmp_path_factory.mktemp("served")
    process = subprocess.Popen(
        [RETINUE, "serve", "--port", "0"],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert " at http://" in line, line + process.stdout.read()
    yield line.split()[-1]
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0, rest


@pytest.fixture
def client(served: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
def shell(served: str, tmp_path: Path) -> Any:
    """Run a command as a user types it and return the JSON it prints."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed (Debian: apt-get install curl)")
    port = served.rpartition(":")[2]
    (tmp_path / ".curlrc").write_text(f'connect-to = "localhost:8888:127.0.0.1:{port}"\nsilent\n')
    environment = {**os.environ, "CURL_HOME": str(tmp_path), "no_proxy": "*"}

    def run(command: str) -> Any:
        ended = subprocess.run(
            command, shell=True, env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(ended.stdout)

    return run


def covers(answer: Any, shown: Any) -> bool:
    """Say whether everything that is shown stands in the answer; ``...`` stands for anything."""
    if shown is ...:
        return bool(answer)
    if isinstance(shown, dict):
        return all(name in answer and covers(answer[name], shown[name]) for name in shown)
    if isinstance(shown, list):
        return len(answer) == len(shown) and all(map(covers, answer, shown))
    return bool(answer == shown)


@pytest.mark.requirement("003.seed-run")
def test_the_three_curl_calls(shell: Any) -> None:
    assert covers(shell(HEALTH), {"service": ..., "status": "healthy", "version": ...})
    assert shell(AGENTS)["total"] >= 1
    reply = {
        "success": True,
        "data": {"message": "Echo: hi"},
        "contract_id": ...,
        "agent_id": "agent_example_001",
    }
    assert covers(shell(ECHO), reply)


@pytest.mark.requirement("003.seed-run", "003.agents")
def test_list_agents(client: httpx.Client) -> None:
    listing = client.get("/v1/agents").json()
    shown = {
        "agent_id": "agent_example_001",
        "name": "Example Agent",
        "status": "available",
        "capabilities": [
            {"name": "echo", "description": "Echo text back"},
            {"name": "uppercase", "description": "Convert to uppercase"},
        ],
    }
    assert sum(covers(agent, shown) for agent in listing["agents"]) == 1
    assert listing["total"] == len(listing["agents"])


@pytest.mark.requirement("003.seed-run", "003.orchestrate", "003.contracts")
def test_orchestrate_then_contracts_then_compress_then_status(client: httpx.Client) -> None:
    reply = client.post(
        "/v1/orchestrate",
        headers={"Content-Type": "application/json"},
        content="""\
{
  "session_id": "session_001",
  "capability": "echo",
  "parameters": {
    "text": "Hello, world!"
  }
}""",
    ).json()
    shown: Any = {
        "success": True,
        "data": {"message": "Echo: Hello, world!"},
        "contract_id": ...,
        "agent_id": "agent_example_001",
    }
    assert covers(reply, shown)
    shown = {
        "contracts": [
            {
                "contract_id": reply["contract_id"],
                "contract_type": "REQUEST",
                "from_agent": "orchestrator",
                "to_agent": "agent_example_001",
                "capability": "echo",
                "status": "completed",
            },
            {
                "contract_id": ...,
                "contract_type": "RESPONSE",
                "from_agent": "agent_example_001",
                "to_agent": "orchestrator",
                "status": "completed",
                "result": {"message": "Echo: Hello, world!"},
            },
        ],
        "total": 2,
    }
    assert covers(client.get("/v1/contracts?session_id=session_001").json(), shown)
    compressed = client.post(
        "/v1/compress",
        headers={"Content-Type": "application/json"},
        content="""\
{
  "session_id": "session_001",
  "intent": "Testing echo and uppercase"
}""",
    ).json()
    assert covers(compressed, {"session_id": "session_001", "compressed": True, "error": None})
    assert compressed["memory_block"]["intent"] == "Testing echo and uppercase"
    status = client.get("/v1/status").json()
    assert status.keys() == {"orchestrator", "agents", "contracts", "integrations"}
    assert status["contracts"]["total_contracts"] >= 2


@pytest.mark.requirement("003.seed-run")
def test_the_error_of_the_troubleshooting_section(client: httpx.Client) -> None:
    task = {"session_id": "session_002", "capability": "text_to_image", "parameters": {}}
    answer = client.post("/v1/orchestrate", json=task)
    assert answer.status_code == 404
    assert answer.json()["message"] == "No agent available for capability: text_to_image"


@pytest.mark.requirement("003.seed-run", "003.docs")
@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_documentation_pages(client: httpx.Client, page: str) -> None:
    assert client.get(page).status_code == 200

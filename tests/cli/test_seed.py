"""Specification 003's own requests, as they stand there, against a real server.

Only the port differs: the specification's 8888 may be taken where the tests run.
"""

from __future__ import annotations

import http.client
import json
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from tests.cli.conftest import SECONDS, Place, Server

mark = pytest.mark

CURL = (
    "curl http://localhost:8888/v1/health",
    "curl http://localhost:8888/v1/agents",
    """curl -X POST http://localhost:8888/v1/orchestrate \\
  -H "Content-Type: application/json" \\
  -d '{"session_id": "test", "capability": "echo", "parameters": {"text": "hi"}}'""",
)
REQUESTS = {
    "health": "GET /v1/health",
    "agents": "GET /v1/agents",
    "orchestrate": """POST /v1/orchestrate
Content-Type: application/json

{
  "session_id": "session_001",
  "capability": "echo",
  "parameters": {
    "text": "Hello, world!"
  }
}""",
    "contracts": "GET /v1/contracts?session_id=session_001",
    "compress": """POST /v1/compress
Content-Type: application/json

{
  "session_id": "session_001",
  "intent": "Testing echo and uppercase"
}""",
    "status": "GET /v1/status",
}
ANSWERS: dict[str, dict[str, Any]] = {
    "agents": {
        "agent_id": "agent_example_001",
        "name": "Example Agent",
        "status": "available",
        "capabilities": [
            {"name": "echo", "description": "Echo text back"},
            {"name": "uppercase", "description": "Convert to uppercase"},
        ],
    },
    "orchestrate": {
        "success": True,
        "data": {"message": "Echo: Hello, world!"},
        "agent_id": "agent_example_001",
    },
    "request": {
        "contract_type": "REQUEST",
        "from_agent": "orchestrator",
        "to_agent": "agent_example_001",
        "capability": "echo",
        "status": "completed",
    },
    "response": {
        "contract_type": "RESPONSE",
        "from_agent": "agent_example_001",
        "to_agent": "orchestrator",
        "status": "completed",
        "result": {"message": "Echo: Hello, world!"},
    },
}


class Answer(NamedTuple):
    """A status and a decoded body."""

    status: int
    body: Any


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of these tests' own: the first one that the specification's reader starts."""
    with Place(tmp_path_factory.mktemp("seed")).serve() as server:
        yield server


def send(server: Server, method: str, target: str, headers: dict[str, str], body: str) -> Answer:
    port = int(server.url.rpartition(":")[2])
    connection = http.client.HTTPConnection("localhost", port, timeout=SECONDS)
    try:
        connection.request(method, target, body.encode() or None, headers)
        answer = connection.getresponse()
        return Answer(answer.status, json.loads(answer.read()))
    finally:
        connection.close()


def curl(server: Server, command: str) -> Answer:
    """Send what this ``curl`` would."""
    words = shlex.split(command.replace("\\\n", " "))
    assert words.pop(0) == "curl"
    method, url, body, headers = "GET", "", "", {"Accept": "*/*", "User-Agent": "curl/8.0"}
    while words:
        match words.pop(0):
            case "-X":
                method = words.pop(0)
            case "-H":
                name, _, value = words.pop(0).partition(": ")
                headers[name] = value
            case "-d":
                body = words.pop(0)
            case word:
                url = word
    assert urlsplit(url).netloc == "localhost:8888"
    return send(server, method, urlsplit(url).path, headers, body)


def request(server: Server, name: str) -> Answer:
    """Send one request of the specification's API section."""
    head, _, body = REQUESTS[name].partition("\n\n")
    first, *lines = head.splitlines()
    method, _, target = first.partition(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    return send(server, method, target, headers, body)


def part(body: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """Return of ``body`` what the specification shows, lists of objects included."""
    found = {}
    for name, value in shown.items():
        if isinstance(value, list):
            found[name] = [part(*pair) for pair in zip(body[name], value, strict=True)]
        else:
            found[name] = body[name]
    return found


@mark.requirement("003.seed-run")
def test_the_three_curl_calls(seed: Server) -> None:
    health, agents, orchestrate = (curl(seed, command) for command in CURL)
    assert health.status == 200
    assert health.body["status"] == "healthy"
    assert agents.status == 200
    assert agents.body["agents"][0]["agent_id"] == "agent_example_001"
    assert orchestrate.status == 200
    assert orchestrate.body["success"] is True
    assert orchestrate.body["data"] == {"message": "Echo: hi"}


@mark.requirement("003.seed-run")
def test_every_request_of_the_api_section(seed: Server) -> None:
    assert request(seed, "health").body["status"] == "healthy"

    agents = request(seed, "agents").body
    assert agents["total"] == len(agents["agents"])
    assert part(agents["agents"][0], ANSWERS["agents"]) == ANSWERS["agents"]

    reply = request(seed, "orchestrate")
    assert reply.status == 200
    assert part(reply.body, ANSWERS["orchestrate"]) == ANSWERS["orchestrate"]
    assert len(reply.body["contract_id"]) == 26

    contracts = request(seed, "contracts").body
    assert contracts["total"] == 2
    asked, answered = contracts["contracts"]
    assert part(asked, ANSWERS["request"]) == ANSWERS["request"]
    assert part(answered, ANSWERS["response"]) == ANSWERS["response"]
    assert asked["contract_id"] == reply.body["contract_id"]

    compressed = request(seed, "compress")
    assert compressed.status == 200
    assert compressed.body["session_id"] == "session_001"
    assert compressed.body["compressed"] is True
    assert compressed.body["memory_block"]["intent"] == "Testing echo and uppercase"

    status = request(seed, "status").body
    assert status["agents"]["total"] == agents["total"]
    assert status["contracts"]["total_contracts"] >= 2
    assert status.keys() == {"orchestrator", "agents", "contracts", "integrations"}

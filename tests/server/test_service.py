"""What the service says of itself, and how it refuses what it does not know."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from retinue.testing.servers import PostgresServer

if TYPE_CHECKING:
    from tests.server.conftest import Served

Start = Callable[..., "Served"]


@pytest.mark.requirement("003.health")
def test_a_healthy_server_says_so(client: httpx.Client) -> None:
    answer = client.get("/v1/health")
    assert answer.status_code == 200
    assert answer.json().keys() == {"service", "status", "version"}
    assert answer.json()["status"] == "healthy"


@pytest.mark.requirement("003.health")
def test_health_needs_no_credential_when_everything_else_does(start: Start) -> None:
    server = start()
    with server.client() as client:
        client.post("/v1/keys", json={"name": "root", "role": "admin"})
        assert client.get("/v1/agents").status_code == 401
        assert client.get("/v1/health").status_code == 200


@pytest.mark.requirement("003.health")
def test_health_is_503_while_the_store_does_not_answer(start: Start) -> None:
    with PostgresServer() as postgres:
        server = start(database_url=postgres.url())
        with server.client() as client:
            assert client.get("/v1/health").status_code == 200
            postgres.stop("immediate")
            answer = client.get("/v1/health")
            assert answer.status_code == 503
            assert answer.json()["status"] == "unhealthy"
            assert answer.headers["retry-after"]
            body = {"session_id": "s", "capability": "echo", "parameters": {"text": "hi"}}
            refused = client.post("/v1/orchestrate", json=body)
            assert (refused.status_code, refused.json()["code"]) == (503, "E_STORE_UNAVAILABLE")
            assert refused.json()["retryable"] is True
            postgres.start()
            until(lambda: client.get("/v1/health").status_code == 200)
            until(lambda: client.post("/v1/orchestrate", json=body).status_code == 200)
        server.ask_to_stop()
        server.join()


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Return once it holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.05)


@pytest.mark.requirement("003.service-info")
@pytest.mark.parametrize("path", ["/v1/", "/v1", "/"])
def test_service_info_names_interface_endpoints_and_docs(client: httpx.Client, path: str) -> None:
    info = client.get(path, follow_redirects=True).json()
    assert info["service"] == "retinue"
    assert info["version"] == "1.0.0"
    assert "POST /v1/orchestrate" in info["endpoints"]
    for docs in info["docs"].values():
        assert client.get(docs).status_code == 200


def test_every_listed_endpoint_is_served(client: httpx.Client) -> None:
    for endpoint in client.get("/v1/").json()["endpoints"]:
        method, path = endpoint.split()
        answer = client.request(method, path.replace("{", "").replace("}", ""))
        if answer.status_code == 404:
            assert "there is no" not in answer.json()["message"], endpoint
        assert answer.status_code != 405, endpoint


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/agents/", 404),
        ("POST", "/v1/agents", 405),
        ("PUT", "/v1/orchestrate", 405),
        ("DELETE", "/v1/keys", 405),
        ("GET", "/docs/assets/../app.py", 404),
        ("GET", "/docs/assets/%2e%2e%2fcore.py", 404),
        ("GET", "/docs/assets/core.py", 404),
    ],
)
def test_what_is_not_there_is_refused_with_the_one_error_body(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json().keys() == {"code", "message", "retryable", "details"}
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/executions", "GET, POST"),
        ("/v1/keys", "GET, POST"),
        ("/v1/keys/01ARZ3NDEKTSV4RRFFQ69G5FAV", "DELETE"),
        ("/v1/agents", "GET"),
    ],
)
def test_a_refused_method_hears_of_all_the_others(
    client: httpx.Client, path: str, allowed: str
) -> None:
    answer = client.options(path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    assert answer.json()["details"]["allowed"] == allowed.split(", ")


@pytest.mark.parametrize("name", ["state", "limit"])
@pytest.mark.parametrize("word", ["null", "NULL"])
def test_the_word_null_is_not_the_absence_of_a_parameter(
    client: httpx.Client, name: str, word: str
) -> None:
    answer = client.get("/v1/executions", params={name: word})
    assert answer.status_code == 422
    assert answer.json()["details"]["path"] == name


def test_the_word_null_may_be_a_name(
    client: httpx.Client, orchestrate: Callable[..., httpx.Response]
) -> None:
    assert orchestrate("echo", {"text": "hi"}, session_id="null").json()["success"]
    orchestrate("echo", {"text": "hi"})
    listing = client.get("/v1/contracts", params={"session_id": "null"}).json()
    assert {contract["session_id"] for contract in listing["contracts"]} == {"null"}


@pytest.mark.requirement("003.agents")
def test_agents_are_listed_with_their_status_and_counts(
    client: httpx.Client, orchestrate: Callable[..., httpx.Response]
) -> None:
    before = _agent(client, "agent_example_001")
    assert orchestrate("echo", {"text": "hi"}).json()["success"]
    listing = client.get("/v1/agents").json()
    assert listing["total"] == len(listing["agents"])
    agent = _agent(client, "agent_example_001")
    assert agent["name"] == "Example Agent"
    assert agent["status"] == "available"
    assert {c["name"] for c in agent["capabilities"]} == {"echo", "uppercase"}
    assert all(c["description"] for c in agent["capabilities"])
    assert agent["tasks_completed"] == before["tasks_completed"] + 1
    failing = _agent(client, "failing")["tasks_failed"]
    orchestrate("raise")
    assert _agent(client, "failing")["tasks_failed"] == failing + 1


@pytest.mark.requirement("003.agents")
def test_an_agent_is_busy_while_its_slots_are_taken(
    server: Served, client: httpx.Client, submit: Callable[..., str], name: str
) -> None:
    execution = submit("single", {"name": name})
    server.wait_begun(name)
    assert _agent(client, "single")["status"] == "busy"
    server.let(name)
    _wait_ended(client, execution)
    assert _agent(client, "single")["status"] == "available"


def test_an_agent_is_found_by_its_name_too(client: httpx.Client) -> None:
    assert client.get("/v1/agents/Example Agent").json()["agent_id"] == "agent_example_001"
    assert client.get("/v1/agents/nobody").status_code == 404


def _agent(client: httpx.Client, agent_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/agents/{agent_id}").json()
    return found


def _wait_ended(client: httpx.Client, execution: str) -> None:
    assert client.get(f"/v1/executions/{execution}/events").status_code in {200, 204}


# -- status ------------------------------------------------------------------------------------


@pytest.mark.requirement("003.status")
def test_the_counts_equal_a_recount(start: Start) -> None:
    server = start()
    with server.client() as client:
        for number in range(3):
            for capability in ("echo", "refuse", "nobody-can"):
                body = {"session_id": f"s{number}", "capability": capability}
                client.post("/v1/orchestrate", json={**body, "parameters": _for(capability)})
        held = {"session_id": "s0", "capability": "hold", "parameters": {"name": "x"}}
        client.post("/v1/executions", json=held)
        server.wait_begun("x")
        status = client.get("/v1/status").json()
        contracts = client.get("/v1/contracts", params={"limit": 1000}).json()["contracts"]
        agents = client.get("/v1/agents").json()["agents"]
        server.let("x")
    recount: dict[str, int] = {}
    for contract in contracts:
        recount[contract["status"]] = recount.get(contract["status"], 0) + 1
    assert status["contracts"]["by_status"] == recount
    assert status["contracts"]["total_contracts"] == len(contracts) == 19
    assert status["contracts"]["total_sessions"] == 3
    assert status["agents"]["total"] == len(agents)
    assert status["agents"]["registered"] == [agent["agent_id"] for agent in agents]
    assert status["agents"]["by_status"] == {"available": len(agents)}
    own = status["orchestrator"]
    assert own["service"] == "retinue"
    assert own["uptime_s"] > 0
    assert own.keys() == {"service", "version", "uptime_s", "started_at", "worker"}


def _for(capability: str) -> dict[str, str]:
    return {"text": "hi"} if capability == "echo" else {}


QUIET = {
    "backlog": 0,
    "failing": 0,
    "parked": 0,
    "failures": 0,
    "last_error": None,
    "last_error_at": None,
}


@pytest.mark.requirement("003.status")
def test_integrations_are_off_unless_they_are_set(client: httpx.Client) -> None:
    integrations = client.get("/v1/status").json()["integrations"]
    assert integrations == {
        "memagent": {"enabled": False, "url": "http://localhost:8799", "healthy": None},
        "trace": {"enabled": False, "url": "http://localhost:8787", "healthy": None, **QUIET},
        "all_healthy": True,
    }


@pytest.fixture
def hanging() -> Iterator[str]:
    """The URL of something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.requirement("003.status")
def test_status_answers_in_time_with_both_integrations_hanging(start: Start, hanging: str) -> None:
    server = start(trace_url=hanging, memagent_url=hanging)
    with server.client() as client:
        before = time.monotonic()
        integrations = client.get("/v1/status").json()["integrations"]
        assert time.monotonic() - before < 2
    assert integrations["trace"] == {
        "enabled": True,
        "url": hanging,
        "healthy": False,
        **QUIET,
    }
    assert integrations["memagent"]["healthy"] is False
    assert integrations["all_healthy"] is False


@pytest.mark.requirement("003.status")
def test_a_healthy_integration_is_shown_so(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        answering = threading.Thread(target=_answer_once, args=(listener,))
        answering.start()
        server = start(trace_url=url)
        with server.client() as client:
            integrations = client.get("/v1/status").json()["integrations"]
        answering.join()
    assert integrations["trace"]["healthy"] is True
    assert integrations["all_healthy"] is True


def _answer_once(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        assert connection.recv(4096).startswith(b"GET /v1/health ")
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")


@pytest.mark.parametrize("path", ["/v1/health", "/v1/agents", "/v1/contracts", "/v1/"])
def test_head_is_get_without_a_body(client: httpx.Client, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_head_of_a_stream_ends_at_once(
    server: Served, client: httpx.Client, submit: Callable[..., str], name: str
) -> None:
    execution = submit("hold", {"name": name})
    server.wait_begun(name)
    head = client.head(f"/v1/executions/{execution}/events")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")
    server.let(name)


def test_head_of_what_only_takes_post_is_405(client: httpx.Client) -> None:
    assert client.head("/v1/orchestrate").status_code == 405
    assert client.head("/v1/nowhere").status_code == 404


@pytest.mark.parametrize(
    "limit", ["1e3", "1.0", "0x10", " 5", "5 ", "+5", "٣", "", "true", "9" * 30]
)
def test_a_limit_is_a_whole_number(client: httpx.Client, limit: str) -> None:
    answer = client.get("/v1/contracts", params={"limit": limit})
    assert answer.status_code == 422
    assert answer.json()["details"]["path"] == "limit"

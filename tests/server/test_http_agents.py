"""Agents over HTTP: registered through the API, called, checked, removed."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from retinue.testing.http_agents import HttpAgent, eventually

if TYPE_CHECKING:
    from tests.server.conftest import Served

Start = Callable[..., "Served"]
WORDS = (
    "good", "deny", "plain", "status", "text", "huge", "drip", "cut", "silent", "redirect",
    "wait", "once", "zip", "head",
)  # fmt: skip
HERE = ("127.0.0.0/8",)


@pytest.fixture
def agent() -> Iterator[HttpAgent]:
    with HttpAgent() as agent:
        yield agent


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("postgres_url") if request.param == "postgres" else None


@pytest.fixture
def calm_client(start: Start, database_url: str | None) -> Iterator[httpx.Client]:
    """A client of a server that hardly ever asks agents how they are."""
    server = start(database_url=database_url, egress_allow=HERE, health_interval_seconds=3600)
    with server.client() as client:
        yield client


@pytest.fixture
def client(start: Start, database_url: str | None) -> Iterator[httpx.Client]:
    server = start(
        database_url=database_url,
        egress_allow=HERE,
        max_result_bytes=200_000,
        health_interval_seconds=0.05,
    )
    with server.client() as client:
        yield client


def body(endpoint: str, agent_id: str = "remote", *names: str) -> dict[str, Any]:
    return {
        "agent_id": agent_id,
        "name": agent_id.title(),
        "description": "Somewhere else",
        "capabilities": [{"name": name, "description": name} for name in names or WORDS],
        "endpoint": endpoint,
        "version": "2.1",
    }


def register(client: httpx.Client, *what: Any) -> dict[str, Any]:
    answer = client.post("/v1/agents/register", json=body(*what))
    assert answer.status_code == 201, answer.text
    registered: dict[str, Any] = answer.json()
    return registered


def run(client: httpx.Client, capability: str, **more: Any) -> dict[str, Any]:
    task = {"session_id": "s", "capability": capability, "parameters": {}, **more}
    answer = client.post("/v1/orchestrate", json=task)
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def shown(client: httpx.Client, agent_id: str = "remote") -> dict[str, Any]:
    answer = client.get(f"/v1/agents/{agent_id}")
    assert answer.status_code == 200, answer.text
    agent: dict[str, Any] = answer.json()
    return agent


def last_execution(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/v1/executions").json()["executions"][0]
    return found


@pytest.mark.requirement("003.register-http")
def test_a_registered_agent_gets_the_tasks_for_its_capabilities(
    client: httpx.Client, agent: HttpAgent
) -> None:
    registered = register(client, agent.endpoint)
    assert registered.keys() == {"status", "agent_id", "message", "secret"}
    assert registered["agent_id"] == "remote"
    reply = run(client, "good", parameters={"n": 1}, context={"who": "é"})
    assert (reply["success"], reply["agent_id"]) == (True, "remote")
    sent = {"capability": "good", "parameters": {"n": 1}, "context": {"who": "é"}}
    assert reply["data"] == sent
    (received,) = agent.executed()
    assert (received.method, received.path, received.json) == ("POST", "/execute", sent)
    assert received.headers["idempotency-key"] == reply["execution_id"]
    assert received.headers["retinue-session"] == "s"
    assert received.headers["content-type"] == "application/json"
    assert run(client, "plain")["data"] == 1
    view = shown(client)
    assert view["endpoint"] == agent.endpoint
    assert (view["driver"], view["version"], view["registered_by"]) == ("http", "2.1", "local")
    assert (view["status"], view["tasks_completed"]) == ("available", 2)
    contracts = client.get("/v1/contracts", params={"session_id": "s"}).json()["contracts"]
    assert [c["to_agent"] for c in contracts[::2]] == ["remote", "remote"]
    assert client.get("/v1/ledger/verify").json()["ok"] is True


@pytest.mark.requirement("003.register-http")
@pytest.mark.parametrize(
    ("capability", "error", "outcome"),
    [
        ("deny", "not today", "failed"),
        ("text", "not JSON", "unknown"),
        ("huge", "larger than", "unknown"),
        ("cut", "broke", "unknown"),
        ("silent", "broke", "unknown"),
        ("redirect", "302 Found", "unknown"),
        ("zip", "gzip, which was not asked for", "unknown"),
        ("head", "broke", "unknown"),
    ],
)
def test_what_goes_wrong_is_a_failed_response(
    client: httpx.Client, agent: HttpAgent, capability: str, error: str, outcome: str
) -> None:
    register(client, agent.endpoint)
    reply = run(client, capability)
    assert reply["success"] is False
    assert error in reply["error"]
    assert (reply["data"], reply["agent_id"]) == (None, "remote")
    sent, answered = client.get("/v1/contracts", params={"session_id": "s"}).json()["contracts"]
    assert (sent["status"], answered["status"]) == ("failed", "failed")
    assert answered["contract_type"] == "RESPONSE"
    assert error in json.dumps(answered)
    assert last_execution(client)["outcome"] == outcome
    assert [request.path for request in agent.executed()] == ["/execute"]
    assert all(request.path != "/elsewhere" for request in agent.received)
    assert run(client, "plain")["success"] is True
    # One for the health checks and one that is well.
    agent.wait_for(lambda: agent.open_connections <= 2, "the broken connection is closed")


@pytest.mark.requirement("003.register-http")
@pytest.mark.parametrize(
    ("status", "outcome"), [(500, "failed"), (404, "failed"), (503, "unknown"), (599, "failed")]
)
def test_a_status_that_is_no_success_is_a_failure(
    client: httpx.Client, agent: HttpAgent, status: int, outcome: str
) -> None:
    register(client, agent.endpoint)
    reply = run(client, "status", parameters={"status": status})
    assert reply["error"].startswith(f"the agent answered {status}")
    assert reply["error_info"]["details"]["status"] == status
    assert reply["error_info"]["details"]["answer"] == '{"detail": "as told"}'
    assert last_execution(client)["outcome"] == outcome
    assert len(agent.executed()) == 1


@pytest.mark.requirement("003.register-http")
@pytest.mark.parametrize("capability", ["wait", "drip"])
def test_the_deadline_ends_the_call_and_its_connection(
    client: httpx.Client, agent: HttpAgent, capability: str
) -> None:
    register(client, agent.endpoint)
    run(client, "plain")  # the store's first write takes its time
    begun = time.monotonic()
    reply = run(client, capability, timeout_ms=1000)
    assert time.monotonic() - begun < 10
    assert len(agent.executed()) == 2
    assert "timed out" in reply["error"]
    assert last_execution(client)["state"] == "timed_out"
    assert last_execution(client)["outcome"] == "unknown"
    agent.wait_for(lambda: agent.open_connections <= 1, "the connection is closed")
    assert run(client, "plain")["success"] is True


def test_cancelling_closes_the_connection(client: httpx.Client, agent: HttpAgent) -> None:
    register(client, agent.endpoint)
    task = {"session_id": "s", "capability": "wait"}
    started = client.post("/v1/executions", json=task).json()["execution_id"]
    agent.wait_for(lambda: bool(agent.executed()), "the task arrives")
    cancelled = client.post(f"/v1/executions/{started}/cancel")
    assert cancelled.json()["state"] == "cancelled"
    agent.wait_for(lambda: agent.open_connections <= 1, "the connection is closed")


def test_a_task_that_was_never_sent_is_not_started_and_tried_again(
    calm_client: httpx.Client, agent: HttpAgent
) -> None:
    client = calm_client
    register(client, agent.endpoint)
    agent.stop()
    task = {"session_id": "s", "capability": "good", "timeout_ms": 10_000}
    task_id = client.post("/v1/executions", json=task).json()["execution_id"]

    def noted() -> list[dict[str, Any]]:
        with client.stream("GET", f"/v1/executions/{task_id}/events") as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    return [json.loads(line[5:])]
        return []

    (event,) = noted()
    assert event["eventType"] == "log"
    assert "no connection to the agent" in event["message"]
    with HttpAgent(port=agent.port) as back:
        eventually(
            lambda: client.get(f"/v1/executions/{task_id}").json()["state"] == "completed",
            "the task is done once the agent is back",
        )
        (received,) = back.executed()
        assert received.headers["idempotency-key"] == task_id
        assert received.headers["retinue-attempt"] != "1"


@pytest.mark.parametrize(
    ("delivery", "attempts"), [("at_most_once", 1), ("at_least_once", 2), ("idempotent", 2)]
)
def test_only_an_agent_that_bears_it_gets_a_task_twice(
    client: httpx.Client, agent: HttpAgent, delivery: str, attempts: int
) -> None:
    sent = {**body(agent.endpoint), "delivery": delivery}
    assert client.post("/v1/agents/register", json=sent).status_code == 201
    reply = run(client, "once")
    assert reply["success"] is (attempts > 1)
    keys = [request.headers["idempotency-key"] for request in agent.executed()]
    assert keys == [reply["execution_id"]] * attempts
    numbers = [request.headers["retinue-attempt"] for request in agent.executed()]
    assert numbers == ["1", "2"][:attempts]


def test_nobody_there_ends_failed_and_not_started(
    calm_client: httpx.Client, agent: HttpAgent
) -> None:
    client = calm_client
    register(client, agent.endpoint)
    run(client, "plain")  # the store's first write takes its time
    agent.stop()
    # Another attempt would come after its deadline.
    reply = run(client, "good", timeout_ms=950)
    assert reply["success"] is False
    assert "no connection to the agent" in reply["error"]
    assert last_execution(client)["outcome"] == "not_started"


@pytest.mark.requirement("003.register-http")
def test_every_call_is_signed_with_the_secret_that_was_shown_once(
    client: httpx.Client, agent: HttpAgent
) -> None:
    secret = register(client, agent.endpoint)["secret"]
    reply = run(client, "good", parameters={"text": "ü"})
    (received,) = agent.executed()
    stamp = received.headers["retinue-timestamp"]
    assert abs(int(stamp) - time.time()) < 60
    signed = f"{stamp}.{reply['execution_id']}.".encode() + received.body
    expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    assert received.headers["retinue-signature"] == f"v1={expected}"
    agent.wait_for(lambda: any(r.path == "/health" for r in agent.received), "a health check")
    check = next(r for r in agent.received if r.path == "/health")
    expected = hmac.new(
        secret.encode(), f"{check.headers['retinue-timestamp']}..".encode(), hashlib.sha256
    ).hexdigest()
    assert check.headers["retinue-signature"] == f"v1={expected}"
    for path in ("/v1/agents", "/v1/agents/remote", "/v1/audit?limit=1000", "/v1/contracts"):
        assert secret not in client.get(path).text, path


@pytest.mark.requirement("003.register-http")
def test_an_id_is_taken_once(client: httpx.Client, agent: HttpAgent) -> None:
    register(client, agent.endpoint)
    for taken in ("remote", "hold"):
        again = client.post("/v1/agents/register", json=body(agent.endpoint, taken, "x"))
        assert (again.status_code, again.json()["code"]) == (409, "E_CONFLICT")
    assert client.get("/v1/agents").text.count('"remote"') == 1


@pytest.mark.requirement("003.register-http")
def test_a_removed_agent_gets_no_more_tasks(client: httpx.Client, agent: HttpAgent) -> None:
    first = register(client, agent.endpoint)["secret"]
    removed = client.delete("/v1/agents/remote")
    assert (removed.status_code, removed.content) == (204, b"")
    task = {"session_id": "s", "capability": "good"}
    assert client.post("/v1/orchestrate", json=task).status_code == 404
    assert client.get("/v1/agents/remote").status_code == 404
    assert client.delete("/v1/agents/remote").status_code == 404
    local = client.delete("/v1/agents/hold")
    assert (local.status_code, local.json()["code"]) == (409, "E_CONFLICT")
    assert register(client, agent.endpoint)["secret"] != first
    assert run(client, "plain")["success"] is True
    actions = [row["action"] for row in client.get("/v1/audit?limit=1000").json()["audit"]]
    assert [a for a in actions if a.startswith("agent.")] == [
        "agent.register",
        "agent.remove",
        "agent.register",
    ]


def test_what_a_removed_agent_runs_goes_on(client: httpx.Client, agent: HttpAgent) -> None:
    register(client, agent.endpoint)
    task = {"session_id": "s", "capability": "wait"}
    started = client.post("/v1/executions", json=task).json()["execution_id"]
    agent.wait_for(lambda: bool(agent.executed()), "the task arrives")
    assert client.delete("/v1/agents/remote").status_code == 204
    agent.let_go()
    eventually(
        lambda: client.get(f"/v1/executions/{started}").json()["state"] == "completed",
        "the running task ends well",
    )
    agent.wait_for(lambda: agent.open_connections == 0, "its connections are closed")


OUTSIDE = (
    "http://169.254.169.254/latest", "http://[::ffff:169.254.169.254]/", "http://10.0.0.8:80",
    "http://0x7f.1/", "http://2130706433/", "http://0177.0.0.1/", "http://[fd00:ec2::254]/",
    "file:///etc/passwd", "ftp://example.org/", "http://user:pw@example.org/", "//example.org",
    "http://nowhere.invalid/", "http://localhost:1\\@example.org/", "http:///path", "x",
    "http://example.org/?a=b", "http://example.org:99999/", "http://\uff11\uff12\uff17.0.0.1/",
)  # fmt: skip


@pytest.mark.requirement("003.register-http")
def test_an_endpoint_outside_the_policy_is_refused(client: httpx.Client) -> None:
    for endpoint in OUTSIDE:
        refused = client.post("/v1/agents/register", json=body(endpoint))
        assert refused.status_code == 422, endpoint
        assert refused.json()["code"] == "E_EGRESS_DENIED", endpoint
        assert refused.json()["details"]["path"] == "$.endpoint"
        assert client.get("/v1/agents/remote").status_code == 404


@pytest.mark.requirement("003.register-http")
def test_without_an_allow_list_this_machine_is_out_of_reach(start: Start, agent: HttpAgent) -> None:
    with start().client() as client:
        port = agent.port
        for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"):
            refused = client.post("/v1/agents/register", json=body(f"http://{host}:{port}"))
            assert (refused.status_code, refused.json()["code"]) == (422, "E_EGRESS_DENIED"), host
    assert agent.connections == 0


WRONG = [
    ("agent_id", "../x", "$.agent_id"),
    ("agent_id", None, "$.agent_id"),
    ("capabilities", [], "$.capabilities"),
    ("capabilities", [{"name": ""}], "$.capabilities[0].name"),
    ("capabilities", [{"name": "a"}, {"name": "a"}], "$.capabilities"),
    ("concurrency", 0, "$.concurrency"),
    ("timeout", 0, "$.timeout"),
    ("delivery", "twice", "$.delivery"),
    ("owner", "somebody", "$.owner"),
    ("secret", "mine", "$.secret"),
]


def test_a_wrong_field_is_named(client: httpx.Client) -> None:
    for field, value, path in WRONG:
        sent = {**body("http://127.0.0.1:1"), field: value}
        refused = client.post("/v1/agents/register", json=sent)
        assert refused.status_code == 422, field
        assert refused.json()["details"]["path"].startswith(path)


def test_parameters_are_checked_before_the_agent_is_called(
    client: httpx.Client, agent: HttpAgent
) -> None:
    sent = body(agent.endpoint)
    sent["capabilities"] = [{"name": "good", "parameters": {"text": "string", "n": "integer?"}}]
    assert client.post("/v1/agents/register", json=sent).status_code == 201
    task = {"session_id": "s", "capability": "good", "parameters": {"n": 1}}
    refused = client.post("/v1/orchestrate", json=task)
    assert refused.status_code == 422
    assert "text" in refused.json()["message"]
    assert run(client, "good", parameters={"text": "x"})["success"] is True
    sent = body(agent.endpoint, "other")
    sent["capabilities"] = [{"name": "odd", "parameters": {"type": "object", "required": 5}}]
    assert client.post("/v1/agents/register", json=sent).status_code == 422
    sent["capabilities"] = [{"name": "odd", "parameters": {"text": "strnig"}}]
    assert client.post("/v1/agents/register", json=sent).status_code == 422


@pytest.mark.requirement("003.agent-health")
def test_three_bad_checks_take_an_agent_out_and_a_good_one_brings_it_back(
    client: httpx.Client, agent: HttpAgent
) -> None:
    register(client, agent.endpoint)
    eventually(lambda: shown(client)["last_heartbeat"] is not None, "the first good check")
    agent.health = 503
    eventually(lambda: shown(client)["status"] == "offline", "offline")
    view = shown(client)
    assert view["reason"] == "GET /health answered 503 Service Unavailable"
    seen = view["last_heartbeat"]
    task = {"session_id": "s", "capability": "good"}
    refused = client.post("/v1/orchestrate", json=task)
    assert (refused.status_code, refused.json()["code"]) == (503, "E_AGENT_UNAVAILABLE")
    assert refused.json()["retryable"] is True
    assert client.get("/v1/status").json()["agents"]["by_status"]["offline"] == 1
    assert agent.executed() == []
    agent.health = 200
    eventually(lambda: shown(client)["status"] == "available", "available again")
    view = shown(client)
    assert view["reason"] is None
    assert view["last_heartbeat"] > seen
    assert run(client, "good")["success"] is True
    rows = client.get("/v1/audit?limit=1000").json()["audit"]
    changes = [(row["action"], row["actor"]) for row in rows if row["target"] == "remote"]
    assert changes[-2:] == [("agent.offline", "retinue"), ("agent.online", "retinue")]


@pytest.mark.requirement("003.agent-health")
def test_tasks_go_to_the_agent_that_is_well(client: httpx.Client, agent: HttpAgent) -> None:
    register(client, agent.endpoint, "ill", "good")
    with HttpAgent() as well:
        register(client, well.endpoint, "well", "good")
        agent.health = 500
        eventually(lambda: shown(client, "ill")["status"] == "offline", "offline")
        assert {run(client, "good")["agent_id"] for _ in range(5)} == {"well"}
        assert agent.executed() == []
        agent.health, well.health = 200, 500
        eventually(lambda: shown(client, "well")["status"] == "offline", "offline")
        eventually(lambda: shown(client, "ill")["status"] == "available", "back")
        assert {run(client, "good")["agent_id"] for _ in range(5)} == {"ill"}


@pytest.mark.requirement("003.agent-health")
def test_a_hanging_check_is_a_bad_one_and_holds_nothing_up(start: Start, agent: HttpAgent) -> None:
    server = start(egress_allow=HERE, health_interval_seconds=0.05, health_timeout_seconds=0.05)
    with server.client() as client:
        agent.health = 0
        register(client, agent.endpoint)
        eventually(lambda: shown(client)["status"] == "offline", "offline")
        assert "no answer" in shown(client)["reason"]
        agent.wait_for(lambda: agent.open_connections <= 2, "hanging checks are given up")
        assert client.get("/v1/health").status_code == 200
        agent.health = 200
        eventually(lambda: shown(client)["status"] == "available", "available again")


def test_a_task_that_waits_for_an_offline_agent_is_done_when_it_is_back(
    client: httpx.Client, agent: HttpAgent
) -> None:
    sent = body(agent.endpoint)
    assert client.post("/v1/agents/register", json={**sent, "concurrency": 1}).status_code == 201
    task = {"session_id": "s", "capability": "wait"}
    client.post("/v1/executions", json=task)
    agent.wait_for(lambda: bool(agent.executed()), "the first task arrives")
    waiting = client.post("/v1/executions", json={**task, "capability": "plain"}).json()
    assert shown(client)["status"] == "busy"
    agent.health = 500
    eventually(lambda: shown(client)["status"] == "offline", "offline")
    agent.let_go()
    eventually(lambda: shown(client)["running"] == 0, "the first task ends")
    assert len(agent.executed()) == 1
    agent.health = 200
    eventually(
        lambda: (
            client.get(f"/v1/executions/{waiting['execution_id']}").json()["state"] == "completed"
        ),
        "the second task is done",
    )

"""``POST /v1/orchestrate``: what a task answers, whether it ends well or not."""

from __future__ import annotations

import concurrent.futures
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Served

Orchestrate = Callable[..., httpx.Response]
ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


@pytest.mark.requirement("003.orchestrate")
def test_a_task_is_routed_by_capability_and_answered(
    client: httpx.Client, session: str, orchestrate: Orchestrate
) -> None:
    answer = orchestrate("echo", {"text": "hi"}, context={"who": "me"}, intent="to see")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    reply = answer.json()
    assert reply.keys() == {
        "success", "data", "contract_id", "agent_id", "timestamp", "execution_id",
    }  # fmt: skip
    assert reply["success"] is True
    assert reply["data"] == {"message": "Echo: hi"}
    assert reply["agent_id"] == "agent_example_001"
    assert ULID.fullmatch(reply["contract_id"])
    request = client.get("/v1/contracts", params={"session_id": session}).json()["contracts"][0]
    assert request["contract_id"] == reply["contract_id"]
    assert request["contract_type"] == "REQUEST"
    assert request["metadata"]["context"] == {"who": "me"}
    assert request["metadata"]["intent"] == "to see"


@pytest.mark.requirement("003.orchestrate")
@pytest.mark.parametrize("missing", ["session_id", "capability"])
def test_a_task_without_session_or_capability_is_422(client: httpx.Client, missing: str) -> None:
    body = {"session_id": "s", "capability": "echo", "parameters": {"text": "hi"}}
    del body[missing]
    answer = client.post("/v1/orchestrate", json=body)
    assert answer.status_code == 422
    assert answer.json()["details"]["path"] == f"$.{missing}"


@pytest.mark.parametrize("agent", ["reflect", "Example Agent"])
def test_an_agent_can_be_named_instead(orchestrate: Orchestrate, agent: str) -> None:
    capability = None if agent == "reflect" else "uppercase"
    parameters = {"value": "hi"} if agent == "reflect" else {"text": "hi"}
    reply = orchestrate(capability, parameters, agent_id=agent).json()
    assert reply["success"], reply
    assert reply["data"] in ("hi", {"result": "HI"})


def test_an_agent_with_several_capabilities_needs_one_named(orchestrate: Orchestrate) -> None:
    answer = orchestrate(None, {"text": "hi"}, agent_id="agent_example_001")
    assert answer.status_code == 422
    assert answer.json()["details"]["capabilities"] == ["echo", "uppercase"]


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1.5, 10**30, 123456789012345678901234567890, "ä€𝄞\\u0000", [], {"a": [{}]}],
)
def test_results_come_back_as_they_are(orchestrate: Orchestrate, value: Any) -> None:
    reply = orchestrate("reflect", {"value": value}).json()
    assert reply["data"] == value


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.requirement("003.no-agent")
def test_an_unknown_capability_is_404_and_on_record(
    client: httpx.Client, session: str, orchestrate: Orchestrate
) -> None:
    answer = orchestrate("text_to_image", {"prompt": "a"})
    assert answer.status_code == 404
    error = answer.json()
    assert error["message"] == "No agent available for capability: text_to_image"
    assert error["code"] == "E_AGENT_NOT_FOUND"
    assert error.keys() == {"code", "message", "retryable", "details"}
    request, response = client.get("/v1/contracts", params={"session_id": session}).json()[
        "contracts"
    ]
    assert request["contract_id"] == error["details"]["contract_id"]
    for contract in (request, response):
        assert contract["status"] == "failed"
        assert contract["error"] == error["message"]
    assert request["payload"] == {"prompt": "a"}


@pytest.mark.requirement("003.no-agent")
def test_a_known_capability_whose_agents_are_busy_waits(
    server: Served, client: httpx.Client, session: str, submit: Callable[..., str], name: str
) -> None:
    first = submit("single", {"name": name})
    server.wait_begun(name)
    second = submit("single", {"name": f"{name}-second"})
    assert client.get(f"/v1/executions/{second}").json()["state"] == "queued"
    server.let(name)
    server.let(f"{name}-second")
    for execution in (first, second):
        client.get(f"/v1/executions/{execution}/events")
        assert client.get(f"/v1/executions/{execution}").json()["state"] == "completed"


@pytest.mark.requirement("003.agent-failure")
@pytest.mark.parametrize(
    ("capability", "message"),
    [("refuse", "it did not work"), ("raise", "ValueError: something broke")],
)
def test_an_agent_that_fails_is_answered_and_ready_again(
    client: httpx.Client, session: str, orchestrate: Orchestrate, capability: str, message: str
) -> None:
    answer = orchestrate(capability)
    assert answer.status_code == 200
    reply = answer.json()
    assert reply["success"] is False
    assert reply["data"] is None
    assert reply["error"] == message
    assert reply["error_info"]["message"] == message
    assert reply["error_info"].keys() == {"code", "message", "retryable", "details"}
    assert reply["agent_id"] == "failing"
    request, response = client.get("/v1/contracts", params={"session_id": session}).json()[
        "contracts"
    ]
    assert request["contract_id"] == reply["contract_id"]
    for contract in (request, response):
        assert contract["status"] == "failed"
        assert contract["error"] == message
        assert contract["metadata"]["error_code"] == reply["error_info"]["code"]
    assert response["payload"] == {"success": False, "error": message}
    assert client.get("/v1/agents/failing").json()["status"] == "available"
    assert orchestrate("refuse").json()["error"] == "it did not work"


def test_a_deadline_that_passes_is_a_failed_reply(orchestrate: Orchestrate, name: str) -> None:
    reply = orchestrate("hold", {"name": name}, timeout_ms=50).json()
    assert reply["success"] is False
    assert reply["error_info"]["code"] == "E_TIMEOUT"
    assert reply["error_info"]["retryable"] is True


def test_a_full_queue_is_429_with_the_time_to_wait(start: Callable[..., Served]) -> None:
    server = start(queue_bound=1)
    body = {"session_id": "s", "capability": "single"}
    with server.client() as client:
        client.post("/v1/executions", json={**body, "parameters": {"name": "one"}})
        server.wait_begun("one")
        waiting = client.post("/v1/executions", json={**body, "parameters": {"name": "two"}})
        assert waiting.status_code == 202
        refused = client.post("/v1/orchestrate", json={**body, "parameters": {"name": "three"}})
        assert refused.status_code == 429
        assert refused.json()["code"] == "E_QUEUE_FULL"
        assert int(refused.headers["retry-after"]) >= 1
        server.let("one")
        server.let("two")


def test_an_open_circuit_is_503_with_the_time_to_wait(start: Callable[..., Served]) -> None:
    server = start()
    server.orchestrator.register_agent(server.tripping())
    body = {"session_id": "s", "capability": "trip"}
    with server.client() as client:
        assert client.post("/v1/orchestrate", json=body).json()["success"] is False
        refused = client.post("/v1/orchestrate", json=body)
    assert refused.status_code == 503
    assert refused.json()["code"] == "E_CIRCUIT_OPEN"
    assert 50 <= int(refused.headers["retry-after"]) <= 60


# -- parameters --------------------------------------------------------------------------------


@pytest.mark.requirement("003.capability-parameters")
def test_the_short_form_of_parameters_is_listed_as_a_schema(client: httpx.Client) -> None:
    for agent in client.get("/v1/agents").json()["agents"]:
        if agent["agent_id"] == "agent_example_001":
            echo = next(c for c in agent["capabilities"] if c["name"] == "echo")
            assert echo["parameters"]["properties"]["text"]["type"] == "string"
            assert echo["parameters"]["required"] == ["text"]


@pytest.mark.requirement("003.capability-parameters")
@pytest.mark.parametrize(
    ("parameters", "named"),
    [({}, "param1"), ({"param1": "a", "more": 1}, "more"), ({"param1": 1}, "param1")],
)
def test_parameters_that_do_not_fit_are_422_and_named(
    orchestrate: Orchestrate, parameters: dict[str, Any], named: str
) -> None:
    answer = orchestrate("typed", parameters)
    assert answer.status_code == 422
    assert answer.json()["code"] == "E_INVALID_INPUT"
    assert named in answer.json()["message"]


# -- idempotency -------------------------------------------------------------------------------


def test_a_repeated_key_joins_the_first_execution(client: httpx.Client, session: str) -> None:
    body = {"session_id": session, "capability": "reflect", "parameters": {"value": 1}}
    headers = {"Idempotency-Key": f"{session} key!"}
    first = client.post("/v1/orchestrate", json=body, headers=headers).json()
    second = client.post("/v1/orchestrate", json=body, headers=headers).json()
    assert second["execution_id"] == first["execution_id"]
    assert second["contract_id"] == first["contract_id"]
    joined = client.post("/v1/executions", json=body, headers=headers)
    assert joined.json() == {
        "execution_id": first["execution_id"],
        "contract_id": first["contract_id"],
        "state": "completed",
        "joined": True,
    }
    other = {**body, "parameters": {"value": 2}}
    conflict = client.post("/v1/orchestrate", json=other, headers=headers)
    assert (conflict.status_code, conflict.json()["code"]) == (409, "E_CONFLICT")
    assert client.get("/v1/contracts", params={"session_id": session}).json()["total"] == 2


def test_one_key_at_the_same_time_runs_once(client: httpx.Client, session: str) -> None:
    body = {"session_id": session, "capability": "reflect", "parameters": {"value": 1}}
    headers = {"Idempotency-Key": session}

    def post(_: int) -> str:
        reply = client.post("/v1/orchestrate", json=body, headers=headers).json()
        assert reply["success"] is True
        return str(reply["execution_id"])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(post, range(8)))) == 1


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"\xe4", b"a\tb"])
def test_a_key_that_is_none_is_422(client: httpx.Client, session: str, key: bytes) -> None:
    body = {"session_id": session, "capability": "reflect"}
    answer = client.post("/v1/orchestrate", json=body, headers={b"Idempotency-Key": key})
    assert answer.status_code == 422
    assert answer.json()["details"]["path"] == "Idempotency-Key"


def test_the_echo_for_measuring_answers_in_the_same_shape(client: httpx.Client) -> None:
    body = {"session_id": "s", "capability": "echo", "parameters": {"text": "hi"}}
    echoed = client.post("/bench/echo", json=body).json()
    real = client.post("/v1/orchestrate", json=body).json()
    assert echoed.keys() == real.keys()
    assert echoed["data"] == body["parameters"]

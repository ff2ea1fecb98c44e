"""Executions: submitted without waiting, listed, looked at, cancelled; and their questions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Served

Submit = Callable[..., str]


def ended(client: httpx.Client, execution: str) -> dict[str, Any]:
    """Wait for an execution's end and return it."""
    client.get(f"/v1/executions/{execution}/events")
    found: dict[str, Any] = client.get(f"/v1/executions/{execution}").json()
    return found


def test_a_submitted_task_is_accepted_and_found(
    server: Served, client: httpx.Client, session: str, name: str
) -> None:
    task = {"session_id": session, "capability": "hold", "parameters": {"name": name}}
    answer = client.post("/v1/executions", json={**task, "context": [1], "priority": 7})
    assert answer.status_code == 202
    accepted = answer.json()
    assert accepted.keys() == {"execution_id", "contract_id", "state", "joined"}
    assert accepted["state"] in {"running", "queued"}
    server.wait_begun(name)
    running = client.get(answer.headers["location"]).json()
    assert running["execution_id"] == accepted["execution_id"]
    assert running["contract_id"] == accepted["contract_id"]
    assert running["state"] == "running"
    assert running["agent_id"] == "hold"
    assert running["priority"] == 7
    assert running["attempt"] == 1
    assert running["input"] == {"parameters": {"name": name}, "context": [1]}
    assert running["result"] is None
    assert running["error"] is None
    assert running["finished_at"] is None
    server.let(name)
    found = ended(client, accepted["execution_id"])
    assert found["state"] == "completed"
    assert found["result"] == name
    assert running["created_at"] == found["created_at"] <= found["finished_at"]


def test_a_failed_execution_shows_its_error(client: httpx.Client, submit: Submit) -> None:
    found = ended(client, submit("refuse"))
    assert found["state"] == "failed"
    assert found["error"]["message"] == "it did not work"
    assert found["error_code"] == found["error"]["code"]
    assert found["outcome"] == "failed"


def test_executions_are_filtered_and_paged(
    client: httpx.Client, session: str, submit: Submit
) -> None:
    ids = [submit("reflect", {"value": number}) for number in range(5)]
    ids += [submit("refuse")]
    for execution in ids:
        ended(client, execution)

    def listed(**query: Any) -> list[str]:
        found = client.get("/v1/executions", params={"session_id": session, **query}).json()
        assert found["total"] == len(found["executions"]) or query.get("limit")
        return [row["execution_id"] for row in found["executions"]]

    assert listed() == ids[::-1]
    assert listed(state="failed") == listed(agent_id="failing") == [ids[5]]
    assert listed(capability="reflect", state="completed") == ids[4::-1]
    assert listed(state="queued") == []
    first = client.get("/v1/executions", params={"session_id": session, "limit": 4}).json()
    assert first["total"] == 6
    rest = {"session_id": session, "cursor": first["next_cursor"]}
    second = client.get("/v1/executions", params=rest).json()
    assert second["next_cursor"] is None
    joined = [row["execution_id"] for row in first["executions"] + second["executions"]]
    assert joined == ids[::-1]
    assert client.get("/v1/executions?state=sleeping").status_code == 422


def test_a_running_execution_is_cancelled(
    server: Served, client: httpx.Client, submit: Submit, name: str
) -> None:
    execution = submit("hold", {"name": name})
    server.wait_begun(name)
    cancelled = client.post(f"/v1/executions/{execution}/cancel").json()
    assert cancelled["state"] == "cancelled"
    assert cancelled["error"]["code"] == "E_CANCELLED"
    assert cancelled["cancel_requested_at"] is not None
    again = client.post(f"/v1/executions/{execution}/cancel")
    assert (again.status_code, again.json()["state"]) == (200, "cancelled")


def test_an_execution_that_is_not_there_is_404(client: httpx.Client) -> None:
    nobody = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
        answer = client.request(method, f"/v1/executions/{nobody}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "E_NOT_FOUND")


# -- questions ---------------------------------------------------------------------------------


def _question(client: httpx.Client, execution: str) -> dict[str, Any]:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for question in client.get("/v1/questions").json()["questions"]:
            if question["execution_id"] == execution:
                found: dict[str, Any] = question
                return found
    pytest.fail("no question came")


def test_who_cannot_wait_gets_the_question(client: httpx.Client) -> None:
    task = {"session_id": "s", "capability": "ask", "parameters": {}, "on_question": "return"}
    answer = client.post("/v1/orchestrate", json=task)
    assert answer.status_code == 200
    reply = answer.json()
    assert (reply["success"], reply["data"]) == (False, None)
    assert reply["error_info"]["code"] == "E_HUMAN_INPUT_REQUIRED"
    assert reply["error_info"]["details"]["execution_id"] == reply["execution_id"]
    question = reply["error_info"]["details"]["question_id"]
    waiting = client.get(f"/v1/executions/{reply['execution_id']}").json()
    assert waiting["state"] == "input_required"
    path = f"/v1/questions/{question}/answer"
    assert client.post(path, json={"answer": "this"}).status_code == 200
    assert ended(client, reply["execution_id"])["result"] == "this"
    wrong = client.post("/v1/orchestrate", json={**task, "on_question": "shrug"})
    assert (wrong.status_code, wrong.json()["details"]["path"]) == (422, "$.on_question")


@pytest.mark.parametrize("given", ["the first", "", "ä\n{}"])
def test_a_question_is_listed_answered_once_and_goes_on(
    client: httpx.Client, submit: Submit, given: Any
) -> None:
    execution = submit("ask")
    question = _question(client, execution)
    assert question["prompt"] == "Which one?"
    assert question["schema"] == {"type": "string"}
    assert question["state"] == "open"
    assert (question["kind"], question["role"]) == ("input", "operator")
    waiting = client.get(f"/v1/executions/{execution}").json()
    assert waiting["state"] == "input_required"
    path = f"/v1/questions/{question['question_id']}/answer"
    assert client.post(path, json={}).status_code == 422
    answered = client.post(path, json={"answer": given})
    assert answered.status_code == 200
    assert answered.json() == {"question_id": question["question_id"], "state": "answered"}
    assert ended(client, execution)["result"] == given
    again = client.post(path, json={"answer": given})
    assert (again.status_code, again.json()["code"]) == (409, "E_CONFLICT")
    open_ones = client.get("/v1/questions").json()["questions"]
    assert question["question_id"] not in [q["question_id"] for q in open_ones]


def test_a_question_that_is_not_there_is_404(client: httpx.Client) -> None:
    path = "/v1/questions/01ARZ3NDEKTSV4RRFFQ69G5FAV/answer"
    assert client.post(path, json={"answer": 1}).status_code == 404
    assert client.post("/v1/questions/x/answer", json={"answer": 1}).status_code == 404

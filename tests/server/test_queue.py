"""The queue over HTTP: what waits is shown, moved, done again, refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Served


def hold(session: str, name: str, **more: Any) -> dict[str, Any]:
    return {"session_id": session, "capability": "hold", "parameters": {"name": name}, **more}


def ended(client: httpx.Client, execution: str) -> dict[str, Any]:
    """Wait for an execution's end and return it."""
    client.get(f"/v1/executions/{execution}/events")
    found: dict[str, Any] = client.get(f"/v1/executions/{execution}").json()
    return found


def accepted(client: httpx.Client, task: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/v1/executions", json=task)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_task_runs_when_it_is_due(client: httpx.Client, session: str) -> None:
    moment = (datetime.now(UTC) + timedelta(seconds=1)).astimezone()
    echo = {"session_id": session, "capability": "echo", "parameters": {"text": "x"}}
    later = accepted(client, {**echo, "run_at": moment.isoformat(), "timeout_ms": 5000})
    assert later["state"] == "scheduled"
    shown = client.get(f"/v1/executions/{later['execution_id']}").json()
    assert (shown["state"], shown["hold"]) == ("scheduled", "time")
    assert datetime.fromisoformat(shown["run_at"]) == moment
    assert datetime.fromisoformat(shown["deadline_at"]) == moment + timedelta(seconds=5)
    found = ended(client, later["execution_id"])
    assert found["state"] == "completed"
    assert datetime.fromisoformat(found["started_at"]) >= moment
    reply = client.post("/v1/orchestrate", json={**echo, "run_at": "2001-01-01T00:00:00+02:00"})
    assert reply.json()["success"]
    again = ended(client, reply.json()["execution_id"])
    assert again["run_at"] == again["created_at"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_at", "2030-01-01T00:00:00"),
        ("run_at", "tomorrow"),
        ("run_at", 12),
        ("run_at", "9999-12-31T23:59:59-12:00"),
        ("on_busy", "dance"),
        ("priority", 1001),
    ],
)
@pytest.mark.parametrize("path", ["/v1/executions", "/v1/orchestrate"])
def test_what_cannot_be_meant_is_refused(
    client: httpx.Client, session: str, path: str, field: str, value: Any
) -> None:
    echo = {"session_id": session, "capability": "echo", "parameters": {"text": "x"}}
    answer = client.post(path, json={**echo, field: value})
    assert answer.status_code == 422, answer.text
    assert answer.json()["details"]["path"] == f"$.{field}"


@pytest.mark.requirement("003.queue")
def test_what_waits_is_shown_and_moved(start: Callable[..., Served]) -> None:
    served = start()
    with served.client() as client:
        task = {"session_id": "s", "capability": "single"}
        ids = [
            accepted(client, {**task, "parameters": {"name": name}})["execution_id"]
            for name in ("first", "a", "b", "c")
        ]
        served.wait_begun("first")
        later = accepted(
            client, {**task, "parameters": {"name": "z"}, "run_at": "2035-01-01T00:00:00Z"}
        )["execution_id"]
        listing = client.get("/v1/executions", params={"state": "queued,scheduled"}).json()
        assert {row["execution_id"] for row in listing["executions"]} == {*ids[1:], later}
        assert [row["priority"] for row in listing["executions"]] == [0] * 4
        ranks = {row["execution_id"]: row["rank"] for row in listing["executions"]}
        assert sorted(ranks, key=ranks.__getitem__) == [*ids[1:], later]
        for bad in ("odd", "queued,", "queued,odd", ""):
            assert client.get("/v1/executions", params={"state": bad}).status_code == 422
        queue = client.get("/v1/queue").json()
        oldest = client.get(f"/v1/executions/{ids[1]}").json()["created_at"]
        (line,) = queue["queues"]
        assert line.pop("oldest_at")[:23] == oldest[:23]
        assert line == {"queue_key": "cap:single", "ready": 3, "in_turn": 0, "scheduled": 1}
        assert (queue["ready"], queue["in_turn"], queue["scheduled"]) == (3, 0, 1)
        assert queue["bound"] == served.settings.queue_bound

        def move(execution: str, priority: Any) -> httpx.Response:
            path = f"/v1/executions/{execution}/priority"
            return client.post(path, json={"priority": priority})

        moved = move(ids[3], 9)
        assert moved.status_code == 200
        assert moved.json()["priority"] == 9
        assert moved.json()["rank"] < ranks[ids[1]]
        assert move(later, -9).json()["state"] == "scheduled"
        refused = move(ids[0], 1)
        assert (refused.status_code, refused.json()["code"]) == (409, "E_CONFLICT")
        assert refused.json()["details"] == {"state": "running"}
        for bad_priority in (1001, "1", None, 1.5):
            assert move(ids[1], bad_priority).status_code == 422
        assert move("01ARZ3NDEKTSV4RRFFQ69G5FAV", 1).status_code == 404
        for name in ("first", "a", "b", "c"):
            served.let(name)
        starts = [ended(client, i)["started_at"] for i in (ids[0], ids[3], ids[1], ids[2])]
        assert starts == sorted(starts)
        assert client.post(f"/v1/executions/{later}/cancel").json()["state"] == "cancelled"
        assert move(later, 1).status_code == 409
        assert client.get("/v1/queue").json()["queues"] == []


@pytest.mark.requirement("003.queue")
def test_a_full_queue_says_when_to_come_again_at_every_door(start: Callable[..., Served]) -> None:
    served = start(queue_bound=1)
    with served.client() as client:
        task = {"session_id": "s", "capability": "single", "parameters": {"name": "a"}}
        failed = ended(client, accepted(client, {**task, "timeout_ms": 1})["execution_id"])
        assert failed["state"] == "timed_out"
        accepted(client, task)
        served.wait_begun("a")
        accepted(client, task)
        scheduled = {**task, "run_at": "2035-01-01T00:00:00Z"}
        doors = [
            ("/v1/orchestrate", task),
            ("/v1/executions", task),
            ("/v1/executions", scheduled),
            (f"/v1/executions/{failed['execution_id']}/retry", None),
        ]
        for path, body in doors:
            refused = client.post(path, json=body) if body else client.post(path)
            assert refused.status_code == 429, path
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["code"] == "E_QUEUE_FULL"
            assert refused.json()["retryable"] is True
        served.let("a")


def test_a_busy_session_refuses_or_keeps_order(
    server: Served, client: httpx.Client, session: str, name: str
) -> None:
    first = accepted(client, hold(session, name))["execution_id"]
    server.wait_begun(name)
    refused = client.post("/v1/orchestrate", json=hold(session, name, on_busy="reject"))
    assert (refused.status_code, refused.json()["code"]) == (409, "E_SESSION_BUSY")
    assert refused.json()["retryable"] is True
    turn = accepted(client, hold(session, name, on_busy="enqueue"))
    assert turn["state"] == "queued"
    shown = client.get(f"/v1/executions/{turn['execution_id']}").json()
    assert (shown["state"], shown["hold"], shown["on_busy"]) == ("queued", "session", "enqueue")
    lines = {line["queue_key"]: line for line in client.get("/v1/queue").json()["queues"]}
    assert lines["cap:hold"]["in_turn"] >= 1
    server.let(name)
    newest = client.post("/v1/orchestrate", json=hold(session, name, on_busy="enqueue")).json()
    done = [ended(client, i) for i in (first, turn["execution_id"], newest["execution_id"])]
    for before, after in itertools.pairwise(done):
        assert before["finished_at"] <= after["started_at"]


def test_an_interrupt_goes_next(
    server: Served, client: httpx.Client, session: str, name: str
) -> None:
    first = accepted(client, hold(session, name))["execution_id"]
    server.wait_begun(name)
    server.let(f"{name}-2")
    reply = client.post("/v1/orchestrate", json=hold(session, f"{name}-2", on_busy="interrupt"))
    assert reply.json()["success"] is True
    stopped = ended(client, first)
    assert stopped["state"] == "cancelled"
    assert reply.json()["execution_id"] in stopped["error"]["details"]["by"]


def test_what_failed_is_done_again(client: httpx.Client, session: str) -> None:
    task = {"session_id": session, "capability": "refuse", "context": {"a": 1}, "intent": "why"}
    old = ended(client, accepted(client, task)["execution_id"])
    path = f"/v1/executions/{old['execution_id']}/retry"
    answer = client.post(path, headers={"Idempotency-Key": f"again-{session}"})
    assert answer.status_code == 202
    new = ended(client, answer.json()["execution_id"])
    assert answer.headers["location"] == f"/v1/executions/{new['execution_id']}"
    assert new["retry_of"] == old["execution_id"]
    assert new["input"] == old["input"]
    same = client.post(path, headers={"Idempotency-Key": f"again-{session}"}).json()
    assert (same["execution_id"], same["joined"]) == (new["execution_id"], True)
    good = {"session_id": session, "capability": "echo", "parameters": {"text": "x"}}
    done = client.post("/v1/orchestrate", json=good).json()["execution_id"]
    refused = client.post(f"/v1/executions/{done}/retry")
    assert (refused.status_code, refused.json()["details"]) == (409, {"state": "completed"})
    letters = client.get("/v1/executions", params={"dead_letter": "true", "session_id": session})
    assert letters.json()["total"] == 0


def test_a_viewer_moves_and_repeats_nothing(start: Callable[..., Served]) -> None:
    served = start()
    with served.client() as client:
        admin = client.post("/v1/keys", json={"name": "a", "role": "admin"}).json()["secret"]
        client.headers["X-API-Key"] = admin
        viewer = client.post("/v1/keys", json={"name": "v", "role": "viewer"}).json()["secret"]
        task = {"session_id": "s", "capability": "refuse"}
        failed = ended(client, accepted(client, task)["execution_id"])["execution_id"]
        client.headers["X-API-Key"] = viewer
        assert client.get("/v1/queue").status_code == 200
        one = f"/v1/executions/{failed}"
        assert client.post(f"{one}/priority", json={"priority": 1}).status_code == 403
        assert client.post(f"{one}/retry").status_code == 403

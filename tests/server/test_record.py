"""The record over HTTP: contracts, sessions, memory blocks, and its verification."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Served

Orchestrate = Callable[..., httpx.Response]


def contracts(client: httpx.Client, **query: Any) -> dict[str, Any]:
    answer = client.get("/v1/contracts", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.requirement("003.contracts")
def test_an_exchange_is_two_contracts(
    client: httpx.Client, session: str, orchestrate: Orchestrate
) -> None:
    reply = orchestrate("echo", {"text": "hi"}).json()
    listing = contracts(client, session_id=session)
    assert listing["session_id"] == session
    assert listing["total"] == 2
    request, response = listing["contracts"]
    fields = {
        "contract_id", "session_id", "contract_type", "from_agent", "to_agent", "capability",
        "payload", "status", "created_at", "completed_at", "result", "error", "metadata",
    }  # fmt: skip
    assert request.keys() == response.keys() == fields
    assert request["contract_type"] == "REQUEST"
    assert request["from_agent"] == "orchestrator"
    assert request["to_agent"] == "agent_example_001"
    assert request["capability"] == "echo"
    assert request["payload"] == {"text": "hi"}
    assert request["status"] == "completed"
    assert request["result"] == {"message": "Echo: hi"}
    assert response["contract_type"] == "RESPONSE"
    assert response["from_agent"] == "agent_example_001"
    assert response["to_agent"] == "orchestrator"
    assert response["capability"] is None
    assert response["payload"] == {"success": True, "data": {"message": "Echo: hi"}}
    assert response["status"] == "completed"
    assert response["result"] == {"message": "Echo: hi"}
    for place, contract in enumerate((request, response), start=1):
        assert contract["error"] is None
        assert contract["completed_at"] == response["created_at"]
        assert contract["metadata"]["execution_id"] == reply["execution_id"]
        assert contract["metadata"]["n"] == place
        assert len(contract["metadata"]["hash"]) == 64


@pytest.mark.requirement("003.contracts")
def test_a_requests_status_follows_its_execution(
    server: Served, client: httpx.Client, session: str, submit: Callable[..., str], name: str
) -> None:
    running = submit("single", {"name": name})
    server.wait_begun(name)
    waiting = submit("single", {"name": f"{name}-next"}, agent_id="single")

    def statuses() -> list[tuple[str, Any, Any]]:
        found = contracts(client, session_id=session)["contracts"]
        return [(c["status"], c["to_agent"], c["completed_at"]) for c in found]

    assert statuses() == [("in_progress", "single", None), ("pending", "single", None)]
    cancelled = client.post(f"/v1/executions/{waiting}/cancel").json()
    assert cancelled["state"] == "cancelled"
    server.let(name)
    client.get(f"/v1/executions/{running}/events")
    assert [status for status, _, _ in statuses()] == [
        "completed", "cancelled", "cancelled", "completed",
    ]  # fmt: skip


@pytest.mark.requirement("003.contracts")
def test_contracts_are_filtered_by_sender_and_receiver(
    client: httpx.Client, session: str, orchestrate: Orchestrate
) -> None:
    orchestrate("echo", {"text": "a"})
    orchestrate("refuse")
    found = contracts(client, session_id=session, from_agent="failing")
    assert [c["from_agent"] for c in found["contracts"]] == ["failing"]
    assert found["total"] == 1
    found = contracts(client, session_id=session, to_agent="agent_example_001")
    assert [c["contract_type"] for c in found["contracts"]] == ["REQUEST"]
    found = contracts(client, session_id=session, from_agent="orchestrator")
    assert [c["capability"] for c in found["contracts"]] == ["echo", "refuse"]
    assert contracts(client, session_id="no-such-session")["total"] == 0


@pytest.mark.requirement("003.contracts")
def test_ids_sort_in_time_order_and_pages_join_without_gap(
    client: httpx.Client, session: str, orchestrate: Orchestrate
) -> None:
    for number in range(4):
        orchestrate("reflect", {"value": number})
    whole = contracts(client, session_id=session)["contracts"]
    ids = [c["contract_id"] for c in whole]
    assert ids == sorted(ids)
    assert [c["created_at"] for c in whole] == sorted(c["created_at"] for c in whole)
    paged: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = contracts(client, session_id=session, limit=3, **cursor)
        assert page["total"] == 8
        paged += [c["contract_id"] for c in page["contracts"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert paged == ids


def test_sessions_count_their_contracts(
    client: httpx.Client, session: str, orchestrate: Orchestrate
) -> None:
    orchestrate("echo", {"text": "a"})
    orchestrate("raise")
    found = client.get(f"/v1/sessions/{session}").json()
    last = contracts(client, session_id=session)["contracts"][-1]
    assert found["head"] == last["metadata"]["hash"]
    counts = {name: found[name] for name in ("contracts", "completed", "failed", "open")}
    assert counts == {"contracts": 4, "completed": 1, "failed": 1, "open": 0}
    listed = client.get("/v1/sessions", params={"limit": 1000}).json()
    assert found in listed["sessions"]
    assert listed["total"] == len(listed["sessions"])
    assert client.get("/v1/sessions/no-such-session").status_code == 404


def test_a_session_is_compressed_from_its_contracts(
    client: httpx.Client, session: str, orchestrate: Orchestrate
) -> None:
    orchestrate("reflect", {"value": "marker-7261"})
    answer = client.post("/v1/compress", json={"session_id": session, "intent": "why"})
    block = answer.json()
    assert block.keys() == {"status", "session_id", "compressed", "memory_block", "error"}
    assert block["compressed"] is True
    assert "marker-7261" in answer.text
    assert block["memory_block"]["intent"] == "why"
    empty = client.post("/v1/compress", json={"session_id": f"{session}-empty"}).json()
    assert empty["compressed"] is False
    assert empty["memory_block"] is None
    assert "no contracts" in empty["error"]


def test_the_ledger_verifies(client: httpx.Client, orchestrate: Orchestrate) -> None:
    orchestrate("echo", {"text": "hi"})
    verdict = client.get("/v1/ledger/verify").json()
    assert verdict["ok"] is True
    assert verdict["fault"] is None
    assert verdict["contracts"] >= 2
    assert verdict["events"] >= 1


def test_erased_and_removed_are_said_plainly(
    client: httpx.Client, session: str, orchestrate: Orchestrate
) -> None:
    execution = orchestrate("steps", {"count": 2}).json()["execution_id"]
    one = f"/v1/executions/{execution}"
    plain = {"Accept": "application/json"}
    told = client.get(f"{one}/events", headers=plain).json()
    assert [event["sequence"] for event in told["events"]] == [1, 2, 3]
    assert (told["last"], told["ended"]) == (3, True)
    key = {"Idempotency-Key": f"{session}-once"}
    task = {"session_id": session, "capability": "echo", "parameters": {"text": "hi"}}
    again = client.post("/v1/orchestrate", json=task, headers=key).json()["execution_id"]
    for name in (execution, again):
        answer = client.delete(f"/v1/executions/{name}/body")
        assert (answer.status_code, answer.json()) == (200, {"contracts": 2, "open": 0})
    shown = client.get(one).json()
    assert (shown["erased"], shown["input"], shown["result"]) == (True, None, None)
    assert "removed" not in shown
    told = client.get(f"{one}/events", headers=plain).json()["events"]
    assert told[0]["erased"] is True
    assert (told[2]["erased"], told[2]["result"]) == (True, None)
    found = contracts(client, session_id=session)["contracts"]
    assert [c["metadata"]["erased"] for c in found] == [True] * 4
    assert [c["payload"] for c in found] == [None] * 4
    refused = client.post("/v1/orchestrate", json=task, headers=key)
    assert (refused.status_code, refused.json()["code"]) == (410, "E_GONE")
    joined = client.post("/v1/executions", json=task, headers=key)
    assert (joined.status_code, joined.json()["joined"]) == (202, True)
    assert joined.json()["execution_id"] == again
    assert client.get("/v1/ledger/verify").json()["ok"] is True

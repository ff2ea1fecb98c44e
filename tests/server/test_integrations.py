"""Trace and MemAgent as somebody who asks the server sees them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from retinue.testing.peers import FakeMemAgent, FakeTrace, Request

if TYPE_CHECKING:
    from tests.server.conftest import Served

    Start = Callable[..., Served]
SECONDS = 20.0


@pytest.fixture
def trace() -> Iterator[FakeTrace]:
    with FakeTrace() as service:
        yield service


@pytest.fixture
def memagent() -> Iterator[FakeMemAgent]:
    with FakeMemAgent() as service:
        yield service


def nowhere() -> str:
    """Return the URL of a port where nothing listens."""
    with FakeTrace() as service:
        return service.url


def run(client: httpx.Client, session: str, text: str, capability: str = "echo") -> str:
    body = {"session_id": session, "capability": capability, "parameters": {"text": text}}
    if capability != "echo":
        body["parameters"] = {}
    answer = client.post("/v1/orchestrate", json=body)
    assert answer.status_code == 200, answer.text
    contract: str = answer.json()["contract_id"]
    return contract


def compress(client: httpx.Client, session: str, intent: str | None = None) -> dict[str, Any]:
    answer = client.post("/v1/compress", json={"session_id": session, "intent": intent})
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    assert found.keys() == {"status", "session_id", "compressed", "memory_block", "error"}
    return found


def integrations(client: httpx.Client) -> dict[str, Any]:
    before = time.monotonic()
    found: dict[str, Any] = client.get("/v1/status").json()["integrations"]
    assert time.monotonic() - before < 2
    return found


def until(client: httpx.Client, check: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the status of the integrations once ``check`` holds for it."""
    deadline = time.monotonic() + SECONDS
    while not check(found := integrations(client)):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


# -- Trace -------------------------------------------------------------------------------------


@pytest.mark.requirement("003.trace", "003.trace-visible")
def test_an_outage_of_trace_is_seen_in_the_status_and_clears(
    start: Start, trace: FakeTrace
) -> None:
    trace.answer(503, when=lambda request: request.method == "POST")
    with start(trace_url=trace.url).client() as client:
        contract = run(client, "session_001", "hi")
        seen = until(client, lambda found: found["trace"]["failures"] > 0)
        assert seen["trace"]["healthy"] is False
        assert seen["all_healthy"] is False
        assert (seen["trace"]["backlog"], seen["trace"]["failing"]) == (2, 1)
        assert seen["trace"]["last_error"] == "Trace answered 503"
        assert seen["trace"]["last_error_at"] is not None
        trace.heal()
        trace.wait(lambda: len(trace.events("session_001")) == 2)
        seen = until(client, lambda found: found["trace"]["backlog"] == 0)
        seen = until(client, lambda found: found["all_healthy"] is True)
        assert (seen["trace"]["last_error"], seen["trace"]["failing"]) == (None, 0)
        assert seen["trace"]["failures"] > 0
    assert trace.events("session_001")[0]["data"]["contract_id"] == contract


def test_parked_contracts_are_listed_and_tried_again(start: Start, trace: FakeTrace) -> None:
    def answer(request: Request) -> bool:
        return request.method == "POST" and request.body["event_type"] == "contract.request"

    trace.answer(400, {"detail": "no"}, when=answer)
    with start(trace_url=trace.url).client() as client:
        contract = run(client, "s", "hi")
        seen = until(client, lambda found: found["trace"]["parked"] == 1)
        (row,) = client.get("/v1/parked").json()["parked"]
        assert row["contract_id"] == contract
        assert (row["sink"], row["session_id"], row["n"], row["tries"]) == ("trace", "s", 1, 1)
        assert row["error"].startswith("Trace answered 400")
        trace.wait(lambda: len(trace.events("s")) == 1)
        assert client.post("/v1/parked/retry").json() == {"delivered": 0, "refused": 1}
        trace.heal()
        assert client.post("/v1/parked/retry").json() == {"delivered": 1, "refused": 0}
        assert client.get("/v1/parked").json()["total"] == 0
        seen = integrations(client)
        assert (seen["trace"]["parked"], seen["trace"]["healthy"]) == (0, True)
    assert len(trace.events("s")) == 2


def test_a_password_in_a_url_is_sent_and_not_shown(start: Start, trace: FakeTrace) -> None:
    url = trace.url.replace("//", "//ann:s3cret@")
    with start(trace_url=url).client() as client:
        run(client, "s", "hi")
        trace.wait(lambda: len(trace.events("s")) == 2)
        trace.stop()
        run(client, "s", "again")
        seen = until(client, lambda found: found["trace"]["failing"] == 1)
        assert "s3cret" not in client.get("/v1/status").text
        assert trace.url in seen["trace"]["last_error"]
    sent = [r for r in trace.requests if r.method == "POST"]
    assert all(r.headers["authorization"].startswith("Basic ") for r in sent)
    assert "s3cret" not in json.dumps([r.path for r in sent])


# -- MemAgent ----------------------------------------------------------------------------------


@pytest.mark.requirement("003.memagent", "003.compress")
def test_memagent_is_told_what_really_happened(start: Start, memagent: FakeMemAgent) -> None:
    with start(memagent_url=memagent.url).client() as client:
        run(client, "work", "the marker is XYZZY-42")
        run(client, "work", "", "refuse")
        found = compress(client, "work", "find the treasure")
    assert found["compressed"] is True
    assert (found["session_id"], found["error"], found["status"]) == ("work", None, "ok")
    init, asked = [r for r in memagent.requests if r.method == "POST"]
    assert init.path == "/v1/session/init"
    assert init.body.keys() == {"session_id", "intent", "created_by"}
    assert init.body["session_id"] == "session_work"
    assert asked.path == "/v1/session/session_work/compress"
    assert asked.body.keys() == {"intent"}
    for told in (init.body["intent"], asked.body["intent"]):
        assert told.startswith("find the treasure\n")
        for fact in ("XYZZY-42", "agent_example_001", "refuse", "failed", "it did not work"):
            assert fact in told
    block = found["memory_block"]
    assert block["source"] == "memagent"
    assert block["fallback"] is None
    assert block["summary"].startswith("MemAgent on session_work: find the treasure")
    assert block["key_decisions"]
    assert block["memory_block_id"] == "mb_session_work"
    # What happened is ours to say, whatever MemAgent makes of it.
    assert block["capabilities"] == {"echo": 1, "refuse": 1}
    assert block["agents"] == ["agent_example_001", "failing"]
    assert block["outcomes"] == {"completed": 1, "failed": 1}
    assert block["intent"] == "find the treasure"
    assert block["session_id"] == "work"
    assert "XYZZY-42" in json.dumps(block["exchanges"])


@pytest.mark.requirement("003.memagent")
def test_a_session_may_be_compressed_again(start: Start, memagent: FakeMemAgent) -> None:
    with start(memagent_url=memagent.url).client() as client:
        run(client, "session_001", "one")
        compress(client, "session_001")
        run(client, "session_001", "two-AGAIN")
        again = compress(client, "session_001")["memory_block"]
    assert (again["source"], again["capabilities"]) == ("memagent", {"echo": 2})
    # The name needs no prefix, and the second account is the whole one.
    paths = {r.path for r in memagent.requests if r.method == "POST"}
    assert paths == {"/v1/session/init", "/v1/session/session_001/compress"}
    assert "two-AGAIN" in memagent.requests[-1].body["intent"] or any(
        "two-AGAIN" in str(r.body) for r in memagent.came("/v1/session/session_001/compress")
    )


@pytest.mark.requirement("003.memagent")
@pytest.mark.parametrize("path", ["/v1/health", "/health"])
def test_memagents_health_is_on_either_path(start: Start, path: str) -> None:
    with (
        FakeMemAgent(path) as memagent,
        start(memagent_url=memagent.url).client() as client,
    ):
        seen = integrations(client)
        assert seen["memagent"] == {"enabled": True, "url": memagent.url, "healthy": True}
        assert seen["all_healthy"] is True
        memagent.stop()
        until(client, lambda found: found["memagent"]["healthy"] is False)


def local(block: dict[str, Any]) -> bool:
    created: str = block["created_by"]
    return block["source"] == "local" and "local" in created


@pytest.mark.requirement("003.memagent-optional", "003.compress")
def test_with_nothing_listening_all_works_and_compress_is_local(start: Start) -> None:
    url = nowhere()
    with start(memagent_url=url, trace_url=nowhere()).client() as client:
        run(client, "s", "marker-QUUX")
        before = time.monotonic()
        found = compress(client, "s", "why")
        assert time.monotonic() - before < 2
        assert (found["compressed"], found["error"]) == (True, None)
        block = found["memory_block"]
        assert local(block)
        assert block["fallback"] == f"MemAgent cannot be reached at {url}"
        assert block["intent"] == "why"
        assert "marker-QUUX" in json.dumps(block)
        assert integrations(client)["memagent"]["healthy"] is False


@pytest.mark.requirement("003.memagent-optional")
def test_the_default_address_is_not_called_unless_it_is_set(client: httpx.Client) -> None:
    run(client, "unset", "hi")
    before = time.monotonic()
    block = compress(client, "unset")["memory_block"]
    assert time.monotonic() - before < 2
    assert local(block)
    assert block["fallback"] is None


@pytest.mark.requirement("003.memagent-optional")
@pytest.mark.parametrize("ill", ["hang", "init", "compress", "nothing", "nonsense"])
def test_a_memagent_that_is_ill_is_done_without(
    start: Start, memagent: FakeMemAgent, ill: str
) -> None:
    if ill == "hang":
        memagent.hang()
    elif ill in {"init", "compress"}:
        memagent.answer(500, {"detail": "out of order"}, when=lambda r: r.path.endswith(ill))
    elif ill == "nothing":
        idle = {"status": "ok", "message": "No events to compress", "events_processed": 0}
        memagent.answer(200, idle, when=lambda r: r.path.endswith("compress"))
    else:
        memagent.answer(200, [1, 2], when=lambda r: r.path.endswith("compress"))
    with start(memagent_url=memagent.url).client() as client:
        run(client, "s", "hi")
        before = time.monotonic()
        block = compress(client, "s")["memory_block"]
        assert time.monotonic() - before < 2
    assert local(block)
    assert block["fallback"].startswith("MemAgent")
    assert block["capabilities"] == {"echo": 1}


@pytest.mark.requirement("003.compress-empty")
def test_an_empty_session_is_not_compressed_and_nobody_is_called(
    start: Start, memagent: FakeMemAgent, trace: FakeTrace
) -> None:
    with start(memagent_url=memagent.url, trace_url=trace.url).client() as client:
        found = compress(client, "nobody-was-here", "why")
    assert found["compressed"] is False
    assert found["memory_block"] is None
    assert found["error"] == "session nobody-was-here has no contracts"
    for service in (memagent, trace):
        assert [r for r in service.requests if r.method == "POST"] == []


@pytest.mark.requirement("003.compress")
def test_the_block_is_made_of_the_sessions_contracts(client: httpx.Client, session: str) -> None:
    long = "start-MARK " + "x" * 5000 + " end-MARK"
    run(client, session, long)
    run(client, session, "", "refuse")
    answer = client.post("/v1/orchestrate", json={"session_id": session, "capability": "fly"})
    assert answer.status_code == 404
    body = {
        "session_id": session,
        "capability": "echo",
        "parameters": {"text": "hi"},
        "context": {"note": "context-MARK"},
        "intent": "intent-MARK",
    }
    client.post("/v1/orchestrate", json=body)
    block = compress(client, session, "the whole")["memory_block"]
    assert block["capabilities"] == {"echo": 2, "fly": 1, "refuse": 1}
    assert block["agents"] == ["agent_example_001", "failing"]
    assert block["outcomes"] == {"completed": 2, "failed": 2}
    assert (block["contracts"], block["intent"]) == (8, "the whole")
    text = json.dumps(block)
    marks = ["start", "end", "context", "intent"]
    assert all(f"{mark}-MARK" in text for mark in marks)
    assert len(text) < 5000
    assert "it did not work" in text
    assert "No agent available for capability: fly" in text
    assert block["summary"].startswith("4 tasks (2 completed, 2 failed) by agent_example_001")

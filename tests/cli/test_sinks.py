"""What reaches Trace when servers are killed, and from commands that need no server."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from retinue.testing.peers import FakeTrace

if TYPE_CHECKING:
    from tests.cli.conftest import Place, Server

SESSIONS = ("a", "b", "c")


@pytest.fixture
def trace() -> Iterator[FakeTrace]:
    with FakeTrace() as service:
        yield service


@pytest.fixture(params=["sqlite", "postgres"])
def environment(request: pytest.FixtureRequest, trace: FakeTrace) -> dict[str, str]:
    given = {"TRACE_URL": trace.url, "RETINUE_LEASE_SECONDS": "1"}
    if request.param == "postgres":
        given["DATABASE_URL"] = request.getfixturevalue("postgres_url")
    return given


def tell(server: Server, times: int) -> None:
    for number in range(times):
        for session in SESSIONS:
            body = {"session_id": session, "capability": "echo"}
            said = server.post("/v1/orchestrate", body | {"parameters": {"text": f"{number}"}})
            assert said["success"] is True


def chain(server: Server, session: str) -> list[str]:
    answer = httpx.get(
        f"{server.url}/v1/contracts?session_id={session}&limit=1000", trust_env=False
    )
    return [contract["contract_id"] for contract in answer.json()["contracts"]]


def told(trace: FakeTrace, session: str) -> list[str]:
    return [event["data"]["contract_id"] for event in trace.events(session)]


def posted(trace: FakeTrace) -> int:
    return sum(request.method == "POST" for request in trace.requests)


@pytest.mark.requirement("003.trace", "003.contracts-durable")
def test_after_kill_9_and_an_outage_all_arrive_in_order(
    place: Place, trace: FakeTrace, environment: dict[str, str]
) -> None:
    trace.delay = 0.02
    with place.serve(**environment) as server:
        tell(server, 4)
        trace.wait(lambda: len(trace.events()) >= 3)
        server.stop(signal.SIGKILL)
    at_the_kill = len(trace.events())
    trace.stop()
    with place.serve(**environment) as server:
        tell(server, 2)
        server.stop(signal.SIGKILL)
    trace.start()
    trace.heal()
    with place.serve(**environment) as server:
        expected = {session: chain(server, session) for session in SESSIONS}
        assert all(len(contracts) == 12 for contracts in expected.values())
        trace.wait(lambda: all(len(set(told(trace, session))) == 12 for session in SESSIONS))
    for session in SESSIONS:
        # What was delivered but not noted came twice, and nothing else did.
        assert list(dict.fromkeys(told(trace, session))) == expected[session]
    twice = len(trace.events()) - 12 * len(SESSIONS)
    assert 0 <= twice <= at_the_kill


@pytest.mark.requirement("003.trace")
def test_a_run_without_a_server_tells_trace_before_it_ends(place: Place, trace: FakeTrace) -> None:
    done = place.retinue("run", "echo", "text=hi", "--session", "s", TRACE_URL=trace.url)
    assert done.code == 0, done
    kinds = [event["event_type"] for event in trace.events("s")]
    assert kinds == ["contract.request", "contract.response"]


@pytest.mark.requirement("003.trace")
def test_what_a_run_could_not_tell_a_later_one_does(place: Place, trace: FakeTrace) -> None:
    trace.stop()
    assert place.retinue("run", "echo", "text=1", "--session", "s", TRACE_URL=trace.url).code == 0
    trace.start()
    assert place.retinue("run", "echo", "text=2", "--session", "t", TRACE_URL=trace.url).code == 0
    assert len(trace.events("t")) == 2
    # A run gives what was left over two seconds; on a busy machine it takes another one.
    for n in range(5):
        if trace.events("s"):
            break
        place.retinue("run", "echo", f"text={n}", "--session", "u", TRACE_URL=trace.url)
    assert len(trace.events("s")) == 2


@pytest.mark.requirement("003.memagent-optional")
def test_nothing_listens_on_the_default_addresses(place: Place) -> None:
    defaults = {"TRACE_URL": "http://localhost:8787", "MEMAGENT_URL": "http://localhost:8799"}
    for url in defaults.values():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0:
                pytest.skip(f"something listens on {url} here")
    with place.serve(**defaults) as server:
        tell(server, 1)
        answer = server.post("/v1/compress", {"session_id": "a", "intent": "why"})
        assert answer["compressed"] is True
        assert answer["memory_block"]["source"] == "local"
        assert "cannot be reached" in answer["memory_block"]["fallback"]
        assert answer["memory_block"]["capabilities"] == {"echo": 1}


def test_what_was_parked_is_listed_and_tried_again(place: Place, trace: FakeTrace) -> None:
    trace.answer(
        400,
        {"detail": "no"},
        when=lambda r: r.method == "POST" and r.body["event_type"] == "contract.request",
    )
    with place.serve(TRACE_URL=trace.url) as server:
        assert f"trace     {trace.url}\n" in server.banner
        assert place.call("parked").err == "there are none\n"
        body = {"session_id": "s", "capability": "echo", "parameters": {"text": "x"}}
        contract = server.post("/v1/orchestrate", body)["contract_id"]
        trace.wait(lambda: len(trace.events("s")) == 1)  # it went on behind the one refused
        trace.wait(lambda: place.call("parked", "--json").json["total"] == 1)
        listed = place.call("parked").out
        assert contract in listed
        assert "Trace answered 400" in listed
        done = place.call("parked", "retry")
        assert (done.code, done.out) == (1, "0 delivered, 1 refused again\n")
        trace.heal()
        done = place.call("parked", "retry")
        assert (done.code, done.out) == (0, "1 delivered, 0 refused again\n")

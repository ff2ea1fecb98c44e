"""``retinue run`` against servers that stop, or refuse more, once they have accepted its task."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from retinue.cli import client as client_module
from retinue.cli.client import Broken, Client
from retinue.cli.task import Errand
from retinue.errors import Pending

ID = "01M7ZFEAEN6K71T6D77HZAVFHD"
AGENTS = {
    "agents": [
        {
            "agent_id": "c",
            "name": "c",
            "capabilities": [{"name": "c", "parameters": None}],
        }
    ]
}
ACCEPTED = {"execution_id": ID, "contract_id": ID, "state": "running", "joined": False}
AWAY = httpx.ConnectError("away")
LIMITED = httpx.Response(
    429, json={"code": "E_RATE_LIMITED", "message": "x", "retryable": True, "details": {}}
)
STOPPING = httpx.Response(
    503, json={"code": "E_SHUTTING_DOWN", "message": "x", "retryable": True, "details": {}}
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr(client_module, "PAUSES", (0.0, 0.0))


def event(kind: str, **data: Any) -> bytes:
    said = {"executionId": ID, "eventType": kind, "sequence": 9, "timestamp": "T", **data}
    return b"id: 9\ndata: %s\n\n" % json.dumps(said).encode()


class Server:
    """Answers by what is asked; an exception is raised instead. Notes the POSTs."""

    def __init__(self, **answers: Callable[[], httpx.Response | Exception]) -> None:
        self.answers = answers
        self.posted: list[tuple[str, str | None]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if request.method == "POST":
            self.posted.append((path, request.headers.get("idempotency-key")))
        if path == "/v1/agents":
            return httpx.Response(200, json=AGENTS)
        if path == "/v1/executions":
            answer = self.answers.get("submit", lambda: httpx.Response(202, json=ACCEPTED))()
        elif path.endswith("/events"):
            answer = self.answers["events"]()
        else:
            assert request.method == "GET", path
            answer = self.answers["show"]()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def run(server: Server, *, as_json: bool = False) -> int:
    http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(server))
    errand = Errand("c", [], "s", None, None, {}, follow=False, as_json=as_json)
    async with Client(http, local=False) as client:
        return await errand.run(client)


@pytest.mark.parametrize("answer", [AWAY, STOPPING, LIMITED])
async def test_what_was_done_is_said_although_the_server_has_stopped(
    answer: httpx.Response | Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    done = event("completed", result={"words": 2})
    server = Server(events=lambda: httpx.Response(200, content=done), show=lambda: answer)
    assert await run(server) == 0
    assert json.loads(capsys.readouterr().out) == {"words": 2}
    assert len(server.posted) == 1

    failed = event(
        "failed", error="it broke", code="E_AGENT_FAILED", retryable=False, details={"a": 1}
    )
    server = Server(events=lambda: httpx.Response(200, content=failed), show=lambda: answer)
    assert await run(server, as_json=True) == 1
    reply = json.loads(capsys.readouterr().out)
    assert reply["error_info"] == {
        "code": "E_AGENT_FAILED",
        "message": "it broke",
        "retryable": False,
        "details": {"a": 1},
    }
    assert (reply["error"], reply["execution_id"]) == ("it broke", ID)


@pytest.mark.parametrize("answer", [AWAY, STOPPING])
async def test_work_that_cannot_be_followed_is_named_and_not_to_be_sent_again(
    answer: httpx.Response | Exception,
) -> None:
    with pytest.raises(Pending) as caught:
        await run(Server(events=lambda: answer))
    assert ID in caught.value.message
    assert "instead of sending it again" in caught.value.message
    assert caught.value.retryable is False


async def test_a_broken_submission_is_repeated_under_the_same_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers: list[httpx.Response | Exception] = [
        httpx.ReadError("broken"),
        httpx.Response(202, json=ACCEPTED),
    ]
    server = Server(
        submit=lambda: answers.pop(0),
        events=lambda: httpx.Response(200, content=event("completed", result=1)),
        show=lambda: AWAY,
    )
    assert await run(server) == 0
    assert capsys.readouterr().out == "1\n"
    (first, second) = server.posted
    assert first == second
    assert first[1] is not None

    answers[:] = [httpx.ReadError("broken"), AWAY]
    with pytest.raises(Broken, match="whether the task was accepted is not known"):
        await run(Server(submit=lambda: answers.pop(0)))

"""The client: what it says of servers that refuse, go away, or are none; and its streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from retinue import Settings
from retinue.cli import client as client_module
from retinue.cli.client import Client, connect
from retinue.cli.embedded import opened
from retinue.errors import (
    AgentNotFound,
    CommunicationError,
    InvalidInput,
    NotFound,
    RetinueError,
    Unavailable,
)

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr(client_module, "PAUSES", (0.0, 0.0, 0.0))


def client_of(handler: Handler) -> Client:
    http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(handler))
    return Client(http, local=False)


def frame(sequence: int, kind: str = "content_chunk") -> bytes:
    body = {"executionId": "E", "eventType": kind, "sequence": sequence}
    return b"id: %d\ndata: %s\n\n" % (sequence, json.dumps(body).encode())


class Breaking(httpx.AsyncByteStream):
    """Frames, and then the connection breaks."""

    def __init__(self, *frames: bytes) -> None:
        self.frames = frames

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for one in self.frames:
            yield one
        raise httpx.ReadError("broken")


async def numbers(client: Client) -> list[int]:
    return [event["sequence"] async for event in client.events("E")]


async def test_a_stream_goes_on_where_it_broke() -> None:
    asked: list[str | None] = []
    answers: list[httpx.Response | Exception] = [
        httpx.Response(200, stream=Breaking(frame(1), b": \n\n", frame(2), b'data: {"seq')),
        httpx.ConnectError("away"),
        httpx.Response(503, json={"code": "E_SHUTTING_DOWN", "message": "x", "details": {}}),
        httpx.Response(200, content=frame(3)),
        httpx.Response(200, content=frame(4) + frame(5, "completed") + frame(6)),
    ]

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("last-event-id"))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await numbers(client_of(handler)) == [1, 2, 3, 4, 5]
    assert asked == [None, "2", "2", "2", "3"]


async def test_a_server_that_stays_away_is_given_up() -> None:
    tries = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        raise httpx.ConnectError("away")

    with pytest.raises(Unavailable, match="no server answers at http://server"):
        await numbers(client_of(handler))
    assert tries == 4


async def test_a_refused_stream_is_not_tried_again() -> None:
    tries = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        return httpx.Response(404, json={"code": "E_NOT_FOUND", "message": "no execution E"})

    with pytest.raises(NotFound, match="no execution E"):
        await numbers(client_of(handler))
    assert tries == 1


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (
            httpx.Response(404, json={"code": "E_AGENT_NOT_FOUND", "message": "m"}),
            AgentNotFound,
            "m",
        ),
        (httpx.Response(422, json={"code": "E_INVALID_INPUT", "message": "m"}), InvalidInput, "m"),
        (httpx.Response(500, json=["odd"]), CommunicationError, "answered 500"),
        (httpx.Response(502, text="<html>proxy"), CommunicationError, "answered 502"),
        (httpx.Response(200, text="<html>hello"), CommunicationError, "a Retinue server?"),
    ],
)
async def test_answers_become_errors(
    answer: httpx.Response, expected: type[RetinueError], words: str
) -> None:
    with pytest.raises(expected, match=words):
        await client_of(lambda request: answer).get("/v1/agents")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (httpx.ConnectError("x"), "no server answers"),
        (httpx.ReadTimeout("x"), "ReadTimeout"),
        (httpx.UnsupportedProtocol("x"), "no URL"),
    ],
)
async def test_failures_become_errors(failure: Exception, words: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise failure

    with pytest.raises(RetinueError, match=words):
        await client_of(handler).post("/v1/x", {})


async def test_a_credential_is_sent_and_a_proxy_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with connect("http://127.0.0.1:2", "rtn_secret") as client:
        with pytest.raises(Unavailable, match="no server answers at http://127"):
            await client.get("/v1/agents")
        assert client._http.headers["authorization"] == "Bearer rtn_secret"


# -- the app in this process -------------------------------------------------------------------


async def test_the_embedded_app_answers_and_streams() -> None:
    settings = Settings(database_url="sqlite://", entry_points=False)
    async with opened(settings, working=True) as client:
        task = {
            "session_id": "s",
            "capability": "summarize_text",
            "parameters": {"text": "One is. Two is. Three is.", "pause_ms": 60_000},
        }
        accepted = await client.post("/v1/executions", task, key="k")
        kinds = []
        async for event in client.events(accepted["execution_id"]):
            kinds.append(event["eventType"])
            if event["eventType"] == "content_chunk":
                # It is still pausing: what we see came while it runs.
                await client.post(f"/v1/executions/{accepted['execution_id']}/cancel")
        assert kinds[-1] == "cancelled"
        reply = await client.post("/v1/orchestrate", task, key="k", wait=True)
        assert reply["execution_id"] == accepted["execution_id"]
        assert reply["error_info"]["code"] == "E_CANCELLED"
        with pytest.raises(NotFound):
            await client.get("/v1/nothing")


async def test_a_stream_that_is_left_early_is_closed() -> None:
    settings = Settings(database_url="sqlite://", entry_points=False)
    async with opened(settings, working=True) as client:
        parameters = {"text": "One is. Two is.", "pause_ms": 60_000}
        task = {"session_id": "s", "capability": "summarize_text", "parameters": parameters}
        execution_id = (await client.post("/v1/executions", task))["execution_id"]
        async for _ in client.events(execution_id):
            break
        known = await client.get(f"/v1/executions/{execution_id}")
        assert known["state"] == "running"
        await client.post(f"/v1/executions/{execution_id}/cancel")


async def test_the_embedded_apps_caller_is_its_admin() -> None:
    settings = Settings(database_url="sqlite://", entry_points=False)
    async with opened(settings, working=False) as client:
        key = await client.post("/v1/keys", {"name": "k", "role": "admin"})
        assert key["secret"].startswith("rtn_")
        assert (await client.get("/v1/keys"))["total"] == 1
        await client.delete(f"/v1/keys/{key['key_id']}")

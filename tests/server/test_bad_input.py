"""Bad input: each kind has its answer, and the answer says what is wrong and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Served

JSON = {"content-type": "application/json"}


def body(**changed: Any) -> dict[str, Any]:
    """Return a good task with some fields changed; ``...`` removes one."""
    good = {"session_id": "s", "capability": "reflect", "parameters": {}}
    return {name: value for name, value in {**good, **changed}.items() if value is not ...}


def value(raw: str) -> bytes:
    """Return a task whose parameter is written as ``raw``."""
    start = b'{"session_id":"s","capability":"reflect","parameters":{"value":'
    return start + raw.encode("utf-8", "surrogatepass") + b"}}"


def assert_refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check status, code and shape of an error; return it."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()
    assert error.keys() == {"code", "message", "retryable", "details"}
    assert error["code"] == code
    return error


MALFORMED = {
    "empty": (b"", "the body is empty"),
    "cut": (b'{"session_id": "s"', "not valid JSON"),
    "trailing": (b"{} {}", "not valid JSON"),
    "not UTF-8": (b'{"session_id": "\xff"}', "not valid JSON"),
    "BOM": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "single quotes": (b"{'a': 1}", "not valid JSON"),
    "NaN": (value("NaN"), "not valid JSON"),
    "Infinity": (value("-Infinity"), "not valid JSON"),
    "1e999": (value("1e999"), "out of range"),
    "NUL": (value(r'"a\u0000b"'), "NUL"),
    "NUL in a key": (value(r'{"a\u0000": 1}'), "NUL"),
    "raw NUL": (value('"a\0b"'), "not valid JSON"),
    "lone surrogate": (value(r'"\ud800"'), ""),
    "raw surrogate": (value('"\ud800"'), "not valid JSON"),
    "5,000 digits": (value("9" * 5000), ""),
    "minus 5,000 digits": (value("-" + "9" * 5000), ""),
    "100,000 deep": (value("[" * 100_000 + "]" * 100_000), "nested deeper than 64"),
    "65 deep": (value("[" * 65 + "]" * 65), "nested deeper than 64"),
    "objects 100,000 deep": (value('{"a":' * 100_000 + "1" + "}" * 100_000), "nested deeper"),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("path", ["/v1/orchestrate", "/v1/executions", "/v1/compress", "/v1/keys"])
def test_bodies_that_are_no_json_we_keep(client: httpx.Client, path: str, case: str) -> None:
    raw, said = MALFORMED[case]
    answer = client.post(path, content=raw, headers=JSON)
    error = assert_refused(answer, 422, "E_INVALID_INPUT")
    assert said in error["message"]


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ([], "$"),
        (None, "$"),
        ("text", "$"),
        (body(session_id=...), "$.session_id"),
        (body(session_id=7), "$.session_id"),
        (body(session_id=None), "$.session_id"),
        (body(session_id=""), "$.session_id"),
        (body(session_id="x" * 65), "$.session_id"),
        (body(session_id="../../x"), "$.session_id"),
        (body(session_id="%2e%2e/"), "$.session_id"),
        (body(session_id=".."), "$.session_id"),
        (body(session_id="."), "$.session_id"),
        (body(session_id="a b"), "$.session_id"),
        (body(session_id="ä"), "$.session_id"),
        (body(session_id="s\n"), "$.session_id"),
        (body(capability=...), "$.capability"),
        (body(capability=""), "$.capability"),
        (body(capability=["a"]), "$.capability"),
        (body(capability="x" * 257), "$.capability"),
        (body(agent_id=5), "$.agent_id"),
        (body(parameters=[]), "$.parameters"),
        (body(parameters="{}"), "$.parameters"),
        (body(parameters=None), "$.parameters"),
        (body(intent={}), "$.intent"),
        (body(timeout_ms=0), "$.timeout_ms"),
        (body(timeout_ms=-1), "$.timeout_ms"),
        (body(timeout_ms=1.5), "$.timeout_ms"),
        (body(timeout_ms="100"), "$.timeout_ms"),
        (body(timeout_ms=10**18), "$.timeout_ms"),
        (body(timeout_ms=True), "$.timeout_ms"),
        (body(priority=1001), "$.priority"),
        (body(priority="high"), "$.priority"),
    ],
)
@pytest.mark.parametrize("route", ["/v1/orchestrate", "/v1/executions"])
def test_tasks_with_wrong_fields(client: httpx.Client, route: str, sent: Any, path: str) -> None:
    answer = client.post(route, content=json.dumps(sent).encode(), headers=JSON)
    error = assert_refused(answer, 422, "E_INVALID_INPUT")
    assert error["details"]["path"] == path


@pytest.mark.parametrize(
    ("route", "sent"),
    [
        ("/v1/orchestrate", body(role="admin", owner="x")),
        ("/v1/executions", body(role="admin", owner="x")),
        ("/v1/compress", {"session_id": "s", "owner": "x", "role": 1}),
        ("/v1/keys", {"name": "a", "role": "viewer", "owner": "o", "hash": "x", "id": "y"}),
        ("/v1/questions/01ARZ3NDEKTSV4RRFFQ69G5FAV/answer", {"answer": 1, "owner": 1, "role": 2}),
    ],
)
def test_unknown_fields_are_all_named(client: httpx.Client, route: str, sent: Any) -> None:
    error = assert_refused(client.post(route, json=sent), 422, "E_INVALID_INPUT")
    for field in error["details"]["unknown"]:
        assert field in error["message"]
    assert len(error["details"]["unknown"]) >= 2


BODILESS = [
    "/v1/parked/retry",
    "/v1/ledger/anchor",
    "/v1/executions/01ARZ3NDEKTSV4RRFFQ69G5FAV/cancel",
    "/v1/executions/01ARZ3NDEKTSV4RRFFQ69G5FAV/retry",
]


@pytest.mark.parametrize("route", BODILESS)
def test_what_takes_no_body_takes_none_but_an_empty_one(client: httpx.Client, route: str) -> None:
    error = assert_refused(client.post(route, json={"sink": "x"}), 422, "E_INVALID_INPUT")
    assert error["details"]["unknown"] == ["sink"]
    assert_refused(client.post(route, json=[1]), 422, "E_INVALID_INPUT")
    for empty in (b"", b"{}"):
        answer = client.post(route, content=empty, headers=JSON)
        assert answer.status_code == (404 if "/executions/" in route else 200), answer.text


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
        ("limit=9999999999999999999999", "limit"),
        ("limit=1&limit=2", "limit"),
        ("cursor=nonsense", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=" + "W" * 5000, "cursor"),
        ("session_id=..", "$.session_id"),
        ("session_id=../../x", "$.session_id"),
        ("session_id=..%2f..%2fx", "$.session_id"),
        ("session_id=%252e%252e%252f", "$.session_id"),
        ("session_id=%00", "session_id"),
        ("session_id=" + "x" * 65, "$.session_id"),
        ("session_id=", "$.session_id"),
        ("colour=red", "colour"),
        ("a=1&b=2", "a"),
    ],
)
@pytest.mark.parametrize("route", ["/v1/contracts", "/v1/executions"])
def test_query_parameters_that_are_not_valid(
    client: httpx.Client, route: str, query: str, path: str
) -> None:
    error = assert_refused(client.get(f"{route}?{query}"), 422, "E_INVALID_INPUT")
    assert error["details"]["path"] == path


@pytest.mark.parametrize("query", ["session_id=%ff", "&".join(f"a{n}=1" for n in range(40))])
def test_query_strings_that_are_none(client: httpx.Client, query: str) -> None:
    assert_refused(client.get(f"/v1/contracts?{query}"), 422, "E_INVALID_INPUT")


@pytest.mark.parametrize("route", ["/v1/agents", "/v1/health", "/v1/", "/v1/status", "/v1/keys"])
def test_parameters_where_none_is_taken(client: httpx.Client, route: str) -> None:
    error = assert_refused(client.get(f"{route}?colour=red"), 422, "E_INVALID_INPUT")
    assert error["details"] == {"path": "colour", "unknown": ["colour"]}


@pytest.mark.parametrize(
    "identifier", ["x", "01ARZ3NDEKTSV4RRFFQ69G5FA", "%00", "..%2f..", "01arz3ndektsv4rrffq69g5fav"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/executions/{}"),
        ("GET", "/v1/executions/{}/events"),
        ("POST", "/v1/executions/{}/cancel"),
        ("DELETE", "/v1/keys/{}"),
    ],
)
def test_malformed_ids_are_not_found(
    client: httpx.Client, method: str, path: str, identifier: str
) -> None:
    assert_refused(client.request(method, path.format(identifier)), 404, "E_NOT_FOUND")


# -- session ids -------------------------------------------------------------------------------

BAD_SESSIONS = ["../../x", "%2e%2e/", "..", ".", "a\0b", "x" * 65, "", "a/b", "a b", "ä"]


@pytest.mark.requirement("003.safe-session")
@pytest.mark.parametrize("session_id", BAD_SESSIONS)
def test_a_session_id_that_is_not_safe_is_422_on_every_route(
    start: Callable[..., Served], tmp_path: Path, session_id: str
) -> None:
    data = tmp_path / "deep" / "down" / "data"
    server = start(data_dir=data)
    before = _files(tmp_path, data)
    task = {"session_id": session_id, "capability": "echo", "parameters": {"text": "hi"}}
    with server.client() as client:
        for path in ("/v1/orchestrate", "/v1/executions"):
            assert_refused(client.post(path, json=task), 422, "E_INVALID_INPUT")
        sent = {"session_id": session_id}
        assert_refused(client.post("/v1/compress", json=sent), 422, "E_INVALID_INPUT")
        for path in ("/v1/contracts", "/v1/executions"):
            assert_refused(client.get(path, params=sent), 422, "E_INVALID_INPUT")
        assert client.get("/v1/sessions").json()["total"] == 0
    assert _files(tmp_path, data) == before


def _files(root: Path, inside: Path) -> list[Path]:
    """List what lies outside of the data directory."""
    return sorted(path for path in root.rglob("*") if inside not in path.parents)


@pytest.mark.requirement("003.safe-session")
@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        ("..%2f..%2fx", {404}),
        ("%2e%2e%2f", {404}),
        ("%2e%2e", {422}),
        ("..", {404, 422}),
        ("%2E", {422}),
        ("%00", {422}),
        ("a%00b", {422}),
        ("x" * 65, {422}),
        ("a%20b", {422}),
        ("%252e%252e", {422}),
        ("..;", {422}),
        ("%ff", {422}),
    ],
)
def test_a_session_in_a_path_is_safe_or_refused(
    server: Served, path: str, statuses: set[int]
) -> None:
    # By hand: a client would tidy the path up.
    status, answer = server.raw(f"GET /v1/sessions/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status in statuses
    assert json.loads(answer).keys() == {"code", "message", "retryable", "details"}

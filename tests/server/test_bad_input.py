"""Bad input: each kind has its answer, and the answer says what is wrong and where."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Served

JSON = {"content-type": "application/json"}
LIMIT = 1 << 20


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
    "empty": (b"", "not valid JSON"),
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
    status, answer = _raw(server, f"GET /v1/sessions/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status in statuses
    assert json.loads(answer).keys() == {"code", "message", "retryable", "details"}


# -- media and size ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
     "application/jsonx", "application/json-patch+json", "", "text/json"],
)  # fmt: skip
def test_bodies_that_are_not_json_are_415(client: httpx.Client, kind: str | None) -> None:
    headers = {"content-type": kind} if kind is not None else {}
    request = client.build_request("POST", "/v1/orchestrate", content=b"{}", headers=headers)
    if kind is None:
        request.headers.pop("content-type", None)
    assert_refused(client.send(request), 415, "E_UNSUPPORTED_MEDIA")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON"])
def test_a_charset_is_allowed(client: httpx.Client, kind: str) -> None:
    content = json.dumps(body()).encode()
    answer = client.post("/v1/orchestrate", content=content, headers={"content-type": kind})
    assert answer.status_code == 200


def test_compressed_bodies_are_415(client: httpx.Client) -> None:
    headers = {**JSON, "content-encoding": "gzip"}
    answer = client.post("/v1/orchestrate", content=b"\x1f\x8b", headers=headers)
    assert_refused(answer, 415, "E_UNSUPPORTED_MEDIA")


def test_a_post_without_a_body_needs_no_content_type(
    server: Served, client: httpx.Client, submit: Callable[..., str], name: str
) -> None:
    execution = submit("hold", {"name": name})
    server.wait_begun(name)
    assert client.post(f"/v1/executions/{execution}/cancel").json()["state"] == "cancelled"


def test_bodies_past_the_limit_are_413(client: httpx.Client) -> None:
    fits = value('"' + "x" * (LIMIT - 100) + '"')
    assert client.post("/v1/orchestrate", content=fits, headers=JSON).status_code == 200
    large = value('"' + "x" * LIMIT + '"')
    answer = client.post("/v1/orchestrate", content=large, headers=JSON)
    error = assert_refused(answer, 413, "E_TOO_LARGE")
    assert error["details"]["limit"] == LIMIT


def test_a_length_past_the_limit_is_413_before_the_body(server: Served) -> None:
    head = "POST /v1/orchestrate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    status, _ = _raw(server, head + "Content-Length: 99999999999\r\n\r\n")
    assert status == 413


def test_who_is_still_sending_gets_the_413_too(client: httpx.Client) -> None:
    for _ in range(3):
        answer = client.post("/v1/orchestrate", content=b"x" * (20 << 20), headers=JSON)
        assert_refused(answer, 413, "E_TOO_LARGE")


def test_who_never_stops_sending_is_cut(
    start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.server.protocol.BoundedProtocol.linger_seconds", 0.3)
    server = start()
    head = "POST /v1/orchestrate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode() + b"Content-Length: 99999999999\r\n\r\n")
        before = time.monotonic()
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):  # noqa: PT012
            while time.monotonic() - before < 10:
                connection.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() - before < 5


def test_chunks_past_the_limit_are_413(client: httpx.Client) -> None:
    def chunks() -> Any:
        yield value('"')[:-2]
        for _ in range(20):
            yield b"x" * (LIMIT // 10)

    answer = client.post("/v1/orchestrate", content=chunks(), headers=JSON)
    assert_refused(answer, 413, "E_TOO_LARGE")


def test_chunks_within_the_limit_are_put_together(client: httpx.Client) -> None:
    sent = json.dumps(body(parameters={"value": "x" * 1000})).encode()
    pieces = (sent[at : at + 100] for at in range(0, len(sent), 100))
    answer = client.post("/v1/orchestrate", content=pieces, headers=JSON)
    assert answer.json()["data"] == "x" * 1000


# -- what is not even a request ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/9.9\r\n\r\n", 400),
        ("GET /v1/health HTTP/1.1\r\n\r\n", 421),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a\r\n"
         "Authorization: Bearer b\r\n\r\n", 400),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\n"
         + "".join(f"X-{n}: 1\r\n" for n in range(100)) + "\r\n", 431),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\n" + "X: 1\r\n" * 100 + "\r\n", 431),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 65_600, 431),
        ("GET /" + "x" * 65_600, 431),
        ("POST /v1/orchestrate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
         "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
         "Connection: Upgrade\r\n\r\n", 200),
    ],
    ids=["nonsense", "version", "no host", "two hosts", "two credentials", "101 headers",
         "one header 101 times", "long header", "long URL", "two lengths", "upgrade"],
)  # fmt: skip
def test_requests_by_hand(server: Served, sent: str, status: int) -> None:
    found, answer = _raw(server, sent)
    assert found == status
    if status != 200:
        assert json.loads(answer).keys() == {"code", "message", "retryable", "details"}


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /v1/health HTTP/1.1\r\nHost: local", 408),
        (b"POST /v1/orchestrate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
         b"Content-Length: 100\r\n\r\n{", 408),
    ],
    ids=["head", "body"],
)  # fmt: skip
def test_what_comes_too_slowly_is_408(
    start: Callable[..., Served],
    monkeypatch: pytest.MonkeyPatch,
    sent: bytes,
    status: int,
) -> None:
    monkeypatch.setattr("retinue.server.protocol.BoundedProtocol.head_seconds", 0.3)
    monkeypatch.setattr("retinue.server.protocol.BoundedProtocol.body_seconds", 0.3)
    server = start()
    before = time.monotonic()
    found, answer = _raw(server, sent.decode())
    assert found == status
    assert time.monotonic() - before < 5
    assert json.loads(answer)["retryable"] is True


def _raw(server: Served, sent: str) -> tuple[int, bytes]:
    """Send bytes and return the status and the body of the first answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(sent.encode("latin-1"))
        got = b""
        while b"\r\n\r\n" not in got:
            part = connection.recv(65536)
            assert part, got
            got += part
        head, _, rest = got.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", b"0"))
        while len(rest) < length:
            rest += connection.recv(65536)
    return int(head.split()[1]), rest


def test_requests_in_a_row_on_one_connection_are_all_answered(server: Served) -> None:
    sent = json.dumps(body(parameters={"value": "x" * 70_000})).encode()
    head = "POST /v1/orchestrate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request * 4)
        got = b""
        while got.count(b'"success":true') < 4:
            part = connection.recv(65536)
            assert part, got
            got += part
    assert got.count(b"HTTP/1.1 200 OK") == 4

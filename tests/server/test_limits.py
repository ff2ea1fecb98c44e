"""What is too much, too slow, of the wrong kind, or no request at all."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from retinue.server.routing import Patience

if TYPE_CHECKING:
    from tests.server.conftest import Served

JSON = {"content-type": "application/json"}
LIMIT = 1 << 20
PROTOCOL = "retinue.server.protocol.BoundedProtocol"


def task(text: str = "") -> bytes:
    """Return a good task that carries ``text``."""
    body = {"session_id": "s", "capability": "reflect", "parameters": {"value": text}}
    return json.dumps(body).encode()


def assert_refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check status, code and shape of an error; return it."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()
    assert error.keys() == {"code", "message", "retryable", "details"}
    assert error["code"] == code
    return error


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
    content = task()
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
    fits = task("x" * (LIMIT - 100))
    assert client.post("/v1/orchestrate", content=fits, headers=JSON).status_code == 200
    large = task("x" * LIMIT)
    answer = client.post("/v1/orchestrate", content=large, headers=JSON)
    error = assert_refused(answer, 413, "E_TOO_LARGE")
    assert error["details"]["limit"] == LIMIT


def test_a_length_past_the_limit_is_413_before_the_body(server: Served) -> None:
    head = "POST /v1/orchestrate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    status, _ = server.raw(head + "Content-Length: 99999999999\r\n\r\n")
    assert status == 413


def test_who_is_still_sending_gets_the_413_too(client: httpx.Client) -> None:
    for _ in range(3):
        answer = client.post("/v1/orchestrate", content=b"x" * (20 << 20), headers=JSON)
        assert_refused(answer, 413, "E_TOO_LARGE")


def test_who_never_stops_sending_is_cut(
    start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{PROTOCOL}.linger_seconds", 0.3)
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
        yield task()[:-3]
        for _ in range(20):
            yield b"x" * (LIMIT // 10)

    answer = client.post("/v1/orchestrate", content=chunks(), headers=JSON)
    assert_refused(answer, 413, "E_TOO_LARGE")


def test_chunks_within_the_limit_are_put_together(client: httpx.Client) -> None:
    sent = task("x" * 1000)
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
        ("GET /v1/health HTTP/1.1\r\nHost: localhost:80.evil.com\r\n\r\n", 421),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost:80@evil.com\r\n\r\n", 421),
        ("GET /v1/health HTTP/1.1\r\nHost: [::1].evil.com\r\n\r\n", 421),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost:123456\r\n\r\n", 421),
        ("GET /v1/health HTTP/1.1\r\nHost: LOCALHOST:80\r\n\r\n", 200),
        ("GET /v1/health HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 200),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a\r\n"
         "Authorization: Bearer b\r\n\r\n", 400),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\n"
         + "".join(f"X-{n}: 1\r\n" for n in range(100)) + "\r\n", 431),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\n" + "X: 1\r\n" * 100 + "\r\n", 431),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 65_600, 431),
        ("GET /" + "x" * 65_600, 431),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 100_000 + "\r\n\r\n", 431),
        ("POST /v1/orchestrate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
         "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
        ("GET /v1/health HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
         "Connection: Upgrade\r\n\r\n", 200),
    ],
    ids=["nonsense", "version", "no host", "no port", "no user", "no address", "long port",
         "upper case", "IPv6", "two hosts", "two credentials", "101 headers",
         "one header 101 times", "long header", "long URL", "long head in one read",
         "two lengths", "upgrade"],
)  # fmt: skip
def test_requests_by_hand(server: Served, sent: str, status: int) -> None:
    found, answer = server.raw(sent)
    assert found == status
    if status != 200:
        assert json.loads(answer).keys() == {"code", "message", "retryable", "details"}


CHUNKED = (
    "POST /v1/orchestrate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    "Transfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    "trailers",
    ["X: " + "x" * 200_000, "X: 1\r\n" * 40_000, "X: " + "x" * 200_000 + "\r\n\r\n"],
    ids=["one without an end", "many without an end", "one with an end"],
)
def test_trailers_are_bounded(server: Served, trailers: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(CHUNKED.encode() + b"2\r\n{}\r\n0\r\n")
        time.sleep(0.05)  # another read than the head's
        with contextlib.suppress(ConnectionError):  # it need not hear us out
            connection.sendall(trailers.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_a_body_in_chunks_of_one_byte_is_a_body(server: Served) -> None:
    body = task("x" * 20_000)
    chunks = "".join(f"1\r\n{chr(byte)}\r\n" for byte in body)
    status, answer = server.raw(CHUNKED + chunks + "0\r\nX-Trailer: 1\r\n\r\n")
    assert (status, json.loads(answer)["data"]) == (200, "x" * 20_000)


def test_who_takes_nothing_of_an_answer_is_cut(start: Callable[..., Served]) -> None:
    server = start(max_body_bytes=32 << 20, patience=Patience(send=0.5))
    sent = task("x" * (15 << 20))
    head = CHUNKED.replace("Transfer-Encoding: chunked", f"Content-Length: {len(sent)}")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(head.encode() + sent)
        until = time.monotonic() + 10
        while server.connections():
            assert time.monotonic() < until, "it is never cut"
            time.sleep(0.02)
        got = 0
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 20):
                got += len(part)
        assert got < 10 << 20  # what the kernel had taken


def test_who_takes_an_answer_slowly_gets_all_of_it(start: Callable[..., Served]) -> None:
    server = start(max_body_bytes=32 << 20, patience=Patience(send=0.5))
    sent = task("x" * (8 << 20))
    head = CHUNKED.replace("Transfer-Encoding: chunked", f"Content-Length: {len(sent)}")
    got = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(head.encode() + sent)
        while got < 8 << 20:
            part = connection.recv(512 * 1024)
            assert part, got
            got += len(part)
            time.sleep(0.05)  # a slow reader is what this is about


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
    monkeypatch.setattr(f"{PROTOCOL}.head_seconds", 0.3)
    monkeypatch.setattr(f"{PROTOCOL}.body_seconds", 0.3)
    server = start()
    before = time.monotonic()
    found, answer = server.raw(sent.decode())
    assert found == status
    assert time.monotonic() - before < 5
    assert json.loads(answer)["retryable"] is True


def test_requests_in_a_row_on_one_connection_are_all_answered(server: Served) -> None:
    sent = task("x" * 70_000)
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

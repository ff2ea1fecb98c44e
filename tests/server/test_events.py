"""Event streams: numbered, coalesced, resumed without gap or repeat, ended in order."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from retinue.server.routing import Patience

if TYPE_CHECKING:
    from tests.server.conftest import Served

Submit = Callable[..., str]


class Frame(NamedTuple):
    """One event as a reader gets it."""

    id: int
    data: dict[str, Any]


def read(
    client: httpx.Client, execution: str, after: int | None = None, **options: Any
) -> Iterator[Frame]:
    """Yield the frames of a stream."""
    headers = {"Last-Event-ID": str(after)} if after is not None else {}
    path = f"/v1/executions/{execution}/events"
    with client.stream("GET", path, headers=headers, **options) as answer:
        assert answer.status_code == 200
        yield from parsed(answer.iter_text())


def parsed(chunks: Iterator[str]) -> Iterator[Frame]:
    """Split chunks into frames, and hold them to the format."""
    rest = ""
    for chunk in chunks:
        *blocks, rest = (rest + chunk).split("\n\n")
        for block in blocks:
            if block.startswith(":"):
                continue
            number, data = block.split("\n")
            assert number.startswith("id: ")
            assert data.startswith("data: ")
            yield Frame(int(number[4:]), json.loads(data[6:]))
    assert rest == ""


def test_a_stream_has_every_event_in_order_and_ends(client: httpx.Client, submit: Submit) -> None:
    execution = submit("steps", {"count": 20})
    frames = list(read(client, execution))
    assert [frame.id for frame in frames] == list(range(1, len(frames) + 1))
    for frame in frames:
        assert frame.data["sequence"] == frame.id
        assert frame.data["executionId"] == execution
        assert frame.data["timestamp"].endswith("Z")
    progress = [f.data["percentage"] for f in frames if f.data["eventType"] == "progress"]
    assert progress == list(range(20))
    assert frames[-1].data["eventType"] == "completed"
    assert frames[-1].data["result"] == 20


def test_the_headers_keep_proxies_from_buffering(client: httpx.Client, submit: Submit) -> None:
    with client.stream("GET", f"/v1/executions/{submit('reflect')}/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"
        assert list(parsed(answer.iter_text()))


@pytest.mark.parametrize("by", ["header", "query"])
def test_a_reader_that_comes_back_misses_and_repeats_nothing(
    server: Served, client: httpx.Client, submit: Submit, name: str, by: str
) -> None:
    execution = submit("steps", {"count": 40, "name": name})
    server.wait_begun(name)
    first: list[Frame] = []
    for frame in read(client, execution):
        first.append(frame)
        if frame.data.get("percentage") == 10:
            break
    server.let(name)
    last = first[-1].id
    if by == "header":
        rest = list(read(client, execution, after=last))
    else:
        rest = list(read(client, execution, params={"after": last}))
    numbers = [frame.id for frame in first + rest]
    assert numbers == list(range(1, len(numbers) + 1))
    assert rest[-1].data["eventType"] == "completed"
    whole = list(read(client, execution))
    assert whole == first + rest


def test_every_place_to_come_back_to_gives_the_rest(client: httpx.Client, submit: Submit) -> None:
    execution = submit("steps", {"count": 5})
    whole = list(read(client, execution))
    for last in range(len(whole)):
        assert list(read(client, execution, after=last)) == whole[last:]


def test_two_readers_get_the_same_events(
    server: Served, client: httpx.Client, submit: Submit, name: str
) -> None:
    execution = submit("steps", {"count": 30, "name": name})
    server.wait_begun(name)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(lambda: list(read(client, execution))) for _ in range(2)]
        server.let(name)
        one, two = (reader.result(20) for reader in readers)
    assert one == two
    assert one[-1].data["eventType"] == "completed"


def test_what_is_there_at_one_moment_comes_as_one_chunk(
    server: Served, client: httpx.Client, submit: Submit
) -> None:
    execution = submit("steps", {"count": 50})
    total = len(list(read(client, execution)))
    request = f"GET /v1/executions/{execution}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request.encode())
        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            got += connection.recv(65536)
    chunks = _chunks(got.partition(b"\r\n\r\n")[2])
    assert len(chunks) == 2
    assert chunks[0].count(b"id: ") == total
    assert chunks[1] == b""


def _chunks(raw: bytes) -> list[bytes]:
    found = []
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size, 16)
        found.append(raw[:length])
        raw = raw[length + 2 :]
    return found


@pytest.mark.parametrize(
    "value",
    ["x" * 100_000, '"\\é€\n' * 50_000, ["\\", '"', {"é": [1.5, None]}] * 20_000, "x" * 32_766,
     "x" * 32_765, [], {}, None, ""],
    ids=["text", "escapes", "structure", "piece", "nearly", "list", "dict", "null", "empty"],
)  # fmt: skip
def test_a_result_of_any_size_is_streamed_whole(
    server: Served, client: httpx.Client, submit: Submit, value: Any
) -> None:
    execution = submit("reflect", {"value": value})
    (*_, last) = read(client, execution)
    assert last.data["result"] == value
    said = last.data["final_response"]
    assert said == value if isinstance(value, str) else json.loads(said) == value
    (*_, told) = server.run(_follow(server, execution))
    assert told == last.data


async def _follow(server: Served, execution: str) -> list[dict[str, Any]]:
    batches = [b async for b in server.orchestrator.follow(execution)]
    return [json.loads(event.wire) for batch in batches for event in batch]


def test_large_events_are_streamed_whole_and_in_order(client: httpx.Client, submit: Submit) -> None:
    frames = list(read(client, submit("flood", {"size": 400_000, "count": 5})))
    assert [frame.id for frame in frames] == list(range(1, len(frames) + 1))
    sizes = [len(f.data["message"]) for f in frames if f.data["eventType"] == "progress"]
    assert sizes == [400_000] * 5


def test_a_silent_stream_shows_signs_of_life(
    server: Served, client: httpx.Client, submit: Submit, name: str
) -> None:
    execution = submit("hold", {"name": name})
    server.wait_begun(name)
    with client.stream("GET", f"/v1/executions/{execution}/events") as answer:
        chunks = answer.iter_bytes()
        assert b":\n\n" in chunks
        server.let(name)
        assert b'"completed"' in b"".join(chunks)


def test_a_reader_that_has_everything_gets_204(client: httpx.Client, submit: Submit) -> None:
    execution = submit("reflect", {"value": 1})
    last = list(read(client, execution))[-1].id
    path = f"/v1/executions/{execution}/events"
    answer = client.get(path, headers={"Last-Event-ID": str(last)})
    assert (answer.status_code, answer.content) == (204, b"")
    assert client.get(path, params={"after": last}).status_code == 204
    assert client.get(path, headers={"Last-Event-ID": str(last - 1)}).status_code == 200


@pytest.mark.parametrize("given", ["", "x", "-1", "1.5", "+1", "٣", "9" * 30, "1000", "0x1"])
def test_a_place_that_is_none_is_422(client: httpx.Client, submit: Submit, given: str) -> None:
    execution = submit("reflect")
    list(read(client, execution))
    path = f"/v1/executions/{execution}/events"
    answer = client.get(path, headers={b"Last-Event-ID": given.encode()})
    assert answer.status_code == 422
    assert answer.json()["details"]["path"] == "Last-Event-ID"
    assert client.get(path, params={"after": given}).status_code == 422 or given == "+1"


def test_a_stream_shows_a_question_and_a_failure(client: httpx.Client, submit: Submit) -> None:
    frames = read(client, submit("ask"))
    asked = next(f.data for f in frames if f.data["eventType"] == "input_required")
    assert asked["prompt"] == "Which one?"
    client.post(f"/v1/questions/{asked['question_id']}/answer", json={"answer": "a"})
    assert list(frames)[-1].data["result"] == "a"
    failed = list(read(client, submit("refuse")))[-1].data
    assert failed["eventType"] == "failed"
    assert failed["error"] == "it did not work"


def test_a_reader_that_goes_away_is_forgotten(
    server: Served, client: httpx.Client, submit: Submit, name: str
) -> None:
    execution = submit("hold", {"name": name})
    server.wait_begun(name)
    for _ in read(client, execution):
        break
    _until(lambda: execution not in server.watched())
    server.let(name)


def test_a_reader_that_takes_nothing_is_dropped(start: Callable[..., Served]) -> None:
    server = start(patience=Patience(send=0.5))
    task = {"session_id": "s", "capability": "flood", "parameters": {"size": 20_000, "count": 500}}
    with server.client() as client:
        execution = client.post("/v1/executions", json=task).json()["execution_id"]
        head = f"GET /v1/executions/{execution}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", server.port))
            slow.sendall(head.encode())
            _until(lambda: execution in server.watched())
            _until(lambda: execution not in server.watched())
            slow.settimeout(10)
            got = b"".join(iter(lambda: slow.recv(65536), b""))
            assert not got.endswith(b"0\r\n\r\n")
        # Another one reads it all, and so does the dropped one when it comes back.
        frames = list(read(client, execution))
    assert len(frames) == 501


def test_a_stream_that_is_followed_when_the_server_stops_ends_in_order(
    start: Callable[..., Served],
) -> None:
    server = start(grace_seconds=0)
    task = {"session_id": "s", "capability": "hold", "parameters": {"name": "x"}}
    with server.client() as client:
        execution = client.post("/v1/executions", json=task).json()["execution_id"]
        server.wait_begun("x")
        frames: list[Frame] = []
        for frame in read(client, execution):
            if not frames:
                server.ask_to_stop()
            frames.append(frame)
    server.join()
    assert frames[-1].data["eventType"] == "failed"
    assert "stopped" in frames[-1].data["error"]


def _until(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)

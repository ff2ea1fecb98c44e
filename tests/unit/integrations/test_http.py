"""What the answers of another service mean, and that none of them can hurt."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from retinue.errors import PeerRefused, PeerUnavailable
from retinue.integrations.http import MOST_ANSWER, HttpPeer, json_of
from retinue.testing.peers import FakeTrace

PATH = "/v1/sessions/s/events"
EVENT = b'{"event_type": "x", "data": {}}'


@pytest.fixture
async def called() -> AsyncIterator[tuple[FakeTrace, HttpPeer]]:
    with FakeTrace() as trace:
        service = HttpPeer("Trace", trace.url)
        yield trace, service
        await service.close()


async def test_success_gives_the_answer(called: tuple[FakeTrace, HttpPeer]) -> None:
    trace, service = called
    assert json_of(await service.post(PATH, EVENT, seconds=5)) == {"status": "ok"}
    assert trace.requests[0].headers["content-type"] == "application/json"
    assert len(trace.events("s")) == 1


@pytest.mark.parametrize(
    ("status", "raised", "for_good"),
    [
        (200, None, False),
        (204, None, False),
        (301, PeerRefused, False),
        (400, PeerRefused, True),
        (401, PeerRefused, False),
        (404, PeerRefused, False),
        (408, PeerUnavailable, False),
        (413, PeerRefused, True),
        (422, PeerRefused, True),
        (429, PeerUnavailable, False),
        (500, PeerRefused, False),
        (502, PeerUnavailable, False),
        (503, PeerUnavailable, False),
    ],
)
async def test_a_status_says_whose_fault_it_is(
    called: tuple[FakeTrace, HttpPeer], status: int, raised: type[Exception] | None, for_good: bool
) -> None:
    trace, service = called
    trace.answer(status, {"detail": "because"} if status != 204 else None)
    if raised is None:
        await service.post(PATH, EVENT, seconds=5)
        return
    with pytest.raises(raised, match=f"Trace answered {status}") as told:
        await service.post(PATH, EVENT, seconds=5)
    error: Any = told.value
    assert error.details["said"] == '{"detail": "because"}'
    assert getattr(error, "for_good", False) is for_good


async def test_a_status_may_be_as_good(called: tuple[FakeTrace, HttpPeer]) -> None:
    trace, service = called
    trace.answer(409)
    await service.post(PATH, EVENT, seconds=5, also=frozenset({409}))


async def test_silence_is_bounded_and_the_next_call_is_well(
    called: tuple[FakeTrace, HttpPeer],
) -> None:
    trace, service = called
    trace.hang()
    before = time.monotonic()
    with pytest.raises(PeerUnavailable, match=r"Trace does not answer within 0\.2 s"):
        await service.post(PATH, EVENT, seconds=0.2)
    assert (await service.well("/v1/health")).healthy is False
    assert time.monotonic() - before < 5
    trace.heal()
    await service.post(PATH, EVENT, seconds=5)


async def test_many_silent_calls_leave_room_for_others(called: tuple[FakeTrace, HttpPeer]) -> None:
    trace, service = called
    trace.hang()
    calls = [service.post(PATH, EVENT, seconds=0.3) for _ in range(40)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(end) for end in ends} == {PeerUnavailable}
    trace.heal()
    await asyncio.gather(*(service.post(PATH, EVENT, seconds=5) for _ in range(40)))


async def test_nobody_there_is_said(called: tuple[FakeTrace, HttpPeer]) -> None:
    trace, service = called
    trace.stop()
    with pytest.raises(PeerUnavailable, match=f"Trace cannot be reached at {trace.url}"):
        await service.post(PATH, EVENT, seconds=5)
    health = await service.well("/v1/health")
    assert (health.healthy, health.reason) == (False, f"Trace cannot be reached at {trace.url}")
    trace.start()
    assert (await service.well("/v1/health")).healthy is True


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_answer_is_said(answer: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    service = HttpPeer("Trace", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        with pytest.raises(PeerUnavailable, match="the connection to Trace broke"):
            await service.post(PATH, EVENT, seconds=5)
    finally:
        await service.close()
        server.close()
        await server.wait_closed()


async def test_an_answer_without_end_is_cut_off(called: tuple[FakeTrace, HttpPeer]) -> None:
    trace, service = called
    trace.answer(200, "x" * (3 * MOST_ANSWER))
    assert len(await service.post(PATH, EVENT, seconds=10)) == MOST_ANSWER
    trace.heal()
    await service.post(PATH, EVENT, seconds=5)


async def test_the_first_path_that_is_there_tells(called: tuple[FakeTrace, HttpPeer]) -> None:
    _, service = called
    assert (await service.well("/nowhere", "/v1/health")).healthy is True
    health = await service.well("/nowhere", "/neither")
    assert (health.healthy, health.reason) == (False, "Trace answered 404 for /nowhere")


def test_a_password_is_not_part_of_what_is_shown() -> None:
    service = HttpPeer("Trace", "http://ann:s3cret@localhost:8787/base/")
    assert service.url == "http://localhost:8787/base"


@pytest.mark.parametrize("answer", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_what_is_no_object_is_an_empty_one(answer: bytes) -> None:
    assert json_of(answer) == {}

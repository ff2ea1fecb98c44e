"""Log lines: each parses, none holds a secret, and each says what it is about."""

import asyncio
import io
import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from retinue import Runtime, Settings, capability
from retinue.cli import logs

mark = pytest.mark
log = logging.getLogger("retinue.test")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What ``configure`` changes is changed back."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level = before[0], before[1]
    logging.raiseExceptions = before[2]
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks


@pytest.fixture
def stream() -> io.StringIO:
    """Where the lines go, as JSON, from info on."""
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@mark.requirement("001.json-logs")
def test_a_line_has_every_field(stream: io.StringIO) -> None:
    extra = {"agent_id": "a", "execution_id": "e", "session_id": "s", "trace_id": "t"}
    log.warning("%d of %s", 1, "two", extra=extra)
    (line,) = lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "retinue.test",
        "message": "1 of two",
        "agent_id": "a",
        "execution_id": "e",
        "session_id": "s",
        "trace_id": "t",
        "span_id": None,
    }


@mark.requirement("001.json-logs")
@mark.parametrize(
    "message",
    [
        "two\nlines\r\nthree",
        "\x00\x1b[31m\x7f binary",
        "lone \ud800 surrogate",
        "line\u2028separator",
        '"quotes" \\ and {braces}',
        b"bytes \xff",
        {"an": "object"},
        "x" * 1_000_000,
        "",
    ],
)
def test_every_line_parses(stream: io.StringIO, message: object) -> None:
    log.error(message)
    (line,) = lines(stream)
    assert isinstance(line["message"], str)
    assert len(line["message"]) < 40_000
    line["message"].encode()


@mark.requirement("001.json-logs")
def test_a_mistaken_call_still_gives_a_line(stream: io.StringIO) -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError("no")

    log.error("%d things", "many")
    template = "%s %s"
    log.error(template, 1)
    log.error(Broken())
    assert len(lines(stream)) == 3


@mark.requirement("001.json-logs")
@mark.parametrize(
    ("text", "secret"),
    [
        ("made rtn_abcdefghijklmnop for bob", "abcdefgh"),
        ("key sk-proj-1234567890abcdef is wrong", "1234567890"),
        ("Authorization: Bearer abc.def-ghi", "abc.def"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", "dXNlcjpw"),
        ("(b'authorization', b'Bearer hidden_token')", "hidden_token"),
        ("OPENAI_API_KEY=hidden", "hidden"),
        ("anthropic-api-key: 'hidden word'", "hidden"),
        ('{"password": "hidden"}', "hidden"),
        ("client_secret=hidden&x=1", "hidden"),
        ("access_token = hidden", "hidden"),
        ("postgresql://me:hidden@host/db is away", "hidden"),
    ],
)
def test_no_line_holds_a_secret(stream: io.StringIO, text: str, secret: str) -> None:
    log.info(text)
    log.info("%s", text, extra={"session_id": text})
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("failed")
    assert len(lines(stream)) == 3
    assert secret not in stream.getvalue()
    assert "***" in lines(stream)[0]["message"]
    text_stream = io.StringIO()
    logs.configure("info", "text", text_stream)
    log.info(text)
    assert secret not in text_stream.getvalue()


def test_ordinary_words_are_left_alone() -> None:
    for text in ("task-1 risk-averse", "the secret is out", "password is wrong", "http://host:80/"):
        assert logs.masked(text) == text


def test_masking_takes_linear_time() -> None:
    begun = time.process_time()
    for text in ("a-" * 16_000, "://" * 10_000, "authorization" * 2_500, "bearer " * 4_000):
        logs.masked(text)
    assert time.process_time() - begun < 2


@mark.requirement("001.json-logs")
def test_an_exception_is_one_field(stream: io.StringIO) -> None:
    try:
        raise KeyError("deep")
    except KeyError:
        log.exception("it failed")
    (line,) = lines(stream)
    assert line["message"] == "it failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("KeyError: 'deep'")


@mark.requirement("001.json-logs")
def test_level_and_form_can_be_set() -> None:
    stream = io.StringIO()
    logs.configure("error", "json", stream)
    log.warning("quiet")
    assert stream.getvalue() == ""
    logs.configure("debug", "text", stream)
    log.debug("loud", extra={"agent_id": "a"})
    assert stream.getvalue().endswith("debug   retinue.test: loud agent_id=a\n")


@mark.requirement("001.json-logs")
def test_what_nobody_caught_is_a_line_too(stream: io.StringIO) -> None:
    def fail() -> None:
        raise RuntimeError("in a thread")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    sys.excepthook(ValueError, ValueError("outside"), None)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure("info", "json", stream)
        warnings.warn("old", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    found = lines(stream)
    assert "in a thread" in found[0]["exception"]
    assert "outside" in found[1]["exception"]
    assert found[2]["logger"] == "py.warnings"


@mark.requirement("001.json-logs")
async def test_an_agents_own_lines_say_where_they_come_from(stream: io.StringIO) -> None:
    @capability(agent_id="asynchronous")
    async def think() -> int:
        log.info("thinking")
        await asyncio.sleep(0)
        raise KeyError("oh")

    @capability(agent_id="blocking")
    def block() -> int:
        log.info("blocking")
        return 1

    async with Runtime(Settings(database_url="sqlite://", examples=False)) as orchestrator:
        orchestrator.register_agent(think)
        orchestrator.register_agent(block)
        failed = await orchestrator.orchestrate("s1", {"capability": "think"})
        await orchestrator.orchestrate("s2", {"capability": "block"})
    found = [line for line in lines(stream) if line["agent_id"] is not None]
    assert [(line["message"], line["agent_id"], line["session_id"]) for line in found] == [
        ("thinking", "asynchronous", "s1"),
        ("execution failed: KeyError: 'oh'", "asynchronous", "s1"),
        ("blocking", "blocking", "s2"),
    ]
    assert found[0]["execution_id"] == failed["execution_id"]
    assert 'raise KeyError("oh")' in found[1]["exception"]

"""The parts of a coding CLI's turn that decide something: text, questions, secrets, sessions."""

import json
from typing import Any

import pytest

from retinue.domain.event import EventData, EventType
from retinue.drivers.coding.asking import MOST_SHOWN, wording
from retinue.drivers.coding.config import plainly
from retinue.drivers.coding.natives import is_unknown
from retinue.drivers.coding.scribe import fitting
from retinue.drivers.coding.secrecy import Secrecy
from retinue.drivers.coding.speech import MOST_TEXT, Speech
from retinue.drivers.coding.talk import part, read
from retinue.errors import ProviderError
from retinue.wire.jsonrpc import RpcError

SECRET = "abc-secret-abc"


def speech(*secrets: str) -> Speech:
    def mask(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return text

    return Speech(secrets, mask)


def said(event: EventData | None) -> str:
    return event.data["content"] if event is not None else ""


@pytest.mark.parametrize("cut", range(1, len(SECRET)))
def test_a_secret_in_two_pieces_is_masked(cut: int) -> None:
    one = speech(SECRET)
    one.add(f"key {SECRET[:cut]}")
    text = said(one.take(last=False))
    one.add(f"{SECRET[cut:]} ab")
    text += said(one.take(last=False))
    text += said(one.take(last=True))
    assert text == "key *** ab"


def test_a_secret_that_ends_as_it_begins_is_not_cut_in_two() -> None:
    one = speech(SECRET)
    one.add(SECRET)
    assert said(one.take(last=False)) + said(one.take(last=True)) == "***"


def test_text_is_taken_back_to_a_place_and_said_again() -> None:
    one = speech(SECRET)
    one.add(f"kept {SECRET} ")
    place = one.place
    one.take(last=True)
    one.add("void")
    one.take(last=True)
    one.add(" and void")
    (event,) = one.back(place)
    assert event.data == {"content": "kept *** ", "is_reset": True}
    assert one.back(place) == []
    one.add("more")
    assert said(one.take(last=True)) == "more"
    (event,) = one.back(0)
    assert event.data == {"content": "", "is_reset": True}


def test_much_text_is_said_again_in_several_pieces() -> None:
    one = speech()
    one.add("x" * (MOST_TEXT + 1))
    one.add("void")
    first, second = one.back(MOST_TEXT + 1)
    assert (len(first.data["content"]), first.data["is_reset"]) == (MOST_TEXT, True)
    assert second.data == {"content": "x"}


def test_every_argument_is_shown_or_counted() -> None:
    assert wording("Bash", {"command": "ls"}) == "May it use Bash? ls"
    assert wording("x", None) == "May it use x?"
    shown = wording("x", {f"name{n}": n for n in range(150)})
    assert "(50 further arguments are not shown)" in shown
    long = wording("x", {"a": "y" * 20_000, "b": "z" * 20_000, "c": 1})
    assert len(long) < MOST_SHOWN + 500
    assert "c: 1" in long
    assert long.count("of 20000 characters are not shown") == 2


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            rb'{"a": {"b" : {"x":[1,{"y":"}\"]"}], "z":1e400} }}',
            rb'{"x":[1,{"y":"}\"]"}], "z":1e400}',
        ),
        (rb'{"b":1,"a":{"c":2,"b":"\ud83d"},"z":[]}', rb'"\ud83d"'),
        (rb'{"a":{"b":1,"b":2}}', b"2"),
        (b'{"a":{"b":"\xff"}}', b'"\xff"'),
        (b'{"a":{}}', None),
        (b'{"a":[1]}', None),
        (b'{"a":{"b":', None),
        (b"", None),
    ],
)
def test_a_part_of_a_line_is_as_it_was_written(line: bytes, found: bytes | None) -> None:
    assert part(line, "a", "b") == found


def test_depth_is_cut_and_never_raised() -> None:
    value: Any = "end"
    for _ in range(500):
        value = {"a": [value]}
    assert "nested deeper than" in json.dumps(fitting(value))
    line = b'{"a":' * 900 + b'"\\u0000"' + b"}" * 900
    assert isinstance(read(line), dict | str)
    assert fitting({"a": {}, "b": []}) == {"a": {}, "b": []}


def test_what_it_says_of_itself_is_masked_more_than_what_it_works_on() -> None:
    environment = {"API_KEY": "sk-canary-1", "MODE": "python", "SHORT_KEY": "abc"}

    def mask(text: str) -> str:
        return text.replace("sk-canary-1", "***").replace("python", "***")

    secrecy = Secrecy(environment, mask)
    data = {"message": "python sk-canary-1", "retry": ["sk-canary-1"], "status": {"sk-canary-1": 1}}
    hidden = {"message": "*** ***", "retry": ["***"], "status": {"***": 1}}
    assert secrecy.event(EventData(EventType.LOG, data)).data == hidden
    worked = {"result": "python sk-canary-1 abc", "n": 1}
    event = secrecy.event(EventData(EventType.TOOL_RESULT, worked))
    assert event.data == {"result": "python *** abc", "n": 1}
    error = ProviderError(
        "401 sk-canary-1", details={"info": {"k": "sk-canary-1"}}, outcome="failed"
    )
    safe = secrecy.error(error)
    assert (safe.message, str(safe), safe.details) == ("401 ***", "401 ***", {"info": {"k": "***"}})
    assert (type(safe), safe.outcome) == (ProviderError, "failed")
    fine = ProviderError("fine")
    assert secrecy.error(fine) is fine


@pytest.mark.parametrize(
    ("error", "unknown"),
    [
        (RpcError(-32600, "no rollout found for thread id T"), True),
        (RpcError(-32603, "Internal error", {"details": "No previous sessions found"}), True),
        (RpcError(-32603, "Internal error", {"details": 'Invalid session identifier "x".'}), True),
        (
            RpcError(-32603, "Internal error: OpenCode service failure", {"service": "session"}),
            True,
        ),
        (RpcError(-32002, "gone"), True),
        (RpcError(-32603, "rollout is locked, try again"), False),
        (RpcError(-32603, "Internal error", {"details": "EMFILE: too many open files"}), False),
        (RpcError(-32001, "Server overloaded"), False),
        (RpcError(-32000, "Authentication required", ["x"]), False),
    ],
)
def test_only_a_session_that_is_not_there_is_lost(error: RpcError, unknown: bool) -> None:
    assert is_unknown(error) is unknown


def test_a_slash_at_the_beginning_is_a_task_all_the_same() -> None:
    assert plainly("claude", "/etc/hosts is wrong") == " /etc/hosts is wrong"
    assert plainly("gemini", " /help") == "Task:\n /help"
    assert plainly("codex", "/help") == "/help"
    assert plainly("acp", "help me with /etc") == "help me with /etc"

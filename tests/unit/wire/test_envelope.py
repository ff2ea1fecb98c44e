"""One frame: what is written, what is read, and what is refused with which name."""

import contextlib
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.errors import AgentFailed, ExecutionError, InvalidResult, RetinueError, Timeout
from retinue.wire import BadFrame, Control, Error, Request, Stream, decode_message, encode_message
from retinue.wire import envelope as make
from retinue.wire.faults import error_of, fault_of, payload_as
from retinue.wire.payloads import (
    Chunk,
    Fault,
    Invoke,
    Ping,
    Provide,
    Ready,
    RequestPayload,
)
from retinue.wire.strict import KINDS, decode_strictly

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")


def samples() -> list[make.Frame]:
    """Return one of every frame of specification 000 §3."""
    asked = make.request(
        Invoke(
            agent_name="react-agent",
            input=[["What is the capital of France?"]],
            metadata={"user_id": "user-123", "session_id": "sess-456"},
        )
    )
    to = asked.message_id
    return [
        asked,
        make.request({"operation": "dataset.create", "dataset_name": "qa-examples"}),
        make.request(Provide(invoke_id="inv-789", input_id="hi-123", value="Proceed")),
        make.control({"operation": "shutdown", "reason": "graceful", "timeout_ms": 5000}),
        make.control(Ping()),
        make.control(Ready(module_name="m", agents=["react-agent"])),
        make.response(to, {"status": "success", "result": "Paris", "metadata": {"tokens": 1}}),
        make.stream(to, Chunk(node_name="chat", chunk="The capital", accumulated="The capital")),
        make.error(to, fault_of(Timeout("too long", details={"elapsed_ms": 30001}))),
    ]


@pytest.mark.requirement("000.codec")
@pytest.mark.parametrize("frame", samples(), ids=lambda f: type(f).__name__)
def test_every_frame_comes_back_equal(frame: make.Frame) -> None:
    line = encode_message(frame)
    assert decode_message(line) == frame
    assert line.endswith(b"\n")
    assert len(line.decode().splitlines()) == 1


@pytest.mark.requirement("000.codec")
@given(value=VALUES)
def test_any_value_comes_back_equal_and_on_one_line(value: Any) -> None:
    frame = make.response("req", {"result": value})
    line = encode_message(frame)
    assert decode_message(line) == frame
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line)["payload"]["result"] == value


@pytest.mark.requirement("000.codec")
def test_what_ends_a_line_for_somebody_is_escaped() -> None:
    text = "a\nb\r\u2028\u2029\x85\x0b\x1cé😀"
    line = encode_message(make.stream("r", Chunk(chunk=text)))
    assert line.decode().splitlines() == [line.decode()[:-1]]
    back = decode_message(line)
    assert isinstance(back, Stream)
    assert back.payload.chunk == text


@pytest.mark.requirement("000.envelope", "000.version")
@pytest.mark.parametrize("frame", samples(), ids=lambda f: type(f).__name__)
def test_every_frame_we_write_has_the_whole_envelope(frame: make.Frame) -> None:
    written = json.loads(encode_message(frame))
    assert set(written) == {
        "protocol_version",
        "message_id",
        "correlation_id",
        "timestamp",
        "type",
        "payload",
    }
    assert written["protocol_version"] == "1.0"
    assert UUID4.match(written["message_id"])
    assert written["timestamp"].endswith("Z")
    assert isinstance(written["correlation_id"], str)


@pytest.mark.requirement("000.envelope", "000.version")
def test_the_specifications_own_frames_are_read() -> None:
    invoke = decode_message(
        b'{"type": "request", "message_id": "req-001", "payload": {"operation": "agent.invoke",'
        b' "agent_name": "react-agent", "input": [["What is the capital of France?"]]}}'
    )
    assert isinstance(invoke, Request)
    assert (invoke.message_id, invoke.protocol_version) == ("req-001", "1.0")
    payload = payload_as(invoke.payload, RequestPayload)
    assert payload == Invoke(agent_name="react-agent", input=[["What is the capital of France?"]])
    shutdown = decode_message(b'{"type":"control","payload":{"operation":"shutdown"}}')
    assert isinstance(shutdown, Control)
    assert shutdown.message_id is None
    error = decode_message(b'{"type":"error","payload":{"error_code":"E_TIMEOUT","later":[1]}}')
    assert isinstance(error, Error)
    assert error.payload.error_code == "E_TIMEOUT"


@pytest.mark.requirement("000.double-wrap")
@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("request", {"operation": "agent.invoke", "agent_name": "a"}),
        ("response", {"status": "success", "result": 1}),
        ("stream", {"node_name": "n", "chunk": "c", "is_complete": False}),
        ("error", {"error_code": "E_TIMEOUT", "message": "m"}),
        ("control", {"operation": "ping"}),
        ("control", {"status": "ready", "agents": ["a"]}),
    ],
)
def test_a_payload_in_a_payload_is_unwrapped(kind: str, payload: dict[str, Any]) -> None:
    plain = {"type": kind, "message_id": "m", "payload": payload}
    wrapped = {"type": kind, "message_id": "m", "payload": {"message_id": "m", "payload": payload}}
    assert decode_message(json.dumps(wrapped).encode()) == decode_message(
        json.dumps(plain).encode()
    )


def test_a_result_that_is_called_payload_is_left_alone() -> None:
    given = {"operation": "agent.invoke", "agent_name": "a", "payload": {"operation": "x"}}
    frame = decode_message(
        json.dumps({"type": "request", "message_id": "m", "payload": given}).encode()
    )
    assert frame.payload == given


def framed(inner: bytes) -> bytes:
    return b'{"type":"control","message_id":"m","payload":{"operation":"x","v":' + inner + b"}}"


BAD = [
    ("not_json", b"hello"),
    ("not_json", b'{"type":"control","payload":{}'),
    ("not_json", b'{"type":"control","payload":{}} x'),
    ("not_json", framed(b'"a\x01b"')),
    ("encoding", framed(b'"\xff"')),
    ("encoding", framed(b'"\xed\xa0\x80"')),
    ("nul", framed(b'"a\x00b"')),
    ("nul", framed(b'"a\\u0000b"')),
    ("nan", framed(b"NaN")),
    ("nan", framed(b"-Infinity")),
    ("nan", framed(b"1e999")),
    ("nan", framed(b"9" * 1001)),
    ("surrogate", framed(b'"\\ud800"')),
    ("surrogate", framed(b'"\\ud800x"')),
    ("too_deep", framed(b"[" * 70 + b"]" * 70)),
    ("too_deep", framed(b"[" * 5000 + b"]" * 5000)),
    ("duplicate_key", framed(b'{"a":1,"a":1}')),
    ("duplicate_key", framed(b'{"a" : 1, "a" : 2}')),
    ("duplicate_key", framed(b'{"a":1,"\\u0061":2}')),
    ("duplicate_key", framed(b'{"a":1,"a":"\\u003a"}')),
    ("duplicate_key", b'{"type":"control","type":"control","payload":{}}'),
    ("not_an_object", b"[1]"),
    ("not_an_object", b'"x"'),
    ("not_an_object", b"null"),
    ("unknown_type", b'{"type":"shout","payload":{}}'),
    ("unknown_type", b'{"type":7,"payload":{}}'),
    ("unknown_type", b'{"payload":{}}'),
    ("invalid_frame", b'{"type":"control"}'),
    ("invalid_frame", b'{"type":"control","payload":[]}'),
    ("invalid_frame", b'{"type":"request","payload":{}}'),
    ("invalid_frame", b'{"type":"request","message_id":"","payload":{}}'),
    ("invalid_frame", b'{"type":"request","message_id":7,"payload":{}}'),
    ("invalid_frame", b'{"type":"stream","payload":{"chunk":7}}'),
    ("version", b'{"type":"control","protocol_version":"2.0","payload":{}}'),
    ("version", b'{"type":"control","protocol_version":"x","payload":{}}'),
]


@pytest.mark.requirement("000.bad-frames")
@pytest.mark.parametrize(("kind", "line"), BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_what_is_no_frame_is_named(kind: str, line: bytes) -> None:
    with pytest.raises(BadFrame) as caught:
        decode_message(line)
    assert caught.value.kind_of_fault == kind
    assert caught.value.as_dict()["code"] == "E_INVALID_INPUT"
    assert caught.value.message
    assert kind in KINDS


def test_a_bad_frame_keeps_its_ids_so_that_its_sender_can_be_told() -> None:
    line = (
        b'{"type":"request","message_id":"m1","correlation_id":"c1",'
        b'"protocol_version":"3","payload":{}}'
    )
    with pytest.raises(BadFrame) as caught:
        decode_message(line)
    assert (caught.value.message_id, caught.value.correlation_id) == ("m1", "c1")
    assert "1.0" in caught.value.message


@given(line=st.binary(max_size=80))
def test_whatever_comes_is_a_frame_or_a_bad_one(line: bytes) -> None:
    kind = None
    with contextlib.suppress(BadFrame):
        try:
            decode_message(line)
        except BadFrame as error:
            kind = error.kind_of_fault
            raise
    assert kind is None or kind in KINDS


@given(value=VALUES, ascii_only=st.booleans(), indent=st.none() | st.just(1))
def test_no_good_value_is_refused(value: Any, ascii_only: bool, indent: int | None) -> None:
    """What Python's own encoder writes is taken, whatever its spacing and escapes."""
    text = json.dumps({"v": value}, ensure_ascii=ascii_only, indent=indent)
    assert decode_strictly(text.encode()) == {"v": value}


@given(
    pairs=st.lists(st.tuples(TEXTS, SCALARS), min_size=1, max_size=4),
    spot=st.integers(0, 3),
    ascii_only=st.booleans(),
    space=st.sampled_from(["", " ", "\t"]),
)
def test_no_key_that_stands_twice_gets_through(
    pairs: list[tuple[str, Any]], spot: int, ascii_only: bool, space: str
) -> None:
    again = [*pairs, (pairs[spot % len(pairs)][0], 1)]
    body = ",".join(
        f"{json.dumps(k, ensure_ascii=ascii_only)}{space}:{space}{json.dumps(v)}" for k, v in again
    )
    with pytest.raises(BadFrame) as caught:
        decode_strictly(b"{" + body.encode() + b"}")
    assert caught.value.kind_of_fault == "duplicate_key"


def test_a_payload_that_is_no_json_is_not_written() -> None:
    with pytest.raises(InvalidResult):
        encode_message(make.response("r", {"result": float("nan")}))
    with pytest.raises(InvalidResult):
        encode_message(make.response("r", {"result": {1, 2}}))


@pytest.mark.parametrize(
    "error",
    [
        Timeout("late", details={"elapsed_ms": 5}),
        AgentFailed("no"),
        ExecutionError("boom", details={"exception": "ValueError"}),
        RetinueError("odd", outcome="unknown"),
    ],
)
def test_errors_come_back_as_what_they_were(error: RetinueError) -> None:
    fault = fault_of(error)
    back = error_of(msgspec.convert(msgspec.to_builtins(fault), Fault))
    assert back.code == error.code
    assert (back.message, back.outcome) == (error.message, error.outcome)
    assert isinstance(back, AgentFailed) is isinstance(error, AgentFailed)
    assert fault.error_type == ("timeout" if isinstance(error, Timeout) else "internal")


def test_an_error_code_that_is_not_ours_is_kept() -> None:
    back = error_of(Fault(error_code="E_SOMETHING", message="m"))
    assert (back.code, back.details["error_code"]) == ("E_INTERNAL", "E_SOMETHING")


def test_agents_may_be_names_or_cards() -> None:
    ready = payload_as(
        {
            "status": "ready",
            "agents": ["a", {"name": "b", "nodes": ["x"]}, "c"],
            "catalog": [{"name": "c", "description": "d"}, {"name": "unlisted"}],
        },
        Ready,
    )
    cards = ready.cards()
    assert list(cards) == ["a", "b", "c"]
    assert cards["b"].nodes == ["x"]
    assert cards["c"].description == "d"

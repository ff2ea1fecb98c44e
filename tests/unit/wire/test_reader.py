"""Bytes in, frames out, whatever comes; and which frame answers which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.errors import Conflict
from retinue.wire import BadFrame, Frame, encode_message
from retinue.wire import envelope as make
from retinue.wire.exchange import Exchanges
from retinue.wire.payloads import Asking, Cancel, Chunk, Fault, Ping, Ready
from retinue.wire.reader import FrameReader

GOOD = encode_message(make.control(Ping()))


def kinds(found: list[Frame | BadFrame]) -> list[str]:
    return [f.kind_of_fault if isinstance(f, BadFrame) else "frame" for f in found]


@given(st.lists(st.binary(max_size=200)), st.lists(st.integers(1, 60), max_size=30))
def test_the_reader_goes_on_after_anything(lines: list[bytes], cuts: list[int]) -> None:
    reader = FrameReader(limit=4096)
    whole = b"\n".join([*lines, b""]) + GOOD
    found: list[Frame | BadFrame] = []
    at = 0
    for size in cuts:
        found += reader.feed(whole[at : at + size])
        at += size
    found += reader.feed(whole[at:])
    assert not isinstance(found[-1], BadFrame)
    assert reader.rest() == []
    bad = sum(isinstance(f, BadFrame) for f in found)
    assert bad == sum(n for k, n in reader.counts.items() if k not in {"bom", "crlf"})
    assert reader.frames == len(found) - bad


@pytest.mark.requirement("000.bad-frames")
@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
def test_a_line_over_the_limit_is_refused_and_the_next_one_read(step: int) -> None:
    reader = FrameReader(limit=1000)
    whole = GOOD + b"x" * 5000 + b"\n" + GOOD
    found = [f for at in range(0, len(whole), step) for f in reader.feed(whole[at : at + step])]
    assert kinds(found) == ["frame", "oversize", "frame"]
    assert "5001 bytes; the limit is 1000" in str(found[1])
    assert reader.counts == {"oversize": 1}


def test_the_limit_is_exact_and_holds_memory_down() -> None:
    reader = FrameReader(limit=len(GOOD))
    assert kinds(reader.feed(GOOD)) == ["frame"]
    assert kinds(reader.feed(b" " + GOOD)) == ["oversize"]
    for _ in range(1000):
        assert reader.feed(b"y" * 1000) == []
    assert sum(len(part) for part in reader._parts) <= 4096


@pytest.mark.requirement("000.bad-frames")
def test_bom_and_crlf_are_tolerated_and_counted() -> None:
    reader = FrameReader()
    crlf = GOOD.replace(b"\n", b"\r\n")
    assert kinds(reader.feed(b"\xef\xbb\xbf" + crlf + b"\r\n\n  \n" + crlf)) == ["frame", "frame"]
    assert reader.counts == {"bom": 1, "crlf": 3}
    assert kinds(reader.feed(b"\xef\xbb\xbf" + GOOD)) == ["not_json"]


@pytest.mark.requirement("000.bad-frames")
def test_half_a_line_at_the_end_is_named() -> None:
    reader = FrameReader()
    assert kinds(reader.feed(GOOD + GOOD[:20])) == ["frame"]
    assert kinds(reader.rest()) == ["incomplete"]
    assert reader.rest() == []
    assert reader.report() == {"frames": 1, "incomplete": 1}


def test_every_bad_frame_is_counted_by_its_kind() -> None:
    reader = FrameReader()
    reader.feed(b'nope\n{"type":"x","payload":{}}\nnope\n' + GOOD)
    assert reader.report() == {"frames": 1, "not_json": 2, "unknown_type": 1}


@pytest.mark.requirement("000.bad-frames")
def test_frames_out_of_place_are_named() -> None:
    exchanges = Exchanges()
    exchanges.begin("a")
    with pytest.raises(Conflict):
        exchanges.begin("a")
    ok = make.response("a", {"status": "success"})
    assert exchanges.take(make.stream("a", Chunk(node_name="n", chunk="1"))) is None
    assert exchanges.take(make.stream("a", Chunk(node_name="n", is_complete=True))) is None
    assert exchanges.take(make.stream("a", Chunk(node_name="n", chunk="2"))) == "late_chunk"
    assert exchanges.take(make.stream("a", Chunk(node_name="m", chunk="2"))) is None
    assert exchanges.take(ok) is None
    assert exchanges.take(ok) == "second_terminal"
    assert exchanges.take(make.error("a", Fault())) == "second_terminal"
    assert exchanges.take(make.stream("a", Chunk(node_name="m", chunk="3"))) == "late_chunk"
    assert exchanges.take(make.response("b", {})) == "unknown_correlation"
    assert exchanges.take(make.response(None, {})) == "unknown_correlation"
    assert exchanges.take(make.stream("b", Chunk())) == "unknown_correlation"
    assert exchanges.take(make.error(None, Fault())) is None


def test_control_frames_are_about_a_request_or_about_none() -> None:
    exchanges = Exchanges()
    exchanges.begin("a")
    asking = Asking(invoke_id="i", input_id="q", prompt="?")
    assert exchanges.take(make.control(Ready())) is None
    assert exchanges.take(make.control(Cancel(request_id="a"))) is None
    assert exchanges.take(make.control(asking, to="a")) is None
    assert exchanges.take(make.control(asking, to="b")) == "unknown_correlation"
    exchanges.end("a")
    assert exchanges.take(make.control(asking, to="a")) == "late_chunk"
    assert exchanges.take(make.response("a", {})) == "second_terminal"


def test_ended_requests_are_remembered_for_a_while_only() -> None:
    exchanges = Exchanges(kept=2)
    for name in "abc":
        exchanges.begin(name)
        exchanges.end(name)
    assert len(exchanges) == 0
    assert exchanges.take(make.response("a", {})) == "unknown_correlation"
    assert exchanges.take(make.response("c", {})) == "second_terminal"

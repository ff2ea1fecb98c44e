"""What processes wrote, kept: secrets taken out, rotated files followed."""

import json
from pathlib import Path

import pytest

from retinue.process.log import (
    InstanceLog,
    LogFollower,
    LogWriter,
    Mask,
    dropped,
    forms,
    last_said,
    masked,
    read_log,
    telling,
)
from retinue.process.reading import TAIL_BYTES
from retinue.process.traces import settle


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_a_secret_is_taken_out_however_it_comes(size: int) -> None:
    text = b"a s3cret, s3s3cret-longer s3crex s3c"
    mask = Mask(["s3cret", "s3cret-longer", "abc"])
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    shown = b"".join(map(mask.feed, [*pieces, b""]))
    assert b"s3cret" not in shown
    assert shown.replace(b"***-longer", b"***") == b"a ***, s3*** s3crex s3c"


def test_what_is_no_secret_is_not_held_back() -> None:
    mask = Mask(["s3cret"])
    assert mask.feed(b"plain") == b"plain"
    assert mask.feed(b"s3") == b""
    assert mask.feed(b"x") == b"s3x"
    assert Mask([]).feed(b"s3") == b"s3"


def test_a_secret_is_known_in_json_too() -> None:
    secret = 'a "b"\n\u00fc'
    for text in (secret, json.dumps([secret]), json.dumps([secret], ensure_ascii=False)):
        assert "b" not in masked(text, forms([secret]))
        shown = Mask([secret]).feed(text.encode() + b"|")
        assert b"b" not in shown
        assert shown.endswith(b"|")


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_what_an_error_quotes_is_masked_before_it_is_cut(cut: int) -> None:
    secret = "-".join(f"part{i}" for i in range(8))
    # Cut by us: the secret begins before the characters that are shown.
    end = "x" * (100 - cut)
    assert "part" not in last_said(f"{secret}{end}".encode(), forms([secret]), 100)
    # Cut by the pipe: its beginning was not kept, in the middle of a character.
    kept = secret[cut:] + "ü" * TAIL_BYTES
    tail = "ü".encode()[1:] * 0 + kept.encode()[:TAIL_BYTES]
    said = last_said(tail, forms([secret]), TAIL_BYTES)
    assert said.startswith("***ü")
    assert (
        last_said(secret[cut:].encode(), forms([secret]), 100) == secret[cut:]
    )  # whole, so no part


def test_a_secret_that_fills_all_that_is_kept_is_not_shown() -> None:
    secret = "0123456789" * 1000
    assert last_said(secret[7 : 7 + TAIL_BYTES].encode(), forms([secret]), 2000) == "***"


def test_what_is_not_kept_any_more_is_counted(tmp_path: Path) -> None:
    writer = LogWriter()
    take = InstanceLog(writer, tmp_path, 200).stream("stdout")
    text = "".join(f"line {n:04}\n" for n in range(60)).encode()
    for at in range(0, len(text), 10):
        take(text[at : at + 10])
    take(b"")
    writer.close()
    kept = read_log(tmp_path, "stdout")
    follower = LogFollower(tmp_path, "stdout", 30)
    assert follower.read() == text[-30:]
    assert follower.skipped == len(kept) - 30
    assert follower.dropped == len(text) - len(kept) > 0
    follower.close()
    settle(tmp_path, 50)
    assert dropped(tmp_path / "stdout") > follower.dropped


def test_what_is_followed_begins_with_a_whole_character(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_bytes("aü".encode() * 3)
    follower = LogFollower(tmp_path, "stdout", 4)
    assert follower.read().decode() == "aü"
    assert follower.skipped == 5
    follower.close()


def test_a_log_is_followed_across_its_rotations(tmp_path: Path) -> None:
    writer = LogWriter()
    take = InstanceLog(writer, tmp_path, 2000).stream("stdout")
    follower = LogFollower(tmp_path, "stdout")
    seen, written = b"", b""
    for n in range(100):
        line = f"line {n}\n".encode() * 5
        take(line)
        written += line
        if n % 3 == 0:
            writer.settle()
            seen += follower.read()
    writer.close()
    seen += follower.read()
    assert seen == written
    assert follower.read() == b""
    follower.close()
    kept = read_log(tmp_path, "stdout")
    assert len(kept) <= 2000
    assert written.endswith(kept)
    late = LogFollower(tmp_path, "stdout", tail=20)
    assert late.read() == written[-20:]
    late.close()
    whole = LogFollower(tmp_path, "stdout")
    assert whole.read() == kept
    whole.close()
    nothing = LogFollower(tmp_path, "stderr", tail=5)
    assert nothing.read() == b""
    nothing.close()


def test_what_went_wrong_is_quoted_though_it_is_not_what_was_said_last() -> None:
    node = ["x.js:1", "Error: my message", *(f"    at frame {n}" for n in range(9)), "Node.js v20"]
    assert telling(node, 3) == [node[1], *node[-3:]]
    assert telling(["a", "ValueError: b"], 3) == ["a", "ValueError: b"]
    assert telling(["Error: old", "c", "TypeError: d"], 2) == ["c", "TypeError: d"]
    assert telling(["a", "b", "c"], 2) == ["b", "c"]
    assert telling([], 2) == []

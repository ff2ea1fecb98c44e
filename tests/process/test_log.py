"""What processes wrote, kept: secrets taken out, rotated files followed."""

from pathlib import Path

import pytest

from retinue.process.log import InstanceLog, LogFollower, LogWriter, Mask, read_log


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

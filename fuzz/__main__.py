"""``make fuzz ARGS="--seconds 600 --seed 7"``: mutated frames, at the reader of worker pipes.

Whatever comes, the reader must go on; it must count exactly what it refuses; and what it accepts
must be what Python's own decoder reads there, with no key twice. The first input that breaks this
is printed, and the exit code is 1. Every run says its seed, so that it can be repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from typing import Any

from retinue.wire import BadFrame, encode_message
from retinue.wire import envelope as make
from retinue.wire.payloads import Asking, Chunk, Fault, Invoke, Ready
from retinue.wire.reader import FrameReader
from retinue.wire.strict import KINDS, decode_strictly

LIMIT = 4096
TOKENS = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\n", b"\r\n", b"\0", b"\\u0000", b"\\ud800",
    b"\\udc00", b"\\u003a", b"NaN", b"Infinity", b"-", b"1e999", b"9" * 1001, b"\xff", b"\xc3",
    b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"null", b"true", b'"type":', b'"payload":', b'{"a":1,"a":2}',
    b"[" * 70, b"x" * LIMIT,
]  # fmt: skip


def seeds() -> list[bytes]:
    """Return one good line of every kind."""
    frames: list[make.Frame] = [
        make.request(Invoke(agent_name="a", input=[["é\u2028😀"]], metadata={"n": 1.5, "b": True})),
        make.response(
            "r", {"status": "success", "result": {"k": [None, -0.0, 1 << 70, "\\u0041"]}}
        ),
        make.stream("r", Chunk(node_name="n", chunk="c", accumulated="cc")),
        make.error("r", Fault(message='a "quoted" \\ text:', details={"path": "$.x"})),
        make.control(Ready(module_name="m", agents=["a"])),
        make.control(Asking(invoke_id="i", input_id="q", prompt="?"), to="r"),
    ]
    return [encode_message(frame) for frame in frames]


def mutated(line: bytes, dice: random.Random) -> bytes:
    """Return the line with a few things wrong."""
    raw = bytearray(line)
    for _ in range(dice.randint(0, 4)):
        at = dice.randrange(len(raw) + 1)
        match dice.randrange(4):
            case 0:
                raw[at:at] = dice.choice(TOKENS)
            case 1:
                del raw[at : at + dice.randint(1, 8)]
            case 2:
                raw[at : at + 1] = bytes([dice.randrange(256)])
            case _:
                other = dice.randrange(len(raw) + 1)
                raw[at:at] = raw[min(at, other) : max(at, other)][:200]
    return bytes(raw)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def round_of(lines: list[bytes], dice: random.Random) -> bytes | None:
    """Feed one stream of lines; return it if something is wrong."""
    raw = b"".join(lines)
    reader = FrameReader(LIMIT)
    found: list[Any] = []
    at = 0
    while at < len(raw):
        size = dice.randint(1, 700)
        found += reader.feed(raw[at : at + size])
        at += size
    found += reader.feed(b"\n")
    bad = [item for item in found if isinstance(item, BadFrame)]
    counted = sum(n for kind, n in reader.counts.items() if kind not in {"bom", "crlf"})
    if counted != len(bad) or any(item.kind_of_fault not in KINDS for item in bad):
        return raw
    if reader.frames != len(found) - len(bad):
        return raw
    for line in raw.split(b"\n"):
        try:
            value = decode_strictly(line)
        except BadFrame:
            continue
        try:
            same = value == json.loads(line, object_pairs_hook=_each_once)
        except ValueError:
            same = False
        if not same:
            return line
    return None


def main() -> int:
    """Run for a while; return the exit code."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    dice = random.Random(given.seed)
    good = seeds()
    end, rounds = time.monotonic() + given.seconds, 0
    while time.monotonic() < end:
        lines = [mutated(dice.choice(good), dice) for _ in range(dice.randint(1, 8))]
        try:
            wrong = round_of(lines, dice)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            wrong = b"".join(lines)
        if wrong is not None:
            print(f"round {rounds}: {wrong!r}", file=sys.stderr)
            return 1
        rounds += 1
    print(f"{rounds} streams, none broke the reader")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The child of the stdio scenario: an echo worker. ``bare`` is written by hand, ``sdk`` is served.

Both sides of a comparison talk to the same child; the one written by hand answers faster, so it
shows more of what the parent costs.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

CHUNK = 1 << 16


def answer(frame: dict[str, Any]) -> dict[str, Any]:
    """Return what follows from one frame."""
    payload = frame["payload"]
    status = {"ping": "pong", "shutdown": "shutting_down"}.get(payload["operation"], "success")
    said = {"status": status, "result": payload.get("input", {}).get("text")}
    return {"type": "response", "correlation_id": frame["message_id"], "payload": said}


def by_hand() -> None:
    """Echo, line by line, with one write for all the lines of one read."""
    decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
    ready = {"status": "ready", "module_name": "bench", "agents": ["echo"]}
    os.write(1, encode({"type": "control", "payload": ready}) + b"\n")
    rest = b""
    while chunk := os.read(0, CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        frames = [decode(line) for line in lines]
        left = b"".join(encode(answer(frame)) + b"\n" for frame in frames)
        while left:
            left = left[os.write(1, left) :]
        if any(frame["payload"]["operation"] == "shutdown" for frame in frames):
            return


def served() -> None:
    """Echo as an agent of the SDK."""
    from bench.ours.agent import echo  # noqa: PLC0415 the other child does not need it
    from retinue.sdk import serve  # noqa: PLC0415

    serve(echo)


if __name__ == "__main__":
    if sys.argv[1] == "sdk":
        served()
    else:
        by_hand()

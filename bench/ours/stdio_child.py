"""The child of the stdio scenario: an echo worker. ``bare`` is written by hand, ``sdk`` is served.

Both sides of a comparison talk to the same child; the one written by hand answers faster, so it
shows more of what the parent costs.
"""

from __future__ import annotations

import heapq
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec

CHUNK = 1 << 16
CHUNKS = tuple(f"word {n} " for n in range(8))
"""What the agent ``talk`` streams, a pause after each."""
PAUSE = 0.01


def answers(frame: dict[str, Any]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield what follows from one frame, each with the seconds after which it is said."""
    payload, to = frame["payload"], frame["message_id"]
    status = {"ping": "pong", "shutdown": "shutting_down"}.get(payload["operation"], "success")
    said = {"status": status, "result": (payload.get("input") or {}).get("text")}
    after = 0.0
    if payload.get("agent_name") == "talk":
        pieces = [{"node_name": "talk", "chunk": chunk, "is_complete": False} for chunk in CHUNKS]
        pieces.append({"node_name": "talk", "chunk": "", "is_complete": True})
        for n, piece in enumerate(pieces):
            after = n * PAUSE
            yield after, {"type": "stream", "correlation_id": to, "payload": piece}
    yield after, {"type": "response", "correlation_id": to, "payload": said}


def by_hand() -> None:
    """Echo, line by line, with one write for all the lines of one read; talk at its own pace."""
    decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
    ready = {"status": "ready", "module_name": "bench", "agents": ["echo", "talk"]}
    os.write(1, encode({"type": "control", "payload": ready}) + b"\n")
    later: list[tuple[float, int, bytes]] = []
    number = 0
    rest = b""
    ending = False
    while not ending:
        wait = max(later[0][0] - time.monotonic(), 0) if later else None
        frames = []
        if later and not select.select([0], [], [], wait)[0]:
            pass
        elif chunk := os.read(0, CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            frames = [decode(line) for line in lines]
        else:
            return
        left = b""
        now = time.monotonic()
        for frame in frames:
            ending = ending or frame["payload"]["operation"] == "shutdown"
            for after, said in answers(frame):
                line = encode(said) + b"\n"
                if after:
                    number += 1
                    heapq.heappush(later, (now + after, number, line))
                else:
                    left += line
        while later and later[0][0] <= now:
            left += heapq.heappop(later)[2]
        while left:
            left = left[os.write(1, left) :]


def served() -> None:
    """Echo, and more, as agents of the SDK."""
    from bench.ours.agent import echo, say, used  # noqa: PLC0415 the other child needs none
    from retinue.sdk import serve  # noqa: PLC0415

    serve(echo, say, used)


if __name__ == "__main__":
    if sys.argv[1] == "sdk":
        served()
    else:
        by_hand()

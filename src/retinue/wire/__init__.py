"""How others speak: specification 000's JSON lines over stdio (``docs/protocol.md``).

``envelope`` writes and reads one frame, ``payloads`` has what frames carry, ``strict`` says which
lines are JSON at all, ``reader`` makes frames of a pipe's bytes and counts what is not one,
``exchange`` follows which frame answers which, ``faults`` translates errors. ``jsonrpc`` is what
agents that speak ACP, and Codex, say. No I/O here.
"""

from retinue.wire.envelope import (
    Control,
    Error,
    Frame,
    Request,
    Response,
    Stream,
    decode_message,
    encode_message,
)
from retinue.wire.strict import BadFrame

__all__ = [
    "BadFrame",
    "Control",
    "Error",
    "Frame",
    "Request",
    "Response",
    "Stream",
    "decode_message",
    "encode_message",
]

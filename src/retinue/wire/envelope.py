"""The frame: one JSON object on one line (specification 000 §3.1).

Every frame written has all six fields. A frame that begins an exchange carries its own message_id
as correlation_id; every other one that of the frame it belongs to. In a frame that is read only
``type`` and ``payload`` are needed, and ``message_id`` on a request; fields that are not known are
passed over, and a payload that is wrapped in another one is unwrapped.
"""

from __future__ import annotations

import os
import re
from typing import Any, TypeAlias

import msgspec

from retinue.domain.ids import iso, now_us
from retinue.domain.strictjson import NotJson, check
from retinue.errors import InvalidResult
from retinue.wire.payloads import Chunk, Fault
from retinue.wire.strict import KINDS, BadFrame, decode_strictly

PROTOCOL_VERSION = "1.0"
LINE_BYTES = 1 << 20
"""How long a line may be, its newline included, unless set otherwise."""

_MAJOR = re.compile(r"1(\.\d{1,9})*\Z")
_OWN = frozenset({"operation", "status", "error_code", "chunk", "node_name", "is_complete"})
_encode = msgspec.json.Encoder().encode
# What ends a line for some readers, though not for JSON: they occur inside strings only.
_BREAKS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


class Envelope(msgspec.Struct, kw_only=True, tag_field="type"):
    """What all frames have. ``message_id`` may be missing in all but requests."""

    protocol_version: str = PROTOCOL_VERSION
    message_id: str | None = None
    correlation_id: str | None = None
    timestamp: str | None = None


class Request(Envelope, kw_only=True, tag="request"):
    """Asks for something: ``payload.operation``."""

    message_id: str
    payload: dict[str, Any]


class Response(Envelope, kw_only=True, tag="response"):
    """Ends an exchange well: ``payload.status``."""

    payload: dict[str, Any]


class Stream(Envelope, kw_only=True, tag="stream"):
    """A piece of what a node says while its request is in progress."""

    payload: Chunk


class Error(Envelope, kw_only=True, tag="error"):
    """Ends an exchange badly; without a correlation_id it is about no request of ours."""

    payload: Fault


class Control(Envelope, kw_only=True, tag="control"):
    """Beside the requests: ``payload.operation`` to be done, or ``payload.status`` to know."""

    payload: dict[str, Any]


Frame: TypeAlias = Request | Response | Stream | Error | Control
# (One record is looked up and converted to: twice as fast as converting to the union.)
_RECORDS: dict[str, type[Frame]] = {
    "request": Request,
    "response": Response,
    "stream": Stream,
    "error": Error,
    "control": Control,
}


def encode_message(frame: Frame) -> bytes:
    """Return a frame as its line, with the newline.

    Raises:
        InvalidResult: the payload holds something that JSON, or the ledger, cannot keep.
    """
    try:
        check(frame.payload if type(frame.payload) is dict else msgspec.to_builtins(frame.payload))
    except NotJson as error:
        raise InvalidResult(f"the frame's payload: {error}") from None
    return encode_checked(frame)


def encode_checked(frame: Frame) -> bytes:
    """Return a frame as its line; its payload is known to be JSON."""
    raw = _encode(frame)
    if not raw.isascii():
        for plain, escaped in _BREAKS:
            if plain in raw:
                raw = raw.replace(plain, escaped)
    return raw + b"\n"


def decode_message(line: bytes) -> Frame:
    """Return the frame that a line is, with or without its newline.

    Raises:
        BadFrame: it is none; ``kind_of_fault`` and the message say why.
    """
    value = decode_strictly(line)
    if type(value) is not dict:
        raise BadFrame("not_an_object", None, line)
    _unwrap(value)
    kind = value.get("type")
    record = _RECORDS.get(kind) if type(kind) is str else None
    if record is None:
        reason = f"type is {str(kind)[:80]!r}" if "type" in value else "there is no `type`"
        raise _bad("unknown_type", f"{reason}; {KINDS['unknown_type']}", value, line)
    try:
        frame = msgspec.convert(value, record)
    except msgspec.ValidationError as error:
        raise _bad("invalid_frame", str(error), value, line) from None
    if not _MAJOR.match(frame.protocol_version):
        raise _bad("version", f"protocol_version is not supported; this is {PROTOCOL_VERSION}",
                   value, line)  # fmt: skip
    if frame.message_id == "":
        raise _bad("invalid_frame", "message_id is empty", value, line)
    return frame


def _unwrap(value: dict[str, Any]) -> None:
    """Take a payload out of another one: what the protocol's first host put on the wire."""
    payload = value.get("payload")
    if type(payload) is dict and type(payload.get("payload")) is dict and not _OWN & payload.keys():
        value["payload"] = payload["payload"]
    for field in ("protocol_version", "correlation_id"):
        if field in value and value[field] is None:
            del value[field]


def _bad(kind: str, reason: str, value: dict[str, Any], line: bytes) -> BadFrame:
    texts = (value.get(name) for name in ("message_id", "correlation_id", "type"))
    message_id, correlation_id, declared = (t if isinstance(t, str) else None for t in texts)
    return BadFrame(
        kind,
        reason,
        line,
        message_id=message_id or None,
        correlation_id=correlation_id,
        declared=declared,
        decoded=True,
    )


# -- making frames -----------------------------------------------------------------------------


_random: list[str] = []


def new_id() -> str:
    """Return a new message_id: a random UUID (version 4)."""
    try:
        made = _random.pop()  # atomic: two threads never get the same one
    except IndexError:
        pool = os.urandom(16 * 128).hex()
        _random.extend(pool[at : at + 32] for at in range(0, len(pool), 32))
        return new_id()
    variant = "89ab"[int(made[16], 16) & 3]
    return f"{made[:8]}-{made[8:12]}-4{made[13:16]}-{variant}{made[17:20]}-{made[20:]}"


# A forked child must not go on with its parent's random bits.
os.register_at_fork(after_in_child=_random.clear)


def request(payload: Any, *, within: str | None = None) -> Request:
    """Return a request; ``within`` is the request on whose behalf it is made."""
    made = new_id()
    return Request(
        message_id=made,
        correlation_id=within or made,
        timestamp=iso(now_us()),
        payload=msgspec.to_builtins(payload),
    )


def response(to: str | None, payload: dict[str, Any]) -> Response:
    """Return the good end of the exchange that ``to`` began."""
    return Response(
        message_id=new_id(), correlation_id=to, timestamp=iso(now_us()), payload=payload
    )


def stream(to: str, chunk: Chunk) -> Stream:
    """Return a piece of what is said about the request ``to``."""
    return Stream(message_id=new_id(), correlation_id=to, timestamp=iso(now_us()), payload=chunk)


def error(to: str | None, fault: Fault) -> Error:
    """Return the bad end of the exchange that ``to`` began."""
    return Error(message_id=new_id(), correlation_id=to, timestamp=iso(now_us()), payload=fault)


def control(payload: Any, *, to: str | None = None) -> Control:
    """Return a control frame; ``to`` is the request it is about, if it is about one."""
    made = new_id()
    return Control(
        message_id=made,
        correlation_id=to or made,
        timestamp=iso(now_us()),
        payload=msgspec.to_builtins(payload),
    )

"""JSON Schema of every frame as it is written, made from the records that write it."""

from __future__ import annotations

from typing import Any

import msgspec

from retinue.wire import payloads as p
from retinue.wire.envelope import PROTOCOL_VERSION


class Pong(msgspec.Struct, kw_only=True, tag_field="status", tag="pong"):
    """The answer to ``ping``."""


class ShuttingDown(msgspec.Struct, kw_only=True, tag_field="status", tag="shutting_down"):
    """The answer to ``shutdown``."""


class Cancelling(msgspec.Struct, kw_only=True, tag_field="status", tag="cancelling"):
    """The answer to ``cancel``; the request's own answer follows."""


class NotRunning(msgspec.Struct, kw_only=True, tag_field="status", tag="not_running"):
    """The answer to ``cancel`` of what is not in progress (any more)."""


SHAPES: dict[str, tuple[str, type[msgspec.Struct]]] = {
    "agent.invoke": ("request", p.Invoke),
    "agent.result": ("request", p.Result),
    "agent.next_step": ("request", p.NextStep),
    "human_input.pending": ("request", p.Pending),
    "human_input.provide": ("request", p.Provide),
    "success": ("response", p.Success),
    "pong": ("response", Pong),
    "shutting_down": ("response", ShuttingDown),
    "cancelling": ("response", Cancelling),
    "not_running": ("response", NotRunning),
    "stream": ("stream", p.Chunk),
    "error": ("error", p.Fault),
    "ready": ("control", p.Ready),
    "ping": ("control", p.Ping),
    "shutdown": ("control", p.Shutdown),
    "cancel": ("control", p.Cancel),
    "human_input.request": ("control", p.Asking),
    "agent.event": ("control", p.Note),
}
"""Every frame by name: its type, and the record of its payload."""

_ENVELOPE: dict[str, Any] = {
    "protocol_version": {
        "type": "string",
        "pattern": r"^1(\.[0-9]+)*$",
        "default": PROTOCOL_VERSION,
    },
    "message_id": {"type": "string", "minLength": 1},
    "correlation_id": {"type": ["string", "null"]},
    "timestamp": {"type": "string", "format": "date-time", "pattern": "Z$"},
}


def frames() -> dict[str, Any]:
    """Return one JSON Schema that every frame of the protocol fits."""
    records = [record for _, record in SHAPES.values()]
    references, definitions = msgspec.json.schema_components(records, ref_template="#/$defs/{name}")
    every: list[dict[str, Any]] = []
    for (name, (kind, record)), payload in zip(SHAPES.items(), references, strict=True):
        every.append(
            {
                "title": name,
                "description": (record.__doc__ or "").strip().splitlines()[0],
                "type": "object",
                "properties": {**_ENVELOPE, "type": {"const": kind}, "payload": payload},
                "required": [*_ENVELOPE, "type", "payload"],
            }
        )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Frames of the worker protocol, version {PROTOCOL_VERSION}",
        "anyOf": every,
        "$defs": definitions,
    }

"""A worker that breaks one rule: a good one behind a filter that spoils what goes through it.

``broken_worker.py FAULT WORKER...``: WORKER is the command line of the good one.
"""

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

FAULT = sys.argv[1]
good = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
ODD_LINES = {
    "array": b"[]",
    "number": b"5",
    "deep": b"[" * 100_000,
    "deep-object": b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "half": b'{"type": "resp',
}
asked: dict[str, dict[str, Any]] = {}
held: list[bytes] = []


def write(frame: dict[str, Any] | bytes) -> None:
    raw = frame if isinstance(frame, bytes) else json.dumps(frame).encode() + b"\n"
    os.write(1, raw)


def out(frame: dict[str, Any]) -> None:  # noqa: PLR0912, PLR0915, C901 one branch per fault
    """Pass on what the good worker says, spoiled."""
    payload, request = frame["payload"], asked.get(frame["correlation_id"] or "", {})
    operation = request.get("payload", {}).get("operation")
    result = frame["type"] == "response" and "result" in payload
    if FAULT == "ready" and payload.get("status") == "ready":
        return
    if FAULT == "envelope":
        del frame["timestamp"]
    elif FAULT == "ping" and payload.get("status") == "pong":
        payload["status"] = "fine"
    elif FAULT == "invoke" and result:
        del payload["metadata"]
    elif FAULT == "invoke-id" and result:
        payload["metadata"]["invoke_id"] = "mine"
    elif FAULT == "echo" and result:
        payload["result"] = json.loads(json.dumps(payload["result"]).replace("\\n", " "))
    elif FAULT == "correlation" and result:
        held.append(json.dumps(frame).encode())
        if len(held) % 3 == 0:
            return
    elif FAULT == "stream" and frame["type"] == "stream":
        payload["is_complete"] = False
    elif FAULT == "accumulated" and frame["type"] == "stream":
        payload["accumulated"] = payload["chunk"]
    elif FAULT == "stream-off" and result:
        extra = {"node_name": "n", "chunk": "c", "is_complete": False, "is_reset": False}
        write({**frame, "message_id": "extra", "type": "stream", "payload": extra})
    elif FAULT == "unknown-agent" and payload.get("error_code") == "E_AGENT_NOT_FOUND":
        payload.update(error_code="E_INTERNAL", retryable=True)
    elif FAULT == "unknown-operation" and payload.get("error_code") == "E_UNKNOWN_OPERATION":
        return
    elif FAULT == "failure" and frame["type"] == "error":
        del payload["details"]
    elif FAULT == "human-input" and operation == "human_input.provide":
        frame |= {"type": "response", "payload": {"status": "success", "result": None}}
    elif FAULT == "cancel" and payload.get("error_code") == "E_CANCELLED":
        payload["error_code"] = "E_INTERNAL"
    elif FAULT == "asked-time" and payload.get("operation") == "human_input.request":
        late = {"error_code": "E_TIMEOUT", "error_type": "timeout", "message": "too late"}
        fault = {**late, "retryable": True, "details": {}}
        threading.Timer(0.3, write, [{**frame, "type": "error", "payload": fault}]).start()
    elif FAULT == "timeout" and payload.get("error_code") == "E_TIMEOUT":
        payload["error_type"] = "internal"
    elif FAULT == "true-is-one" and result and payload["result"] is True:
        payload["result"] = 1
    elif FAULT == "twice" and result:
        threading.Timer(0.3, write, [{**frame, "message_id": "again"}]).start()
    elif FAULT == "metadata" and result:
        payload["metadata"] = "none"
    elif FAULT == "unanswered" and payload.get("error_code") == "E_CANCELLED":
        return
    elif FAULT == "always-accumulated" and frame["type"] == "stream":
        payload.setdefault("accumulated", "")
    elif FAULT == "any-node" and payload.get("error_code") == "E_INVALID_INPUT":
        payload["error_code"] = "E_INTERNAL"
    elif FAULT == "wrong-type" and payload.get("error_code") == "E_UNKNOWN_OPERATION":
        payload["error_type"] = "not_found"
    elif FAULT == "retryable-text" and frame["type"] == "error":
        payload["retryable"] = "false"
    elif FAULT in ODD_LINES and payload.get("status") == "pong":
        write(ODD_LINES[FAULT] + b"\n")
    elif FAULT == "in-place" and result:
        write({**frame, "message_id": "again"})
    elif FAULT == "frames-only" and result:
        write(b"a stray print\n")
    write(frame)


def taken(line: bytes) -> bytes | None:
    """Return what the good worker gets of a line for it; None: nothing."""
    try:
        frame = json.loads(line)
        payload = frame["payload"]
    except (ValueError, TypeError, KeyError):
        if FAULT == "bad-lines":
            os._exit(5)
        return line
    asked[frame.get("message_id") or ""] = frame
    if FAULT == "busy" and payload.get("operation") == "ping":
        time.sleep(2.5)
    elif FAULT == "version":
        frame["protocol_version"] = "1.0"
    elif FAULT == "double-wrap" and "payload" in payload:
        frame["payload"] = {"operation": "nothing"}
    elif FAULT == "tolerance" and "protocol_version" not in frame:
        return None
    elif FAULT == "large-line" and len(line) > 1 << 20:
        os._exit(6)
    elif FAULT in {"drain", "deadline"} and payload.get("operation") == "shutdown":
        write(
            {
                "protocol_version": "1.0",
                "message_id": "down",
                "correlation_id": frame["message_id"],
                "timestamp": "2026-01-01T00:00:00Z",
                "type": "response",
                "payload": {"status": "shutting_down"},
            }
        )
        return None
    return json.dumps(frame).encode() + b"\n"


def pass_on() -> None:
    assert good.stdin is not None
    for line in sys.stdin.buffer:
        if FAULT == "half-a-line" and not line.endswith(b"\n"):
            os._exit(4)
        passed = taken(line)
        if passed is not None:
            good.stdin.write(passed)
            good.stdin.flush()
    if FAULT == "end-of-input":
        time.sleep(60)
    good.stdin.close()


threading.Thread(target=pass_on, daemon=True).start()
assert good.stdout is not None
for said in good.stdout:
    out(json.loads(said))
code = good.wait()
sys.stdout.flush()
os._exit(3 if FAULT == "shutdown" else code)

"""A worker that asks others, rightly and wrongly, and floods; written without our code."""

import json
import os
import sys
import threading
import time
from collections import defaultdict
from typing import Any

lock = threading.Lock()
blind = threading.Event()
answers: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
RULE = '{"type":"request","message_id":"%s","correlation_id":"%s","payload":%s}\n'


def write(raw: bytes) -> None:
    with lock:
        left = memoryview(raw)
        while left:
            left = left[os.write(1, left) :]


def send(kind: str, to: str | None, **payload: object) -> None:
    frame = {"type": kind, "message_id": "m", "correlation_id": to, "payload": payload}
    write(json.dumps(frame).encode() + b"\n")


def flood(lines: bytes) -> None:
    while True:
        write(lines)


def ask(to: str, given: dict[str, Any]) -> Any:
    """Write requests; return what came for each of ``ids`` once there is something."""
    for line in given["lines"]:
        write(line.replace("$ID", to).replace("$X", "x" * given.get("x", 0)).encode())
    if given.get("leave"):
        return None
    while not all(any(f["type"] != "stream" for f in answers[one]) for one in given["ids"]):
        time.sleep(0.005)
    if "brief" in given:
        frames = answers[given["brief"]]
        text = "".join(f["payload"]["chunk"] for f in frames if f["type"] == "stream")
        return [len(text), frames[-1]["payload"]]
    if "file" in given:
        while not os.path.exists(given["file"]):
            time.sleep(0.005)
    return [answers.pop(one) for one in given["ids"]]


def perform(to: str, asked: dict[str, Any]) -> None:
    given = asked["input"]
    do = given.get("do", "echo")
    result: Any = given
    if do == "flood":
        flood(given["line"].encode() * (65536 // len(given["line"])))
    elif do == "only_ask":
        blind.set()
        if given.get("close"):
            os.close(0)
        inside = to if given["inside"] else "nothing"
        payload = '{"operation":"agent.invoke","agent_name":"nobody","input":"%s"}' % ("x" * 500)
        flood((RULE % ("q", inside, payload)).encode() * 100)
    elif do == "ask":
        result = ask(to, given)
    elif do == "count":
        with open(given["file"], "a") as file:
            file.write("ran\n")
        while not os.path.exists(given["go"]):
            time.sleep(0.005)
    elif do == "answers":
        while not answers[given["id"]]:
            time.sleep(0.005)
        result = answers[given["id"]]
    elif do == "large":
        text = json.dumps("y" * given["bytes"])
        for at in range(0, len(text), 10_000):
            send("stream", to, node_name="$result", chunk=text[at : at + 10_000])
        send("response", to, status="success", result=None, result_node="$result")
        return
    send("response", to, status="success", result=result)


def main() -> None:
    send("control", None, status="ready", module_name="m", agents=["it", "other"])
    for raw in sys.stdin.buffer:
        while blind.is_set():
            time.sleep(1)
        frame = json.loads(raw)
        payload = frame["payload"]
        if frame["type"] in {"response", "error", "stream"}:
            answers[frame["correlation_id"]].append(frame)
        elif payload["operation"] == "ping":
            send("response", frame["message_id"], status="pong")
        elif payload["operation"] == "shutdown":
            send("response", frame["message_id"], status="shutting_down")
            os._exit(0)
        elif payload["operation"] == "cancel":
            send("response", frame["message_id"], status="cancelling")
        else:
            threading.Thread(
                target=perform, args=(frame["message_id"], payload), daemon=True
            ).start()


main()

"""A worker that does what its input says, written without our code: it can break every rule."""

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

lock = threading.Lock()
deaf = threading.Event()


def write(raw: bytes) -> None:
    with lock:
        os.write(1, raw)


def send(kind: str, to: str | None, **payload: object) -> None:
    frame = {"type": kind, "message_id": "m", "correlation_id": to, "payload": payload}
    if not deaf.is_set():
        write(json.dumps(frame).encode() + b"\n")


def perform(to: str, asked: dict[str, Any]) -> None:  # noqa: C901, PLR0912 a list of what it can do
    given = asked["input"]
    do = given.get("do", "echo")
    if do == "exit":
        os._exit(given["code"])
    elif do == "exit_held":
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        os._exit(3)
    elif do == "close":
        os.close(1)
        return
    elif do == "deaf":
        deaf.set()
    elif do == "hold":
        while not os.path.exists(given["file"]):
            time.sleep(0.005)
    elif do == "fail":
        send("error", to, error_code=given["code"], message="no")
        return
    elif do == "lines":
        for line in given["lines"]:
            whole = line.replace("$ID", to).replace("$X", "x" * 2_000_000)
            write(whole.encode("utf-8", "surrogatepass"))
        if given.get("mute"):
            return
    elif do == "chunks":
        for n in range(given["count"]):
            send("stream", to, node_name="a", chunk=f"{n} ", is_complete=False)
        send("stream", to, node_name="a", chunk="", is_complete=True)
    elif do == "stderr":
        left = given["bytes"]
        line = b"x" * 99 + b"\n"
        while left > 0:
            left -= os.write(2, line * 600)
    elif do == "memory":
        kept = bytearray(given["bytes"])
        kept[::4096] = b"x" * len(kept[::4096])
        time.sleep(1000)
    elif do == "large":
        text = json.dumps("y" * given["bytes"])
        for at in range(0, len(text), 100_000):
            send("stream", to, node_name="$result", chunk=text[at : at + 100_000])
        send("response", to, status="success", result=None, result_node="$result")
        return
    result = {"pid": os.getpid(), "input": given, "env": dict(os.environ), "cwd": os.getcwd()}
    if do == "echo":
        del result["env"]
    send("response", to, status="success", result=result)


def main() -> None:
    how = dict(word.split("=", 1) for word in sys.argv[1:])
    if "stopper" in how and os.path.exists(how["stopper"]):
        print("not today", file=sys.stderr)
        sys.exit(4)
    if how.get("start") == "silent":
        time.sleep(1000)
    if how.get("start") == "refuse":
        send(
            "error",
            None,
            error_code="E_MODULE_LOAD",
            message="no module x",
            details={"module": "x"},
        )
        sys.exit(1)
    while "gate" in how and not os.path.exists(how["gate"]):
        time.sleep(0.005)
    send(
        "control", None, status="ready", module_name="m", agents=how.get("agents", "it").split(",")
    )
    print("hello from stderr", file=sys.stderr, flush=True)
    for raw in sys.stdin.buffer:
        frame = json.loads(raw)
        payload = frame["payload"]
        if payload["operation"] == "ping":
            send("response", frame["message_id"], status="pong")
        elif payload["operation"] == "shutdown":
            send("response", frame["message_id"], status="shutting_down")
            if how.get("end") != "never":
                os._exit(0)
        elif payload["operation"] == "cancel":
            send("response", frame["message_id"], status="cancelling")
        else:
            threading.Thread(
                target=perform, args=(frame["message_id"], payload), daemon=True
            ).start()
    if how.get("end") == "never":
        time.sleep(1000)


main()

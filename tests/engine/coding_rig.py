"""Programs that speak a coding CLI's protocol as a test writes it, line by line."""

import sys
import textwrap
from pathlib import Path

HEAD = f"""#!{sys.executable} -I
import json, os, signal, sys, threading, time

LOG = open(os.environ["SEEN"], "a", buffering=1)


def raw(line):
    sys.stdout.buffer.write(line.encode() + b"\\n")
    sys.stdout.buffer.flush()


def out(message):
    raw(json.dumps(message))


def hear():
    line = sys.stdin.readline()
    LOG.write(line or "END\\n")
    return json.loads(line) if line else None


"""
CLAUDE = """
SESSION = "11111111-1111-1111-1111-111111111111"


def init():
    out({"type": "system", "subtype": "init", "session_id": SESSION, "model": "m",
         "claude_code_version": "2.1.329"})


def event(**event):
    out({"type": "stream_event", "event": event})


def start(name):
    event(type="message_start", message={"id": name, "usage": {"input_tokens": 1}})


def say(text):
    event(type="content_block_delta", delta={"text": text})


def whole(name, *content):
    out({"type": "assistant", "message": {"id": name, "model": "m", "content": list(content)}})


def ask(key, tool, given):
    request = {"subtype": "can_use_tool", "tool_name": tool, "input": given}
    out({"type": "control_request", "request_id": key, "request": request})


def result(text, **more):
    out({"type": "result", "subtype": "success", "is_error": False, "result": text,
         "num_turns": 1, "total_cost_usd": 0} | more)


"""
ACP = """
def answer(number, result):
    out({"jsonrpc": "2.0", "id": number, "result": result})


def update(kind, **more):
    given = {"sessionId": "S", "update": {"sessionUpdate": kind, **more}}
    out({"jsonrpc": "2.0", "method": "session/update", "params": given})


def say(text):
    update("agent_message_chunk", content={"type": "text", "text": text})


def ask(number, options, **tool):
    given = {"sessionId": "S", "toolCall": {"toolCallId": "c", "kind": "execute", **tool},
             "options": [{"optionId": "id-" + kind, "kind": kind} for kind in options]}
    out({"jsonrpc": "2.0", "id": number, "method": "session/request_permission", "params": given})


def prompted():
    while (message := hear()) is not None:
        method = message.get("method")
        if method == "initialize":
            answer(message["id"], {"protocolVersion": 1})
        elif method == "session/new":
            answer(message["id"], {"sessionId": "S"})
        elif method == "session/prompt":
            return message["id"]


"""
CODEX = """
LOCK = threading.Lock()
THREADS = []


def put(message):
    with LOCK:
        out(message)


def tell(method, thread, **params):
    put({"method": method, "params": {"threadId": thread, **params}})


def done(thread, turn, status="completed", **more):
    tell("turn/completed", thread, turn={"id": turn, "status": status, **more})


def say(thread, text, item="m"):
    tell("item/agentMessage/delta", thread, itemId=item, delta=text)


def serve(work, resume=None, heed=True):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while (message := hear()) is not None:
        method, number, given = message.get("method"), message.get("id"), message.get("params")
        if method == "initialize":
            put({"id": number, "result": {"userAgent": "codex/0.169.0 x"}})
        elif method == "thread/resume" and resume is not None:
            resume(number, given["threadId"])
        elif method in {"thread/start", "thread/resume"}:
            thread = given.get("threadId") or f"T{os.getpid()}-{len(THREADS)}"
            THREADS.append(thread)
            put({"id": number, "result": {"thread": {"id": thread}, "model": "m"}})
        elif method == "turn/start":
            thread, turn = given["threadId"], f"turn-{number}"
            put({"id": number, "result": {"turn": {"id": turn}}})
            prompt = given["input"][0]["text"]
            threading.Thread(target=work, args=(thread, turn, prompt), daemon=True).start()
        elif method == "turn/interrupt":
            put({"id": number, "result": {}})
            if heed:
                done(given["threadId"], given["turnId"], "interrupted")
        elif method == "thread/backgroundTerminals/clean":
            put({"id": number, "result": {}})


"""
HEADS = {"claude": CLAUDE, "acp": ACP, "codex": CODEX, "gemini": "", "opencode": ""}


class Program:
    """One such program; ``given`` is what an agent needs that is to be it."""

    def __init__(self, directory: Path, kind: str, body: str) -> None:
        self.path = directory / f"cli-{kind}"
        self.log = directory / f"seen-{kind}"
        version = 'if "--version" in sys.argv:\n    print("1.0.0")\n    sys.exit()\n'
        self.path.write_text(HEAD + HEADS[kind] + version + textwrap.dedent(body))
        self.path.chmod(0o755)
        self.environment = {"SEEN": str(self.log)}
        self.given = {"command": (str(self.path),), "environment": self.environment}

    @property
    def seen(self) -> str:
        """What it was told, line by line."""
        return self.log.read_text() if self.log.exists() else ""

    def heard(self, words: str) -> bool:
        """Say whether it was told this."""
        return words in self.seen

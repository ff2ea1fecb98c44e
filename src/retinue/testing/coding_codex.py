"""The fake Codex app-server, as 0.169.0 was seen to write it."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from retinue.testing.coding_agent import (
    Memory,
    Out,
    Stopped,
    Turn,
    Voice,
    heed,
    lines,
    new_session,
    version_of,
)

OVERLOAD = int(os.environ.get("FAKE_OVERLOAD", "100"))
"""How many threads of the fake app-server may begin a turn at once before it is overloaded."""


class Thread(Voice):
    """One thread of Codex's app-server."""

    def __init__(self, server: Codex, thread: str) -> None:
        super().__init__()
        self.out = server.out
        self.server = server
        self.id = thread
        self.turn: Turn | None = None
        self.turn_id = ""
        self.total = [0, 0]
        self._message = 0
        self._pieces: list[str] = []

    def say(self, method: str, **params: Any) -> None:
        """Send a notification."""
        given = {"threadId": self.id, "turnId": self.turn_id, **params}
        self.out.line({"method": method, "params": given})

    def run(self, prompt: str, memory: Memory) -> None:
        """Do one turn."""
        turn = self.turn
        assert turn is not None
        status, error = "completed", None
        self.say("turn/started", turn={"id": self.turn_id, "status": "inProgress"})
        try:
            failure = turn.run(prompt)
            if failure is not None:
                status, error = "failed", {"message": failure, "codexErrorInfo": "other"}
        except Stopped:
            status = "interrupted"
        item = {"type": "agentMessage", "id": "last", "text": "".join(turn.said)}
        self.say("item/completed", item=item)
        self.say("turn/completed", turn={"id": self.turn_id, "status": status, "error": error})

    def text(self, text: str) -> None:
        """Say a piece of text."""
        item = f"m{self._message}"
        if not self._pieces:
            begun = {"type": "agentMessage", "id": item, "text": ""}
            self.say("item/started", item=begun)
        self._pieces.append(text)
        self.say("item/agentMessage/delta", itemId=item, delta=text)

    def cut(self) -> None:
        """Give up the message whose stream was cut; nothing says so but the retry."""
        self._pieces.clear()
        self._message += 1
        self.retry(1)

    def _whole(self) -> None:
        """Say that a message has come to its end."""
        if self._pieces:
            text = "".join(self._pieces)
            item = {"type": "agentMessage", "id": f"m{self._message}", "text": text}
            self.say("item/completed", item=item)
            self._pieces.clear()
            self._message += 1

    def thought(self, text: str) -> None:
        """Say a piece of thought."""
        self.say("item/reasoning/summaryTextDelta", itemId="r", delta=text, summaryIndex=0)

    def _item(self, key: str, given: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"type": "commandExecution", "id": key, "command": given.get("cmd"), **more}

    def tool(self, key: str, name: str, given: dict[str, Any]) -> None:
        """Say that a tool is called."""
        self._whole()
        self.say("item/started", item=self._item(key, given, status="inProgress"))

    def result(self, key: str, name: str, said: str, failed: bool) -> None:
        """Say what it answered."""
        status = "declined" if failed else "completed"
        more = {"status": status, "aggregatedOutput": said, "exitCode": None if failed else 0}
        self.say("item/completed", item=self._item(key, {}, **more))

    def ask(self, key: str, name: str, given: dict[str, Any]) -> bool:
        """Ask leave, and wait for it."""
        offered = ["accept", "decline", "cancel"]
        decision = self.server.ask(
            "item/commandExecution/requestApproval",
            {
                "threadId": self.id,
                "turnId": self.turn_id,
                "itemId": key,
                "command": given.get("cmd", name),
                "availableDecisions": offered,
            },
        )
        return bool(decision == {"decision": "accept"})

    def retry(self, number: int) -> None:
        """Say that the model is asked again."""
        error = {"message": f"Reconnecting... {number}/5", "additionalDetails": "status 529"}
        self.say("error", error=error, willRetry=True)

    def reply(self, tokens_in: int, tokens_out: int) -> None:
        """Say what a reply of the model used."""
        self._whole()
        self.total[0] += tokens_in
        self.total[1] += tokens_out
        total = {"inputTokens": self.total[0], "outputTokens": self.total[1]}
        last = {"inputTokens": tokens_in, "outputTokens": tokens_out}
        self.say("thread/tokenUsage/updated", tokenUsage={"total": total, "last": last})


class Codex:
    """``codex app-server``: many threads in one process."""

    def __init__(self) -> None:
        self.out = Out()
        self._memory = Memory("codex")
        self._threads: dict[str, Thread] = {}
        self._answers: dict[int, tuple[threading.Event, list[Any]]] = {}
        self._last = 0
        self._busy = 0
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Speak until the input ends."""
        heed(lambda: any(t.deaf for t in self._threads.values()), lambda: None)
        for message in lines():
            if not isinstance(message, dict):
                continue
            if "method" not in message:
                with self._lock:
                    event, kept = self._answers.pop(message["id"])
                kept.append(message.get("result"))
                event.set()
            elif "id" in message:
                self._asked(message["id"], message["method"], message.get("params") or {})
        while any(thread.deaf for thread in self._threads.values()):
            time.sleep(0.1)
        os._exit(0)

    def ask(self, method: str, params: dict[str, Any]) -> Any:
        """Ask the client, and wait."""
        with self._lock:
            self._last += 1
            number = self._last
            event, kept = self._answers[number] = (threading.Event(), [])
        self.out.line({"method": method, "id": number, "params": params})
        event.wait()
        return kept[0] if kept else None

    def _asked(self, number: Any, method: str, params: dict[str, Any]) -> None:
        match method:
            case "initialize":
                agent = f"retinue/{version_of('codex')} (fake)"
                self.out.line({"id": number, "result": {"userAgent": agent}})
            case "thread/start":
                self._open(number, new_session())
            case "thread/resume":
                thread = params["threadId"]
                if self._memory.knows(thread):
                    self._open(number, thread)
                else:
                    self._error(number, -32600, f"no rollout found for thread id {thread}")
            case "turn/start":
                self._start(number, self._threads[params["threadId"]], params["input"][0]["text"])
            case "thread/backgroundTerminals/clean":
                self._clean(params["threadId"])
                self.out.line({"id": number, "result": {}})
            case "turn/interrupt":
                thread_of = self._threads[params["threadId"]]
                self.out.line({"id": number, "result": {}})
                if thread_of.turn is not None and not thread_of.deaf:
                    thread_of.turn.stop.set()
                    for event, _ in list(self._answers.values()):
                        event.set()
            case _:
                self._error(number, -32601, f"no method {method}")

    def _clean(self, thread: str) -> None:
        """End what a thread's turns left running, which an interrupt does not."""
        for child in self._threads[thread].left:
            child.kill()
            child.wait()
        self._threads[thread].left.clear()

    def _error(self, number: Any, code: int, message: str) -> None:
        self.out.line({"id": number, "error": {"code": code, "message": message}})

    def _open(self, number: Any, thread: str) -> None:
        self._threads.setdefault(thread, Thread(self, thread))
        self._memory.add(thread)
        result = {"thread": {"id": thread}, "model": "fake-model"}
        self.out.line({"id": number, "result": result})

    def _start(self, number: Any, thread: Thread, prompt: str) -> None:
        with self._lock:
            if self._busy >= OVERLOAD:
                self._error(number, -32001, "Server overloaded; retry later.")
                return
            self._busy += 1
        thread.turn = Turn(thread, thread.id, self._memory)
        thread.turn_id = new_session()
        self.out.line({"id": number, "result": {"turn": {"id": thread.turn_id}}})
        threading.Thread(target=self._run, args=(thread, prompt), daemon=True).start()

    def _run(self, thread: Thread, prompt: str) -> None:
        try:
            thread.run(prompt, self._memory)
        finally:
            with self._lock:
                self._busy -= 1

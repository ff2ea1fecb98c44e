"""The fake agent that speaks ACP, as Gemini CLI 0.61.0 and OpenCode 1.18.33 were seen to do."""

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


class Acp(Voice):
    """An agent that speaks ACP, version 1 unless ``FAKE_ACP_VERSION`` says otherwise."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.out = Out()
        self._name = name
        self._memory = Memory(name)
        self._session = ""
        self._turn: Turn | None = None
        self._answers: dict[int, tuple[threading.Event, list[Any]]] = {}
        self._last = 0
        self._cost = 0.0

    def serve(self) -> None:
        """Speak until the input ends; Gemini goes on after that."""
        heed(lambda: self.deaf, lambda: None)
        for message in lines():
            if not isinstance(message, dict):
                continue
            if "method" not in message:
                event, kept = self._answers.pop(message["id"])
                kept.append(message.get("result"))
                event.set()
            else:
                self._asked(message.get("id"), message["method"], message.get("params") or {})
        while self.deaf or self._name == "gemini":
            time.sleep(0.1)
        os._exit(0)

    def _answer(self, number: Any, result: Any) -> None:
        self.out.line({"jsonrpc": "2.0", "id": number, "result": result})

    def _error(self, number: Any, code: int, message: str, data: Any = None) -> None:
        error = {"code": code, "message": message, "data": data}
        self.out.line({"jsonrpc": "2.0", "id": number, "error": error})

    def _asked(self, number: Any, method: str, params: dict[str, Any]) -> None:
        match method:
            case "initialize":
                version = int(os.environ.get("FAKE_ACP_VERSION", "1"))
                able = {"loadSession": os.environ.get("FAKE_LOAD", "yes") == "yes"}
                info = {"name": self._name, "version": version_of(self._name)}
                result = {"protocolVersion": version, "agentCapabilities": able}
                self._answer(number, result | {"agentInfo": info})
            case "session/new":
                self._session = new_session()
                self._memory.add(self._session)
                self._answer(number, {"sessionId": self._session})
            case "session/load":
                self._load(number, params["sessionId"])
            case "session/set_model":
                self._answer(number, {})
            case "session/prompt":
                prompt = params["prompt"][0]["text"]
                threading.Thread(target=self._run, args=(number, prompt), daemon=True).start()
            case "session/cancel":
                if self._turn is not None and not self.deaf:
                    self._turn.stop.set()
                    for event, _ in list(self._answers.values()):
                        event.set()
            case _:
                self._error(number, -32601, f"no method {method}")

    def _load(self, number: Any, session: str) -> None:
        if not self._memory.knows(session):
            self._error(number, -32603, "Internal error", {"details": "No previous sessions"})
            return
        self._session = session
        for prompt in self._memory.prompts(session):
            self._update("user_message_chunk", content={"type": "text", "text": prompt})
            self._update("agent_message_chunk", content={"type": "text", "text": "replayed"})
        self._answer(number, {})

    def _run(self, number: Any, prompt: str) -> None:
        turn = self._turn = Turn(self, self._session, self._memory)
        try:
            failure = turn.run(prompt)
        except Stopped:
            self._answer(number, {"stopReason": "cancelled"})
            return
        if turn.cost:
            self._cost += turn.cost
            self._update("usage_update", cost={"amount": self._cost, "currency": "USD"})
        if failure is not None and failure.isdigit():
            self._error(number, int(failure), "as scripted")
        elif failure is not None:
            self._answer(number, {"stopReason": "refusal"})
        else:
            count = {"input_tokens": turn.tokens[0], "output_tokens": turn.tokens[1]}
            meta = {"quota": {"token_count": count}}
            self._answer(number, {"stopReason": "end_turn", "_meta": meta})

    def _update(self, what: str, /, **update: Any) -> None:
        given = {"sessionId": self._session, "update": {"sessionUpdate": what, **update}}
        self.out.line({"jsonrpc": "2.0", "method": "session/update", "params": given})

    def text(self, text: str) -> None:
        """Say a piece of text."""
        self._update("agent_message_chunk", content={"type": "text", "text": text})

    def thought(self, text: str) -> None:
        """Say a piece of thought."""
        self._update("agent_thought_chunk", content={"type": "text", "text": text})

    def tool(self, key: str, name: str, given: dict[str, Any]) -> None:
        """Say that a tool is called; Gemini does not, of one that asked leave."""
        if self._name == "gemini":
            return
        first = {"cwd": "/"} if self._name == "opencode" else given  # the rest comes when it runs
        more = {"kind": name, "title": name, "status": "pending", "rawInput": first}
        self._update("tool_call", toolCallId=key, **more)
        if self._name == "opencode":
            more = {"kind": name, "title": name, "status": "in_progress", "rawInput": given}
            self._update("tool_call_update", toolCallId=key, **more)

    def result(self, key: str, name: str, said: str, failed: bool) -> None:
        """Say what it answered."""
        content = [{"type": "content", "content": {"type": "text", "text": said}}]
        status = "failed" if failed else "completed"
        self._update("tool_call_update", toolCallId=key, kind=name, status=status, content=content)

    def ask(self, key: str, name: str, given: dict[str, Any]) -> bool:
        """Ask leave, and wait for it."""
        self._last += 1
        number = self._last
        event, kept = self._answers[number] = (threading.Event(), [])
        options = [
            {"optionId": "always", "name": "Always", "kind": "allow_always"},
            {"optionId": "yes-1", "name": "Allow", "kind": "allow_once"},
            {"optionId": "no-1", "name": "Reject", "kind": "reject_once"},
        ]
        tool = {"toolCallId": key, "kind": name, "title": f"do {name}", "rawInput": given}
        params = {"sessionId": self._session, "toolCall": tool, "options": options}
        head = {"jsonrpc": "2.0", "id": number, "method": "session/request_permission"}
        self.out.line(head | {"params": params})
        event.wait()
        outcome = (kept[0] if kept else {}).get("outcome", {})
        return bool(outcome.get("optionId") == "yes-1")

    def reply(self, tokens_in: int, tokens_out: int) -> None:
        """Say nothing: the end of the turn tells what was used."""

"""The fake coding CLI's dialects: stream-json, app-server, ACP; see ``coding_once``.

What is written here is what the real programs were seen to write (Claude Code 2.1.329, Codex
0.169.0, Gemini CLI 0.61.0, OpenCode 1.18.33), less the fields that nobody reads.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from retinue.testing.coding_agent import (
    VERSIONS,
    Memory,
    Out,
    Stopped,
    Turn,
    Voice,
    heed,
    lines,
    new_session,
)
from retinue.testing.coding_once import CodexExec, GeminiOnce, OpencodeRun, once

OVERLOAD = int(os.environ.get("FAKE_OVERLOAD", "100"))
"""How many threads of the fake app-server may begin a turn at once before it is overloaded."""


def serve(name: str, words: list[str]) -> None:
    """Be one of the CLIs."""
    if name == "claude":
        Claude(words).serve()
    elif name == "codex" and "app-server" in words:
        Codex().serve()
    elif name == "codex":
        once(CodexExec(), Memory("codex"), _after(words, "resume"))
    elif name == "gemini" and "-o" in words:
        once(GeminiOnce(), Memory("gemini"), _after(words, "-r"))
    elif name == "opencode" and "run" in words:
        once(OpencodeRun(), Memory("opencode"), _after(words, "-s"))
    else:
        Acp(name).serve()


def _after(words: list[str], option: str) -> str | None:
    """Return the word after an option, or after what stands between it and ``-``."""
    if option not in words:
        return None
    rest = [w for w in words[words.index(option) + 1 :] if not w.startswith("-")]
    return rest[0] if rest else None


def _version(name: str) -> str:
    said = os.environ.get("FAKE_VERSION", VERSIONS.get(name, "1.0.0"))
    return next(word for word in said.split() if word[0].isdigit())


class Claude(Voice):
    """``claude -p --input-format stream-json --output-format stream-json``."""

    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.out = Out()
        self._spoken = "--input-format" in words
        self._memory = Memory("claude")
        self._resumed = _after(words, "--resume")
        self._session = self._resumed or new_session()
        self._most_turns = int(_after(words, "--max-turns") or 0)
        self._turn: Turn | None = None
        self._answers: dict[str, tuple[threading.Event, dict[str, Any]]] = {}
        self._number = 0
        self._pieces: list[str] = []
        self._total = 0.0
        self._cost_file = f"cost-{self._session}"

    def serve(self) -> None:
        """Speak until the input ends."""
        heed(lambda: self.deaf, lambda: None)
        if self._resumed is not None and not self._memory.knows(self._resumed):
            sys.stderr.write(f"No conversation found with session ID: {self._resumed}\n")
            lost = f"No conversation found with session ID: {self._resumed}"
            end = self._result("error_during_execution", True, turns=0)
            self.out.line(end | {"errors": [lost]})
            sys.exit(1)
        if not self._spoken:
            self._run(sys.stdin.read())
            return
        running: threading.Thread | None = None
        for message in lines():
            if message is None:
                sys.stderr.write("Error parsing streaming input line\n")
                os._exit(1)  # as the real one does
            if message["type"] == "user":
                if running is not None:
                    running.join()
                content = message["message"]["content"]
                running = threading.Thread(target=self._run, args=(content,))
                running.start()
            elif message["type"] == "control_request":
                self._control(message)
            elif message["type"] == "control_response":
                response = message["response"]
                event, kept = self._answers.pop(response["request_id"])
                kept.update(response["response"])
                event.set()
        if running is not None:
            running.join()
        while self.deaf or (self._turn is not None and self._turn.linger):
            time.sleep(0.1)

    def _control(self, message: dict[str, Any]) -> None:
        done = {"subtype": "success", "request_id": message["request_id"], "response": {}}
        self.out.line({"type": "control_response", "response": done})
        if message["request"]["subtype"] == "interrupt" and self._turn is not None:
            self._turn.stop.set()
            for event, _ in list(self._answers.values()):
                event.set()

    def _run(self, prompt: str) -> None:
        turn = self._turn = Turn(self, self._session, self._memory)
        self.out.line(
            {
                "type": "system",
                "subtype": "init",
                "cwd": os.getcwd(),
                "session_id": self._session,
                "tools": ["Bash", "Read", "Write"],
                "model": "fake-model",
                "permissionMode": "default",
                "claude_code_version": _version("claude"),
            }
        )
        self._start()
        try:
            failure = turn.run(prompt)
        except Stopped:
            end = self._result("error_during_execution", True, turns=turn.turns)
            self.out.line(end | {"terminal_reason": "aborted_streaming"})
            return
        self._total += turn.cost
        if self._most_turns and turn.turns > self._most_turns:
            self.out.line(self._result("error_max_turns", True, turns=self._most_turns))
            return
        end = self._result("success", failure is not None, turns=turn.turns)
        end["result"] = failure or "".join(turn.said)
        end["usage"] = {"input_tokens": turn.tokens[0], "output_tokens": turn.tokens[1]}
        # The order of its fields is not the real one's, and nobody may rely on either.
        self.out.line(end)
        if turn.twice:
            self.out.line(end | {"result": "again"})

    def _result(self, subtype: str, is_error: bool, *, turns: int) -> dict[str, Any]:
        return {
            "duration_api_ms": 1,
            "session_id": self._session,
            "total_cost_usd": self._total,
            "usage": {},
            "permission_denials": [],
            "subtype": subtype,
            "type": "result",
            "is_error": is_error,
            "num_turns": turns,
        }

    def _event(self, event: dict[str, Any], **more: Any) -> None:
        line = {"type": "stream_event", "event": event, "session_id": self._session}
        self.out.line(line | {"parent_tool_use_id": None} | more)

    def _message(self, kind: str, content: list[Any]) -> None:
        message = {"id": f"msg_{self._number}", "role": kind, "model": "fake", "content": content}
        line = {"type": kind, "message": message, "parent_tool_use_id": None}
        self.out.line(line | {"session_id": self._session})

    def _start(self) -> None:
        self._number += 1
        message = {"id": f"msg_{self._number}", "usage": {"input_tokens": 0, "output_tokens": 1}}
        self._event({"type": "message_start", "message": message})

    def _delta(self, delta: dict[str, Any]) -> None:
        self._event({"type": "content_block_delta", "index": 0, "delta": delta})

    def text(self, text: str) -> None:
        """Say a piece of text."""
        self._pieces.append(text)
        self._delta({"type": "text_delta", "text": text})

    def _whole(self) -> None:
        """Say the text of a message once more, as a whole."""
        if self._pieces:
            self._message("assistant", [{"type": "text", "text": "".join(self._pieces)}])
            self._pieces.clear()

    def cut(self) -> None:
        """Give up the message whose stream was cut, and begin another one."""
        self._pieces.clear()
        void = {"api_message_id": f"msg_{self._number}", "from_block_index": 0}
        self._event({"type": "message_stop"}, abandoned_blocks=void)
        line = {"type": "system", "subtype": "api_retry", "attempt": 1, "max_retries": 10}
        self.out.line(line | {"error_status": None, "error": "unknown"})
        self._start()

    def fall_back(self, text: str) -> None:
        """Say a message that was not streamed, in place of one that could not be."""
        self._pieces.clear()
        self._number += 1
        self._message("assistant", [{"type": "text", "text": text}])

    def thought(self, text: str) -> None:
        """Say a piece of thought."""
        self._delta({"type": "thinking_delta", "thinking": text})
        self._message("assistant", [{"type": "thinking", "thinking": text}])

    def tool(self, key: str, name: str, given: dict[str, Any]) -> None:
        """Say that a tool is called."""
        self._whole()
        self._message("assistant", [{"type": "tool_use", "id": key, "name": name, "input": given}])

    def result(self, key: str, name: str, said: str, failed: bool) -> None:
        """Say what it answered."""
        part = {"type": "tool_result", "tool_use_id": key, "content": said, "is_error": failed}
        self._message("user", [part])

    def ask(self, key: str, name: str, given: dict[str, Any]) -> bool:
        """Ask leave, and wait for it."""
        event = threading.Event()
        kept: dict[str, Any] = {}
        self._answers[f"ask-{key}"] = (event, kept)
        request = {"subtype": "can_use_tool", "tool_name": name, "input": given}
        line = {"type": "control_request", "request_id": f"ask-{key}"}
        self.out.line(line | {"request": request | {"tool_use_id": key}})
        event.wait()
        return kept.get("behavior") == "allow"

    def retry(self, number: int) -> None:
        """Say that the model is asked again."""
        line = {"type": "system", "subtype": "api_retry", "attempt": number, "max_retries": 10}
        self.out.line(line | {"error_status": 529, "error": "overloaded"})

    def reply(self, tokens_in: int, tokens_out: int) -> None:
        """Say that a reply of the model has ended."""
        self._whole()
        usage = {"input_tokens": tokens_in, "output_tokens": tokens_out}
        self._event({"type": "message_delta", "delta": {"stop_reason": "x"}, "usage": usage})
        self._start()


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
                agent = f"retinue/{_version('codex')} (fake)"
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
                info = {"name": self._name, "version": _version(self._name)}
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

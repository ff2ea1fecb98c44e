"""The fake Claude Code: stream-json both ways, as 2.1.329 was seen to write it."""

from __future__ import annotations

import os
import sys
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
    word_after,
)


class Claude(Voice):
    """``claude -p --input-format stream-json --output-format stream-json``."""

    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.out = Out()
        self._spoken = "--input-format" in words
        self._memory = Memory("claude")
        self._resumed = word_after(words, "--resume")
        self._session = self._resumed or new_session()
        self._most_turns = int(word_after(words, "--max-turns") or 0)
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
                "claude_code_version": version_of("claude"),
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

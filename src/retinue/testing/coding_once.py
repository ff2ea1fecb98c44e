"""The fake coding CLI's simple forms: a prompt on stdin, JSON lines until the end.

``codex exec --json``, ``gemini -o stream-json`` and ``opencode run``, as they were seen.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from retinue.testing.coding_agent import Memory, Out, Turn, Voice, heed, new_session


def once(voice: Once, memory: Memory, resumed: str | None) -> None:
    """Run one prompt from stdin to the end."""
    heed(lambda: voice.deaf, lambda: None)
    if resumed is not None and not memory.knows(resumed):
        sys.stderr.write("Error resuming session: No previous sessions found\n")
        sys.exit(42)
    voice.session = resumed or new_session()
    turn = Turn(voice, voice.session, memory)
    prompt = sys.stdin.read()
    voice.begin()
    failure = turn.run(prompt)
    voice.end(turn, failure)
    while turn.linger:
        time.sleep(0.1)
    sys.exit(1 if failure is not None else 0)


class Once(Voice):
    """What the one-shot forms have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.out = Out()
        self.session = ""

    def begin(self) -> None:
        """Say which session this is."""

    def end(self, turn: Turn, failure: str | None) -> None:
        """Say how it ended."""


class CodexExec(Once):
    """``codex exec --json``."""

    def begin(self) -> None:
        """Say which session this is."""
        self.out.line({"type": "thread.started", "thread_id": self.session})
        self.out.line({"type": "turn.started"})

    def _item(self, kind: str, **item: Any) -> None:
        self.out.line({"type": f"item.{kind}", "item": item})

    def text(self, text: str) -> None:
        """Say a piece of text."""
        self._item("completed", id="m", type="agent_message", text=text)

    def thought(self, text: str) -> None:
        """Say a piece of thought."""
        self._item("completed", id="r", type="reasoning", text=text)

    def tool(self, key: str, name: str, given: dict[str, Any]) -> None:
        """Say that a tool is called."""
        self._item("started", id=key, type="command_execution", command=given.get("cmd"))

    def result(self, key: str, name: str, said: str, failed: bool) -> None:
        """Say what it answered."""
        more = {"aggregated_output": said, "exit_code": 0, "status": "completed"}
        self._item("completed", id=key, type="command_execution", **more)

    def retry(self, number: int) -> None:
        """Say that the model is asked again."""
        self.out.line({"type": "error", "message": f"Reconnecting... {number}/5"})

    def end(self, turn: Turn, failure: str | None) -> None:
        """Say how it ended."""
        if failure is not None:
            self.out.line({"type": "turn.failed", "error": {"message": failure}})
            return
        total = turn.memory.used(self.session, turn.tokens)  # of the thread, not of the turn
        usage = {"input_tokens": total[0], "output_tokens": total[1]}
        self.out.line({"type": "turn.completed", "usage": usage})


class GeminiOnce(Once):
    """``gemini -o stream-json``."""

    def begin(self) -> None:
        """Say which session this is."""
        self.out.line({"type": "init", "session_id": self.session, "model": "fake-model"})

    def text(self, text: str) -> None:
        """Say a piece of text."""
        self.out.line({"type": "message", "role": "assistant", "content": text, "delta": True})

    def tool(self, key: str, name: str, given: dict[str, Any]) -> None:
        """Say that a tool is called."""
        line = {"type": "tool_use", "tool_name": name, "tool_id": key, "parameters": given}
        self.out.line(line)

    def result(self, key: str, name: str, said: str, failed: bool) -> None:
        """Say what it answered."""
        line = {"type": "tool_result", "tool_id": key, "status": "success", "output": said}
        self.out.line(line)

    def end(self, turn: Turn, failure: str | None) -> None:
        """Say how it ended."""
        stats = {"input_tokens": turn.tokens[0], "output_tokens": turn.tokens[1]}
        end: dict[str, Any] = {"type": "result", "status": "success", "stats": stats}
        if failure is not None:
            error = {"type": failure.partition(" ")[0], "message": failure}
            end = {"type": "result", "status": "error", "error": error}
        self.out.line(end)


class OpencodeRun(Once):
    """``opencode run --format json``: no last word, only a last step."""

    def _line(self, kind: str, **part: Any) -> None:
        self.out.line({"type": kind, "timestamp": 0, "sessionID": self.session, "part": part})

    def begin(self) -> None:
        """Begin."""
        self._line("step_start")

    def text(self, text: str) -> None:
        """Say a piece of text."""
        self._line("text", text=text)

    def thought(self, text: str) -> None:
        """Say a piece of thought."""
        self._line("reasoning", text=text)

    def result(self, key: str, name: str, said: str, failed: bool) -> None:
        """Say that a tool ran: only when it has."""
        state = {"status": "completed", "input": {}, "output": said}
        self._line("tool_use", tool=name, callID=key, state=state)

    def ask(self, key: str, name: str, given: dict[str, Any]) -> bool:
        """Reject it, and end: nobody can be asked in this form."""
        sys.stderr.write(f"permission requested: {name} (*); auto-rejecting\n")
        sys.exit(0)

    def reply(self, tokens_in: int, tokens_out: int) -> None:
        """Say that a step has ended."""
        tokens = {"input": tokens_in, "output": tokens_out}
        self._line("step_finish", reason="stop", tokens=tokens, cost=0.0)

    def end(self, turn: Turn, failure: str | None) -> None:
        """Say how it ended, if it failed."""
        if failure is not None:
            self.out.line({"type": "error", "sessionID": self.session, "error": failure})

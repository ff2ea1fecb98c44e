"""Claude Code's stream-json, read. Messages are told apart by their fields, never by their order.

=======================================  ========================================================
``system`` init, api_retry, …            which session and version; a warning per retry
``stream_event``                         text and thought as they come; usage of each reply. Of a
                                         stream that was cut what was said is taken back
``assistant``                            tools called; text, where no pieces of it came
``user``                                 what tools answered
``control_request`` can_use_tool         leave is asked for
``result``                               the end, whatever the process does after it
=======================================  ========================================================

What a sub-agent says (``parent_tool_use_id``) is not the answer: only its tools show.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from retinue.domain.event import EventType
from retinue.drivers.coding.asking import wording
from retinue.drivers.coding.provider import refusal
from retinue.drivers.coding.scribe import Ask, Scribe, number, text_of
from retinue.drivers.coding.talk import part as part_of
from retinue.errors import AgentFailed, BudgetExceeded, Cancelled, RetinueError

LOST = "No conversation found"
_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class ClaudeDialect:
    """One conversation; ``send`` takes what is to be answered."""

    def __init__(self, scribe: Scribe, send: Callable[[Any], None]) -> None:
        self._scribe = scribe
        self._send = send
        self.done = asyncio.Event()
        self._message: str | None = None
        self._streamed = False
        self._whole = True
        self._at = 0
        self._blocks: dict[int, int] = {}
        self._line = b""
        self._begun = False
        self._reply: str | None = None
        self._input = 0
        self._spent = (0, 0)

    def lost(self, message: dict[str, Any]) -> bool:
        """Say whether this is its answer to a session that it does not know."""
        if self._begun or message.get("type") != "result":
            return False
        return bool(message.get("is_error")) and LOST in _said(message)

    def take(self, message: dict[str, Any], line: bytes = b"") -> None:
        """Take in a message; ``line`` is how it was written."""
        self._line = line
        match message.get("type"):
            case "stream_event":
                if message.get("parent_tool_use_id") is None:
                    self._event(message.get("event") or {}, message)
            case "assistant":
                self._assistant(message)
            case "user":
                self._user(message)
            case "system":
                self._system(message)
            case "control_request":
                self._request(message)
            case "control_cancel_request":
                self._scribe.withdrawn(str(message.get("request_id")))
            case "result":
                self._result(message)

    def _system(self, message: dict[str, Any]) -> None:
        match message.get("subtype"):
            case "init" if not self._begun:
                self._begun = True
                self._scribe.begun(
                    message.get("session_id"),
                    message.get("claude_code_version"),
                    message.get("model"),
                )
            case "api_retry":
                attempt = message.get("attempt")
                status = message.get("error_status")
                what = f"answered {status}" if status is not None else "did not answer to the end"
                said = f"the model {what} ({message.get('error')}), retry {attempt}"
                self._scribe.warn(said, retry=attempt, status=status)
            case "permission_denied":
                self._scribe.warn(f"{message.get('tool_name')} was refused")
            case "compact_boundary":
                self._scribe.note(EventType.PROGRESS, {"message": "the conversation is compacted"})

    # -- what it says --------------------------------------------------------------------------

    def _event(self, event: dict[str, Any], message: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "content_block_delta":
            delta = event.get("delta") or {}
            if "text" in delta:
                self._streamed = True
                self._scribe.say(delta["text"])
            elif "thinking" in delta:
                self._streamed = True
                self._scribe.think(delta["thinking"])
        elif kind == "message_stop" and message.get("abandoned_blocks"):
            first = message["abandoned_blocks"].get("from_block_index")
            self._cut(self._blocks.get(first, self._at))
        elif kind == "content_block_start":
            self._blocks[event.get("index", 0)] = self._scribe.place
        elif kind == "message_start":
            inner = event.get("message") or {}
            self._cut(self._at)
            self._start(inner.get("id"))
            self._whole = False
            usage = inner.get("usage") or {}
            self._input = sum(number(usage.get(name)) for name in _INPUT)
        elif kind == "message_delta":
            self._whole = True
            usage = event.get("usage") or {}
            tokens_in = max(self._input, sum(number(usage.get(name)) for name in _INPUT))
            self._count(tokens_in, number(usage.get("output_tokens")))
            self._input = 0

    def _start(self, message: str | None) -> None:
        """Take note that another message begins here."""
        self._message = message
        self._streamed, self._whole = False, True
        self._at = self._scribe.place
        self._blocks.clear()

    def _cut(self, place: int) -> None:
        """Take back what was streamed of a message that never came to its end."""
        if not self._whole:
            self._scribe.back(place)
            self._whole = True

    def _assistant(self, message: dict[str, Any]) -> None:
        inner = message.get("message") or {}
        mine = message.get("parent_tool_use_id") is None
        model = mine and inner.get("model") != "<synthetic>"
        if model and self._message is not None and inner.get("id") != self._message:
            self._cut(self._at)  # one that comes as a whole, in place of a stream that failed
            self._start(inner.get("id"))
        if model and inner.get("id") != self._reply:
            self._reply = inner.get("id")
            self._scribe.replied()
        content = inner.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type")
            if kind == "tool_use":
                more = {} if mine else {"parent_tool_call_id": message["parent_tool_use_id"]}
                name = str(part.get("name"))
                self._scribe.called(str(part.get("id")), name, part.get("input"), **more)
            elif not mine or self._streamed or inner.get("model") == "<synthetic>":
                continue
            elif kind == "text":
                self._scribe.say(str(part.get("text", "")))
            elif kind == "thinking":
                self._scribe.think(str(part.get("thinking", "")))

    def _user(self, message: dict[str, Any]) -> None:
        content = (message.get("message") or {}).get("content")
        for part in content if isinstance(content, list) else ():
            if part.get("type") == "tool_result":
                if self._whole and message.get("parent_tool_use_id") is None:
                    self._start(None)
                self._scribe.answered(
                    str(part.get("tool_use_id")),
                    text_of(part.get("content")),
                    is_error=bool(part.get("is_error")),
                )

    def _count(self, tokens_in: int, tokens_out: int) -> None:
        before = self._spent
        self._spent = (before[0] + tokens_in, before[1] + tokens_out)
        self._scribe.spent(tokens_in, tokens_out)

    # -- what it asks --------------------------------------------------------------------------

    def _request(self, message: dict[str, Any]) -> None:
        key = str(message.get("request_id"))
        request = message.get("request") or {}
        if request.get("subtype") != "can_use_tool":
            error = f"not supported: {request.get('subtype')}"
            self._respond({"subtype": "error", "request_id": key, "error": error})
            return
        tool = str(request.get("tool_name"))
        given = request.get("input") or {}
        original = self._original(given)

        def reply(allowed: bool | None, why: str) -> None:
            verdict = (
                {"behavior": "allow", "updatedInput": original}
                if allowed
                else {"behavior": "deny", "message": why or "refused"}
            )
            self._respond({"subtype": "success", "request_id": key, "response": verdict})

        self._scribe.ask(Ask(key, tool, given, wording(tool, given), reply))

    def _original(self, given: Any) -> Any:
        """Return the input as it was written: what we read has lost what cannot be stored."""
        if not given:
            return {}
        written = part_of(self._line, "request", "input")
        return msgspec.Raw(written) if written is not None else given

    def _respond(self, response: dict[str, Any]) -> None:
        self._send({"type": "control_response", "response": response})

    # -- the end -------------------------------------------------------------------------------

    def _result(self, message: dict[str, Any]) -> None:
        self.done.set()
        usage = message.get("usage") or {}
        tokens_in = sum(number(usage.get(name)) for name in _INPUT) - self._spent[0]
        tokens_out = number(usage.get("output_tokens")) - self._spent[1]
        self._count(max(tokens_in, 0), max(tokens_out, 0))
        total = message.get("total_cost_usd")
        if isinstance(total, int | float):
            self._scribe.settled(float(total))
        if message.get("is_error") or message.get("subtype") != "success":
            self._scribe.fail(_failure(message))
        else:
            self._scribe.end(message.get("result"))


def _said(message: dict[str, Any]) -> str:
    errors = message.get("errors")
    listed = "; ".join(map(str, errors if isinstance(errors, list) else ()))
    return str(message.get("result") or listed)


def _failure(message: dict[str, Any]) -> RetinueError:
    subtype = str(message.get("subtype"))
    text = _said(message) or subtype.replace("_", " ")
    details = {"subtype": subtype, "terminal_reason": message.get("terminal_reason")}
    if subtype in {"error_max_turns", "error_max_budget_usd"}:
        limit = "max_turns" if subtype == "error_max_turns" else "max_cost_usd"
        said = f"the task spent more than it may ({limit})"
        return BudgetExceeded(said, details={**details, "limit": limit})
    if str(message.get("terminal_reason", "")).startswith("aborted"):
        return Cancelled(f"interrupted: {text}", details=details, outcome="unknown")
    if message.get("api_error_status") or "API Error" in text:
        return refusal(text, message.get("api_error_status"), **details)
    return AgentFailed(text, details=details)

"""ACP version 1, read: the updates and requests of one session.

=================================  =============================================================
``agent_message_chunk``            text
``agent_thought_chunk``            thought
``tool_call``, ``…_update``        tools called and what they answered; some agents send only the
                                   update
``plan``                           progress
``usage_update``                   what the session cost until now
``session/request_permission``     leave is asked for; options are told by ``kind``
=================================  =============================================================

The answer to ``session/prompt`` is the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from retinue.domain.event import EventType
from retinue.drivers.coding.scribe import Ask, Scribe, fitting, number, text_of
from retinue.errors import AgentFailed, BudgetExceeded, Cancelled, RetinueError
from retinue.wire.jsonrpc import Call

_OVER = {"completed", "failed"}


class AcpDialect:
    """One session's turn. ``open`` is set while what comes belongs to the turn, not to the past."""

    def __init__(self, scribe: Scribe, most: int) -> None:
        self._scribe = scribe
        self._most = most
        self.open = False
        self._called: set[str] = set()
        self._last: list[str] = []
        self._said = 0

    def take(self, call: Call) -> None:
        """Take in a notification."""
        update = call.params.get("update")
        if not self.open or call.method != "session/update" or not isinstance(update, dict):
            return
        match update.get("sessionUpdate"):
            case "agent_message_chunk":
                text = text_of(update.get("content"))
                self._said += len(text)
                if self._said <= self._most:
                    self._last.append(text)
                self._scribe.say(text)
            case "agent_thought_chunk":
                self._scribe.think(text_of(update.get("content")))
            case "tool_call" | "tool_call_update":
                self._tool(update)
            case "plan":
                steps = fitting(update.get("entries"))
                self._scribe.note(EventType.PROGRESS, {"message": "plan", "steps": steps})
            case "usage_update":
                cost = update.get("cost") or {}
                amount = cost.get("amount")
                if isinstance(amount, int | float) and cost.get("currency", "USD") == "USD":
                    self._scribe.settled(float(amount))

    def _tool(self, update: dict[str, Any]) -> None:
        key = str(update.get("toolCallId"))
        status = update.get("status")
        if key not in self._called:
            self._called.add(key)
            self._last.clear()
            self._scribe.called(key, tool_of(update), arguments_of(update))
        if status in _OVER:
            result = update.get("rawOutput")
            if result is None:
                result = text_of(update.get("content"))
            self._scribe.answered(key, result, is_error=status == "failed")

    def request(self, call: Call, answer: Callable[[Any], None]) -> bool:
        """Take in what the agent asks; False when this client does not do that."""
        if call.method != "session/request_permission":
            return False
        tool = call.params.get("toolCall") or {}
        options = call.params.get("options") or []

        def reply(allowed: bool, why: str) -> None:
            for kind in ("allow_once", "allow_always") if allowed else ("reject_once",):
                for option in options:
                    if option.get("kind") == kind:
                        chosen = {"outcome": "selected", "optionId": option.get("optionId")}
                        answer({"outcome": chosen})
                        return
            answer({"outcome": {"outcome": "cancelled"}})

        name = tool_of(tool)
        prompt = f"May it use {name}? {tool.get('title') or ''}"
        self._scribe.ask(Ask(str(call.id), name, arguments_of(tool), prompt, reply))
        return True

    def ended(self, answer: dict[str, Any]) -> None:
        """Take in the answer to the prompt."""
        self._usage(answer)
        reason = str(answer.get("stopReason"))
        if reason == "end_turn":
            self._scribe.end("".join(self._last))
        else:
            self._scribe.fail(_failure(reason))

    def _usage(self, answer: dict[str, Any]) -> None:
        usage = answer.get("usage")
        if isinstance(usage, dict):
            spent = number(usage.get("inputTokens")), number(usage.get("outputTokens"))
        else:
            quota = ((answer.get("_meta") or {}).get("quota") or {}).get("token_count") or {}
            spent = number(quota.get("input_tokens")), number(quota.get("output_tokens"))
        self._scribe.spent(*spent)


def tool_of(tool: dict[str, Any]) -> str:
    """Return what kind of tool it is: the title is about what it does this time."""
    return str(tool.get("kind") or tool.get("title") or "tool")


def arguments_of(tool: dict[str, Any]) -> Any:
    """Return what the tool is given."""
    given = tool.get("rawInput")
    return given if given is not None else {"title": tool.get("title")}


def _failure(reason: str) -> RetinueError:
    if reason == "cancelled":
        return Cancelled("the turn was cancelled", outcome="unknown")
    if reason in {"max_tokens", "max_turn_requests"}:
        said = f"the task took more than the agent allows ({reason})"
        return BudgetExceeded(said, details={"limit": reason})
    return AgentFailed(f"the agent stopped: {reason}", details={"stop_reason": reason})

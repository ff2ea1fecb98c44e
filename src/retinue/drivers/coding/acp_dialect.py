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

import json
from collections.abc import Callable
from typing import Any

from retinue.domain.event import EventType
from retinue.drivers.coding.asking import wording
from retinue.drivers.coding.scribe import Ask, Scribe, fitting, number, text_of
from retinue.errors import AgentFailed, BudgetExceeded, Cancelled, RetinueError
from retinue.wire.jsonrpc import Call

_ONCE = "allow_once"
_NO = ("reject_once", "reject_always")
_OVER = {"completed", "failed"}


class AcpDialect:
    """One session's turn. ``open`` is set while what comes belongs to the turn, not to the past."""

    def __init__(self, scribe: Scribe, most: int) -> None:
        self._scribe = scribe
        self._most = most
        self.open = False
        self._called: set[str] = set()
        self._coming: dict[str, dict[str, Any]] = {}
        """Tools that are pending: what they are given may not be told yet."""
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
        if status == "pending" and key not in self._called:
            self._coming[key] = {**self._coming.get(key, {}), **update}
            return
        self._begin(key, update)
        if status in _OVER:
            result = update.get("rawOutput")
            if result is None:
                result = text_of(update.get("content"))
            self._scribe.answered(key, result, is_error=status == "failed")

    def _begin(self, key: str, told: dict[str, Any]) -> None:
        """Show that a tool is called, once, with all that was told of it."""
        before = self._coming.pop(key, {})
        if key in self._called:
            return
        tool = {**before, **{name: value for name, value in told.items() if value}}
        self._called.add(key)
        self._last.clear()
        self._scribe.called(key, tool_of(tool), arguments_of(tool))

    def request(self, call: Call, answer: Callable[[Any], None]) -> bool:
        """Take in what the agent asks; False when this client does not do that."""
        if call.method != "session/request_permission":
            return False
        tool = call.params.get("toolCall") or {}
        options = call.params.get("options") or []

        name = tool_of(tool)

        def reply(allowed: bool | None, why: str) -> None:
            option = _option(options, allowed)
            if allowed and (option or {}).get("kind") != _ONCE:
                self._scribe.warn(f"{name} is offered for good only: it was refused")
            elif allowed and tool.get("toolCallId") is not None:
                # It runs now: some say nothing of it until it has ended.
                self._begin(str(tool["toolCallId"]), tool)
            if option is None:
                answer({"outcome": {"outcome": "cancelled"}})
            else:
                answer({"outcome": {"outcome": "selected", "optionId": option.get("optionId")}})

        asked = wording(name, shown_of(tool))
        self._scribe.ask(Ask(json.dumps(call.id), name, arguments_of(tool), asked, reply))
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


def shown_of(tool: dict[str, Any]) -> Any:
    """Return all that is told of what a tool is to do."""
    given = tool.get("rawInput")
    named = given if isinstance(given, dict) else {"input": given} if given is not None else {}
    names = ("title", "content", "locations")
    told = {f"({name})": tool[name] for name in names if tool.get(name)}
    return {**named, **told}


def _option(options: list[Any], allowed: bool | None) -> dict[str, Any] | None:
    """Return what is chosen of what is offered. A yes is for this once, never for good."""
    if allowed is None:
        return None
    for kind in (_ONCE, *_NO) if allowed else _NO:
        for option in options:
            if isinstance(option, dict) and option.get("kind") == kind:
                return option
    return None


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

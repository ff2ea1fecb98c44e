"""One thread of Codex's app-server, read: notifications and requests of one turn.

=====================================  ===========================================================
``item/agentMessage/delta``            text
``item/reasoning/…Delta``              thought
``item/started``, ``item/completed``   tools called and what they answered; the last text
``thread/tokenUsage/updated``          what each reply of the model used
``item/…/requestApproval``             leave is asked for
``error`` with ``willRetry``           a warning; what was said of an unfinished item is taken back
``turn/completed``                     the end: completed, interrupted, failed
=====================================  ===========================================================
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from retinue.domain.event import EventType
from retinue.drivers.coding.asking import wording
from retinue.drivers.coding.provider import refusal
from retinue.drivers.coding.scribe import Ask, Scribe, fitting, number
from retinue.errors import Cancelled, RetinueError
from retinue.wire.jsonrpc import Call

_THOUGHTS = {"item/reasoning/summaryTextDelta", "item/reasoning/textDelta"}
_TOOLS = {
    "commandExecution": ("shell", ("command", "cwd")),
    "fileChange": ("apply_patch", ("changes",)),
    "mcpToolCall": ("", ("arguments",)),
    "dynamicToolCall": ("", ("arguments",)),
    "webSearch": ("web_search", ("query",)),
    "imageView": ("view_image", ("path",)),
    "collabAgentToolCall": ("agent", ("prompt",)),
}
_BESIDE = (
    *("threadId", "turnId", "itemId", "approvalId", "availableDecisions", "startedAtMs"),
    *("commandActions", "proposedExecpolicyAmendment", "proposedNetworkPolicyAmendments"),
)
"""What an approval's parameters hold beside what a yes allows."""
_RESULTS = ("aggregatedOutput", "result", "error", "contentItems")
Answer = Callable[[Any], None]


class CodexDialect:
    """What one turn is told of its thread."""

    def __init__(self, scribe: Scribe) -> None:
        self._scribe = scribe
        self.turn: str | None = None
        self._last = ""
        self._places: dict[Any, int] = {}
        self._given: dict[str, Any] = {}
        self._done: set[str] = set()
        self._base: tuple[int, int] | None = None
        self.done = asyncio.Event()

    @property
    def completed(self) -> bool:
        """Whether the server said that the turn is over, however that came about."""
        return self.done.is_set()

    def fresh(self) -> None:
        """Note that the thread is new: it has used nothing yet."""
        self._base = (0, 0)

    def take(self, method: str, params: dict[str, Any]) -> None:
        """Take in a notification."""
        if method == "item/agentMessage/delta":
            item = params.get("itemId")
            if item not in self._places:
                self._places[item] = self._scribe.place
            self._scribe.say(params.get("delta") or "")
        elif method in _THOUGHTS:
            self._scribe.think(params.get("delta") or "")
        elif method in {"item/started", "item/completed"}:
            self._item(params.get("item") or {}, done=method == "item/completed")
        elif method == "thread/tokenUsage/updated":
            self._usage(params)
        elif method == "turn/plan/updated":
            self._scribe.note(
                EventType.PROGRESS, {"message": "plan", "steps": fitting(params.get("plan"))}
            )
        elif method == "error":
            self._again(params)
        elif method == "warning":
            self._scribe.warn(str(params.get("message")))
        elif method == "serverRequest/resolved":
            self._scribe.withdrawn(json.dumps(params.get("requestId")))
        elif method == "turn/started":
            # Before the answer to our request is taken up, maybe: what follows is this turn's.
            self.turn = self.turn or (params.get("turn") or {}).get("id")
        elif method == "turn/completed":
            self._completed(params.get("turn") or {})

    def _again(self, params: dict[str, Any]) -> None:
        """Take note that the model is asked again: what it had begun to say is said again."""
        error = params.get("error") or {}
        if not params.get("willRetry"):
            return
        if self._places:
            self._scribe.back(min(self._places.values()))
            self._places.clear()
        said = f"{error.get('message')} ({error.get('additionalDetails')})"
        self._scribe.warn(said, retry=error.get("message"))

    def _item(self, item: dict[str, Any], *, done: bool) -> None:
        kind = item.get("type")
        if kind == "agentMessage":
            if done:
                self._places.pop(item.get("id"), None)
                self._last = str(item.get("text") or "")
            return
        known = _TOOLS.get(str(kind))
        if known is None:
            return
        key = str(item.get("id"))
        name, fields = known
        tool = name or str(item.get("tool"))
        arguments = {field: item.get(field) for field in fields if field in item}
        if key in self._done:
            return
        self._given[key] = arguments
        self._scribe.called(key, tool, arguments)
        if done:
            self._done.add(key)
            self._given.pop(key, None)
            result = next((item[name] for name in _RESULTS if item.get(name) is not None), None)
            code = item.get("exitCode")
            more = {"exit_code": code} if code is not None else {}
            failed = item.get("status") in {"failed", "declined"} or bool(code)
            self._scribe.answered(key, result, is_error=failed, **more)

    def _usage(self, params: dict[str, Any]) -> None:
        usage = params.get("tokenUsage") or {}
        total, last = usage.get("total") or {}, usage.get("last") or {}
        now = number(total.get("inputTokens")), number(total.get("outputTokens"))
        if params.get("turnId") != self.turn:
            self._base = now  # of earlier turns
            return
        base = self._base or (
            now[0] - number(last.get("inputTokens")),
            now[1] - number(last.get("outputTokens")),
        )
        self._base = now
        if now != base:
            self._scribe.replied()
        cached = {"cached_input_tokens": number(last.get("cachedInputTokens"))}
        self._scribe.spent(max(now[0] - base[0], 0), max(now[1] - base[1], 0), **cached)

    def request(self, call: Call, answer: Answer, refuse: Answer) -> None:
        """Take in what the server asks; ``answer`` or ``refuse`` is called once."""
        params = call.params
        match call.method:
            case "item/commandExecution/requestApproval":
                tool = "shell"
            case "item/fileChange/requestApproval":
                tool = "apply_patch"
            case _:
                self._scribe.warn(f"{call.method} cannot be answered: it was refused")
                refuse(f"{call.method} is not supported by this client")
                return

        def reply(allowed: bool | None, why: str) -> None:
            # What it offers is cancel, which ends the turn; it takes decline as well, and goes on.
            answer({"decision": "accept" if allowed else "decline"})

        # A change is told with the item, and only named by what asks leave for it.
        known = self._given.get(str(params.get("itemId"))) or {}
        said = {name: value for name, value in params.items() if value and name not in _BESIDE}
        given = {**known, **said}
        self._scribe.ask(Ask(json.dumps(call.id), tool, given, wording(tool, given), reply))

    def _completed(self, turn: dict[str, Any]) -> None:
        status = turn.get("status")
        if self.turn is not None and turn.get("id") not in {None, self.turn}:
            return
        self.done.set()
        if status == "completed":
            self._scribe.end(self._last)
        else:
            self._scribe.fail(_failure(str(status), turn.get("error") or {}))


def _failure(status: str, error: dict[str, Any]) -> RetinueError:
    if status == "interrupted":
        return Cancelled("the turn was interrupted", outcome="unknown")
    text = str(error.get("message") or f"the turn ended as {status}")
    info = error.get("codexErrorInfo")
    return refusal(text, info, info=info)

"""Events as a person sees them: text as it comes on stdout, everything else dim on stderr."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import typer

from retinue.cli import output

_ENDS = frozenset({"completed", "failed", "cancelled"})


class Streamed:
    """The text that was streamed so far, as its hash: enough to know a result that repeats it.

    White space at the end does not count: agents join their lines in either way.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._blank = ""
        self._some = False

    def __bool__(self) -> bool:
        return self._some

    def add(self, text: str) -> None:
        """Take in the next piece."""
        text = self._blank + text
        body = text.rstrip()
        self._blank = text[len(body) :]
        self._hash.update(_bytes(body))
        self._some = self._some or bool(body)

    def is_all_of(self, result: Any) -> bool:
        """Say whether ``result`` is this text, alone or as the only field of an object."""
        if isinstance(result, dict) and len(result) == 1:
            (result,) = result.values()
        return self._is(result)

    def is_part_of(self, result: Any) -> bool:
        """Say whether this text is one field of several."""
        fields = result.values() if isinstance(result, dict) and len(result) > 1 else ()
        return any(map(self._is, fields))

    def _is(self, value: Any) -> bool:
        if not self or not isinstance(value, str):
            return False
        return hashlib.sha256(_bytes(value.rstrip())).digest() == self._hash.digest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class Printer:
    """Prints the events of one execution."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._open = False
        self._gone = False
        self._streamed = Streamed()

    def event(self, event: dict[str, Any]) -> None:
        """Print one event."""
        if self._as_json:
            typer.echo(output.as_json(event, indent=None))
            sys.stdout.flush()
            return
        kind = event["eventType"]
        if event.get("is_reset"):
            self._streamed = Streamed()  # what was said before does not count any more
        if event.get("erased"):
            self._erased(event)
        elif kind == "content_chunk":
            text = str(event.get("content", ""))
            self._streamed.add(text)
            self._text(output.plain(text))
        elif kind == "completed":
            self._completed(event)
        elif kind == "truncated":
            self._truncated(event)
        elif kind == "failed":
            self.end()
            advice = f"`retinue execution show {event['executionId']}` shows it"
            output.complain(event.get("code", "E_INTERNAL"), str(event.get("error")), advice)
        elif (line := _line(kind, event)) is not None:
            self.end()
            output.note(line)

    def end(self) -> None:
        """End the line of text that is open."""
        if self._open:
            typer.echo()
            self._open = False

    def _text(self, text: str) -> None:
        if text:
            typer.echo(text, nl=False)
            sys.stdout.flush()
            self._open = not text.endswith("\n")

    def _completed(self, event: dict[str, Any]) -> None:
        self.end()
        self._result(event.get("result"))
        output.note(f"· completed: {event['executionId']}")
        if self._streamed.is_part_of(event.get("result")):
            words = f"retinue execution show {event['executionId']}"
            output.note(f"  its result has more than this text: {words}")

    def _result(self, result: Any) -> None:
        """Show a result, unless it is the text that stands there already, or holds it."""
        streamed = self._streamed
        if streamed and (result is None or streamed.is_all_of(result)):
            return
        if not streamed.is_part_of(result):
            output.show(result)

    def _erased(self, event: dict[str, Any]) -> None:
        """Say once that what was said is gone, and in the end how it ended."""
        self.end()
        if not self._gone:
            self._gone = True
            output.note("· what it was given and what it said was erased")
        if event["eventType"] == "truncated":
            self._truncated(event)
        elif event["eventType"] in _ENDS:
            output.note(f"· {event['eventType']}: {event['executionId']}")

    def _truncated(self, event: dict[str, Any]) -> None:
        self.end()
        if event.get("result") is not None:
            self._result(event["result"])
        elif event.get("failure") is not None:
            output.note(f"· {event['failure'].get('message')}")
        gone = event["removed"]
        output.note(f"· events {gone['from']} to {gone['to']} were removed by retention")
        output.note(f"· {event.get('state', 'ended')}: {event['executionId']}")


def _line(kind: str, event: dict[str, Any]) -> str | None:
    line: str | None = f"· {kind}"
    match kind:
        case "attempt_started":
            number = event.get("attempt", 1)
            line = f"· attempt {number}: starts over" if number > 1 else None
        case "progress":
            percentage, message = event.get("percentage"), event.get("message")
            share = f" {_percent(percentage)}" if percentage is not None else ""
            line = f"·{share} {message or ''}".rstrip()
        case "thinking":
            # A command's own words are its content.
            line = f"· {event.get('content') or event.get('status')}"
        case "log":
            line = f"· {event.get('level')}: {event.get('message')}"
        case "usage":
            line = f"· spent {_spent(event)}"
        case "tool_call":
            arguments = output.as_json(event.get("arguments"), indent=None)
            line = f"· calls {event.get('tool_name')} {arguments}"
        case "tool_result":
            line = f"· {event.get('tool_name')} answered"
        case "input_required":
            line = f"? {event.get('prompt')}\n  answer with: {answer_with(event)}"
    return line


def answer_with(event: dict[str, Any]) -> str:
    """Return the command that answers a question."""
    question = event.get("question_id")
    if event.get("kind") == "approval":
        return f"retinue question approve {question} (or reject)"
    return f"retinue question answer {question} VALUE"


def _spent(event: dict[str, Any]) -> str:
    tokens = f"{event.get('input_tokens', 0)} + {event.get('output_tokens', 0)} tokens"
    cost = event.get("cost_usd")
    return f"{tokens}, ${cost:.6g}" if isinstance(cost, int | float) and cost else tokens


def _percent(share: Any) -> str:
    """Return how far it is; what is no number stands in the record as the agent said it."""
    return f"{share:.0f} %" if isinstance(share, int | float) else str(share)

"""Events as a person sees them: text as it comes on stdout, everything else dim on stderr."""

from __future__ import annotations

import sys
from typing import Any

import typer

from retinue.cli import output


class Printer:
    """Prints the events of one execution."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._open = False
        self.streamed = False

    def event(self, event: dict[str, Any]) -> None:
        """Print one event."""
        if self._as_json:
            typer.echo(output.as_json(event, indent=None))
            sys.stdout.flush()
            return
        kind = event["eventType"]
        if kind == "content_chunk":
            self._text(output.plain(str(event.get("content", ""))))
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
            self.streamed = True
            self._open = not text.endswith("\n")

    def _completed(self, event: dict[str, Any]) -> None:
        self.end()
        if not self.streamed:
            output.show(event.get("result"))
        output.note(f"· completed: {event['executionId']}")

    def _truncated(self, event: dict[str, Any]) -> None:
        self.end()
        if event.get("result") is not None and not self.streamed:
            output.show(event["result"])
        elif event.get("failure") is not None:
            output.note(f"· {event['failure'].get('message')}")
        gone = event["removed"]
        output.note(f"· events {gone['from']} to {gone['to']} were removed by retention")
        output.note(f"· {event.get('state', 'ended')}: {event['executionId']}")


def _line(kind: str, event: dict[str, Any]) -> str | None:
    match kind:
        case "attempt_started":
            number = event.get("attempt", 1)
            return f"· attempt {number}: starts over" if number > 1 else None
        case "progress":
            percentage, message = event.get("percentage"), event.get("message")
            share = f" {_percent(percentage)}" if percentage is not None else ""
            return f"·{share} {message or ''}".rstrip()
        case "thinking":
            # A command's own words are its content.
            return f"· {event.get('status', event.get('content'))}"
        case "log":
            return f"· {event.get('level')}: {event.get('message')}"
        case "tool_call":
            arguments = output.as_json(event.get("arguments"), indent=None)
            return f"· calls {event.get('tool_name')} {arguments}"
        case "tool_result":
            return f"· {event.get('tool_name')} answered"
        case "input_required":
            question = event.get("question_id")
            words = f"answer {question} VALUE"
            if event.get("kind") == "approval":
                words = f"approve {question} (or reject)"
            return f"? {event.get('prompt')}\n  answer with: retinue question {words}"
        case _:
            return f"· {kind}"


def _percent(share: Any) -> str:
    """Return how far it is; what is no number stands in the record as the agent said it."""
    return f"{share:.0f} %" if isinstance(share, int | float) else str(share)

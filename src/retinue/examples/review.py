"""An agent that calls another one: it has a directory surveyed and writes down what stands out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retinue.agent import Agent, AgentCapability, current
from retinue.examples.survey import PARAMETERS

_LONG_FILE = 1_000
_MOST_TODOS = 5


class ReviewAgent(Agent):
    """Turns a survey's numbers into sentences, streamed line by line."""

    def __init__(self) -> None:
        super().__init__(
            agent_id="agent_review_001",
            name="Review Agent",
            description="Has a directory surveyed and says what stands out",
        )

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Have the survey made by whichever agent can, then stream the review."""
        context = current()
        context.thinking("waiting for the survey")
        survey = await context.call("survey_repository", task["parameters"])
        lines = []
        for line in findings(survey):
            lines.append(line)
            context.text(line + "\n")
        return {"success": True, "data": {"review": "\n".join(lines), "survey": survey}}

    def get_capabilities(self) -> list[AgentCapability]:
        """Return ``review_repository``."""
        return [
            AgentCapability(
                "review_repository", "Survey a directory and say what stands out", PARAMETERS
            )
        ]


def findings(survey: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a review."""
    totals = f"{_of(survey['files'], 'text file')} with {_of(survey['lines'], 'line')}"
    yield f"{survey['path']}: {totals}, {_of(survey['bytes'], 'byte')}."
    if survey["languages"]:
        shares = ", ".join(f"{x['language']} {x['share']} %" for x in survey["languages"][:5])
        yield f"Written in {shares}."
    else:
        yield "There is no text file to review."
    for file in survey["largest"]:
        if file["lines"] > _LONG_FILE:
            yield f"{file['file']} has {file['lines']} lines: worth splitting?"
    todos = survey["todos"]
    if todos["total"]:
        yield f"{_of(todos['total'], 'open note')} (TODO, FIXME and the like), the first of them:"
        for todo in todos["items"][:_MOST_TODOS]:
            yield f"  {todo['file']}:{todo['line']}: {todo['text']}"
    else:
        yield "No open notes (TODO, FIXME and the like)."
    skipped = survey["skipped"]
    if skipped["unreadable"]:
        yield f"{_of(skipped['unreadable'], 'file')} could not be read."
    if not survey["complete"]:
        yield f"The survey is not complete: {survey['note']}."


def _of(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

"""``retinue question``: what running work asks of a person."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from retinue.cli import output
from retinue.cli.door import ask
from retinue.cli.options import Config, Json, Limit, Url, noun

app = noun("What running work asks of a person.")


@app.command("list")
def list_questions(
    limit: Limit = 100, url: Url = None, config: Config = None, json: Json = False
) -> None:
    """List the open questions, oldest first."""
    answer = ask(lambda client: client.get("/v1/questions", limit=limit), url=url, config=config)
    if json:
        output.show(answer)
        return
    rows = [
        (
            row["question_id"],
            row["created_at"],
            row["execution_id"],
            row["kind"],
            row["role"],
            row["prompt"],
        )
        for row in answer["questions"]
    ]
    output.table(("question", "asked", "execution", "kind", "for", "prompt"), rows)


@app.command("answer")
def answer_question(
    question_id: Annotated[str, typer.Argument(metavar="ID", help="The question.")],
    value: Annotated[str, typer.Argument(help="The answer: JSON, else taken as text.")],
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Answer an open question; the execution that asked goes on."""
    _answer(question_id, answer_of(value), url=url, config=config, json=json)


@app.command("approve")
def approve(
    question_id: Annotated[str, typer.Argument(metavar="ID", help="The question.")],
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Give leave to go on."""
    _answer(question_id, True, url=url, config=config, json=json)


@app.command("reject")
def reject(
    question_id: Annotated[str, typer.Argument(metavar="ID", help="The question.")],
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Refuse leave to go on; what the agent makes of it is its own."""
    _answer(question_id, False, url=url, config=config, json=json)


def _answer(
    question_id: str, value: Any, *, url: str | None, config: Path | None, json: bool
) -> None:
    body = {"answer": value}
    answer = ask(
        lambda client: client.post(f"/v1/questions/{question_id}/answer", body),
        url=url,
        config=config,
        power="server",
    )
    if json:
        output.show(answer)
    else:
        output.say(f"{answer['question_id']} is {answer['state']}")


def answer_of(text: str) -> Any:
    """Return what a person typed: JSON when it is some, else the text itself."""
    from json import loads

    try:
        return loads(text)
    except (ValueError, RecursionError):
        return text

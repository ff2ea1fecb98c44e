"""``retinue question``: what running work asks of a person."""

from __future__ import annotations

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
        (row["question_id"], row["created_at"], row["execution_id"], row["prompt"])
        for row in answer["questions"]
    ]
    output.table(("question", "asked", "execution", "prompt"), rows)


@app.command("answer")
def answer_question(
    question_id: Annotated[str, typer.Argument(metavar="ID", help="The question.")],
    value: Annotated[str, typer.Argument(help="The answer: JSON, else taken as text.")],
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Answer an open question; the execution that asked goes on."""
    body = {"answer": answer_of(value)}
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

"""``retinue session``: the sessions and their contracts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli import output
from retinue.cli.door import ask
from retinue.cli.options import Config, Json, Limit, Url, noun

if TYPE_CHECKING:
    from retinue.cli.client import Client

app = noun("The sessions, and the contracts in them.")


@app.command("list")
def list_sessions(
    limit: Limit = 100, url: Url = None, config: Config = None, json: Json = False
) -> None:
    """List the sessions."""
    answer = ask(lambda client: client.get("/v1/sessions", limit=limit), url=url, config=config)
    if json:
        output.show(answer)
        return
    columns = ("session_id", "contracts", "completed", "failed", "cancelled", "open", "updated_at")
    output.table(columns, [[row[name] for name in columns] for row in answer["sessions"]])
    if answer["total"] > len(answer["sessions"]):
        output.note(f"{len(answer['sessions'])} of {answer['total']}; --limit shows more")


@app.command()
def contracts(
    session_id: Annotated[str, typer.Argument(metavar="ID", help="The session.")],
    limit: Limit = 100,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """List a session's contracts, in the order of their chain."""

    async def look(client: Client) -> Any:
        found = await client.get("/v1/contracts", session_id=session_id, limit=limit)
        if not found["total"]:
            await client.get(f"/v1/sessions/{session_id}")  # which says whether there is one
        return found

    answer = ask(look, url=url, config=config)
    if json:
        output.show(answer)
        return
    rows = [
        (
            row["metadata"]["n"],
            row["contract_type"],
            row["from_agent"],
            row["to_agent"],
            row["capability"],
            row["status"],
            row["error"] or "",
            row["contract_id"],
        )
        for row in answer["contracts"]
    ]
    output.table(("n", "type", "from", "to", "capability", "status", "error", "contract"), rows)
    if answer["total"] > len(rows):
        output.note(f"{len(rows)} of {answer['total']}; --limit shows more")


@app.command()
def erase(
    session_id: Annotated[str, typer.Argument(metavar="ID", help="The session.")],
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Erase what was said in a session, for good; its contracts stay, and still verify."""
    path = f"/v1/sessions/{session_id}/body"
    answer = ask(
        lambda client: client.delete(path, wait=True), url=url, config=config, power="change"
    )
    if json:
        output.show(answer)
    else:
        output.say(f"{session_id}: {answer['contracts']} contracts erased")
    if answer["open"]:
        output.note(f"{answer['open']} contracts left alone: their executions have not ended")
        raise typer.Exit(output.FAILED)

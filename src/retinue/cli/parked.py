"""``retinue parked``: contracts that a service would not take."""

from __future__ import annotations

import typer

from retinue.cli import output
from retinue.cli.door import ask
from retinue.cli.options import Config, Json, Limit, Url, noun

app = noun("The contracts that a service (Trace) would not take; their sessions went on.")


@app.command("list")
def list_parked(
    limit: Limit = 100, url: Url = None, config: Config = None, json: Json = False
) -> None:
    """List them, and why they were refused."""
    answer = ask(lambda client: client.get("/v1/parked", limit=limit), url=url, config=config)
    if json:
        output.show(answer)
        return
    columns = ("sink", "session_id", "n", "contract_id", "tries", "parked_at", "error")
    output.table(columns, [[row[name] for name in columns] for row in answer["parked"]])
    if answer["total"] > len(answer["parked"]):
        output.note(f"{len(answer['parked'])} of {answer['total']}; --limit shows more")


@app.command()
def retry(url: Url = None, config: Config = None, json: Json = False) -> None:
    """Deliver them once more, out of their sessions' order; leave with 1 if any is refused."""
    answer = ask(
        lambda client: client.post("/v1/parked/retry", wait=True),
        url=url,
        config=config,
        power="change",
    )
    if json:
        output.show(answer)
    else:
        output.say(f"{answer['delivered']} delivered, {answer['refused']} refused again")
    if answer["refused"]:
        raise typer.Exit(output.FAILED)

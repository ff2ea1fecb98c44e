"""``retinue ledger``: whether the record still holds."""

from __future__ import annotations

from typing import Annotated

import typer

from retinue.cli import output
from retinue.cli.door import ask, require_store
from retinue.cli.options import Config, Json, Url, noun
from retinue.errors import RetinueError

app = noun("The ledger, and whether it still holds.")


@app.command()
def verify(
    anchor: Annotated[
        str | None,
        typer.Option(
            metavar="N:HASH", help="What `ledger anchor` printed once.", show_default=False
        ),
    ] = None,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Recompute every chain of the ledger; name the first row that does not fit."""
    from retinue.settings import caller

    try:
        if caller(url).url is None:
            require_store(config)
    except RetinueError as error:
        output.fail(error)
    answer = ask(
        lambda client: client.get("/v1/ledger/verify", wait=True, anchor=anchor),
        url=url,
        config=config,
    )
    if json:
        output.show(answer)
    seen = ", ".join(f"{answer[name]} {name}" for name in ("sessions", "contracts", "events"))
    if answer["ok"]:
        if not json:
            output.say(f"the ledger holds: {seen}, {answer['audits']} audit rows")
        return
    fault = answer["fault"]
    row = f" ({fault['id']})" if fault["id"] else ""
    output.complain(
        "E_LEDGER_BROKEN",
        f"{fault['chain']}, row {fault['n']}{row}: {fault['reason']}",
        "keep a copy of the store before you change anything; rows before this one hold",
    )
    raise typer.Exit(output.FAILED)


@app.command("anchor")
def print_anchor(url: Url = None, config: Config = None, json: Json = False) -> None:
    """Anchor all sessions in the audit chain and print its head; keep that elsewhere."""
    answer = ask(
        lambda client: client.post("/v1/ledger/anchor", wait=True),
        url=url,
        config=config,
        power="change",
    )
    if json:
        output.show(answer)
        return
    output.say(answer["anchor"])
    output.note("check it later: retinue ledger verify --anchor N:HASH")


@app.command()
def prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Remove now what the retention settings say is old."""
    answer = ask(
        lambda client: client.post("/v1/ledger/prune", {"dry_run": dry_run}, wait=True),
        url=url,
        config=config,
        power="change",
    )
    if json:
        output.show(answer)
        return
    if all(value is None for value in answer["retention"].values()):
        output.note("nothing is old: no retention is set (retention_days, retention_executions)")
    if dry_run:
        output.say(
            f"would remove the events of {answer['executions']} executions;"
            f" {answer['sessions']} sessions begin with old contracts"
        )
        return
    output.say(
        f"removed the events of {answer['executions']} executions ({answer['events']} rows),"
        f" and {answer['contracts']} contracts of {answer['sessions']} sessions"
    )


@app.callback()
def _group() -> None:
    """Group the commands, be it only one."""

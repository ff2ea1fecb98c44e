"""``retinue ledger``: whether the record still holds."""

from __future__ import annotations

import typer

from retinue.cli import output
from retinue.cli.door import ask, require_store
from retinue.cli.options import Config, Json, Url, noun
from retinue.errors import RetinueError

app = noun("The ledger, and whether it still holds.")


@app.command()
def verify(url: Url = None, config: Config = None, json: Json = False) -> None:
    """Recompute every chain of the ledger; name the first row that does not fit."""
    from retinue.settings import caller

    try:
        if caller(url).url is None:
            require_store(config)
    except RetinueError as error:
        output.fail(error)
    answer = ask(lambda client: client.get("/v1/ledger/verify", wait=True), url=url, config=config)
    if json:
        output.show(answer)
    seen = ", ".join(f"{answer[name]} {name}" for name in ("sessions", "contracts", "events"))
    if answer["ok"]:
        if not json:
            output.say(f"the ledger holds: {seen}, {answer['audits']} audit rows")
        return
    fault = answer["fault"]
    row = f" (contract {fault['id']})" if fault["id"] else ""
    output.complain(
        "E_LEDGER_BROKEN",
        f"{fault['chain']}, row {fault['n']}{row}: {fault['reason']}",
        "keep a copy of the store before you change anything; rows before this one hold",
    )
    raise typer.Exit(output.FAILED)


@app.callback()
def _group() -> None:
    """Group the commands, be it only one."""

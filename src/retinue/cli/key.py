"""``retinue key``: the API keys."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from retinue.cli import output
from retinue.cli.door import ask
from retinue.cli.options import Config, Json, Url, noun

app = noun("The API keys. From the first one on, every caller of a server needs one.")


class Role(StrEnum):
    """What a key may do."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


@app.command("list")
def list_keys(url: Url = None, config: Config = None, json: Json = False) -> None:
    """List the keys, revoked ones too."""
    answer = ask(lambda client: client.get("/v1/keys"), url=url, config=config)
    if json:
        output.show(answer)
        return
    columns = ("key_id", "name", "role", "owner", "created_at", "revoked_at")
    output.table(columns, [[row[name] for name in columns] for row in answer["keys"]])


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A word to know it by.")],
    role: Annotated[
        Role,
        typer.Option(help="A viewer reads, an operator also runs, an admin also manages."),
    ] = Role.OPERATOR,
    owner: Annotated[
        str | None,
        typer.Option(help="Whose records it sees and makes; else your own.", show_default=False),
    ] = None,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make a key. Its secret is shown this once; only its hash is kept."""
    body = {"name": name, "role": role.value, "owner": owner}
    answer = ask(
        lambda client: client.post("/v1/keys", body), url=url, config=config, power="change"
    )
    if json:
        output.show(answer)
        return
    typer.echo(answer["secret"])
    output.note(f"key {answer['key_id']}: {answer['role']} of {answer['owner']}, shown this once")
    output.note("use it as: export RETINUE_API_KEY=…  or  Authorization: Bearer …")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Revoke a key, for good."""
    ask(
        lambda client: client.delete(f"/v1/keys/{key_id}"),
        url=url,
        config=config,
        power="change",
    )
    if json:
        output.show({"key_id": key_id, "revoked": True})
    else:
        output.say(f"{key_id} is revoked")

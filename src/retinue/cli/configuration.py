"""``retinue settings``: what is set, and what can be."""

from __future__ import annotations

from typing import Annotated

import typer

from retinue.cli import output
from retinue.cli.options import Config, Json, noun
from retinue.errors import RetinueError

app = noun("What is set, and what can be set.")


@app.command()
def show(config: Config = None, json: Json = False) -> None:
    """Show the settings as they come out of file and environment; passwords are masked."""
    from retinue import settings

    try:
        found = settings.here(config)
    except RetinueError as error:
        output.fail(error)
    if json:
        output.show(found.shown())
    else:
        output.fields(found.shown())


@app.command()
def schema(
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,  # it is JSON anyway
) -> None:
    """Print the JSON Schema of retinue.yaml, with every setting's meaning and variable."""
    from retinue import settings

    output.show(settings.schema())

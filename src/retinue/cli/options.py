"""Options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

Url = Annotated[
    str | None,
    typer.Option(
        help="The server to ask; else RETINUE_URL, else the one that has the store open here.",
        show_default=False,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(help="The configuration file; else ./retinue.yaml.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="At most so many rows (1 to 1000).")]


class Noun(TyperGroup):
    """A group of commands about one thing; the bare noun lists."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Put ``list`` (or the first command) in front where no command is named."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


def noun(help_: str) -> typer.Typer:
    """Return a group; its first command is what the bare noun does."""
    return typer.Typer(cls=Noun, help=help_, add_completion=False, rich_markup_mode=None)

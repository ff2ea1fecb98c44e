"""What is printed: data on stdout, everything else on stderr, and never an agent's escapes.

``--json`` prints the API's own JSON. Without it, a person at a terminal gets colours and tables,
and a pipe gets plain text.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import typer

from retinue.errors import InvalidInput, NotFound, NotSupported, RetinueError, SettingsError

FAILED = 1
USAGE = 2
INTERRUPTED = 130
_WIDEST = 60
# Escape sequences first, as wholes; then every other control character, so that what is left of
# one that was cut in two is harmless text. Tab and newline stay; bidirectional overrides go.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)"
    r"|\x1b[ -/]*[0-~]"
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_HINTS = {
    "E_AGENT_NOT_FOUND": "`retinue agent` lists the agents and what they can do",
    "E_UNAUTHENTICATED": "put a key into RETINUE_API_KEY; an admin makes one: `retinue key create`",
    "E_EGRESS_DENIED": "the operator allows hosts and networks with egress_allow",
    "E_FORBIDDEN": "use a key with a higher role, or ask an admin for one",
    "E_STORE_FULL": "free some space, then try again",
    "E_STORE_BROKEN": "check the disk (its kernel messages say more), then start again: what was"
    " acknowledged is kept",
    "E_STORE_DAMAGED": "stop what uses it and keep a copy; then put a backup in its place, or save"
    " what can be read: sqlite3 FILE .recover",
    "E_INTERNAL": "RETINUE_LOG_LEVEL=error shows where, and so does a server's log",
    "E_LEDGER_BROKEN": "keep a copy of the store before you change anything",
}


def plain(text: str) -> str:
    """Return ``text`` without anything that a terminal would act on."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def note(text: str) -> None:
    """Print a line for a person, dim, on stderr."""
    typer.secho(plain(text), err=True, dim=True)


def say(text: str) -> None:
    """Print a line on stdout."""
    typer.echo(plain(text))


def as_json(value: Any, *, indent: int | None = 2) -> str:
    """Return JSON as this stdout can show it."""
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    return json.dumps(value, indent=indent, ensure_ascii=ascii_only)


def show(value: Any) -> None:
    """Print a value as JSON: in colours at a terminal, plain otherwise."""
    text = as_json(value)
    if not sys.stdout.isatty():
        typer.echo(text)
        return
    from rich.console import Console
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    # Not print_json: the text is already what we want, and must not be parsed for markup.
    Console(soft_wrap=True).print(JSONHighlighter()(Text(plain(text))))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under upper-case headings, two spaces between columns."""
    short = sys.stdout.isatty()
    cells = [[_cell(value, short) for value in row] for row in rows]
    if not cells:
        note("there are none")
        return
    widths = [
        max(len(name), *(len(row[place]) for row in cells)) for place, name in enumerate(columns)
    ]
    for row in [[name.upper() for name in columns], *cells]:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def _cell(value: Any, short: bool) -> str:
    text = "-" if value is None else " ".join(plain(str(value)).split())
    return text if not short or len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def fields(values: Mapping[str, Any]) -> None:
    """Print names and values, one pair per line."""
    width = max(map(len, values))
    for name, value in values.items():
        text = value if isinstance(value, str) else as_json(value, indent=None)
        typer.echo(f"{name.ljust(width)}  {plain(text)}")


def complain(code: str, message: str, advice: str | None = None) -> None:
    """Print an error on stderr: its code, what is wrong, and what to do next.

    Where stderr is a log of JSON lines, it is one of them.
    """
    if _logs_json():
        logging.getLogger("retinue").error("%s: %s (%s)", code, message, advice)
        return
    typer.secho(f"error {code}: ", err=True, fg="red", nl=False)
    typer.echo(" ".join(plain(message).split()), err=True)
    if advice:
        typer.secho(f"  {plain(advice)}", err=True, dim=True)


def _logs_json() -> bool:
    handlers = logging.getLogger().handlers
    return any(getattr(handler.formatter, "json_lines", False) for handler in handlers)


def fail(error: RetinueError, advice: str | None = None) -> NoReturn:
    """Print the error and leave: 2 when the command was used wrongly, else 1."""
    advice = advice or _HINTS.get(error.code)
    if advice is None and error.retryable:
        advice = "this may pass: try again"
    complain(error.code, error.message, advice)
    wrong = isinstance(error, InvalidInput | SettingsError | NotFound | NotSupported)
    raise typer.Exit(USAGE if wrong else FAILED)

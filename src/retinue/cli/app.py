"""The commands, put together, and what becomes of an error that nobody expected."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from retinue.cli import (
    agent,
    configuration,
    doctor,
    execution,
    instance,
    key,
    ledger,
    output,
    parked,
    question,
    queue,
    repl,
    serve,
    session,
    task,
    worker,
)
from retinue.cli.options import Json

app = typer.Typer(
    name="retinue",
    help="Runs AI agents behind one door, and keeps a record that can be checked.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve.serve)
app.command()(task.run)
instance.add_to(agent.app)
app.command()(repl.repl)
app.add_typer(agent.app, name="agent")
app.add_typer(execution.app, name="execution")
app.command()(queue.queue)
app.add_typer(session.app, name="session")
app.add_typer(question.app, name="question")
app.add_typer(parked.app, name="parked")
app.add_typer(ledger.app, name="ledger")
app.add_typer(worker.app, name="worker")
app.add_typer(key.app, name="key")
app.add_typer(configuration.app, name="settings")
app.command()(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Run AI agents behind one door, and keep a record that can be checked."""


@app.command()
def version(json: Json = False) -> None:
    """Print the version."""
    from retinue import __version__

    if json:
        output.show({"version": __version__})
    else:
        output.say(f"retinue {__version__}")


def run() -> None:
    """Run the command line; no error shows a traceback."""
    try:
        app()
    except BrokenPipeError:
        # Whoever read our output has had enough; what is still buffered would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(output.FAILED) from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        text = f"{type(error).__name__}: {error} ({where})"
        output.complain("E_INTERNAL", text, "this is a fault of ours; please report it")
        raise SystemExit(output.FAILED) from None

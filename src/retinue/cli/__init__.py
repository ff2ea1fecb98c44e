"""The command line: the one place where sync begins.

One module per noun, each importing nothing heavy at its top, so that ``retinue --help`` is quick.
Every command that asks for something is a client of the HTTP API: of the server that is running,
or, without one, of the same app in this process over the local store. So the two cannot differ.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process."""
    from retinue.cli.app import run

    run()

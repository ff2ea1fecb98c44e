"""The server under test, as a process: ``python -m torture.serve --config FILE --ready FILE``.

It is the server that ``retinue serve`` runs. Besides, it writes where it serves into the file
``--ready``, dies with its parent, and can be given the store of the negative control.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import signal
from pathlib import Path

import uvloop

from retinue import settings as sources
from retinue.cli import logs
from retinue.orchestrator import Orchestrator
from retinue.runtime import Runtime, store_file
from retinue.server.serve import bind, serve, url_of
from torture.control import HastyStore

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until a signal asks to stop."""
    parser = argparse.ArgumentParser(prog="python -m torture.serve")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--hasty", action="store_true", help="acknowledge before the commit")
    options = parser.parse_args()
    die_with(options.parent)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(options.config, options.ready, hasty=options.hasty))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even while it is stopped."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the parent is gone already")


async def run(config: Path, ready: Path, *, hasty: bool) -> None:
    """Start the system that ``config`` describes and serve it."""
    settings = sources.here(config)
    logs.configure(settings.log_level, settings.log_format)
    listener = bind(settings)
    url = url_of(listener)
    if hasty:
        runtime = Runtime(settings, url=url, store=HastyStore(store_file(settings), url=url))
    else:
        runtime = Runtime(settings, url=url)

    def announce(_: Orchestrator, url: str) -> None:
        unfinished = ready.with_suffix(".tmp")
        unfinished.write_text(url)
        unfinished.rename(ready)

    await serve(runtime, settings, listener, ready=announce)


if __name__ == "__main__":
    main()

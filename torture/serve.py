"""The server under test, as a process: ``python -m torture.serve --config FILE --ready FILE``.

It is the server that ``retinue serve`` runs. Besides, it writes where it serves into the file
``--ready``, dies with its parent, can be given the stores of the negative controls, and can be told
to end at a crash point.
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
from retinue.settings import Settings
from torture.control import STORES
from torture.points import (
    PointedDriver,
    PointedJournal,
    PointedPostgres,
    PointedSqlite,
    Trigger,
)

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until a signal asks to stop."""
    parser = argparse.ArgumentParser(prog="python -m torture.serve")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--store", choices=STORES, help="a store that does not keep its promise")
    parser.add_argument("--crash", metavar="POINT", help="end there")
    parser.add_argument("--nth", type=int, default=1, help="at which pass")
    parser.add_argument("--armed", action="store_true", help="count from the start of the process")
    options = parser.parse_args()
    die_with(options.parent)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(options))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even while it is stopped."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the parent is gone already")


async def run(options: argparse.Namespace) -> None:
    """Start the system that the configuration describes and serve it."""
    settings = sources.here(options.config)
    logs.configure(settings.log_level, settings.log_format)
    listener = bind(settings)
    trigger = Trigger(options.crash, options.nth, armed=options.armed)
    runtime = composed(settings, url_of(listener), options, trigger)

    def announce(_: Orchestrator, url: str) -> None:
        unfinished = options.ready.with_suffix(".tmp")
        unfinished.write_text(url)
        unfinished.rename(options.ready)
        trigger.armed = True

    await serve(runtime, settings, listener, ready=announce)


def composed(
    settings: Settings, url: str, options: argparse.Namespace, trigger: Trigger
) -> Runtime:
    """Return the product's runtime, with the parts that were asked for in place of its own."""
    if options.store is not None:
        return Runtime(
            settings, url=url, store=STORES[options.store](store_file(settings), url=url)
        )
    if options.crash is None:
        return Runtime(settings, url=url)
    file = store_file(settings)
    store: PointedSqlite | PointedPostgres
    if file is not None:
        store = PointedSqlite(file, trigger, url=url)
    else:
        assert settings.database_url is not None
        lease = settings.lease_seconds
        store = PointedPostgres(settings.database_url, trigger, lease_seconds=lease)
    runtime = Runtime(
        settings,
        url=url,
        store=store,
        journal=lambda store: PointedJournal(store, trigger),
        drivers=[PointedDriver(trigger)],
    )
    if isinstance(store, PointedPostgres):
        store.on_lost = runtime.lost
    return runtime


if __name__ == "__main__":
    main()

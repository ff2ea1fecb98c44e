"""circus: an arbiter in this process, and sleeping processes until all of them run.

Its arbiter is up before the clock starts, with its sockets; ``check_delay`` is its default and no
hook is set, so what is timed is ``add_watcher`` and ``start``. ``--watchers each`` gives every
process a watcher of its own, which is what agents are: each has its own command, environment and
state. ``--watchers one`` is one watcher with ``numprocesses``, copies of one command. ``--output``
has it read what they write, as an agent's output must be; without it they write to its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from importlib.metadata import version
from typing import Any

import tornado.ioloop  # type: ignore[import-not-found]
from circus.arbiter import Arbiter  # type: ignore[import-not-found]

from bench.load import Run, arguments, report


class Sink:
    """Where what a process writes is taken to: nowhere."""

    def __call__(self, data: Any) -> None:
        """Take a piece."""

    def close(self) -> None:
        """Take no more."""


def name_of(pid: int) -> str:
    """Return what a process is; empty when it is none."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def watchers(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """Return the watchers' names and settings."""
    count = run.options.processes
    more: dict[str, Any] = {}
    if run.options.output:
        more = {"stdout_stream": {"stream": Sink()}, "stderr_stream": {"stream": Sink()}}
    if run.options.watchers == "one":
        return [("sleep", {**more, "numprocesses": count})]
    return [(f"sleep-{n}", more) for n in range(count)]


async def measure(run: Run) -> None:
    """Start them once; a second time would time the removal of the first ones, too."""
    loop = tornado.ioloop.IOLoop.current()
    arbiter = Arbiter([], "tcp://127.0.0.1:0", "tcp://127.0.0.1:0", loop=loop)
    await arbiter.start()
    begun = time.perf_counter()
    for name, settings in watchers(run):
        arbiter.add_watcher(name, "/bin/sleep", args="1000", **settings)
    await arbiter.start_watchers()
    pids = [pid for watcher in arbiter.iter_watchers() for pid in watcher.processes]
    if len(pids) != run.options.processes:
        raise SystemExit("not all were started")
    left = pids
    while left := [pid for pid in left if name_of(pid) != "sleep"]:
        await asyncio.sleep(0.001)
    took = time.perf_counter() - begun
    report(
        {
            "per_second": round(run.options.processes / took, 1),
            "p50_ms": round(took * 1e3, 2),
            "p99_ms": round(took * 1e3, 2),
            "counted": 1,
            "version": version("circus"),
        }
    )
    # Its own stop is not what is measured, and it would start them again.
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def options(parser: argparse.ArgumentParser) -> None:
    """Add what this contender is asked beyond the others."""
    parser.add_argument("--processes", type=int, default=200, help="how many")
    parser.add_argument("--watchers", choices=("each", "one"), default="each")
    parser.add_argument("--output", action="store_true", help="read what they write")


if __name__ == "__main__":
    asyncio.run(measure(arguments("start processes under circus", options)))

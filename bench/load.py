"""The closed loop that every in-process contender runs, and the line it prints.

``callers`` tasks call, wait for the answer, and call again. What ends before ``warm`` seconds have
passed is not counted; what ends in the ``seconds`` after that is. Only the standard library is
used, so that the peers' environment can run this file too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

CALLERS = 64
TEXT = "The quick brown fox jumps over the lazy dog; then it sits down and writes a report. " * 3
"""What is echoed: one text of 252 bytes, the same for every contender."""


@dataclass
class Load:
    """What a closed loop saw: latencies (s) of the counted calls, and the count of all of them."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    total: int = 0
    cpu: float = 0.0

    def line(self) -> dict[str, Any]:
        """Return the measured part of a contender's line."""
        self.latencies.sort()
        count = len(self.latencies)
        return {
            "per_second": round(count / self.seconds, 1),
            "p50_ms": round(percentile(self.latencies, 0.50) * 1e3, 6),
            "p99_ms": round(percentile(self.latencies, 0.99) * 1e3, 6),
            "counted": count,
            "total": self.total,
            "cpu_us_per_task": round(self.cpu / count * 1e6, 1) if count else None,
        }


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which ``share`` of the ordered values lie (nearest rank)."""
    if not ordered:
        return float("nan")
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


async def closed_loop(
    call: Callable[[int], Awaitable[object]], *, callers: int, warm: float, seconds: float
) -> Load:
    """Run ``call(caller)`` from ``callers`` tasks until the time is over; every call is awaited."""
    load = Load(seconds)
    clock = time.perf_counter
    begin = clock() + warm
    end = begin + seconds
    latencies = load.latencies

    async def caller(number: int) -> None:
        while (start := clock()) < end:
            await call(number)
            done = clock()
            load.total += 1
            if begin <= done < end:
                latencies.append(done - start)

    async def meter() -> None:
        await asyncio.sleep(warm)
        before = time.process_time()
        await asyncio.sleep(seconds)
        load.cpu = time.process_time() - before

    await asyncio.gather(meter(), *(caller(number) for number in range(callers)))
    return load


@dataclass(frozen=True)
class Run:
    """How a contender was asked to run."""

    warm: float
    seconds: float
    callers: int
    directory: Path
    options: argparse.Namespace


def arguments(description: str, *more: Callable[[argparse.ArgumentParser], object]) -> Run:
    """Parse what the harness passes to every contender, and what ``more`` adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--warm", type=float, default=2.0, help="seconds before counting begins")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds that are counted")
    parser.add_argument("--callers", type=int, default=CALLERS, help="concurrent callers")
    parser.add_argument("--directory", type=Path, help="where the databases are made")
    parser.add_argument("--database", help="an empty PostgreSQL database, where one is needed")
    for add in more:
        add(parser)
    given = parser.parse_args()
    directory = given.directory or Path(tempfile.gettempdir())
    return Run(given.warm, given.seconds, given.callers, directory, given)


@contextlib.contextmanager
def scratch(run: Run) -> Iterator[Path]:
    """Yield a directory of this run's own, removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="retinue-bench-", dir=run.directory))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def count_rows(database: Path, *tables: str) -> dict[str, int]:
    """Count the rows of some tables, through a connection of its own."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        return {t: db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables}


def disk_bytes(database: Path) -> int:
    """Return the size of the data in ``database``, the write-ahead log folded in."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    return int(pages) * int(size)


def expect(what: str, found: int, wanted: int) -> None:
    """Stop the contender when its database does not hold what it acknowledged."""
    if found != wanted:
        raise SystemExit(f"{what}: the database holds {found}, acknowledged were {wanted}")


def peak_mb() -> float:
    """Return the most memory this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def report(line: dict[str, Any]) -> None:
    """Print the contender's one line, its memory included."""
    line.setdefault("rss_mb", peak_mb())
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def skip(reason: str) -> NoReturn:
    """Say that this contender cannot run here, and leave."""
    report({"skipped": reason})
    raise SystemExit(0)

"""The power cut: the store lies on a disk of its own, and loses what was not synced.

The server is stopped where it stands, the disk is copied as the cut would leave it, the server is
killed, and the copy becomes the disk that the next one starts on. Both journals lie elsewhere.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from torture import ledger
from torture.checker import Violation
from torture.image import Image
from torture.rig import Rig, until
from torture.servers import Server


async def sweep(rig: Rig, image: Image, cuts: int) -> list[Violation]:
    """Cut the power ``cuts`` times under load; return what was wrong with the disks."""
    (server,) = rig.servers
    found: list[Violation] = []
    for number in range(1, cuts + 1):
        await rig.pause()
        await cut(rig, image, server)
        if (fault := await asyncio.to_thread(integrity, rig.data)) is not None:
            found.append(Violation("integrity", f"cut {number}", fault))
        if (fault := await ledger.verify(rig.database)) is not None:
            found.append(Violation("verify", f"cut {number}", fault))
        killed = time.monotonic()
        await rig.start(server)
        await rig.progress()
        rig.answered.append(rig.client.last_at - killed)
    return found


async def cut(rig: Rig, image: Image, server: Server) -> None:
    """Take the power away from the server and its disk."""
    await rig.progress()  # what was just acknowledged is what may be lost
    server.freeze()
    await until("every thread stands still", lambda: _stopped(server.pid))
    await asyncio.to_thread(image.copy)
    rig.kill(server)
    rig.cuts += 1
    await asyncio.to_thread(image.switch)


async def _stopped(pid: int) -> bool:
    """Whether no thread of a process runs any more, or still waits for the disk."""
    return await asyncio.to_thread(_states, pid) == {"T"}


def _states(pid: int) -> set[str]:
    """Return the states of a process's threads."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return {(t / "stat").read_text().rpartition(")")[2].split()[0] for t in threads}


def integrity(data: Path) -> str | None:
    """Return what SQLite's own check finds wrong with the store in ``data``."""
    with closing(sqlite3.connect(data / "retinue.db")) as db:
        try:
            said = [row[0] for row in db.execute("PRAGMA integrity_check")]
        except sqlite3.DatabaseError as error:
            return str(error)
    return None if said == ["ok"] else "; ".join(said[:3])

"""Who has a PostgreSQL store open: the workers' rows say what the lock file says of SQLite's.

Asked without becoming a worker: no epoch begins and nothing is migrated. A row outlives a process
that was killed until its lease runs out, so whoever means to use one asks at its URL as well.
"""

from __future__ import annotations

import contextlib
import platform

import asyncpg

from retinue.domain.holder import Holder
from retinue.storage.link import connect, translate
from retinue.storage.sql import CLOCK

_CLOSE_SECONDS = 1.0
_LIVING = f"""
    SELECT pid, url, node, id FROM worker WHERE stopped_at IS NULL AND lease_until > {CLOCK}
    ORDER BY started_at DESC, id DESC
"""


async def read_workers(dsn: str) -> list[Holder]:
    """Return the living workers of a database, the youngest first; none where there is no schema.

    Raises:
        StoreUnavailable: it does not answer.
    """
    here = platform.node()
    db = await connect(dsn)
    try:
        rows = await db.fetch(_LIVING)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        return []  # nobody has opened it with this version yet
    except Exception as error:
        ours = translate(error)
        raise ours from (error if ours is not error else None)
    finally:
        with contextlib.suppress(Exception):
            await db.close(timeout=_CLOSE_SECONDS)
    return [
        Holder(pid, url, worker=worker, node=node if node != here or not here else None)
        for pid, url, node, worker in rows
    ]

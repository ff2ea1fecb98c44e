"""One connection to PostgreSQL: how it is made, and what its errors mean.

Connections are dedicated: one writes, a few read, one renews the lease. None is ever borrowed
from a pool for a single statement.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg

from retinue.errors import (
    Conflict,
    InvalidInput,
    RetinueError,
    StoreFull,
    StoreMissing,
    StoreUnavailable,
    Unavailable,
    WorkerLost,
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Connect: TypeAlias = Callable[[], Awaitable[Connection]]

CONNECT_SECONDS = 2.0
"""How long a connection may take to come about."""

_STATEMENT_SECONDS = 15.0
_HOST = re.compile(r"^(\[[^]]*\]|[^:,]*)(?::(\d+))?")

_SETTINGS = {
    "application_name": "retinue",
    "synchronous_commit": "on",
    "jit": "off",
}
# A writer's statements find rows by key. Its plans must not turn into scans of whole tables while
# the planner's statistics lag behind, and need not be made anew each time.
_WRITER_SETTINGS = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}


class Fault(Enum):
    """Whose fault an error is, and so what to do about it."""

    LOST = auto()
    """The connection or the server went away: connect again, then repeat."""
    AGAIN = auto()
    """A conflict between transactions: repeat."""
    FULL = auto()
    """There is no space."""
    INTENT = auto()
    """Something in one of the intents: try them one by one."""
    STORE = auto()
    """Anything else the server says no to."""


_LOST = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03", "25P04", "25006"})
_AGAIN = frozenset({"40001", "40P01", "55P03", "0A000"})


def fault_of(error: BaseException) -> Fault:
    """Say what kind of error it is."""
    if isinstance(error, Unavailable | WorkerLost):
        return Fault.STORE
    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate)
        if state in _LOST or state.startswith("08"):
            return Fault.LOST
        if state in _AGAIN:
            return Fault.AGAIN
        if state == "53100":
            return Fault.FULL
        return Fault.INTENT if state[:2] in {"22", "23"} else Fault.STORE
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError | OSError):
        return Fault.LOST
    return Fault.INTENT


def translate(error: Exception) -> Exception:
    """Return our error for one of the driver's; others are returned as they are."""
    if isinstance(error, RetinueError):
        return error
    fault = fault_of(error)
    if fault is Fault.FULL:
        return StoreFull()
    if fault is Fault.INTENT:
        if isinstance(error, asyncpg.IntegrityConstraintViolationError):
            return Conflict(f"the store refuses a record: {error}")
        if isinstance(error, asyncpg.DataError | OverflowError | UnicodeError):
            return InvalidInput(f"the store cannot hold a value: {error}")
        return error
    said = str(error) or type(error).__name__
    return StoreUnavailable(f"the store does not answer: {said}; nothing was acknowledged")


async def connect(dsn: str, *, writer: bool = False, idle_seconds: float = 0.0) -> Connection:
    """Connect to the server.

    Args:
        dsn: where it is.
        writer: this connection writes batches.
        idle_seconds: end a transaction that stands still for so long, so that the locks of a
            process that was stopped in the middle of a batch do not stop everybody else.

    Raises:
        StoreUnavailable: the address makes no sense, or nothing answers there; the message names
            the host and the database, never the password.
        StoreMissing: the server answers, and has no such database.
    """
    settings = dict(_SETTINGS)
    if writer:
        settings |= _WRITER_SETTINGS
    if idle_seconds:
        settings["idle_in_transaction_session_timeout"] = str(int(idle_seconds * 1000))
    try:
        return await asyncpg.connect(
            dsn,
            timeout=CONNECT_SECONDS,
            command_timeout=_STATEMENT_SECONDS,
            statement_cache_size=256,
            max_cached_statement_lifetime=0,
            server_settings=settings,
        )
    except ValueError as error:
        raise StoreUnavailable(f"the address of the database is not valid: {error}") from error
    except asyncpg.InvalidCatalogNameError as error:
        raise StoreMissing(
            f"there is no database {_place(dsn)}", details={"command": creation(dsn)}
        ) from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        said = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        raise StoreUnavailable(
            f"the database {_place(dsn)} does not answer: {said}; nothing was acknowledged"
        ) from error


def _place(dsn: str) -> str:
    """Return the name and the hosts of a database."""
    name, hosts = _named(dsn)
    return f"{shlex.quote(name) if name else '(default)'} at {hosts or 'localhost'}"


def _named(dsn: str) -> tuple[str, str]:
    """Return the name of a database and its hosts, as far as the address says them."""
    parts = urlsplit(dsn)
    given = dict(parse_qsl(parts.query))
    hosts = parts.netloc.rpartition("@")[2] or given.get("host", "")
    if "port" in given and ":" not in hosts:
        hosts = f"{hosts}:{given['port']}"
    return given.get("dbname") or unquote(parts.path.lstrip("/")), hosts


def creation(dsn: str) -> str:
    """Return the command that creates a database; it asks for the password where one is needed."""
    parts = urlsplit(dsn)
    user = unquote(parts.username or "") or dict(parse_qsl(parts.query)).get("user", "")
    name, hosts = _named(dsn)
    host, port = _HOST.findall(hosts)[0]
    given = {"-h": host.strip("[]"), "-p": port, "-U": user}
    words = [word for option, value in given.items() if value for word in (option, value)]
    return shlex.join(["createdb", *words, *([name] if name else [])])


@lru_cache(maxsize=512)
def numbered(sql: str) -> str:
    """Turn the ``?`` of a portable query into the ``$n`` of PostgreSQL."""
    parts = re.split(r"\?", sql)
    return "".join(f"{part}${i}" for i, part in enumerate(parts[:-1], 1)) + parts[-1]


class Readers:
    """A few connections for reading, handed out one query at a time."""

    def __init__(self, connect: Connect, count: int) -> None:
        self._connect = connect
        # The last one back goes out first: its connection is the least likely to have died.
        self._free: asyncio.LifoQueue[Connection | None] = asyncio.LifoQueue()
        self._open: set[Connection] = set()
        self._closed = False
        for _ in range(count):
            self._free.put_nowait(None)

    async def fetch(self, sql: str, values: Sequence[Any]) -> list[Any]:
        """Run one query; once more, on a fresh connection, when the connection was lost."""
        connection = await self._free.get()
        try:
            if connection is not None and not connection.is_closed():
                try:
                    return await connection.fetch(sql, *values)
                except Exception as error:
                    if fault_of(error) is not Fault.LOST:
                        raise
            if connection is not None:
                self._drop(connection)
                connection = None
            if self._closed:
                raise StoreUnavailable("the store is closed")
            connection = await self._connect()
            self._open.add(connection)
            return await connection.fetch(sql, *values)
        finally:
            self._free.put_nowait(connection)

    def _drop(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.terminate()

    def close(self) -> None:
        """Drop the connections, whatever they are doing, and make no more."""
        self._closed = True
        for connection in list(self._open):
            self._drop(connection)

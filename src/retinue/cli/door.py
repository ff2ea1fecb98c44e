"""Who is asked: a server that runs, or the local store in this process.

In this order: the URL that is named (``--url``, ``RETINUE_URL``), the server on this machine that
has the store open (the lock file says where it serves, or its row in PostgreSQL), else nobody
but us.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

import typer

from retinue.cli import output
from retinue.errors import NotFound, RetinueError, StoreLocked, StoreMissing, Unavailable

if TYPE_CHECKING:
    from retinue.cli.client import Client
    from retinue.domain.holder import Holder
    from retinue.settings import Settings

T = TypeVar("T")
Power = Literal["read", "change", "work", "server"]
"""What a command needs: to read the store, to change it, to perform tasks, or a server."""
LOCK_SECONDS = 10.0
_LOOK_SECONDS = 0.05


def ask(
    command: Callable[[Client], Awaitable[T]],
    *,
    url: str | None,
    config: Path | None,
    power: Power = "read",
) -> T:
    """Run ``command`` with a client and return what it returns; an error ends the program."""

    async def run() -> T:
        async with client(url, config, power) as found:
            return await command(found)

    return complete(run)


def complete(program: Callable[[], Awaitable[T]], *, fast: bool = False) -> T:
    """Run an asynchronous program to its end; an error or Ctrl-C ends this one.

    ``fast`` takes uvloop where there is one: worth its import for a server only.
    """

    async def run() -> T:
        return await program()

    try:
        with asyncio.Runner(loop_factory=_uvloop() if fast else None) as runner:
            return runner.run(run())
    except RetinueError as error:
        output.fail(error, advice(error))
    except KeyboardInterrupt:
        raise typer.Exit(output.INTERRUPTED) from None


@asynccontextmanager
async def client(url: str | None, config: Path | None, power: Power) -> AsyncIterator[Client]:
    """Yield a client of whoever is to be asked.

    Raises:
        RetinueError: the settings are not valid, the store is locked, or a server is needed.
    """
    from retinue import settings
    from retinue.cli.client import connect

    caller = settings.caller(url)
    async with AsyncExitStack() as stack:
        if caller.url is not None:
            found = connect(caller.url, caller.api_key)
        else:
            found = await _found(stack, prepared(config), power, caller.api_key)
        yield await stack.enter_async_context(found)


async def _found(
    stack: AsyncExitStack, here: Settings, power: Power, api_key: str | None
) -> Client:
    """Return a client of the server that has the local store open, or of the store itself.

    A process that has it open without serving is a command like this one: it is waited for.
    """
    from retinue.cli.client import connect

    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        holder = await holder_of(here)
        if holder is not None and holder.url is not None:
            return connect(holder.url, api_key)
        try:
            if holder is not None:
                raise StoreLocked(
                    f"process {holder.pid} has this store open ({here.data_dir})",
                    details={"pid": holder.pid, "url": None},
                )
            if power == "server":
                raise Unavailable(_no_server(here))
            return await _local(stack, here, power)
        except StoreLocked:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(_LOOK_SECONDS)


def holder_at(here: Settings) -> Holder | None:
    """Return who on this machine serves the store at the port of the settings.

    What else a SQLite store is held by, and so cannot be opened, counts as well.
    """
    with contextlib.suppress(RetinueError):
        return asyncio.run(holder_of(here, at=here.port))
    return None


async def holder_of(here: Settings, *, at: int | None = None) -> Holder | None:
    """Return who on this machine has the store open.

    Of those that share it only one that serves, at the port ``at`` where that is given.

    Raises:
        StoreUnavailable: PostgreSQL does not answer.
    """
    from retinue.runtime import holders_of

    for holder in await holders_of(here):
        if holder.worker is None:
            return holder
        if at in {None, port_of(holder)} and await serves(holder):
            return holder
    return None


def port_of(holder: Holder) -> int | None:
    """Return the port at which a process serves; None: it serves nowhere."""
    return urlsplit(holder.url).port if holder.url is not None else None


async def serves(holder: Holder) -> bool:
    """Say whether a worker of PostgreSQL serves on this machine, and is there to answer."""
    from retinue.cli.client import connect

    if holder.node is not None or holder.url is None or holder.worker is None:
        return False
    async with connect(holder.url, None) as asked:
        return await asked.serves(holder.worker)


def _no_server(here: Settings) -> str:
    from retinue.runtime import is_shared

    if is_shared(here):
        return (
            "this needs a running server, and there is none on this machine: `retinue serve`, or"
            " name the one to ask with --url (RETINUE_URL)"
        )
    return "this needs a running server, and there is none: `retinue serve`"


async def _local(stack: AsyncExitStack, here: Settings, power: Power) -> Client:
    from retinue.cli import logs
    from retinue.cli.embedded import opened

    # The command itself says what went wrong; the log is for who asks for it.
    level = here.log_level if "log_level" in here.model_fields_set else "critical"
    logs.configure(level, here.log_format)
    if power == "work" and sys.stderr.isatty():
        output.note(f"no server runs here: done in this process, recorded in {_place(here)}")
    return await stack.enter_async_context(opened(_existing(here, power), working=power == "work"))


def _place(here: Settings) -> str:
    from retinue.runtime import store_file
    from retinue.settings import without_password

    return str(store_file(here) or without_password(here.database_url or ""))


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def prepared(config: Path | None, **options: object) -> Settings:
    """Return the settings; agents named in a configuration file can be imported from beside it.

    Raises:
        SettingsError: something is not valid.
    """
    from retinue import settings

    return _importable(config, settings.here(config, **options))


def looked_at(config: Path | None) -> tuple[Settings, list[str]]:
    """Return the settings as far as they are there, and which variables agents lack.

    Raises:
        SettingsError: something else is not valid.
    """
    from retinue import settings

    found, absent = settings.looked_at(config)
    return _importable(config, found), absent


def _importable(config: Path | None, found: Settings) -> Settings:
    from retinue import settings

    path = settings.find_config(config, Path.cwd())
    if path is not None and any(isinstance(a, settings.AgentReference) for a in found.agents):
        # The operator's own file, so the modules beside it are the operator's, too. Without one of
        # them nothing is imported from there: commands may work in that directory.
        sys.path.insert(0, str(path.parent.absolute()))
    return found


def _existing(found: Settings, power: Power) -> Settings:
    """Return the settings for a command that must not make a store just to read it."""
    from retinue.runtime import store_file

    path = store_file(found)
    if power != "read" or path is None or path.exists():
        return found
    output.note(f"there is no store at {path} yet")
    return found.model_copy(update={"database_url": "sqlite://"})


def require_store(config: Path | None) -> None:
    """Refuse to go on where there is nothing to look at.

    Raises:
        NotFound: the local store's file is not there.
    """
    from retinue.runtime import store_file

    path = store_file(prepared(config))
    if path is not None and not path.exists():
        raise NotFound(f"there is no store at {path}")


def advice(error: RetinueError) -> str | None:
    """Return what to do about a store that cannot be used; None: nothing that this one knows."""
    if isinstance(error, StoreMissing) and "command" in error.details:
        return f"create it: {error.details['command']}"
    if not isinstance(error, StoreLocked):
        return None
    where = error.details.get("url")
    if where:
        return f"use it as it is: {where}; or stop process {error.details.get('pid')}"
    return "wait until it has ended; `retinue serve` lets many commands share one store"

"""Serving: bind, start, serve, and stop in the order that loses nothing.

uvicorn's own order would be wrong for us: it waits for open streams for ever, or cuts them. So
the signals are ours. At the first one new tasks are refused while everything else goes on being
answered; what runs gets the grace period; then the streams end in order, the server stops, and
the store closes. A second signal ends the process at once: all that was acknowledged is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import uvicorn

from retinue.errors import RetinueError, SettingsError
from retinue.orchestrator import Orchestrator
from retinue.server import files
from retinue.server.app import create_app
from retinue.server.protocol import BoundedProtocol, Crowd
from retinue.server.routing import Patience
from retinue.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 2048
SEND_BUFFER = 256 * 1024
CLOSE_SECONDS = 5
YOUNG_OBJECTS = 10_000
KEEP_ALIVE_SECONDS = 65


class Startable(Protocol):
    """What is served: a runtime."""

    async def start(self) -> Orchestrator:
        """Start the system."""
        ...

    async def failed(self) -> RetinueError:
        """Return once it cannot go on: why."""
        ...

    async def stop(self, grace: float | None = None) -> bool:
        """Stop it; what runs gets ``grace`` seconds."""
        ...


# -- binding -----------------------------------------------------------------------------------


def bind(settings: Settings) -> socket.socket:
    """Return a listening socket for ``settings.host`` and ``settings.port``.

    Call it before the store is opened: a port that is taken is then found out in time.

    Raises:
        SettingsError: nothing can listen there; the message names host, port and reason.
    """
    place = f"{settings.host}:{settings.port}"
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise SettingsError(f"cannot listen on {place}: {error.strerror or error}") from None
    # A name for both families means IPv4: that is what a reader of the URL tries first.
    family, kind, protocol, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. The kernel's own growing buffers would keep megabytes for each
        # reader that takes nothing.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            reason = "the port is in use already"
        raise SettingsError(f"cannot listen on {place}: {reason}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL at which this machine reaches the server."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Say whether only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


# -- serving -----------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with a word when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none: they are ours."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.listening.set()


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """Yield what the first SIGTERM or SIGINT sets; a second one ends the process at once."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def heard(number: int) -> None:
        if asked.is_set():
            log.warning("second signal: stopping at once")
            os._exit(128 + number)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard, number)
    try:
        yield asked
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def serve(
    runtime: Startable,
    settings: Settings,
    listener: socket.socket,
    *,
    ready: Callable[[Orchestrator, str], None] | None = None,
    stop: asyncio.Event | None = None,
    patience: Patience | None = None,
    bench_echo: bool = False,
) -> None:
    """Start ``runtime`` and serve it on ``listener`` until a signal asks to stop.

    ``ready`` is called with the orchestrator and the URL once requests are answered. With
    ``stop`` that event asks to stop, and signals are left alone. On return everything is stopped
    and closed.

    Raises:
        SettingsError: the address can be reached from elsewhere and there is no API key.
        RetinueError: the system cannot be started, or cannot go on.
    """
    asking = contextlib.nullcontext(stop) if stop is not None else _signals()
    if stop is None:
        files.raise_limit()
    with contextlib.closing(listener), asking as asked:
        orchestrator = await runtime.start()
        failing = asyncio.create_task(runtime.failed())
        try:
            loopback = is_loopback(listener)
            if not loopback and not await orchestrator.keys.active():
                raise SettingsError(
                    f"{settings.host} can be reached from other machines and there is no API key:"
                    " create one first (`retinue key create NAME --role admin`),"
                    " or listen on 127.0.0.1"
                )
            app = create_app(
                orchestrator,
                settings,
                loopback=loopback,
                patience=patience,
                bench_echo=bench_echo,
            )
            if stop is None:
                _spare_the_collector()
            server = _Server(_config(app, patience or Patience()))
            serving = asyncio.create_task(server.serve([listener]))
            await _first(serving, server.listening)
            if ready is not None and not serving.done():
                ready(orchestrator, url_of(listener))
            await _first(serving, asked, failing)
            if failing.done():
                log.critical("stopping: %s", failing.result().message)
                orchestrator.close_streams()
            elif not serving.done():
                await _drain(orchestrator, settings.grace_seconds)
            server.should_exit = True
            await serving
            if failing.done():
                raise failing.result()
        finally:
            failing.cancel()
            await runtime.stop(0)


def _spare_the_collector() -> None:
    """Keep the garbage collector from walking what lives as long as this process does.

    Only where the process is the server's own: the setting is the process's. Modules and start-up
    state are some 200,000 objects, and every request in flight is young but not yet garbage; both
    were looked at again and again (a tenth of the loop's time under load).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)


async def _drain(orchestrator: Orchestrator, grace: float) -> None:
    log.info("stopping: no new tasks; what runs gets %g s", grace)
    clean = await orchestrator.drain(grace)
    if not clean:
        log.warning("the grace period is over; what still ran was stopped")
    orchestrator.close_streams()


async def _first(
    serving: asyncio.Task[None], event: asyncio.Event, *others: asyncio.Task[Any]
) -> None:
    """Return when ``event`` is set, or the server or another task has ended."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({serving, waiting, *others}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _config(app: object, patience: Patience) -> uvicorn.Config:
    class Protocol(BoundedProtocol):
        send_seconds = patience.send
        most_connections = files.connections()
        most_refused = files.spare()
        crowd = Crowd()

    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        forwarded_allow_ips=[],
        workers=1,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )

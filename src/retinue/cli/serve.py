"""``retinue serve``: the server, in the foreground."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retinue.cli import output
from retinue.cli.door import complete, holder_at, prepared
from retinue.cli.options import Config
from retinue.errors import RetinueError, SettingsError

if TYPE_CHECKING:
    from socket import socket

    from retinue.orchestrator import Orchestrator
    from retinue.runtime import Runtime
    from retinue.settings import Settings

log = logging.getLogger(__name__)
STUBBORN_SECONDS = 2.0


def serve(
    host: Annotated[
        str | None, typer.Option(help="The address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The port; 0 takes any free one.", show_default="8888")
    ] = None,
    config: Config = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="The directory of the SQLite store.", show_default=".retinue"),
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(help="Another store: sqlite:///path, postgresql://…", show_default=False),
    ] = None,
    no_examples: Annotated[
        bool, typer.Option("--no-examples", help="Leave the example agents out.")
    ] = False,
    stdio: Annotated[
        bool,
        typer.Option(
            "--stdio",
            help="Not over HTTP: speak JSON lines on stdin and stdout, as a program's subprocess.",
        ),
    ] = False,
) -> None:
    """Serve agents over HTTP until Ctrl-C or SIGTERM."""
    from retinue.cli import logs
    from retinue.settings import here

    pipes = _take_stdio() if stdio else None

    options: dict[str, object] = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "database_url": database_url,
        "examples": False if no_examples else None,
    }
    try:
        settings = prepared(config, **options)
    except RetinueError as error:
        output.fail(error)
    logs.configure(settings.log_level, settings.log_format)
    if pipes is not None:
        _serve_stdio(settings, pipes)
        return
    listener = _bind(settings)
    complete(lambda: _serve(settings, listener, lambda: here(config, **options)), fast=True)


def _take_stdio() -> tuple[int, int]:
    from retinue.sdk.output import take_stdio

    return take_stdio()


def _serve_stdio(settings: Settings, pipes: tuple[int, int]) -> None:
    from retinue.cli import stdio

    async def run() -> None:
        await stdio.serve(settings, pipes)
        await _leave()

    complete(run, fast=True)


def _bind(settings: Settings) -> socket:
    from retinue.server.serve import bind

    try:
        return bind(settings)
    except SettingsError as error:
        holder = holder_at(settings)
        if holder is not None and holder.url is not None:
            advice = f"process {holder.pid} serves this very store at {holder.url}: use that"
        elif "in use" in error.message:
            advice = "stop what listens there, or take another port: --port 0 takes any free one"
        else:
            advice = "give an address of this machine: --host 127.0.0.1 is the usual one"
        output.complain(error.code, error.message, advice)
        raise typer.Exit(output.FAILED) from None


async def _serve(settings: Settings, listener: socket, reread: Callable[[], Settings]) -> None:
    from retinue.runtime import Runtime, exposed
    from retinue.server import serve as serving

    for found in exposed(settings):
        log.warning("%s; %s", found.text, found.advice)
    runtime = Runtime(settings, url=serving.url_of(listener), reread=reread)

    def ready(_: Orchestrator, url: str) -> None:
        if settings.log_format == "json":
            log.info("serving at %s", url)
        else:
            typer.echo("\n".join(banner(runtime, settings, url)))
            sys.stdout.flush()

    await serving.serve(runtime, settings, listener, ready=ready)
    log.info("stopped")
    await _leave()


async def _leave() -> None:
    """End the process although an agent swallows its cancellation.

    Everything is written and closed; a loop that is closed in order would wait for such a task
    for ever.
    """
    mine = asyncio.current_task()
    left = {task for task in asyncio.all_tasks() if task is not mine}
    for task in left:
        task.cancel()
    if not left:
        return
    _, stubborn = await asyncio.wait(left, timeout=STUBBORN_SECONDS)
    if stubborn:
        log.warning("%d tasks of agents ignore their cancellation: left behind", len(stubborn))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def banner(runtime: Runtime, settings: Settings, url: str) -> Iterator[str]:
    """Yield what a person should know: where it is, what it can do, and what to try."""
    from retinue import __version__
    from retinue.settings import without_password

    store = settings.database_url or str(settings.data_dir / "retinue.db")
    yield f"Retinue {__version__} at {url}"
    yield f"  API docs  {url}/docs"
    yield f"  store     {without_password(store)}"
    if settings.trace_enabled:
        yield f"  trace     {without_password(settings.trace_url)}"
    if settings.memagent_enabled:
        yield f"  memagent  {without_password(settings.memagent_url)}"
    names = {
        entry.agent_id: ", ".join(sorted(entry.capabilities)) for entry in runtime.engine.registry
    }
    width = max(map(len, names), default=0)
    heading = "agents"
    for agent_id, capabilities in names.items():
        yield f"  {heading:<8}  {agent_id:<{width}}  {capabilities}"
        heading = ""
    if not names:
        yield "  agents    none: name yours in retinue.yaml, `agents: [my_module:MyAgent]`"
    found = runtime.engine.recovered
    if found.requeued or found.failed or found.cancelled:
        yield (
            f"  recovered after a crash: {found.requeued} queued again,"
            f" {found.failed} failed (outcome unknown), {found.cancelled} cancelled"
        )
    reunion = runtime.engine.reunion
    for word, instances in (("re-attached", reunion.reattached), ("gone", reunion.gone)):
        if instances:
            agents = Counter(record.agent_id for record in instances)
            told = ", ".join(f"{agent} ({count})" for agent, count in sorted(agents.items()))
            yield f"  {word}, of what an earlier server had running: {told}"
    yield ""
    yield from _try(settings, url)


def _try(settings: Settings, url: str) -> Iterator[str]:
    usual = settings.database_url is None and settings.data_dir == Path.cwd() / ".retinue"
    where = "" if usual else f" --url {url}"
    retinue = "retinue" if shutil.which("retinue") else sys.argv[0]
    yield "Try, in this directory and another terminal (Ctrl-C here stops the server):"
    if not settings.examples:
        yield f"  {retinue} agent{where}"
        return
    task = '{"session_id": "test", "capability": "echo", "parameters": {"text": "hi"}}'
    yield f"  {retinue} run survey_repository path=.{where}"
    yield f"  {retinue} run review_repository path=. --follow{where}"
    yield f"  curl -X POST {url}/v1/orchestrate -H 'Content-Type: application/json' -d '{task}'"

"""``retinue doctor``: what stands in the way of a server here, and what to do about it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from retinue.cli import output
from retinue.cli.door import advice, holder_at, looked_at, port_of, serves
from retinue.cli.options import Config, Json
from retinue.errors import RetinueError, SettingsError

if TYPE_CHECKING:
    from retinue.domain.holder import Holder
    from retinue.runtime import Look
    from retinue.settings import CodingReference, CommandReference, Settings, WorkerReference

OLDEST_PYTHON = (3, 11)
OLDEST_SQLITE = (3, 35)
SLOW_SYNC_MS = 50.0
LITTLE_SPACE = 1 << 30
TOO_LITTLE_SPACE = 100 << 20


class Finding(NamedTuple):
    """One line: ok, warn or fail, about what, what was found, and what to do."""

    state: str
    subject: str
    text: str
    advice: str | None = None


def doctor(config: Config = None, json: Json = False) -> None:
    """Check this machine, the settings and the store; leave with 1 when something fails."""
    findings: list[Finding] = [_python(), _sqlite()]
    try:
        settings, absent = looked_at(config)
        findings += [Finding("fail", "settings", missing) for missing in absent]
        findings += [Finding("ok", "settings", "valid")] if not absent else []
        for check in CHECKS:
            findings.extend(check(settings))
        said = [finding.text for finding in findings]
        findings.extend(f for f in _together(settings) if not any(f.text in text for text in said))
    except RetinueError as error:
        findings.append(Finding("fail", "settings", error.message, "correct it, then look again"))
    if json:
        output.show({"findings": [finding._asdict() for finding in findings]})
    else:
        for finding in findings:
            _print(finding)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(output.FAILED)


def _print(finding: Finding) -> None:
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.state]
    typer.secho(f"{finding.state:<4}", fg=colour, nl=False)
    output.say(f"  {finding.subject:<10}  {finding.text}")
    if finding.advice:
        output.say(f"                  {finding.advice}")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= OLDEST_PYTHON:
        return Finding("ok", "python", version)
    return Finding("fail", "python", version, "install Python 3.11 or newer")


def _sqlite() -> Finding:
    if sqlite3.sqlite_version_info >= OLDEST_SQLITE:
        return Finding("ok", "sqlite", sqlite3.sqlite_version)
    return Finding("fail", "sqlite", sqlite3.sqlite_version, "install SQLite 3.35 or newer")


def _data(settings: Settings) -> Iterator[Finding]:
    """Whether the store's directory can be written to, how fast, and how much fits."""
    from retinue.runtime import store_file

    path = store_file(settings)
    if path is None:
        return
    # The directory may not exist yet; then its nearest parent says whether it can be made.
    place = path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        advice = "set data_dir (RETINUE_DATA_DIR) to a directory"
        yield Finding("fail", "data", f"{place} is not a directory", advice)
        return
    try:
        milliseconds = _sync_ms(place)
    except OSError as error:
        advice = "give this user the right to write there, or set data_dir (RETINUE_DATA_DIR)"
        yield Finding("fail", "data", f"{place} cannot be written to: {error.strerror}", advice)
        return
    text = f"{path.parent} is writable, a sync takes {milliseconds:.1f} ms"
    slow = "every task waits for a sync: a faster disk makes a faster server"
    yield (
        Finding("ok", "data", text)
        if milliseconds < SLOW_SYNC_MS
        else Finding("warn", "data", text, slow)
    )
    free = shutil.disk_usage(place).free
    text = f"{free / (1 << 30):.1f} GiB free"
    if free < TOO_LITTLE_SPACE:
        yield Finding("fail", "space", text, "free some: nothing can be stored without")
    elif free < LITTLE_SPACE:
        yield Finding("warn", "space", text, "the record only grows: free some")
    else:
        yield Finding("ok", "space", text)


def _sync_ms(place: Path) -> float:
    """Return how long one small durable write takes: the median of five."""
    times = []
    with tempfile.TemporaryFile(dir=place) as file:
        for _ in range(5):
            begun = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begun)
    return sorted(times)[2] * 1000


def _store(settings: Settings) -> Iterator[Finding]:
    """Who has the store open; whether it can be opened where nobody on this machine serves it."""
    import asyncio

    from retinue.runtime import store_file
    from retinue.settings import without_password

    path = store_file(settings)
    where = str(path) if path is not None else without_password(settings.database_url or "")
    try:
        text = asyncio.run(_holding(settings, where))
    except RetinueError as error:
        usual = (
            "move the file away, or restore it from a backup"
            if path is not None
            else "start PostgreSQL, or correct database_url (DATABASE_URL)"
        )
        yield Finding("fail", "store", f"{where}: {error.message}", advice(error) or usual)
    else:
        yield Finding("ok", "store", text)


async def _holding(settings: Settings, where: str) -> str:
    """Return who has the store open, after a try to open it where that disturbs nobody.

    Raises:
        RetinueError: it cannot be opened.
    """
    from retinue.runtime import holders_of, open_store, store_file

    path = store_file(settings)
    found = await holders_of(settings)
    here = [one for one in found if one.worker is None or await serves(one)]
    said = [_held(one, away=one not in here) for one in found]
    if here:
        return "; ".join(said)
    if path is not None and not path.exists():
        return f"{path} will be made by the first use"
    store = open_store(settings)
    await store.open()
    await store.close()
    return f"{where} opens, {'; '.join(said) or 'nobody has it open'}"


def _held(holder: Holder, *, away: bool) -> str:
    """Return what one process does with the store; ``away``: it serves nobody on this machine."""
    who = f"process {holder.pid}" + (f" on {holder.node}" if holder.node is not None else "")
    if holder.url is None:
        return f"{who} has it open"
    if away and holder.node is None:
        return f"{who} was to serve it at {holder.url} and does not answer"
    return f"{who} serves it at {holder.url}"


def _port(settings: Settings) -> Iterator[Finding]:
    """Whether the port is free, and who may reach it."""
    from retinue.server.serve import bind, is_loopback

    try:
        listener = bind(settings)
    except SettingsError as error:
        holder = holder_at(settings)
        if holder is not None and port_of(holder) == settings.port:
            yield Finding("ok", "port", f"{settings.port} is our own server's, at {holder.url}")
        else:
            what = "stop what listens there, or set another port (ORCHESTRATOR_PORT)"
            yield Finding("fail", "port", error.message, what)
        return
    with listener:
        yield Finding("ok", "port", f"{settings.host}:{settings.port} is free")
        if not is_loopback(listener):
            what = "an API key must exist before it serves: `retinue key create NAME --role admin`"
            yield Finding("warn", "access", "other machines can reach that address", what)
        else:
            yield Finding("ok", "access", "only this machine can reach that address")


def _agents(settings: Settings) -> Iterator[Finding]:
    """Whether every agent that is named can be loaded."""
    from retinue.runtime import load_agent, remote_agent
    from retinue.settings import (
        CodingReference,
        CommandReference,
        HttpReference,
        WorkerReference,
    )

    for reference in settings.agents:
        if isinstance(reference, CommandReference):
            yield _command(reference)
            continue
        if isinstance(reference, CodingReference):
            continue  # see _coding
        if isinstance(reference, WorkerReference):
            yield _worker(reference)
            continue
        if isinstance(reference, HttpReference):
            try:
                capabilities = remote_agent(reference).capabilities
            except RetinueError as error:
                yield Finding("fail", "agent", error.message, "correct it in retinue.yaml")
            else:
                names = ", ".join(c.name for c in capabilities)
                text = f"{reference.agent_id} can do {names}, at {reference.endpoint}"
                yield Finding("ok", "agent", text)
            continue
        try:
            agent = load_agent(reference.agent, reference.arguments)
            names = ", ".join(c.name for c in agent.get_capabilities())
        except RetinueError as error:
            advice = "correct it in retinue.yaml; its module may lie beside that file"
            yield Finding("fail", "agent", error.message, advice)
        except Exception as error:
            text = f"{reference.agent}: get_capabilities() fails: {type(error).__name__}: {error}"
            yield Finding("fail", "agent", text, "correct the agent")
        else:
            yield Finding("ok", "agent", f"{agent.agent_id} can do {names or 'nothing'}")


def _command(reference: CommandReference) -> Finding:
    """Whether an agent that is a command line has its program, and where."""
    from retinue.process.environment import inherited
    from retinue.process.executable import directory, find
    from retinue.runtime import command_agent
    from retinue.settings import environment

    path = {**environment(inherited), **reference.environment}.get("PATH")
    try:
        capabilities = command_agent(reference).capabilities
        cwd = directory(str(reference.work_dir)) if reference.work_dir is not None else "/"
        program = find(reference.command[0], path, cwd)
        box = _in_box(reference)
    except RetinueError as error:
        text = f"{reference.agent_id}: {error.message}"
        return Finding("fail", "agent", text, "install it, or correct it in retinue.yaml")
    names = ", ".join(c.name for c in capabilities)
    text = f"{reference.agent_id} can do {names}, by {program}{box}"
    return Finding("ok", "agent", text)


def _in_box(reference: CommandReference | CodingReference | WorkerReference) -> str:
    """Return what to say of an agent's sandbox, if it has one; raises ``SpawnFailed``."""
    from retinue.process.environment import inherited
    from retinue.process.executable import find
    from retinue.process.sandbox import INSTALL
    from retinue.settings import environment

    if not reference.sandbox:
        return ""
    return f", in {find('bwrap', environment(inherited).get('PATH'), '/', INSTALL)}"


def _coding(settings: Settings) -> Iterator[Finding]:
    """Where each coding CLI is, which version it says it is, whether it has a credential."""
    from concurrent.futures import ThreadPoolExecutor

    from retinue.runtime import CODING_KINDS, look_at
    from retinue.settings import CodingReference

    named = [given for given in settings.agents if isinstance(given, CodingReference)]
    others = sorted(set(CODING_KINDS) - {given.driver for given in named})
    with ThreadPoolExecutor(max_workers=8) as pool:
        looks = pool.map(lambda given: look_at(given, settings), (*named, *others))
        for given, found in zip((*named, *others), looks, strict=True):
            yield _cli(found, given if isinstance(given, CodingReference) else None)


def _cli(found: Look, given: CodingReference | None) -> Finding:
    """Say what was found of one CLI, which an agent needs or nobody does."""
    name = found.kind if given is None or given.agent_id == found.kind else given.agent_id
    text = f"{name}: " if name != found.kind else ""
    if found.path is None:
        text += "no agent needs it; " if given is None else ""
        text += found.missing or "not found"
        return Finding("fail" if given is not None else "ok", found.kind, text, found.install)
    text += f"{found.version or 'no version'} at {found.path}, "
    text += f"credential: {found.credential or 'none found'}"
    try:
        text += _in_box(given) if given is not None else ""
    except RetinueError as error:
        return Finding("fail", found.kind, f"{text}; {error.message}")
    if found.doubt is not None:
        return Finding("warn", found.kind, text, found.doubt)
    if found.credential is None and given is not None and found.wanted:
        advice = f"give it one of {found.wanted} under environment in retinue.yaml, or a home"
        return Finding("warn", found.kind, text, advice)
    return Finding("ok", found.kind, text)


def _worker(reference: WorkerReference) -> Finding:
    """Whether a worker has its program, and where."""
    from retinue.process.environment import inherited
    from retinue.process.executable import directory, find
    from retinue.runtime.agents import worker
    from retinue.settings import environment

    path = {**environment(inherited), **reference.environment}.get("PATH")
    try:
        cwd = directory(str(reference.work_dir)) if reference.work_dir is not None else "/"
        program = find(worker(reference).config.command[0], path, cwd)
        box = _in_box(reference)
    except RetinueError as error:
        text = f"worker {reference.name}: {error.message}"
        return Finding("fail", "agent", text, "install it, or correct it in retinue.yaml")
    said = f"worker {reference.name} is run by {program}{box}; `retinue worker check` tries it"
    return Finding("ok", "agent", said)


def _exposed(settings: Settings) -> Iterator[Finding]:
    """Which agents could change what the next start reads."""
    from retinue.runtime import exposed

    for found in exposed(settings):
        yield Finding("warn", "agent", found.text, found.advice)


def _together(settings: Settings) -> Iterator[Finding]:
    """Find what a server would refuse at its start though each agent by itself is well."""
    import asyncio

    from retinue.runtime import Runtime

    async def gather() -> None:
        system = Runtime(settings.model_copy(update={"database_url": "sqlite://"}))
        await system.open()
        await system.close()

    try:
        asyncio.run(gather())
    except RetinueError as error:
        yield Finding("fail", "agents", error.message, "correct it in retinue.yaml")


def _survey(settings: Settings) -> Iterator[Finding]:
    """Whether the example surveyor has anything to read."""
    if settings.examples and not settings.survey_root.is_dir():
        text = f"survey_root {settings.survey_root} is not a directory"
        yield Finding("warn", "survey", text, "set it (RETINUE_SURVEY_ROOT) to one of yours")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _data,
    _store,
    _port,
    _agents,
    _coding,
    _exposed,
    _survey,
)

"""``retinue agent ps | logs | pause | resume | signal | stop | attach``: agents' processes."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli import output
from retinue.cli.door import ask
from retinue.cli.options import Config, Json, Limit, Url
from retinue.domain.ids import is_ulid
from retinue.errors import Conflict, InvalidInput, NotFound

if TYPE_CHECKING:
    from retinue.cli.client import Client

Which = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="The instance, or the execution or the agent whose only one it is.",
        show_default=False,
    ),
]
_PATH = "/v1/instances"
_SIGNALS = ("INT", "TERM", "HUP", "QUIT", "KILL", "USR1", "USR2", "STOP", "CONT")
_PIECE = 64 << 10
"""How much of a line is sent at one time."""
_LEFT = (
    ": what is lost was left by one that did; of that only what is to be kept running may still"
    " run, and the next `retinue serve` finds out"
)


def ps(
    agent: Annotated[
        str | None, typer.Option(help="Only this agent's.", show_default=False)
    ] = None,
    all_of_them: Annotated[
        bool, typer.Option("--all", "-a", help="Also those that have ended.")
    ] = False,
    limit: Limit = 20,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """List the processes that agents are, and what they use."""

    async def look(client: Client) -> Any:
        live = None if all_of_them else "true"
        answer = await client.get(_PATH, agent_id=agent, live=live, limit=limit)
        if client.local:
            lost = any(row["status"] == "lost" for row in answer["instances"])
            output.note("no server runs here" + (_LEFT if lost else ""))
        return answer

    answer = ask(look, url=url, config=config)
    if json:
        output.show(answer)
        return
    rows = answer["instances"]
    columns = ("instance_id", "agent_id", "pid", "status", "execution_id", "reason")
    shown = {"status": _standing, "execution_id": _work}
    output.table(
        (*columns, "silent s", "cpu %", "MB", "up s", "in", "out"),
        [
            (
                *(shown[name](row) if name in shown else row[name] for name in columns),
                _silent(row),
                row["cpu_usage"],
                row["memory_mb"],
                int(row["uptime_secs"]),
                row["messages_sent"],
                row["messages_received"],
            )
            for row in rows
        ],
    )
    if answer["total"] > len(rows):
        output.note(f"{len(rows)} of {answer['total']}; --limit shows more")


def _standing(row: dict[str, Any]) -> str:
    """Return an instance's status, and what is not well."""
    well = row["health"] in {None, "healthy"}
    return str(row["status"]) if well else f"{row['status']}, {row['health']}"


def _silent(row: dict[str, Any]) -> int | None:
    """Return for how many seconds nothing has come: of a worker's work, or at all."""
    secs = row["last_event_secs"] if row["driver"] == "stdio" else row["last_output_secs"]
    return int(secs) if secs is not None else None


def _work(row: dict[str, Any]) -> str | None:
    """Return what a process works on: the first of them, and how many more."""
    more = len(row["executions"]) - 1
    first: str | None = row["execution_id"]
    return f"{first} +{more}" if more > 0 else first


def logs(
    which: Which,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
    tail: Annotated[int, typer.Option(help="Bytes of what it wrote before.")] = 64 * 1024,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Show what an agent's process writes: stdout on stdout, stderr on stderr; also after its end.

    First all of the one, then of the other, unless it is followed: the order among them is not
    kept. Its terminal escapes are taken out; --json keeps them.
    """

    async def run(client: Client) -> None:
        path = f"{_PATH}/{await _id(client, which)}/log"
        if follow:
            async for piece in client.lines(path, tail=tail):
                _print(piece, json=json)
            return
        answer = await client.get(path, tail=tail)
        if json:
            output.show(answer)
            return
        for stream in ("stdout", "stderr"):
            _say_what_is_cut(stream, answer[f"{stream}_skipped"], answer[f"{stream}_dropped"])
            _print({"stream": stream, "text": answer[stream]}, json=False)

    ask(run, url=url, config=config)


def _say_what_is_cut(stream: str, skipped: int, dropped: int) -> None:
    """Say how much was written before what is shown."""
    if skipped:
        output.note(f"{stream}: {skipped} bytes before this are not shown; --tail shows more")
    if dropped:
        output.note(f"{stream}: its first {dropped} bytes are not kept any more")


def pause(which: Which, url: Url = None, config: Config = None, json: Json = False) -> None:
    """Stop an agent's process, and all it started, where it is."""
    _act("pause", which, url, config, json=json)


def resume(which: Which, url: Url = None, config: Config = None, json: Json = False) -> None:
    """Let a paused one go on."""
    _act("resume", which, url, config, json=json)


def stop(which: Which, url: Url = None, config: Config = None, json: Json = False) -> None:
    """Stop one, step by step, and all it started; the task it works on is cancelled."""
    _act("stop", which, url, config, json=json)


def _act(word: str, which: str, url: Url, config: Config, *, json: bool) -> None:
    async def run(client: Client) -> Any:
        return await client.post(f"{_PATH}/{await _id(client, which)}/{word}")

    answer = ask(run, url=url, config=config, power="server")
    if json:
        output.show(answer)
    else:
        output.say(f"{answer['instance_id']} is {answer['state']}")


def send(
    which: Which,
    name: Annotated[
        str, typer.Argument(metavar="SIGNAL", help="INT, TERM, HUP, KILL …", show_default=False)
    ],
    tree: Annotated[bool, typer.Option("--tree", help="Also what it started.")] = False,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Signal an agent's process."""
    number = name.removeprefix("SIG") if name.isupper() else name
    if number not in _SIGNALS:
        output.fail(InvalidInput(f"no signal {name}: there are {', '.join(_SIGNALS)}"))
    body = {"signal": number, "tree": tree}

    async def run(client: Client) -> Any:
        return await client.post(f"{_PATH}/{await _id(client, which)}/signal", body)

    answer = ask(run, url=url, config=config, power="server")
    if json:
        output.show(answer)
    else:
        count = answer["delivered"]
        many = "one process" if count == 1 else f"{count} processes"
        output.say(f"{many} got it" if count else "it has ended: nobody got it")


def attach(
    which: Which,
    tail: Annotated[int, typer.Option(help="Bytes of what it wrote before.")] = 4096,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Show what an agent's process writes, and write to its stdin, if that is open.

    The end of your input (Ctrl-D) is the end of its; Ctrl-C leaves it as it is.
    """

    async def run(client: Client) -> None:
        instance_id = await _id(client, which)
        view = await client.get(f"{_PATH}/{instance_id}")
        if view["stdin"]:
            writing = asyncio.create_task(_write(client, f"{_PATH}/{instance_id}/stdin"))
        else:
            writing = None
            output.note(f"{instance_id} has no stdin that is open: you can only watch")
        try:
            async for piece in client.lines(f"{_PATH}/{instance_id}/log", tail=tail):
                _print(piece, json=json)
        finally:
            if writing is not None:
                writing.cancel()
                await asyncio.wait({writing})
        view = await client.get(f"{_PATH}/{instance_id}")
        output.note(f"{instance_id} is {view['state']}" + _because(view))

    ask(run, url=url, config=config, power="server")


def _because(view: dict[str, Any]) -> str:
    return f": {view['reason']}" if view["reason"] else ""


async def _write(client: Client, path: str) -> None:
    """Send what is typed; a thread reads it that nobody has to wait for."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(typed.put_nowait, line)
        loop.call_soon_threadsafe(typed.put_nowait, "")

    threading.Thread(target=_quietly, args=(read,), name="stdin", daemon=True).start()
    while line := await typed.get():
        for at in range(0, len(line), _PIECE):
            await client.post(path, {"text": line[at : at + _PIECE]})
    await client.post(path, {"close": True})


def _quietly(work: Any) -> None:
    try:
        work()
    except (OSError, ValueError, RuntimeError):
        pass  # stdin is closed, or the loop is: nobody is left to tell


def _print(piece: dict[str, str], *, json: bool) -> None:
    if json:
        typer.echo(output.as_json(piece, indent=None))
    else:
        typer.echo(output.plain(piece["text"]), nl=False, err=piece["stream"] == "stderr")
    sys.stdout.flush()


async def _id(client: Client, which: str) -> str:
    """Return the instance that a word means: by its id, its execution's or its agent's.

    Raises:
        NotFound: there is none; Conflict: there are several.
    """
    if is_ulid(which):
        try:
            answer = await client.get(f"{_PATH}/{which}")
        except NotFound:
            found = await client.get(_PATH, execution_id=which, limit=1)
            if not found["instances"]:
                raise
            answer = found["instances"][0]
        return str(answer["instance_id"])
    found = await client.get(_PATH, agent_id=which, live="true", limit=2)
    if not found["total"]:
        found = await client.get(_PATH, agent_id=which, limit=1)
        if not found["instances"]:
            raise NotFound(f"agent {which} has no process: `retinue agent ps --all` lists them")
    elif found["total"] > 1:
        raise Conflict(
            f"agent {which} has {found['total']} processes: say which (`retinue agent ps`)"
        )
    return str(found["instances"][0]["instance_id"])


def add_to(app: typer.Typer) -> None:
    """Add these commands to ``retinue agent``."""
    for command in (ps, logs, pause, resume, stop, attach):
        app.command()(command)
    app.command("signal")(send)

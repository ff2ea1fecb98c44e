"""``retinue worker``: programs that perform tasks and speak JSON lines on their stdio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from retinue.cli import output
from retinue.cli.door import ask, complete
from retinue.cli.options import Config, Json, Url

if TYPE_CHECKING:
    from retinue.cli.check.suite import Finding
    from retinue.cli.client import Client

app = typer.Typer(
    help="Programs in any language that perform tasks, over their stdin and stdout.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)
_SIGNS = {"pass": ("ok  ", "green"), "fail": ("FAIL", "red"), "skip": ("skip", "yellow")}


@app.command(context_settings={"ignore_unknown_options": False})
def check(
    command: Annotated[
        list[str],
        typer.Argument(help="The program and its arguments, after --.", metavar="COMMAND"),
    ],
    agent: Annotated[
        str | None,
        typer.Option(help="The agent to invoke; else the one named echo, else the first."),
    ] = None,
    input_: Annotated[
        str | None, typer.Option("--input", help='Its input, as JSON; else [["ping"]].')
    ] = None,
    rule: Annotated[list[str] | None, typer.Option(help="Only this rule; repeat it.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long an answer may take.")] = 10.0,
    start_seconds: Annotated[
        float, typer.Option(min=0.1, help="How long it may take until it is ready.")
    ] = 10.0,
    json: Json = False,
) -> None:
    """Check that a program speaks the worker protocol (docs/protocol.md).

    It is started anew for every rule. Agents named echo, tell (streams), slow (takes
    {"seconds": n}), ask (asks a person) and fail show rules that others cannot; what nothing
    shows is skipped. The exit code is 0 when no rule fails.
    """
    from retinue.cli.check.peer import Plan
    from retinue.cli.check.suite import check as run

    plan = Plan(
        command,
        agent=agent,
        given=_decoded(input_),
        seconds=seconds,
        start_seconds=start_seconds,
    )
    found = complete(lambda: run(plan, rule, None if json else _tell))
    failed = [finding for finding in found if finding.outcome == "fail"]
    if json:
        output.show({"passed": not failed, "rules": msgspec.to_builtins(found)})
    else:
        counted = {name: sum(f.outcome == name for f in found) for name in _SIGNS}
        output.say(
            f"{counted['pass']} rules hold, {counted['fail']} are broken,"
            f" {counted['skip']} were not shown"
        )
    if failed:
        raise typer.Exit(output.FAILED)


_PATH = "/v1/workers"
_LOOK_SECONDS = 0.1


@app.command("list")
def list_(url: Url = None, config: Config = None, json: Json = False) -> None:
    """List a running server's workers and their processes."""
    answer = ask(lambda client: client.get(_PATH), url=url, config=config)
    if json:
        output.show(answer)
        return
    columns = (
        *("name", "state", "version", "in_flight", "waiting", "requests", "errors"),
        *("restarts", "breaches", "reason"),
    )
    output.table(
        (*columns[:2], "processes", *columns[2:]),
        [
            (
                *(row[name] for name in columns[:2]),
                " ".join(one["state"] for one in row["instances"]) or "none",
                *(row[name] for name in columns[2:]),
            )
            for row in answer["workers"]
        ],
    )


@app.command()
def scale(
    name: Annotated[str, typer.Argument(help="The worker.", show_default=False)],
    processes: Annotated[int, typer.Argument(min=0, metavar="N", show_default=False)],
    least: Annotated[
        int | None, typer.Option("--min", min=0, help="Run even when idle; else all.")
    ] = None,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Have N processes of a worker; what is too many ends once its work is done."""
    body = {"processes": processes, "min_processes": least}
    answer = ask(
        lambda client: client.post(f"{_PATH}/{name}/scale", body),
        url=url,
        config=config,
        power="server",
    )
    if json:
        output.show(answer)
    else:
        output.say(f"{name} has {answer['least']} to {answer['most']} processes")


@app.command()
def restart(
    name: Annotated[str, typer.Argument(help="The worker.", show_default=False)],
    drain_ms: Annotated[
        int | None, typer.Option(min=0, help="How long its work may take; else as configured.")
    ] = None,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Replace a worker's processes, one by one, their work done first."""
    body = {"drain_timeout_ms": drain_ms}
    answer = ask(
        lambda client: client.post(f"{_PATH}/{name}/restart", body),
        url=url,
        config=config,
        power="server",
    )
    if json:
        output.show(answer)
    else:
        output.say(f"{name} is being restarted; `retinue worker list` shows how it goes")


@app.command()
def deploy(
    name: Annotated[str, typer.Argument(help="The worker.", show_default=False)],
    drain_ms: Annotated[
        int | None, typer.Option(min=0, help="How long its work may take; else as configured.")
    ] = None,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Replace a worker's processes by its new version, one by one; if it fails, keep the old one.

    The new version is what retinue.yaml says of it now, and its program as it is now.
    """

    async def work(client: Client) -> Any:
        answer = await client.post(f"{_PATH}/{name}/deploy", {"drain_timeout_ms": drain_ms})
        mine = answer["rollout"]
        while mine == answer["rollout"] and mine["state"] == "running":
            await asyncio.sleep(_LOOK_SECONDS)
            answer = await client.get(f"{_PATH}/{name}")
        return answer

    answer = ask(work, url=url, config=config, power="server")
    rollout = answer["rollout"]
    if json:
        output.show(answer)
    elif rollout["state"] == "done":
        output.say(f"{name} is at version {rollout['version']}")
    else:
        output.complain(
            "E_MODULE_LOAD",
            f"version {rollout['version']} of {name} was taken back: {rollout['reason']}",
            f"version {answer['version']} is at work; `retinue agent logs` shows what it said",
        )
    if rollout["state"] != "done":
        raise typer.Exit(output.FAILED)


@app.command()
def schema() -> None:
    """Print the JSON Schema of every frame of the worker protocol."""
    from retinue.wire.schema import frames

    output.show(frames())


def _decoded(text: str | None) -> Any:
    if text is None:
        return None
    from retinue.domain.strictjson import decode
    from retinue.errors import InvalidInput

    try:
        return decode(text.encode())
    except InvalidInput as error:
        raise typer.BadParameter(error.message, param_hint="--input") from None


def _tell(finding: Finding) -> None:
    sign, colour = _SIGNS[finding.outcome]
    typer.secho(sign, fg=colour, nl=False)
    output.say(f"  {finding.rule}")
    if finding.why is not None:
        output.say(f"      {finding.why}")
    if finding.outcome == "fail":
        output.say(f"      the rule: {finding.demand}")

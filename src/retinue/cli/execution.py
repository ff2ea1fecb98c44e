"""``retinue execution``: what was asked for, and how it stands."""

from __future__ import annotations

from contextlib import aclosing
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli import output
from retinue.cli.door import ask
from retinue.cli.options import Config, Json, Limit, Url, noun
from retinue.errors import Unavailable

if TYPE_CHECKING:
    from retinue.cli.client import Client

app = noun("The executions: every task that was accepted, and how it stands.")
Id = Annotated[str, typer.Argument(metavar="ID", help="The execution.", show_default=False)]
Filter = typer.Option(show_default=False)


class State(StrEnum):
    """Where an execution stands."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    INPUT_REQUIRED = "input_required"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


@app.command("list")
def list_executions(
    session: Annotated[str | None, Filter] = None,
    agent: Annotated[str | None, Filter] = None,
    capability: Annotated[str | None, Filter] = None,
    state: Annotated[
        list[State] | None, typer.Option(help="May be repeated.", show_default=False)
    ] = None,
    dead_letter: Annotated[
        bool, typer.Option("--dead-letter", help="Only those whose attempts were used up.")
    ] = False,
    limit: Limit = 20,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """List executions, newest first."""
    answer = ask(
        lambda client: client.get(
            "/v1/executions",
            session_id=session,
            agent_id=agent,
            capability=capability,
            state=",".join(state) if state else None,
            dead_letter="true" if dead_letter else None,
            limit=limit,
        ),
        url=url,
        config=config,
    )
    if json:
        output.show(answer)
        return
    columns = ("execution_id", "state", "capability", "agent_id", "session_id", "created_at")
    output.table(columns, [[row[name] for name in columns] for row in answer["executions"]])
    if answer["total"] > len(answer["executions"]):
        output.note(f"{len(answer['executions'])} of {answer['total']}; --limit shows more")


@app.command()
def show(execution_id: Id, url: Url = None, config: Config = None, json: Json = False) -> None:
    """Show one execution: its input, and its result or its error."""
    answer = ask(
        lambda client: client.get(f"/v1/executions/{execution_id}"), url=url, config=config
    )
    if json:
        output.show(answer)
    else:
        output.fields(answer)


@app.command()
def cancel(execution_id: Id, url: Url = None, config: Config = None, json: Json = False) -> None:
    """Cancel an execution; one that has ended stays as it is."""
    answer = ask(
        lambda client: client.post(f"/v1/executions/{execution_id}/cancel"),
        url=url,
        config=config,
        power="change",
    )
    if json:
        output.show(answer)
    else:
        output.say(f"{execution_id} is {answer['state']}")
        if answer["finished_at"] is None:
            output.note("whoever runs it is asked to stop; if nobody does, the next start ends it")


@app.command(context_settings={"ignore_unknown_options": True})
def prioritize(
    execution_id: Id,
    priority: Annotated[
        int, typer.Argument(min=-1000, max=1000, help="Higher ones go first.", show_default=False)
    ],
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Give an execution that waits another priority (-1000 to 1000)."""
    answer = ask(
        lambda client: client.post(
            f"/v1/executions/{execution_id}/priority", {"priority": priority}
        ),
        url=url,
        config=config,
        power="change",
    )
    if json:
        output.show(answer)
    else:
        output.say(f"{execution_id} is {answer['state']} with priority {answer['priority']}")


@app.command()
def retry(execution_id: Id, url: Url = None, config: Config = None, json: Json = False) -> None:
    """Submit again what ended without success: a new execution with the same input.

    Where no server runs it is performed here, to its end.
    """

    async def run(client: Client) -> tuple[dict[str, Any], str | None]:
        from retinue.cli.client import known
        from retinue.domain.ids import ulid

        path = f"/v1/executions/{execution_id}/retry"
        accepted = await client.post(path, key=f"cli-{ulid()}")
        ended = None
        if client.local:
            with known(accepted["execution_id"]):
                async with aclosing(client.events(accepted["execution_id"])) as events:
                    async for event in events:
                        ended = event["eventType"]
                accepted = await client.get(f"/v1/executions/{accepted['execution_id']}")
        return accepted, ended

    answer, ended = ask(run, url=url, config=config, power="work")
    if json:
        output.show(answer)
    else:
        output.say(f"{answer['execution_id']} is {answer['state']}")
    if ended not in {None, "completed"}:
        raise typer.Exit(output.FAILED)


@app.command()
def follow(
    execution_id: Id,
    after: Annotated[int, typer.Option(min=0, help="Begin behind the event of this number.")] = 0,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Show an execution's events, as they come, until it ends."""
    from retinue.cli.stream import Printer

    async def run(client: Client) -> dict[str, Any]:
        if client.local:
            known = await client.get(f"/v1/executions/{execution_id}")
            if known["finished_at"] is None:
                raise Unavailable(
                    f"{execution_id} is {known['state']} and no server runs it: `retinue serve`"
                )
        printer = Printer(as_json=json)
        last: dict[str, Any] = {}
        async with aclosing(client.events(execution_id, after)) as events:
            async for event in events:
                printer.event(event)
                last = event
        printer.end()
        return last

    last = ask(run, url=url, config=config)
    ended = last.get("eventType", "completed")
    if (last.get("state") if ended == "truncated" else ended) != "completed":
        raise typer.Exit(output.FAILED)


@app.command()
def erase(execution_id: Id, url: Url = None, config: Config = None, json: Json = False) -> None:
    """Erase what an execution was given, did and answered, for good; its contracts stay."""
    path = f"/v1/executions/{execution_id}/body"
    answer = ask(
        lambda client: client.delete(path, wait=True), url=url, config=config, power="change"
    )
    if json:
        output.show(answer)
    else:
        output.say(f"{execution_id}: {answer['contracts']} contracts erased")

"""``retinue agent``: who can be asked, and for what."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from retinue.cli import output
from retinue.cli.door import ask
from retinue.cli.options import Config, Json, Url, noun

app = noun("The agents, and what they can do.")


@app.command("list")
def list_agents(url: Url = None, config: Config = None, json: Json = False) -> None:
    """List the agents."""
    answer = ask(lambda client: client.get("/v1/agents"), url=url, config=config)
    if json:
        output.show(answer)
        return
    output.table(
        ("id", "name", "status", "running", "done", "failed", "capabilities"),
        [
            (
                agent["agent_id"],
                agent["name"],
                agent["status"],
                f"{agent['running']}/{agent['concurrency']}",
                agent["tasks_completed"],
                agent["tasks_failed"],
                ", ".join(c["name"] for c in agent["capabilities"]),
            )
            for agent in answer["agents"]
        ],
    )


@app.command()
def show(
    agent: Annotated[str, typer.Argument(help="Its id, or its name.")],
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Show one agent: its capabilities with their parameters, and how it is doing."""
    from urllib.parse import quote

    path = f"/v1/agents/{quote(agent, safe='')}"
    answer = ask(lambda client: client.get(path), url=url, config=config)
    if json:
        output.show(answer)
        return
    capabilities = answer.pop("capabilities")
    output.fields(answer)
    for capability in capabilities:
        output.say(f"\n{capability['name']}  {capability['description']}")
        for line in _parameters(capability["parameters"]):
            output.say(f"  {line}")


@app.command()
def register(
    agent_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, unique.")],
    endpoint: Annotated[
        str, typer.Argument(help="Its URL: POST /execute and GET /health are below it.")
    ],
    capability: Annotated[
        list[str] | None,
        typer.Option(help="Something it can do; repeat for more.", show_default=False),
    ] = None,
    capabilities: Annotated[
        typer.FileText | None,
        typer.Option(help='A file of JSON: [{"name", "description", "parameters"}].'),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What people call it.", show_default="its id")
    ] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    version: Annotated[str, typer.Option(help="Its version.")] = "1",
    concurrency: Annotated[int, typer.Option(help="Tasks at one time.")] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds for one task.")] = 300.0,
    delivery: Annotated[
        str, typer.Option(help="at_most_once, at_least_once or idempotent.")
    ] = "at_most_once",
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Register an agent that answers over HTTP. The secret that signs our calls is shown once."""
    body = {
        "agent_id": agent_id,
        "name": name or agent_id,
        "description": description,
        "capabilities": [{"name": word} for word in capability or ()] + _from(capabilities),
        "endpoint": endpoint,
        "version": version,
        "concurrency": concurrency,
        "timeout": timeout,
        "delivery": delivery,
    }
    answer = ask(
        lambda client: client.post("/v1/agents/register", body),
        url=url,
        config=config,
        power="change",
    )
    if json:
        output.show(answer)
        return
    typer.echo(answer["secret"])
    output.note(f"{agent_id} is registered; its secret is shown this once")
    output.note("the agent checks Retinue-Signature with it: docs/guide-http-agents.md")


def _from(file: typer.FileText | None) -> list[Any]:
    from json import load

    if file is None:
        return []
    try:
        found = load(file)
    except ValueError as error:
        raise typer.BadParameter(f"{file.name} is not JSON: {error}") from None
    return found if isinstance(found, list) else [found]


@app.command()
def remove(
    agent_id: Annotated[str, typer.Argument(metavar="ID", help="Its id.")],
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Remove an agent that was registered; what it runs goes on."""
    from urllib.parse import quote

    path = f"/v1/agents/{quote(agent_id, safe='')}"
    ask(lambda client: client.delete(path), url=url, config=config, power="change")
    if json:
        output.show({"agent_id": agent_id, "removed": True})
    else:
        output.say(f"{agent_id} is removed")


def _parameters(schema: dict[str, Any] | None) -> list[str]:
    if schema is None:
        return ["takes anything"]
    needed = schema.get("required", ())
    lines = []
    for name, given in schema.get("properties", {}).items():
        kind = given.get("type", "any") if isinstance(given, dict) else "any"
        words = kind if isinstance(kind, str) else " or ".join(kind)
        state = "needed" if name in needed else f"default {output.as_json(given.get('default'))}"
        about = f": {given['description']}" if given.get("description") else ""
        lines.append(f"{name} ({words}, {state}){about}")
    return lines or ["takes nothing"]

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

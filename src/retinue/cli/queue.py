"""``retinue queue``: how much waits, and for whom."""

from __future__ import annotations

from retinue.cli import output
from retinue.cli.door import ask
from retinue.cli.options import Config, Json, Url


def queue(url: Url = None, config: Config = None, json: Json = False) -> None:
    """Show how much waits: for each agent, and for each capability that any agent may take.

    READY could go if a slot were free, IN TURN waits for earlier tasks of its session, SCHEDULED
    for its time. `retinue execution list --state queued` lists the tasks themselves.
    """
    answer = ask(lambda client: client.get("/v1/queue"), url=url, config=config)
    if json:
        output.show(answer)
        return
    columns = ("queue_key", "ready", "in_turn", "scheduled", "oldest_at")
    output.table(columns, [[row[name] for name in columns] for row in answer["queues"]])

"""``retinue run``: have a task done, here or by the server that runs.

It is submitted once, with an idempotency key, so that may be repeated when the connection breaks.
From then on it is known by its execution: whatever goes wrong in asking for that (the server stops,
it is too busy) is said of the asking, with the execution's id, never of the task.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli import output
from retinue.cli.door import client as client_of
from retinue.cli.door import complete
from retinue.cli.options import Config, Json, Url
from retinue.errors import Gone, HumanInputRequired, InvalidInput, RetinueError, error_from

if TYPE_CHECKING:
    from retinue.cli.client import Client
    from retinue.cli.parameters import Able


class BusyPolicy(StrEnum):
    """What a task does while an earlier one of its session has not ended."""

    PARALLEL = "parallel"
    REJECT = "reject"
    ENQUEUE = "enqueue"
    INTERRUPT = "interrupt"


def run(
    what: Annotated[str, typer.Argument(help="A capability, or an agent that has just one.")],
    parameters: Annotated[
        list[str] | None,
        typer.Argument(
            help="key=value, key:=JSON or key=@file (@-: standard input); a text is the prompt,"
            " where one is taken."
        ),
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(help="The session it belongs to; else a new one.", show_default=False),
    ] = None,
    agent: Annotated[
        str | None, typer.Option(help="Only this agent may do it.", show_default=False)
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.001, help="Seconds it may take; else the agent's own limit."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="When it shall run, like 2030-01-31T06:00.", show_default=False),
    ] = None,
    delay: Annotated[
        float | None, typer.Option("--in", min=0, help="Seconds until it shall run.")
    ] = None,
    priority: Annotated[
        int, typer.Option(min=-1000, max=1000, help="Higher ones leave the queue first.")
    ] = 0,
    on_busy: Annotated[
        BusyPolicy | None,
        typer.Option(
            help="What it does while its session is busy; else as the agent says.",
            show_default=False,
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show its events as they come.")] = False,
    url: Url = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Have a task done and print its result.

    By the server that has the store open here or that is named; without one, in this process.
    Leaves with 0 when it succeeded, 1 when it failed, 2 when it was refused, 130 on Ctrl-C, which
    cancels it. With --at or --in it is only accepted, unless --follow says to wait.
    """
    try:
        run_at = _moment(at, delay)
    except InvalidInput as error:
        output.fail(error)
    place: dict[str, Any] = {"priority": priority, "run_at": run_at, "on_busy": on_busy}
    errand = Errand(
        what,
        parameters or [],
        session,
        agent,
        timeout,
        {name: value for name, value in place.items() if value},
        follow=follow,
        as_json=json,
    )

    async def program() -> int:
        async with client_of(url, config, "work") as client:
            return await errand.run(client)

    code = complete(program)
    if code:
        raise typer.Exit(code)


def _moment(at: str | None, delay: float | None) -> str | None:
    """Return when a task shall run, for the API; a time without a zone is this machine's."""
    if delay is not None:
        if at is not None:
            raise InvalidInput("give --at or --in, not both")
        try:
            return (datetime.now(UTC) + timedelta(seconds=delay)).isoformat()
        except OverflowError:
            raise InvalidInput(f"--in {delay:g}: that is too far ahead") from None
    if at is None:
        return None
    try:
        return datetime.fromisoformat(at).astimezone().isoformat()
    except (ValueError, OverflowError):
        raise InvalidInput(f"--at {at}: write it like 2030-01-31T06:00") from None


class Errand:
    """One task, from the words of the command line to what is printed."""

    def __init__(
        self,
        what: str,
        words: list[str],
        session: str | None,
        agent: str | None,
        timeout: float | None,
        place: dict[str, Any],
        *,
        follow: bool,
        as_json: bool,
    ) -> None:
        self._what = what
        self._words = words
        self._session = session
        self._agent = agent
        self._timeout = timeout
        self._place = place
        self._follow = follow
        self._as_json = as_json

    async def run(self, client: Client) -> int:
        """Have it done; return the exit status."""
        from retinue.cli import parameters
        from retinue.cli.client import known
        from retinue.domain.ids import ulid

        task, able = await self._task(client)
        key = f"cli-{ulid()}"
        try:
            task["parameters"] = parameters.parse(self._words, able.schema)
            accepted = await client.post("/v1/executions", task, key=key)
        except InvalidInput as error:
            output.fail(error, f"`retinue agent show {able.agent_id}` says what it takes")
        if accepted["state"] == "scheduled" and not self._follow:
            return self._left(client, accepted)
        with known(accepted["execution_id"]):
            return await self._see(client, accepted, able)

    async def _see(self, client: Client, accepted: dict[str, Any], able: Able) -> int:
        """See what was accepted to its end; return the exit status."""
        from retinue.cli.stream import Printer

        execution_id = accepted["execution_id"]
        if accepted["state"] == "queued" and client.local:
            await self._say_what_it_waits_for(client, execution_id)
        printer = Printer(as_json=self._as_json) if self._follow else None
        watching = asyncio.ensure_future(self._watch(client, execution_id, printer))
        if not await _unless_interrupted(watching):
            if printer is not None:
                printer.end()
            await client.post(f"/v1/executions/{execution_id}/cancel")
            output.note(f"cancelled {execution_id}")
            return output.INTERRUPTED
        last = watching.result()
        if not self._follow:
            reply = await _reply_of(client, accepted, last, able)
            return self._reply(reply, local=client.local)
        return 0 if last.get("eventType") == "completed" else output.FAILED

    async def _task(self, client: Client) -> tuple[dict[str, Any], Able]:
        from retinue.cli import parameters
        from retinue.domain.ids import ulid

        agents = (await client.get("/v1/agents"))["agents"]
        able = parameters.resolve(self._what, self._agent, agents)
        session = self._session or f"cli-{ulid()}"
        task = {"session_id": session, "capability": able.capability, **self._place}
        if able.bound:
            task["agent_id"] = able.agent_id
        if self._timeout is not None:
            task["timeout_ms"] = max(round(self._timeout * 1000), 1)
        return task, able

    async def _say_what_it_waits_for(self, client: Client, execution_id: str) -> None:
        """Say that its turn depends on others, whom nobody may be there to perform."""
        waiting = await client.get(f"/v1/executions/{execution_id}")
        if waiting["hold"] == "session":
            output.note(
                f"it waits for earlier tasks of session {waiting['session_id']}, which are not"
                " performed here: a server has to (`retinue serve`); Ctrl-C cancels it"
            )

    async def _watch(self, client: Client, execution_id: str, printer: Any) -> dict[str, Any]:
        """See it to its end; answer what it asks, if somebody is there to answer.

        Return its last event.
        """
        event: dict[str, Any] = {}
        async with contextlib.aclosing(client.events(execution_id)) as events:
            async for event in events:
                if event["eventType"] == "input_required":
                    await self._asked(client, execution_id, event, printer)
                elif printer is not None:
                    printer.event(event)
        return event

    async def _asked(
        self, client: Client, execution_id: str, event: dict[str, Any], printer: Any
    ) -> None:
        from retinue.cli.question import answer_of
        from retinue.cli.stream import Printer

        prompt = event.get("prompt")
        if not sys.stdin.isatty():
            if not client.local:
                # Somebody else answers, at the server: who waits here is told how, on stderr.
                (printer or Printer(as_json=False)).event(event)
                return
            await client.post(f"/v1/executions/{execution_id}/cancel")
            raise HumanInputRequired(
                f'the agent asks "{prompt}" and nobody can answer here:'
                " run it in a terminal, or by `retinue serve`"
            )
        if printer is not None:
            printer.end()
        approval = event.get("kind") == "approval"
        output.note(f"? {prompt} [y/N]" if approval else f"? {prompt}")
        typed = (await _line()).strip()
        value = typed.lower() in {"y", "yes", "true"} if approval else answer_of(typed)
        await client.post(f"/v1/questions/{event['question_id']}/answer", {"answer": value})

    def _left(self, client: Client, accepted: dict[str, Any]) -> int:
        """Say that it is accepted, and leave it."""
        if self._as_json:
            output.show(accepted)
        else:
            output.say(f"{accepted['execution_id']} is scheduled")
        if client.local:
            output.note("no server runs here: the next `retinue serve` performs it when it is due")
        return 0

    def _reply(self, reply: dict[str, Any], *, local: bool) -> int:
        if self._as_json:
            output.show(reply)
        elif reply["success"]:
            output.show(reply["data"])
        if reply["success"]:
            return 0
        if not self._as_json:
            error = error_from(reply["error_info"])
            advice = f"`retinue execution show {reply['execution_id']}` shows it"
            if error.retryable:
                advice = f"this may pass: try again; {advice}"
            elif local and "exception" in error.details:
                advice = "RETINUE_LOG_LEVEL=warning shows where in the agent"
            output.complain(error.code, error.message, advice)
        return output.FAILED


async def _reply_of(
    client: Client, accepted: dict[str, Any], last: dict[str, Any], able: Able
) -> dict[str, Any]:
    """Return what ``POST /v1/orchestrate`` answers of a task that was accepted and has ended.

    As the server has it on record; one that went away meanwhile has told it with the last event.
    """
    execution_id = accepted["execution_id"]
    try:
        found = await client.get(f"/v1/executions/{execution_id}")
    except RetinueError:
        if last.get("eventType") not in {"completed", "failed"}:
            raise
        found = _told(last) | {"agent_id": able.agent_id}
    success = found["state"] == "completed"
    if success and (found.get("erased") or found.get("removed")):
        raise Gone(f"the result of execution {execution_id} was erased or removed")
    reply = {
        "success": success,
        "data": found["result"],
        "contract_id": accepted["contract_id"],
        "agent_id": found["agent_id"],
        "timestamp": found["finished_at"],
        "execution_id": execution_id,
    }
    if not success:
        reply |= {"error": found["error"]["message"], "error_info": found["error"]}
    return reply


def _told(last: dict[str, Any]) -> dict[str, Any]:
    """Return an execution as far as its last event tells of it."""
    error = {name: last.get(name) for name in ("code", "retryable", "details")}
    return {
        "state": last["eventType"],
        "result": last.get("result"),
        "finished_at": last["timestamp"],
        "error": {**error, "message": last.get("error")},
    }


async def _unless_interrupted(work: asyncio.Future[Any]) -> bool:
    """Wait for ``work``; at the first SIGINT or SIGTERM give it up and return False.

    A second one ends the process as usual.
    """
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()

    def heard() -> None:
        interrupted.set()
        for number in signals:
            loop.remove_signal_handler(number)

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, heard)
    waiting = asyncio.ensure_future(interrupted.wait())
    try:
        await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return True
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        return False
    finally:
        waiting.cancel()
        for number in signals:
            loop.remove_signal_handler(number)


async def _line() -> str:
    """Read one line from the terminal without a thread, so that Ctrl-C still works."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def came() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(sys.stdin, came)
    try:
        await readable
    finally:
        loop.remove_reader(sys.stdin)
    line = sys.stdin.readline()
    if not line:
        raise InvalidInput("no answer was given")
    return line

"""``retinue repl``: a conversation with the system, one line at a time.

Works at a terminal and on a pipe. A line that is wrong is explained and the next one read; the end
of input leaves with 0. While an agent asks, the prompt is there to answer it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from retinue.cli import output
from retinue.cli.door import client as client_of
from retinue.cli.door import complete
from retinue.cli.options import Config, Url
from retinue.errors import AgentNotFound, InvalidInput, RetinueError

if TYPE_CHECKING:
    from retinue.cli.client import Client

PROMPT = "retinue> "
HELP = {
    "invoke AGENT [JSON]": "have an agent do something, and print its result",
    "stream AGENT [JSON]": "the same, and print what it says meanwhile",
    "answer ID VALUE": "answer a question; VALUE is JSON, or else a text",
    "agents": "list the agents",
    "health": "say how the system does",
    "quit": "leave (so does the end of input)",
}


def repl(url: Url = None, config: Config = None) -> None:
    """Talk with the system: invoke, stream, answer, agents, health, quit.

    With the server that has the store open here or that is named; without one, in this process.
    An agent that has several capabilities is written AGENT/CAPABILITY.
    """

    async def program() -> None:
        async with client_of(url, config, "work") as client:
            await Conversation(client).run()

    complete(program)


_LONG_MS = 300_000
"""What an agent that is told nothing else has."""


class Conversation:
    """The lines of one person, or program, and what becomes of them."""

    def __init__(self, client: Client) -> None:
        from retinue.domain.ids import ulid

        self._client = client
        self._session = f"repl-{ulid()}"
        self._lines = _Lines()
        self._waiting: set[asyncio.Task[None]] = set()
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._verbs: dict[str, Callable[[str], Awaitable[None]]] = {
            "invoke": lambda rest: self._invoke(rest, follow=False),
            "stream": lambda rest: self._invoke(rest, follow=True),
            "answer": self._answer,
            "agents": self._agents,
            "health": self._health,
            "help": self._help,
        }

    async def run(self) -> None:
        """Read and do, until the end."""
        if self._lines.interactive:
            output.note("help says what can be said here; quit leaves")
        while (line := await self._lines.next()) is not None:
            verb, _, rest = line.strip().partition(" ")
            if verb in {"quit", "exit"}:
                break
            if not verb:
                continue
            try:
                await self._do(verb, rest.strip())
            except RetinueError as error:
                output.complain(error.code, error.message)
            sys.stdout.flush()
        # What waits for a person is left; what works may end.
        working = self._waiting - set(self._asked.values())
        if working:
            await asyncio.wait(working)
        for task in self._waiting:
            task.cancel()

    async def _do(self, verb: str, rest: str) -> None:
        found = self._verbs.get(verb)
        if found is None:
            raise InvalidInput(f"{verb!r} is none of {', '.join(self._verbs)}, quit")
        await found(rest)

    # -- verbs ---------------------------------------------------------------------------------

    async def _help(self, _: str) -> None:
        output.fields(HELP)

    async def _agents(self, _: str) -> None:
        rows = (await self._client.get("/v1/agents"))["agents"]
        output.table(
            ("agent", "status", "capabilities"),
            [
                (a["agent_id"], a["status"], ", ".join(c["name"] for c in a["capabilities"]))
                for a in rows
            ],
        )

    async def _health(self, _: str) -> None:
        output.show(await self._client.get("/v1/health"))

    async def _answer(self, rest: str) -> None:
        from retinue.cli.question import answer_of

        question_id, _, text = rest.partition(" ")
        if not text:
            raise InvalidInput("write: answer ID VALUE")
        waiting = self._asked.pop(question_id, None)
        try:
            value = {"answer": answer_of(text.strip())}
            await self._client.post(f"/v1/questions/{question_id}/answer", value)
        except RetinueError:
            if waiting is not None:
                self._asked[question_id] = waiting
            raise
        if waiting is not None:
            await self._until_asked(waiting)

    async def _invoke(self, rest: str, *, follow: bool) -> None:
        from retinue.cli.stream import Printer

        name, _, text = rest.partition(" ")
        if not name:
            raise InvalidInput(f"write: {'stream' if follow else 'invoke'} AGENT JSON")
        task = await self._task(name, text.strip())
        execution_id = await self._submit(task)
        printer = Printer(as_json=False)
        watching = asyncio.create_task(self._watch(execution_id, printer, follow=follow))
        self._waiting.add(watching)
        watching.add_done_callback(self._waiting.discard)
        await self._until_asked(watching)

    async def _submit(self, task: dict[str, Any]) -> str:
        """Have a task accepted; return its execution's id."""
        given = task["parameters"]
        if isinstance(given, dict):
            accepted = await self._client.post("/v1/executions", task)
            return str(accepted["execution_id"])
        # An agent without named parameters takes any value; specification 003's door does not.
        options = {"async": True, "capability": task["capability"], "timeout_ms": _LONG_MS}
        asked = {
            "agent_name": task["agent_id"],
            "input": given,
            "metadata": {"session_id": task["session_id"]},
            "options": options,
        }
        return str((await self._client.post("/v1/invocations", asked))["invoke_id"])

    async def _task(self, name: str, text: str) -> dict[str, Any]:
        from retinue.domain.strictjson import decode
        from retinue.wire.inputs import named

        given = decode(text.encode()) if text else {}
        word, _, wanted = name.partition("/")
        agents = (await self._client.get("/v1/agents"))["agents"]
        found = [a for a in agents if word == a["agent_id"]] or [
            a for a in agents if word == a["name"]
        ]
        if len(found) != 1:
            fault = "is the name of several agents" if found else "is no agent"
            raise AgentNotFound(f"{word} {fault}; `agents` lists them")
        able = {c["name"]: c["parameters"] for c in found[0]["capabilities"]}
        if not wanted and len(able) == 1:
            wanted = next(iter(able))
        if wanted not in able:
            choices = ", ".join(f"{word}/{capability}" for capability in able)
            raise InvalidInput(f"write which capability of {word} is meant: {choices}")
        return {
            "session_id": self._session,
            "agent_id": found[0]["agent_id"],
            "capability": wanted,
            "parameters": named(given, able[wanted]),
        }

    # -- waiting -------------------------------------------------------------------------------

    async def _until_asked(self, watching: asyncio.Task[None]) -> None:
        """Wait until an invocation has ended, or asks: then the prompt is needed."""
        while not watching.done() and watching not in self._asked.values():
            asked = asyncio.ensure_future(self._lines.asked.wait())
            await asyncio.wait({watching, asked}, return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            self._lines.asked.clear()
        if watching.done():
            watching.result()

    async def _watch(self, execution_id: str, printer: Any, *, follow: bool) -> None:
        from retinue.cli.client import known

        task = asyncio.current_task()
        assert task is not None
        with known(execution_id):
            async for event in self._client.events(execution_id):
                kind = event["eventType"]
                if kind == "input_required":
                    printer.end()
                    output.say(f"? {event.get('prompt')}")
                    output.say(f"  answer {event['question_id']} VALUE")
                    self._asked[event["question_id"]] = task
                    self._lines.asked.set()
                elif follow or kind in {"completed", "failed", "cancelled", "truncated"}:
                    printer.event(event)


class _Lines:
    """Standard input, read by a thread that the program's end does not wait for."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self.asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self.interactive:
            with contextlib.suppress(ImportError):
                importlib.import_module("readline")  # lines can then be edited, and recalled

    async def next(self) -> str | None:
        """Return the next line; None at the end of input."""
        future: asyncio.Future[str | None] = self._loop.create_future()

        def give(line: str | None) -> None:
            if not future.done():
                future.set_result(line)

        def read() -> None:
            try:
                if self.interactive:
                    line: str | None = input(PROMPT)
                else:
                    line = sys.stdin.readline() or None
            except (EOFError, ValueError):
                line = None
            try:
                self._loop.call_soon_threadsafe(give, line)
            except RuntimeError:
                pass  # the loop is closed: the program is ending

        threading.Thread(target=read, name="lines", daemon=True).start()
        return await future

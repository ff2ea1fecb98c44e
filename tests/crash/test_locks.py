"""A process may be frozen at any moment of a batch: the server must know that it stands still.

PostgreSQL ends a transaction that is idle for too long, and so frees the locks of a process that
was stopped in the middle of a batch. It is not idle in its eyes between preparing a statement and
running it; so a batch must not prepare any.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from retinue.agent import Context, Options, capability
from retinue.domain.execution import Task
from retinue.interfaces import Page
from retinue.orchestrator import Orchestrator
from retinue.runtime import Runtime
from retinue.settings import Settings

SENT = list[tuple[bytes, bytes]]


class Relay:
    """Stands between clients and a PostgreSQL server, and notes the messages that clients send."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self.sent: list[SENT] = []
        self._open: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection."""
        task = asyncio.create_task(self._relay(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def close(self) -> None:
        """Cut all connections."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close in the next turn

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        messages: SENT = []
        self.sent.append(messages)
        answers = asyncio.create_task(_copy(there, writer))
        try:
            await _forward(reader, back, messages)
        finally:
            answers.cancel()
            await asyncio.wait({answers})
            for end in (writer, back):
                end.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


async def _forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, messages: SENT
) -> None:
    """Pass messages on, one by one; the first one has no type."""
    kind = b""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(head) - 4)
            messages.append((kind, body))
            writer.write(kind + head + body)
            kind = await reader.readexactly(1)


@pytest.fixture
async def relay(postgres_url: str) -> AsyncIterator[tuple[Relay, str]]:
    """A relay to an empty database, and the address at which it is reached."""
    place = urlsplit(postgres_url)
    assert place.hostname is not None
    assert place.port is not None
    relay = Relay(place.hostname, place.port)
    server = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    address = place._replace(netloc=f"postgres@127.0.0.1:{port}", query="sslmode=disable")
    yield relay, address.geturl()
    server.close()
    await relay.close()
    await server.wait_closed()


@capability(options=Options(concurrency=1, delivery="idempotent", retry_waits_ms=(1,)))
async def work(fail: bool, context: Context) -> int:
    context.text("begun")
    if fail and context.attempt == 1:
        raise RuntimeError("once")
    return context.attempt


@capability()
async def ask(context: Context) -> Any:
    return await context.ask("Which?")


async def use(orchestrator: Orchestrator) -> None:
    """Make every kind of batch there is."""
    tasks = [
        Task(session_id="s", capability="work", parameters={"fail": n % 2 == 0}, idempotency_key=k)
        for n, k in enumerate(["a", "b", None, None, "a"])
    ]
    replies = await asyncio.gather(*(orchestrator.perform(task) for task in tasks[:4]))
    assert all(reply.success for reply in replies)
    assert (await orchestrator.submit(tasks[4])).joined
    asking = [
        await orchestrator.submit(Task(session_id="s", capability="ask", parameters={}))
        for _ in range(2)
    ]
    async with asyncio.timeout(10):
        while len(questions := (await orchestrator.questions(Page())).items) < 2:
            await asyncio.sleep(0.01)
    await orchestrator.answer(questions[0].id, "this")
    for accepted in asking:
        if accepted.execution_id != questions[0].execution_id:
            await orchestrator.cancel(accepted.execution_id)


async def test_no_batch_prepares_a_statement(relay: tuple[Relay, str]) -> None:
    between, url = relay
    settings = Settings(database_url=url, examples=False, entry_points=False)
    runtime = Runtime(settings)
    runtime.orchestrator.register_agent(work)
    runtime.orchestrator.register_agent(ask)
    orchestrator = await runtime.start()
    try:
        for messages in between.sent:
            messages.clear()  # the migration, under locks that no running process wants
        await use(orchestrator)
    finally:
        await runtime.stop()
    batches, prepared = 0, []
    for messages in between.sent:
        inside = False
        for kind, body in messages:
            if kind == b"Q":
                inside = body.startswith(b"BEGIN")
                batches += inside
            elif kind == b"P" and inside:
                prepared.append(body.split(b"\0")[1])
    assert batches > 10
    assert prepared == []

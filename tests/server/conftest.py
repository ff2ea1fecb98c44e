"""A real server on a port the system chose, with agents that do as a test tells them.

``server`` is shared by all tests and runs once on SQLite and once on PostgreSQL: tests keep to
sessions of their own. ``start`` makes a fresh one for tests that change what is common to all.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import pytest
import uvloop

from retinue import Agent, AgentCapability, Context, Options, Orchestrator, Runtime, Settings
from retinue import capability as capable
from retinue.examples import ExampleAgent
from retinue.server.routing import Patience
from retinue.server.serve import bind, serve
from retinue.testing.servers import PostgresServer

T = TypeVar("T")
SECONDS = 20.0
CALM = Options(failure_threshold=1_000_000, concurrency=1000)

_numbers = itertools.count(1)


class Controls:
    """What tests and their agents say to each other."""

    def __init__(self) -> None:
        self._begun: dict[str, threading.Event] = defaultdict(threading.Event)
        self._let: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._lock = threading.Lock()

    def begun(self, name: str) -> threading.Event:
        with self._lock:
            return self._begun[name]

    def let(self, name: str) -> asyncio.Event:
        with self._lock:
            return self._let[name]


class Failing(Agent):
    """Fails as it is told."""

    options = CALM

    def __init__(self) -> None:
        super().__init__("failing", "Failing", "Fails")

    async def execute(self, task: dict[str, Any]) -> Any:
        if task["capability"] == "refuse":
            return {"success": False, "error": "it did not work"}
        raise ValueError("something broke")

    def get_capabilities(self) -> list[AgentCapability]:
        return [AgentCapability("refuse"), AgentCapability("raise")]


def agents(controls: Controls) -> list[Agent]:
    @capable(options=CALM)
    async def reflect(value: Any = None) -> Any:
        """Answer with what was sent."""
        return value

    @capable(options=CALM)
    async def hold(name: str, context: Context) -> str:
        """Begin, and end when the test lets it."""
        context.progress(0, "begun")
        controls.begun(name).set()
        await controls.let(name).wait()
        return name

    @capable(options=CALM)
    async def steps(count: int, context: Context, name: str = "") -> int:
        """Make that many progress events, the second half when the test lets it."""
        for number in range(count):
            if name and number == count // 2:
                controls.begun(name).set()
                await controls.let(name).wait()
            context.progress(number, f"step {number}")
        return count

    @capable(options=CALM)
    async def flood(size: int, count: int, context: Context) -> int:
        """Make events that fill every buffer."""
        for number in range(count):
            context.progress(number, "x" * size)
            await asyncio.sleep(0)
        return count

    @capable(options=CALM)
    async def ask(context: Context) -> Any:
        """Ask a person."""
        return await context.ask("Which one?", {"type": "string"})

    @capable(options=Options(concurrency=1))
    async def single(name: str) -> str:
        """Do one thing at a time."""
        controls.begun(name).set()
        await controls.let(name).wait()
        return name

    typed = Options(concurrency=1000)
    made: list[Agent] = [ExampleAgent(), Failing()]
    made += [reflect, hold, steps, flood, ask, single]
    made.append(capable(name="typed", options=typed)(_typed))
    return made


async def _typed(param1: str) -> str:
    """Take one text."""
    return param1


class Served:
    """A server in a thread of its own."""

    def __init__(self, settings: Settings, patience: Patience | None = None) -> None:
        self.settings = settings
        self.controls = Controls()
        self.url = ""
        self.port = 0
        self._patience = patience
        self._orchestrator: Orchestrator | None = None
        self._runtime: Runtime | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    @property
    def orchestrator(self) -> Orchestrator:
        assert self._orchestrator is not None
        return self._orchestrator

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        listener = bind(self.settings)
        self._runtime = runtime = Runtime(self.settings)
        for agent in agents(self.controls):
            runtime.orchestrator.register_agent(agent)
        await serve(
            runtime,
            self.settings,
            listener,
            ready=self._is_ready,
            stop=self._stop,
            patience=self._patience,
            bench_echo=True,
        )

    def _is_ready(self, orchestrator: Orchestrator, url: str) -> None:
        self._orchestrator = orchestrator
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self._ready.set()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(SECONDS)
        if self._error is not None:
            self._thread.join(SECONDS)
            raise self._error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ask_to_stop()
        self.join()

    def ask_to_stop(self) -> None:
        """Begin to stop, as the first signal does."""
        if self._thread.is_alive():
            assert self._loop is not None
            assert self._stop is not None
            self._loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        """Return once it has stopped."""
        self._thread.join(SECONDS * 2)
        assert not self._thread.is_alive(), "the server does not stop"
        if self._error is not None:
            raise self._error

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    def wait_begun(self, name: str) -> None:
        """Return once the agent that was given ``name`` has begun."""
        assert self.controls.begun(name).wait(SECONDS), f"{name} does not begin"

    def watched(self) -> list[str]:
        """Return the executions that somebody watches."""
        return self.run(self._watched())

    async def _watched(self) -> list[str]:
        assert self._runtime is not None
        return self._runtime.engine.journal.watched

    def connections(self) -> int:
        """Return how many connections this process, the server's, has accepted and not closed."""
        found = 0
        for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            port, inode = int(fields[1].rpartition(":")[2], 16), fields[9]
            found += port == self.port and fields[3] != "0A" and inode != "0"
        return found

    def let(self, name: str) -> None:
        """Let the agent that was given ``name`` go on."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.controls.let(name).set)

    def tripping(self) -> Agent:
        """Return an agent whose circuit opens at its first failure."""

        @capable(options=Options(failure_threshold=1))
        async def trip() -> None:
            """Fail."""
            raise ValueError("tripped")

        return trip

    def raw(self, sent: str) -> tuple[int, bytes]:
        """Send text as it is; return the status and the body of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(sent.encode("latin-1"))
            got = b""
            while b"\r\n\r\n" not in got:
                part = connection.recv(65536)
                assert part, got
                got += part
            head, _, rest = got.partition(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
            while len(rest) < int(fields.get(b"content-length", b"0")):
                rest += connection.recv(65536)
        return int(head.split()[1]), rest

    def client(self, key: str | None = None) -> httpx.Client:
        """Return a client, to be closed."""
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=SECONDS, trust_env=False)


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def store_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of the shared server's store, one of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('store') / 'retinue.db'}"
        return
    postgres: PostgresServer = request.getfixturevalue("postgres_server")
    yield postgres.create_database("served")
    postgres.drop_database("served")


@pytest.fixture(scope="session")
def server(store_url: str) -> Iterator[Served]:
    """The shared server."""
    settings = Settings(
        port=0, database_url=store_url, examples=False, entry_points=False, grace_seconds=2
    )
    with Served(settings, Patience(heartbeat=0.3, send=5.0)) as served:
        yield served


@pytest.fixture
def client(server: Served) -> Iterator[httpx.Client]:
    """A client of the shared server."""
    with server.client() as client:
        yield client


@pytest.fixture
def session(server: Served) -> str:
    """A session id that no other test uses."""
    return f"session_{next(_numbers):04}"


@pytest.fixture
def name() -> str:
    """A word that no other test uses."""
    return f"name-{next(_numbers)}"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start servers that end with the test: ``start(patience=…, **settings)``."""
    with contextlib.ExitStack() as stack:

        def begin(*, patience: Patience | None = None, **settings: Any) -> Served:
            given = {
                "port": 0,
                "data_dir": tmp_path,
                "examples": False,
                "entry_points": False,
                "grace_seconds": 2,
                **settings,
            }
            return stack.enter_context(Served(Settings(**given), patience))

        yield begin


Orchestrate = Callable[..., httpx.Response]


@pytest.fixture
def orchestrate(client: httpx.Client, session: str) -> Orchestrate:
    """POST a task: ``orchestrate("echo", {"text": "hi"}, **more fields)``."""

    def post(capability: str | None, parameters: Any = None, **more: Any) -> httpx.Response:
        body = {"session_id": session, "parameters": parameters or {}, **more}
        if capability is not None:
            body["capability"] = capability
        return client.post("/v1/orchestrate", json=body)

    return post


@pytest.fixture
def submit(client: httpx.Client, session: str) -> Callable[..., str]:
    """POST a task without waiting; return its execution's id."""

    def post(capability: str, parameters: Any = None, **more: Any) -> str:
        body = {"session_id": session, "capability": capability, **more}
        body["parameters"] = parameters or {}
        answer = client.post("/v1/executions", json=body)
        assert answer.status_code == 202, answer.text
        execution_id: str = answer.json()["execution_id"]
        return execution_id

    return post

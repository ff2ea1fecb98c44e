"""The command line on PostgreSQL, where a server and other processes share the store."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import asyncpg
import pytest
from tests.cli.conftest import SECONDS, Place, Server, in_steps

from retinue.testing.servers import PostgresServer

T = TypeVar("T")
LEAVES_WITHIN = 10.0
"""Half of the grace period, and far more than it needs (less than 0.1 s): machines are busy."""
AGENTS = (
    "import asyncio, pathlib\n"
    "from retinue import Context, Options, capability\n"
    "async def gate(name):\n"
    "    pathlib.Path('began-' + name).touch()\n"
    "    while not pathlib.Path('go-' + name).exists():\n"
    "        await asyncio.sleep(0.02)\n"
    "    return name\n"
    "@capability(options=Options(concurrency=1))\n"
    "async def single(name: str) -> str:\n"
    "    return await gate(name)\n"
    "@capability(options=Options(delivery='idempotent', concurrency=1))\n"
    "async def again(name: str) -> str:\n"
    "    return await gate(name)\n"
    "@capability()\n"
    "async def parent(context: Context, name: str) -> str:\n"
    "    return 'of ' + await context.call('single', {'name': name})\n"
    "@capability()\n"
    "async def decide(context: Context) -> str:\n"
    "    return await context.ask('which one?')\n"
)
NAMES = "['agents:single', 'agents:again', 'agents:parent', 'agents:decide']"


@pytest.fixture
def shared(place: Place, postgres_url: str) -> Place:
    """A directory whose store is a PostgreSQL database, with agents that wait for a file."""
    place.write("agents.py", AGENTS)
    place.write("retinue.yaml", f"agents: {NAMES}\ndatabase_url: {postgres_url}\n")
    return place


def until(look: Callable[[], T]) -> T:
    """Look again until there is something to see; return it."""
    deadline = time.monotonic() + SECONDS
    while not (seen := look()):
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)
    return seen


def sql(url: str, statement: str, *values: Any) -> list[Any]:
    """Run a statement beside the stores."""

    async def run() -> list[Any]:
        db = await asyncpg.connect(url)
        try:
            return list(await db.fetch(statement, *values))
        finally:
            await db.close()

    return asyncio.run(run())


def away(url: str) -> None:
    """Make of the processes that have the database open such of another machine."""
    sql(url, "UPDATE worker SET node = 'another.machine'")


def submit(server: Server, capability: str, name: str) -> str:
    body = {"session_id": "s", "capability": capability, "parameters": {"name": name}}
    return str(server.post("/v1/executions", body)["execution_id"])


def state(place: Place, execution_id: str) -> str:
    return str(place.call("execution", "show", execution_id, "--json").json["state"])


def began(place: Place, name: str) -> bool:
    return (place.directory / f"began-{name}").exists()


# -- the server is found -------------------------------------------------------------------------


def test_it_finds_the_server_by_the_stores_workers(shared: Place, postgres_url: str) -> None:
    with shared.serve() as server:
        held, waiting = (submit(server, "single", name) for name in ("first", "second"))
        until(lambda: began(shared, "first"))
        done = shared.retinue("run", "echo", "text=there", "--session", "found", "--json")
        assert (done.code, done.json["data"], done.err) == (0, {"message": "Echo: there"}, "")
        assert shared.call("execution", "--session", "found", "--json").json["total"] == 1
        assert len(sql(postgres_url, "SELECT 1 FROM worker")) == 1, "a command opened the store"
        assert [state(shared, i) for i in (held, waiting)] == ["running", "queued"]
        shared.write("go-first", "")
        shared.write("go-second", "")
        until(lambda: state(shared, waiting) == "completed")


def test_what_needs_a_server_has_it(shared: Place) -> None:
    with shared.serve() as server:
        body = {"session_id": "s", "capability": "decide", "parameters": {}}
        asked = server.post("/v1/executions", body)["execution_id"]
        (question,) = until(lambda: shared.call("question", "--json").json["questions"])
        done = shared.retinue("question", "answer", question["question_id"], "this one")
        assert (done.code, done.err) == (0, ""), done
        until(lambda: state(shared, asked) == "completed")


def test_a_key_is_shown_to_the_server_that_was_found(shared: Place) -> None:
    with shared.serve():
        secret = shared.call("key", "create", "me", "--role", "admin").out.strip()
        done = shared.call("agent")
        assert done.err.startswith("error E_UNAUTHENTICATED"), done
        assert shared.call("agent", RETINUE_API_KEY=secret).code == 0


def test_doctor_sees_the_server_and_whose_the_port_is(shared: Place, postgres_url: str) -> None:
    with shared.serve() as server:
        pid, port = server.process.pid, server.url.rpartition(":")[2]
        lines = _findings(shared, ORCHESTRATOR_PORT=port)
        assert lines["store"]["state"] == "ok"
        assert lines["store"]["text"] == f"process {pid} serves it at {server.url}"
        assert lines["port"]["state"] == "ok"
        assert server.url in lines["port"]["text"]
        away(postgres_url)
        lines = _findings(shared, ORCHESTRATOR_PORT=port)
        assert f"process {pid} on another.machine serves it at {server.url}" in str(lines["store"])
        assert lines["port"]["state"] == "fail"
    lines = _findings(shared, ORCHESTRATOR_PORT=port)
    assert "nobody has it open" in lines["store"]["text"]
    assert lines["port"]["state"] == "ok"


def test_a_second_server_at_its_port_is_led_to_it(shared: Place) -> None:
    with shared.serve() as server:
        done = shared.call("serve", "--port", server.url.rpartition(":")[2])
        assert done.code == 1
        said = f"process {server.process.pid} serves this very store at {server.url}"
        assert said in done.err


def test_a_server_that_was_killed_is_not_taken_for_one(shared: Place, postgres_url: str) -> None:
    with shared.serve() as server:
        server.stop(signal.SIGKILL)
        port = server.url.rpartition(":")[2]
        alive = "SELECT 1 FROM worker WHERE stopped_at IS NULL AND url IS NOT NULL"
        assert sql(postgres_url, alive), "its lease has not run out yet"
        done = shared.retinue("run", "echo", "text=here")
        assert (done.code, done.json) == (0, {"message": "Echo: here"})
    # Nor is who else listens there since.
    with shared.serve(DATABASE_URL="sqlite:///other.db", ORCHESTRATOR_PORT=port) as other:
        assert other.url == server.url
        done = shared.retinue("run", "echo", "text=here", "--session", "mine", "--json")
        assert done.json["data"] == {"message": "Echo: here"}
        assert sql(postgres_url, alive)
        assert shared.call("execution", "--session", "mine", "--json").json["total"] == 1
        assert shared.call("execution", "--url", other.url, "--json").json["total"] == 0


def test_without_one_it_says_where_one_may_be(shared: Place, postgres_url: str) -> None:
    with shared.serve() as server:
        away(postgres_url)
        done = shared.call("question", "answer", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "x")
        assert done.code == 1
        assert "--url" in done.err
        words = ("question", "answer", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "x", "--url", server.url)
        assert shared.call(*words).err.startswith("error E_NOT_FOUND")


# -- what is performed without one ---------------------------------------------------------------


def test_it_performs_its_own_task_and_nobody_elses(shared: Place, postgres_url: str) -> None:
    with shared.serve() as server:
        ids = [submit(server, "single", name) for name in ("one", "two", "three")]
        until(lambda: began(shared, "one"))
        away(postgres_url)
        begun = time.monotonic()
        done = shared.retinue("run", "echo", "text=hi")
        taken = time.monotonic() - begun
        assert (done.code, done.json) == (0, {"message": "Echo: hi"})
        assert [state(shared, i) for i in ids] == ["running", "queued", "queued"]
        # Its own of the very same agent goes past what waits for the server's slot.
        shared.write("go-mine", "")
        assert shared.retinue("run", "single", "name=mine").json == "mine"
        assert [state(shared, i) for i in ids] == ["running", "queued", "queued"]
        assert not began(shared, "two")
        for name in ("one", "two", "three"):
            shared.write(f"go-{name}", "")
        until(lambda: [state(shared, i) for i in ids] == ["completed"] * 3)
    assert taken < SECONDS / 4


def test_its_children_are_its_own(shared: Place, postgres_url: str) -> None:
    with shared.serve() as server:
        ids = [submit(server, "single", name) for name in ("one", "two")]
        until(lambda: began(shared, "one"))
        away(postgres_url)
        shared.write("go-child", "")
        done = shared.retinue("run", "parent", "name=child")
        assert (done.code, done.json) == (0, "of child")
        assert [state(shared, i) for i in ids] == ["running", "queued"]
        for name in ("one", "two"):
            shared.write(f"go-{name}", "")
        until(lambda: state(shared, ids[1]) == "completed")


def test_it_leaves_soon_after_its_end(shared: Place, postgres_url: str) -> None:
    with shared.serve() as server:
        waiting = [submit(server, "single", name) for name in ("one", "two")]
        away(postgres_url)
        running = shared.start("run", "single", "name=mine")
        until(lambda: began(shared, "mine"))
        shared.write("go-mine", "")
        ended = "SELECT 1 FROM execution WHERE state = 'completed'"
        until(lambda: sql(postgres_url, ended))
        begun = time.monotonic()
        out, err = running.communicate(timeout=SECONDS)
        assert time.monotonic() - begun < LEAVES_WITHIN
        assert (running.returncode, out, err) == (0, '"mine"\n', "")
        workers = "SELECT 1 FROM worker WHERE stopped_at IS NULL"
        assert len(sql(postgres_url, workers)) == 1, "it gave up its lease"
        for name in ("one", "two"):
            shared.write(f"go-{name}", "")
        until(lambda: state(shared, waiting[1]) == "completed")


@pytest.mark.parametrize(("capability", "ends"), [("again", "completed"), ("single", "failed")])
def test_what_a_killed_command_ran_goes_by_its_policy(
    shared: Place, postgres_url: str, capability: str, ends: str
) -> None:
    settings = {"RETINUE_LEASE_SECONDS": "1"}
    running = shared.start("run", capability, "name=mine", "--session", "killed", **settings)
    until(lambda: began(shared, "mine"))
    running.kill()
    running.communicate(timeout=SECONDS)
    shared.write("go-mine", "")
    with shared.serve(**settings):
        listing = ("execution", "--session", "killed", "--json")

        def ended() -> Any:
            (found,) = shared.call(*listing).json["executions"]
            return found if found["finished_at"] is not None else None

        assert until(ended)["state"] == ends


def test_what_waits_is_left_to_a_server_on_sqlite_too(place: Place) -> None:
    place.write("agents.py", AGENTS)
    place.write("retinue.yaml", f"agents: {NAMES}\n")
    with place.serve(RETINUE_GRACE_SECONDS="0.1") as server:
        ids = [submit(server, "single", name) for name in ("one", "two")]
        until(lambda: began(place, "one"))
    assert place.retinue("run", "echo", "text=hi").code == 0
    assert state(place, ids[1]) == "queued"
    place.write("go-two", "")
    with place.serve():
        until(lambda: state(place, ids[1]) == "completed")


def test_what_waits_for_others_of_its_session_says_so(place: Place) -> None:
    place.write("agents.py", AGENTS)
    place.write("retinue.yaml", f"agents: {NAMES}\n")
    with place.serve(RETINUE_GRACE_SECONDS="0.1") as server:
        submit(server, "single", "one")
        until(lambda: began(place, "one"))
        before = submit(server, "single", "two")
    words = ("run", "echo", "text=mine", "--session", "s", "--on-busy", "enqueue")
    waiting = place.start(*words)
    assert waiting.stderr is not None
    assert "it waits for earlier tasks of session s" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=SECONDS)
    assert waiting.returncode == 130, err
    assert state(place, before) == "queued"


def test_ctrl_c_cancels_it_and_it_leaves(shared: Place, postgres_url: str) -> None:
    words = ("run", "summarize_text", "text=One is here. Two is here.", "pause_ms=60000")
    process = in_steps(shared, *words, "--follow", until="One is here.")
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    process.communicate(timeout=SECONDS)
    assert time.monotonic() - begun < LEAVES_WITHIN
    assert process.returncode == 130
    found = sql(postgres_url, "SELECT state FROM execution")
    assert [row[0] for row in found] == ["cancelled"]


# -- a database that is not there ----------------------------------------------------------------


@pytest.mark.parametrize("words", [("run", "echo", "text=x"), ("serve", "--port", "0"), ("agent",)])
def test_a_missing_database_is_said_with_what_makes_it(
    place: Place, postgres_server: PostgresServer, words: tuple[str, ...]
) -> None:
    url = postgres_server.url("not made yet")
    done = place.call(*words, DATABASE_URL=url)
    assert done.code == 1
    assert done.err.startswith("error E_STORE_MISSING: there is no database 'not made yet' at")
    assert "try again" not in done.err
    command = f"createdb -h 127.0.0.1 -p {postgres_server.port} -U postgres 'not made yet'"
    assert command in done.err


def test_doctor_says_how_to_make_it(place: Place, postgres_server: PostgresServer) -> None:
    lines = _findings(place, ORCHESTRATOR_PORT="0", DATABASE_URL=postgres_server.url("nowhere"))
    assert lines["store"]["state"] == "fail"
    assert "there is no database nowhere" in lines["store"]["text"]
    assert "createdb" in lines["store"]["advice"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        away_ = f"postgresql://127.0.0.1:{port}/x"
        lines = _findings(place, ORCHESTRATOR_PORT="0", DATABASE_URL=away_)
    assert "start PostgreSQL" in lines["store"]["advice"]


def _findings(place: Place, **environment: str) -> dict[str, dict[str, str]]:
    found = place.call("doctor", "--json", **environment).json["findings"]
    return {finding["subject"]: finding for finding in found}

"""One table of what a caller can have done, run over stdio and over REST: the same is answered.

What rows say of an answer holds for both doors word for word; REST adds an HTTP status to each
error code. Datasets are not in it: neither door has them yet.
"""

import asyncio
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import httpx
import msgspec
import pytest
from tests.cli.conftest import Place
from tests.cli.test_serve_stdio import system_in

from retinue.cli.check.peer import Peer
from retinue.wire import Control, Error

MISBEHAVING = Path(__file__).parents[1] / "engine" / "misbehaving.py"
FLEET = """
import asyncio
from typing import Any
from retinue import Context, Options, capability
from retinue.agent import Agent, AgentCapability

@capability()
async def ask(context: Context, prompt: str = "Proceed?") -> Any:
    return {"answer": await context.ask(prompt, {"type": "string"})}

@capability()
async def tell(context: Context, words: int) -> str:
    for n in range(words):
        context.text(f"{n} ", node="draft")
    context.spend(input_tokens=3, output_tokens=4)
    return "told"

@capability(options=Options(concurrency=100))
async def sleepy(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "awake"

@capability()
async def typed(n: int) -> int:
    return n

@capability()
async def fail() -> None:
    raise ValueError("something broke")

@capability(options=Options(failure_threshold=1))
async def trips() -> None:
    raise ValueError("tripped")

@capability()
async def big(n: int) -> str:
    return "é" * n

class Echo(Agent):
    def __init__(self):
        super().__init__("echo", "Echo")
    async def execute(self, task):
        return task["parameters"]
    def get_capabilities(self):
        return [AgentCapability("echo")]

class Several(Agent):
    def __init__(self):
        super().__init__("several", "Several Things")
    async def execute(self, task):
        return {name: task[name] for name in ("capability", "context", "session_id")}
    def get_capabilities(self):
        return [AgentCapability("this"), AgentCapability("that")]
"""
NAMES = ("ask", "tell", "sleepy", "typed", "fail", "trips", "big", "Echo", "Several")
WORKERS = [
    {
        "driver": "stdio",
        "name": "w",
        "command": [sys.executable, "-I", "-S", "-u", str(MISBEHAVING)],
        "process_pool_size": 1,
        "max_concurrent_requests": 1,
        "request_queue_size": 0,
    },
    {
        "driver": "stdio",
        "name": "lazy",
        "command": [sys.executable, "-m", "retinue.sdk", "--agent", "broken=nowhere:Agent"],
        "process_pool_size": 1,
    },
]
STATUS = {
    "E_TIMEOUT": 504,
    "E_AGENT_NOT_FOUND": 404,
    "E_INVALID_INPUT": 422,
    "E_MODULE_LOAD": 503,
    "E_STREAM_BROKEN": 502,
    "E_HUMAN_INPUT_REQUIRED": 409,
    "E_INTERNAL": 500,
    "E_QUEUE_FULL": 429,
    "E_CIRCUIT_OPEN": 503,
    "E_CANCELLED": 409,
    "E_NOT_FOUND": 404,
    "E_AGENT_UNAVAILABLE": 503,
}
"""What REST answers beside each code."""
FAULT = {"error_code", "error_type", "message", "retryable", "details", "outcome"}


class Answer(msgspec.Struct):
    """What came of an operation: a payload, whether it is an error's, and what was streamed."""

    payload: dict[str, Any]
    failed: bool
    chunks: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []

    @property
    def result(self) -> Any:
        assert not self.failed, self.payload
        assert self.payload["status"] == "success"
        return self.payload["result"]

    @property
    def invoke_id(self) -> str:
        return str(self.payload["metadata"]["invoke_id"])

    def fault(self, *fields: str) -> Any:
        """Return some fields of the error, `details` aside."""
        assert self.failed, self.payload
        assert self.payload.keys() >= FAULT, self.payload
        return tuple(self.payload[name] for name in fields)


class Way(ABC):
    """A door, as the table uses it; ``directory`` is where files for its agents go."""

    directory: Path

    @abstractmethod
    async def ask(self, operation: str, **payload: Any) -> Answer:
        """Have an operation done."""

    async def invoke(self, agent: str, given: Any = None, **options: Any) -> Answer:
        """Invoke an agent."""
        more: dict[str, Any] = {
            name: options.pop(name) for name in ("metadata", "context") if name in options
        }
        if given is not None:
            more["input"] = given
        return await self.ask("agent.invoke", agent_name=agent, options=options, **more)

    @abstractmethod
    async def healthy(self) -> bool:
        """Ask whether it is well."""

    @abstractmethod
    async def cancelled(self, agent: str, given: Any) -> Answer:
        """Invoke an agent and cancel that while it is under way."""

    @abstractmethod
    async def shut_down(self) -> str:
        """Shut down what performs ``it``, which is at work: this system, or its worker."""


class Stdio(Way):
    """The system as a subprocess."""

    def __init__(self, peer: Peer, directory: Path) -> None:
        self.peer = peer
        self.directory = directory

    async def ask(self, operation: str, **payload: Any) -> Answer:
        return await self.answered(self.peer.ask(operation, **payload))

    async def answered(self, sent: str) -> Answer:
        frame = await self.peer.answer(sent, "it", 60)
        failed = isinstance(frame, Error)
        return Answer(
            msgspec.to_builtins(frame.payload),
            failed,
            [msgspec.to_builtins(one.payload) for one in self.peer.chunks(sent)],
            [
                item.payload
                for item in self.peer.items
                if isinstance(item, Control) and item.correlation_id == sent
            ],
        )

    async def healthy(self) -> bool:
        answer = await self.answered(self.peer.order("ping"))
        return bool(answer.payload["status"] == "pong")

    async def cancelled(self, agent: str, given: Any) -> Answer:
        sent = self.peer.invoke(agent, given)
        answer = await self.answered(self.peer.order("cancel", request_id=sent))
        assert answer.payload["status"] == "cancelling"
        return await self.answered(sent)

    async def shut_down(self) -> str:
        sent = self.peer.order("shutdown", reason="graceful", timeout_ms=20_000)
        return str((await self.answered(sent)).payload["status"])


class Rest(Way):
    """The same system over HTTP."""

    _GETS: ClassVar[dict[str, str]] = {
        "agent.result": "/v1/invocations/{}/result",
        "agent.next_step": "/v1/invocations/{}/next_step",
    }

    def __init__(self, client: httpx.AsyncClient, directory: Path) -> None:
        self.client = client
        self.directory = directory

    async def ask(self, operation: str, **payload: Any) -> Answer:
        if operation in self._GETS:
            path = self._GETS[operation].format(payload.pop("invoke_id"))
            return self._plain(await self.client.get(path, params=payload))
        if operation == "human_input.pending":
            return self._plain(await self.client.get("/v1/human_input", params=payload))
        # The payload of the frame is the body.
        body = {"operation": operation, **payload}
        if operation == "human_input.provide":
            return self._plain(await self.client.post("/v1/human_input", json=body))
        assert operation == "agent.invoke"
        answer = await self.client.post("/v1/invocations", json=body)
        if answer.headers["content-type"].startswith("text/event-stream"):
            return self._streamed(answer.text)
        if payload.get("options", {}).get("async"):
            found = self._plain(answer)
            where = f"/v1/invocations/{found.invoke_id}/result"
            assert (answer.status_code, answer.headers["location"]) == (202, where)
            return found
        return self._plain(answer)

    def _plain(self, answer: httpx.Response) -> Answer:
        payload = answer.json()
        failed = answer.status_code >= 400
        assert answer.status_code == (STATUS[payload["code"]] if failed else answer.status_code)
        return Answer(payload, failed)

    def _streamed(self, text: str) -> Answer:
        events = [event for event in text.split("\n\n") if event.startswith("id: ")]
        frames = [json.loads(event.partition("\ndata: ")[2]) for event in events]
        assert len({frame["correlation_id"] for frame in frames}) == 1
        kinds = [frame["type"] for frame in frames]
        return Answer(
            frames[-1]["payload"],
            kinds[-1] == "error",
            [frame["payload"] for frame in frames if frame["type"] == "stream"],
            [frame["payload"] for frame in frames if frame["type"] == "control"],
        )

    async def healthy(self) -> bool:
        return (await self.client.get("/v1/health")).status_code == 200

    async def cancelled(self, agent: str, given: Any) -> Answer:
        begun = await self.invoke(agent, given, **{"async": True})
        path = f"/v1/executions/{begun.invoke_id}/cancel"
        assert (await self.client.post(path)).status_code == 200
        return await self.ask("agent.result", invoke_id=begun.invoke_id)

    async def shut_down(self) -> str:
        while (await self.client.get("/v1/workers/w")).json()["in_flight"] != 1:
            pass
        body = {"operation": "shutdown", "reason": "graceful", "timeout_ms": 20_000}
        answer = await self.client.post("/v1/workers/w/shutdown", json=body)
        assert answer.status_code == 200
        return str(answer.json()["status"])


# -- the table -----------------------------------------------------------------------------------

Row = Callable[[Way], Awaitable[None]]
TABLE: list[Row] = []


def row(check: Row) -> Row:
    """Put a row into the table."""
    TABLE.append(check)
    return check


@row
async def invoke(door: Way) -> None:
    for given in ([["x"]], [[{"id": 7}]], {"text": "é\u2028"}, 7, "x"):
        done = await door.ask("agent.invoke", agent_name="echo", input=given)
        assert done.result == given
        assert done.payload.keys() == {"status", "result", "metadata"}
        assert done.payload["metadata"].keys() == {"invoke_id", "duration_ms", "tokens_used"}
    assert (await door.invoke("typed", 7)).result == 7  # one value is the one parameter
    anybody = await door.ask("agent.invoke", input={"n": 8}, options={"capability": "typed"})
    assert anybody.result == 8
    wrapped = await door.invoke("Several Things", {}, capability="that")
    assert wrapped.result["capability"] == "that"


@row
async def metadata(door: Way) -> None:
    given = {"user_id": "user-123", "session_id": "sess-456", "tier": 3, "trial": True}
    more = {"metadata": given, "context": {"locale": "fr"}}
    done = await door.invoke("several", {}, capability="this", **more)
    assert done.result["session_id"] == "sess-456"
    assert done.result["context"] == {"locale": "fr", "metadata": given}


@row
async def a_large_result_is_whole(door: Way) -> None:
    done = await door.invoke("big", {"n": 1_500_000})
    if done.payload.get("result_node") is not None:  # stdio has lines, and they an end
        assert json.loads("".join(one["chunk"] for one in done.chunks)) == "é" * 1_500_000
    else:
        assert done.result == "é" * 1_500_000


@row
async def stream(door: Way) -> None:
    done = await door.invoke("tell", {"words": 3}, stream=True)
    assert done.result == "told"
    assert done.payload["metadata"]["tokens_used"] == 7
    assert "".join(one["chunk"] for one in done.chunks) == "0 1 2 "
    assert {one["node_name"] for one in done.chunks} == {"draft"}
    assert [one["is_complete"] for one in done.chunks][-1] is True
    assert sum(one["is_complete"] for one in done.chunks) == 1
    assert done.chunks[-1]["accumulated"] == "0 1 2 "
    assert [one["event"] for one in done.asked] == ["usage"]
    bare = await door.invoke("tell", {"words": 2}, stream=True, accumulated=False)
    assert not any("accumulated" in one for one in bare.chunks)
    silent = await door.invoke("tell", {"words": 2})
    assert (silent.chunks, silent.asked) == ([], [])
    other = await door.invoke("tell", {"words": 2}, stream=True, stream_node="chat")
    assert other.fault("error_code", "error_type") == ("E_INVALID_INPUT", "validation")
    assert other.payload["details"]["nodes"] == ["tell"]
    failed = await door.invoke("fail", stream=True)
    assert failed.fault("error_code", "outcome") == ("E_INTERNAL", "failed")


@row
async def asynchronous(door: Way) -> None:
    begun = await door.invoke("sleepy", {"seconds": 0.3}, **{"async": True})
    ids = {"invoke_id": begun.invoke_id}
    assert begun.payload == {"status": "success", "result": ids, "metadata": ids, **ids}
    early = await door.ask("agent.result", **ids, timeout_ms=1)
    assert early.fault("error_code", "retryable") == ("E_TIMEOUT", True)
    for operation in ("agent.result", "agent.next_step"):
        done = await door.ask(operation, **ids)
        assert (done.result, done.invoke_id) == ("awake", begun.invoke_id)
        nobody = await door.ask(operation, invoke_id="01ARZ3NDEKTSV4RRFFQ69G5FAV")
        assert nobody.fault("error_code", "error_type") == ("E_NOT_FOUND", "not_found")


@row
async def human_input(door: Way) -> None:
    begun = await door.invoke("ask", {"prompt": "Go?"}, **{"async": True, "timeout_ms": 600_000})
    step = await door.ask("agent.next_step", invoke_id=begun.invoke_id)
    assert step.payload["status"] == "human_input_required"
    asking = step.payload["human_input"]
    assert (asking["invoke_id"], asking["prompt"]) == (begun.invoke_id, "Go?")
    assert asking["schema"] == {"type": "string"}
    for query in ({"invoke_id": begun.invoke_id}, {}):
        listed = await door.ask("human_input.pending", **query)
        assert [one["input_id"] for one in listed.result] == [asking["input_id"]]
        assert {**listed.result[0], "operation": 0} == {**asking, "operation": 0}
    ids = {name: asking[name] for name in ("invoke_id", "input_id")}
    wrong: list[dict[str, Any]] = [
        {**ids, "value": 7},
        {**ids, "input_id": begun.invoke_id, "value": "x"},
        {**ids, "invoke_id": asking["input_id"], "value": "x"},
    ]
    for given in wrong:
        refused = await door.ask("human_input.provide", **given)
        assert refused.fault("error_code", "retryable") == ("E_INVALID_INPUT", False)
    assert (await door.ask("human_input.provide", **ids, value="yes")).result == ids
    done = await door.ask("agent.result", invoke_id=begun.invoke_id)
    assert done.result == {"answer": "yes"}
    again = await door.ask("human_input.provide", **ids, value="no")
    assert again.fault("error_code") == ("E_INVALID_INPUT",)
    assert "answered" in again.payload["message"]
    assert (await door.ask("human_input.pending")).result == []


@row
async def who_cannot_wait_for_a_person(door: Way) -> None:
    asked = await door.invoke("ask", human_input="error")
    seen = asked.fault("error_code", "error_type", "retryable")
    assert seen == ("E_HUMAN_INPUT_REQUIRED", "pending", False)
    ids = {name: asked.payload["details"][name] for name in ("invoke_id", "input_id")}
    assert (await door.ask("human_input.provide", **ids, value="go")).result == ids
    done = await door.ask("agent.result", invoke_id=ids["invoke_id"])
    assert done.result == {"answer": "go"}


@row
async def e_timeout(door: Way) -> None:
    late = await door.invoke("sleepy", {"seconds": 60}, timeout_ms=200)
    seen = late.fault("error_code", "error_type", "retryable", "message", "outcome")
    text = "Agent invocation timed out after 200ms"
    assert seen == ("E_TIMEOUT", "timeout", True, text, "unknown")
    assert late.payload["details"]["elapsed_ms"] >= 200
    assert late.payload["details"]["agent_state"] == "processing"
    begun = await door.invoke("sleepy", {"seconds": 60}, **{"timeout_ms": 100, "async": True})
    later = await door.ask("agent.result", invoke_id=begun.invoke_id)
    assert later.fault("message") == ("Agent invocation timed out after 100ms",)
    assert later.payload["details"].keys() >= {"elapsed_ms", "agent_state", "invoke_id"}


@row
async def e_agent_not_found(door: Way) -> None:
    found = await door.invoke("nobody")
    seen = found.fault("error_code", "error_type", "retryable", "outcome")
    assert seen == ("E_AGENT_NOT_FOUND", "not_found", False, "not_started")


@row
async def e_invalid_input(door: Way) -> None:
    for asked, detail in (
        ({}, "path"),
        ({"agent_name": "several"}, "capabilities"),
        ({"agent_name": "typed", "input": {"n": "x"}}, "path"),
        ({"agent_name": "sleepy", "options": {"timeout_ms": 0}}, "path"),
        ({"agent_name": "sleepy", "metadata": {"a": {}}}, "path"),
        ({"agent_name": "sleepy", "metadata": {"session_id": 7}}, "path"),
        ({"agent_name": "sleepy", "input": {"seconds": 1}, "options": {"stream": 1}}, "path"),
    ):
        wrong = await door.ask("agent.invoke", **{"options": {}, **asked})
        seen = wrong.fault("error_code", "error_type", "retryable", "outcome")
        assert seen == ("E_INVALID_INPUT", "validation", False, "not_started")
        assert detail in wrong.payload["details"]


@row
async def e_internal(door: Way) -> None:
    failed = await door.invoke("fail")
    assert failed.fault("error_code", "error_type", "outcome") == (
        *("E_INTERNAL", "internal", "failed"),
    )
    assert "something broke" in failed.payload["message"]


@row
async def e_module_load(door: Way) -> None:
    broken = await door.invoke("broken")
    seen = broken.fault("error_code", "error_type", "retryable")
    assert seen == ("E_MODULE_LOAD", "initialization", False)
    assert broken.payload["details"]["module"] == "nowhere:Agent"


@row
async def e_stream_broken(door: Way) -> None:
    broken = await door.invoke("it", {"do": "exit", "code": 3})
    seen = broken.fault("error_code", "error_type", "retryable", "outcome")
    assert seen == ("E_STREAM_BROKEN", "stream", True, "unknown")


@row
async def e_queue_full(door: Way) -> None:
    # Its one process takes one task at a time, and no other may wait.
    given = {"do": "hold", "file": str(door.directory / "go")}
    begun = await door.invoke("it", given, **{"async": True})
    while begun.failed:  # its process ended a moment ago, and is being replaced
        begun = await door.invoke("it", given, **{"async": True})
    refused = await door.invoke("it", {"do": "echo"})
    seen = refused.fault("error_code", "error_type", "retryable", "outcome")
    assert seen == ("E_QUEUE_FULL", "internal", True, "not_started")
    (door.directory / "go").touch()
    done = await door.ask("agent.result", invoke_id=begun.invoke_id)
    assert done.result["input"] == given


@row
async def e_circuit_open(door: Way) -> None:
    assert (await door.invoke("trips")).fault("error_code") == ("E_INTERNAL",)
    refused = await door.invoke("trips")
    seen = refused.fault("error_code", "retryable", "outcome")
    assert seen == ("E_CIRCUIT_OPEN", True, "not_started")


@row
async def e_cancelled(door: Way) -> None:
    ended = await door.cancelled("sleepy", {"seconds": 60})
    assert ended.fault("error_code", "retryable") == ("E_CANCELLED", False)


@row
async def health(door: Way) -> None:
    busy = [asyncio.ensure_future(door.invoke("sleepy", {"seconds": 0.5})) for _ in range(20)]
    assert await door.healthy()
    assert {one.result for one in await asyncio.gather(*busy)} == {"awake"}


@row
async def shutdown(door: Way) -> None:
    go = door.directory / "go"
    go.unlink()
    held = asyncio.create_task(door.invoke("it", {"do": "hold", "file": str(go)}))
    await asyncio.sleep(0)  # it is on its way before the shutdown is
    assert await door.shut_down() == "shutting_down"
    refused = await door.invoke("it", {"do": "echo"})
    assert refused.fault("retryable", "outcome") == (True, "not_started")
    go.touch()
    assert (await held).result["input"]["do"] == "hold"


async def run(door: Way) -> None:
    """Run the whole table."""
    for check in TABLE:
        try:
            await check(door)
        except BaseException as error:
            error.add_note(f"row {check.__name__}, {type(door).__name__}")
            raise


@pytest.fixture
def fleet(place: Place) -> Place:
    """A place with the agents of the table."""
    place.write("fleet.py", FLEET)
    agents = [*(f"fleet:{name}" for name in NAMES), *WORKERS]
    place.write("retinue.yaml", f"examples: false\nagents: {json.dumps(agents)}\n")
    return place


@pytest.mark.requirement("000.http")
async def test_the_table_holds_over_stdio(fleet: Place) -> None:
    async with system_in(fleet) as peer:
        await peer.until_ready()
        await run(Stdio(peer, fleet.directory))
        assert await peer.ended(30) == 0


@pytest.mark.requirement("000.http")
async def test_the_table_holds_over_rest(fleet: Place) -> None:
    with fleet.serve() as server:
        options: dict[str, Any] = {"base_url": server.url, "timeout": 60, "trust_env": False}
        async with httpx.AsyncClient(**options) as client:
            await run(Rest(client, fleet.directory))
    assert server.code == 0

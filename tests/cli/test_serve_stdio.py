"""``retinue serve --stdio``: the whole system as a subprocess, from its parent's side."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import COMMANDS, Place
from tests.sdk.test_worker import ends_unread

from retinue.cli.check.peer import Peer, Plan
from retinue.cli.check.suite import check
from retinue.wire import Control, Error, Frame, Response, Stream
from retinue.wire.faults import payload_as
from retinue.wire.payloads import Asking, Fault

WORKER = Path(__file__).parents[2] / "examples" / "workers" / "python_worker.py"
AGENTS = """
import asyncio
import sys
from typing import Any
from retinue import Agent, AgentCapability, Context, Options, capability, current

if "--stdio" in sys.argv:
    print("printed at import")

class Several(Agent):
    def __init__(self):
        super().__init__("several", "Several Things")
    async def execute(self, task):
        return task
    def get_capabilities(self):
        return [AgentCapability("this"), AgentCapability("that", "", {"n": "integer"})]

@capability(options=Options(delivery="idempotent", retry_waits_ms=(0,)))
async def shaky(context: Context) -> str:
    context.text(f"try {context.attempt}")
    await asyncio.sleep(0.2)
    if context.attempt == 1:
        raise ConnectionError("the first try fails")
    return "told"

@capability(options=Options(delivery="at_least_once"))
async def twice(context: Context, seconds: float) -> int:
    context.text("begun")
    if context.attempt == 1:
        await asyncio.sleep(seconds)
    return context.attempt

@capability()
async def sleepy(seconds: float) -> str:
    print("printed while working")
    await asyncio.sleep(seconds)
    return "awake"

@capability()
async def ask(context: Context, prompt: str = "Proceed?") -> Any:
    return {"answer": await context.ask(prompt, {"type": "string"})}

@capability()
async def big(n: int) -> str:
    return "é" * n
"""
YAML = """
examples: false
agents: ["fleet:Several", "fleet:shaky", "fleet:sleepy", "fleet:ask", "fleet:big", "fleet:twice"]
"""

System = Callable[[], Peer]


def system_in(place: Place) -> Peer:
    command = ["env", "-C", str(place.directory), "-i", f"PATH={os.defpath}", "LANG=C.UTF-8"]
    command += [sys.executable, str(COMMANDS / "retinue"), "serve", "--stdio"]
    return Peer(Plan(command, seconds=30, start_seconds=60))


@pytest.fixture
def system(place: Place) -> System:
    """A system with agents of the test's own; each call is another run of it."""
    place.write("fleet.py", AGENTS)
    place.write("retinue.yaml", YAML)
    return lambda: system_in(place)


def success(answer: Response | Error) -> Any:
    assert isinstance(answer, Response), answer
    assert answer.payload["status"] == "success"
    return answer.payload["result"]


def failure(answer: Response | Error) -> Fault:
    assert isinstance(answer, Error), answer
    return answer.payload


def asks(frame: Frame) -> Asking | None:
    if isinstance(frame, Control) and frame.payload.get("operation") == "human_input.request":
        found: Asking = payload_as(frame.payload, Asking)
        return found
    return None


@pytest.mark.requirement("000.parent-protocol")
async def test_the_system_keeps_the_rules_of_a_worker(place: Place) -> None:
    place.write("python_worker.py", WORKER.read_text())
    names = ("Echo", "tell", "slow", "ask", "fail")
    agents = json.dumps([f"python_worker:{name}" for name in names])
    place.write("retinue.yaml", f"examples: false\nagents: {agents}\n")
    plan = system_in(place).plan
    found = await check(plan)
    # Its executions have ids of their own.
    assert {f.rule: f.why for f in found if f.outcome != "pass"}.keys() == {"invoke-id"}


@pytest.mark.requirement("000.invoke-async", "000.parent-protocol")
async def test_a_result_is_there_on_another_connection_and_after_a_restart(system: System) -> None:
    async with system() as peer:
        await peer.until_ready()
        sent = peer.invoke("ask", {"prompt": "Go?"}, run_async=True, timeout_ms=600_000)
        answer = await peer.answer(sent, "an asynchronous invocation")
        invoke_id = success(answer)["invoke_id"]
        assert answer.payload["invoke_id"] == invoke_id  # type: ignore[index]
        step = await peer.answer(peer.ask("agent.next_step", invoke_id=invoke_id), "next_step")
        assert isinstance(step, Response)
        assert step.payload["status"] == "human_input_required"
        asking = payload_as(step.payload["human_input"], Asking)
        assert (asking.invoke_id, asking.prompt) == (invoke_id, "Go?")
        listed = success(
            await peer.answer(peer.ask("human_input.pending", invoke_id=invoke_id), "pending")
        )
        assert [one["input_id"] for one in listed] == [asking.input_id]
        early = peer.ask("agent.result", invoke_id=invoke_id, timeout_ms=100)
        fault = failure(await peer.answer(early, "an early agent.result"))
        assert fault.error_code == "E_TIMEOUT"
        waiting = peer.ask("agent.result", invoke_id=invoke_id)
        ids = {"invoke_id": invoke_id, "input_id": asking.input_id}
        unfit = peer.ask("human_input.provide", **ids, value=7)
        assert failure(await peer.answer(unfit, "an unfit answer")).error_code == "E_INVALID_INPUT"
        success(await peer.answer(peer.ask("human_input.provide", **ids, value="yes"), "provide"))
        assert success(await peer.answer(waiting, "agent.result")) == {"answer": "yes"}
        again = peer.ask("human_input.provide", **ids, value="no")
        fault = failure(await peer.answer(again, "a second answer"))
        assert (fault.error_code, "answered" in fault.message) == ("E_INVALID_INPUT", True)
        assert success(await peer.answer(peer.ask("human_input.pending"), "pending")) == []
        peer.close_input()
        assert await peer.ended(30) == 0
    async with system() as peer:
        await peer.until_ready()
        for operation in ("agent.result", "agent.next_step"):
            sent = peer.ask(operation, invoke_id=invoke_id)
            answer = await peer.answer(sent, operation)
            assert success(answer) == {"answer": "yes"}
            assert answer.payload["metadata"]["invoke_id"] == invoke_id  # type: ignore[index]
        for operation in ("agent.result", "agent.next_step", "human_input.pending"):
            sent = peer.ask(operation, invoke_id="01ARZ3NDEKTSV4RRFFQ69G5FAV")
            fault = failure(await peer.answer(sent, operation))
            assert (fault.error_code, fault.error_type) == ("E_NOT_FOUND", "not_found")


@pytest.mark.requirement("000.metadata")
async def test_metadata_is_stored_with_the_execution(system: System, place: Place) -> None:
    metadata = {"user_id": "user-123", "session_id": "sess-456", "tier": 3, "trial": True}
    async with system() as peer:
        await peer.until_ready()
        options = {"capability": "this"}
        sent = peer.ask(
            "agent.invoke",
            agent_name="several",
            input=[["x"]],
            metadata=metadata,
            options=options,
            context={"locale": "fr"},
        )
        answer = await peer.answer(sent, "agent.invoke")
        task = success(answer)
        assert (task["parameters"], task["session_id"]) == ([["x"]], "sess-456")
        assert task["context"] == {"locale": "fr", "metadata": metadata}
        invoke_id = answer.payload["metadata"]["invoke_id"]  # type: ignore[index]
        nested = peer.ask("agent.invoke", agent_name="several", metadata={"a": {}}, options=options)
        assert failure(await peer.answer(nested, "nested")).error_code == "E_INVALID_INPUT"
        peer.close_input()
        assert await peer.ended(30) == 0
    shown = place.retinue("execution", "show", invoke_id, "--json").json
    assert shown["session_id"] == "sess-456"
    assert shown["input"]["context"]["metadata"] == metadata


@pytest.mark.requirement("000.stream")
async def test_a_second_attempt_resets_what_the_first_one_said(system: System) -> None:
    async with system() as peer:
        await peer.until_ready()
        sent = peer.invoke("shaky", None, stream=True)
        assert success(await peer.answer(sent, "shaky")) == "told"
        said = [
            (c.node_name, c.chunk, c.accumulated, c.is_reset, c.is_complete)
            for c in (frame.payload for frame in peer.chunks(sent))
        ]
        assert said == [
            ("shaky", "try 1", "try 1", False, False),
            ("shaky", "try 2", "try 2", True, False),
            ("shaky", "", "try 2", False, True),
        ]
        wrong = peer.invoke("shaky", None, stream=True, stream_node="chat")
        fault = failure(await peer.answer(wrong, "an unknown node"))
        assert (fault.error_code, fault.details) == (
            "E_INVALID_INPUT",
            {"path": "$.payload.options.stream_node", "nodes": ["shaky"]},
        )


@pytest.mark.requirement("000.timeout", "000.errors")
async def test_time_is_up_and_the_system_says_so(system: System) -> None:
    async with system() as peer:
        await peer.until_ready()
        sent = peer.invoke("sleepy", {"seconds": 60}, timeout_ms=300)
        fault = failure(await peer.answer(sent, "sleepy"))
        assert (fault.error_code, fault.error_type) == ("E_TIMEOUT", "timeout")
        assert fault.retryable
        assert fault.message == "Agent invocation timed out after 300ms"
        assert fault.details is not None
        assert fault.details["elapsed_ms"] >= 300
        assert fault.details["agent_state"] == "processing"
        assert success(await peer.answer(peer.invoke("sleepy", {"seconds": 0}), "it")) == "awake"


@pytest.mark.requirement("000.human-input", "000.errors")
async def test_who_cannot_wait_for_a_person_gets_both_ids(system: System) -> None:
    async with system() as peer:
        await peer.until_ready()
        sent = peer.invoke("ask", None, human_input="error")
        fault = failure(await peer.answer(sent, "ask"))
        assert (fault.error_code, fault.error_type) == ("E_HUMAN_INPUT_REQUIRED", "pending")
        assert not fault.retryable
        assert fault.details is not None
        ids = {name: fault.details[name] for name in ("invoke_id", "input_id")}
        success(await peer.answer(peer.ask("human_input.provide", **ids, value="go"), "provide"))
        result = peer.ask("agent.result", invoke_id=ids["invoke_id"])
        assert success(await peer.answer(result, "agent.result")) == {"answer": "go"}


async def test_what_is_asked_wrongly_is_refused_with_its_reason(system: System) -> None:
    async with system() as peer:
        await peer.until_ready()
        for asked, code, detail in (
            ({"agent_name": "nobody"}, "E_AGENT_NOT_FOUND", "agent"),
            ({}, "E_INVALID_INPUT", "path"),
            ({"agent_name": "several"}, "E_INVALID_INPUT", "capabilities"),
            (
                {"agent_name": "several", "options": {"capability": "that"}, "input": {"n": "x"}},
                "E_INVALID_INPUT",
                "path",
            ),
            ({"agent_name": "sleepy", "options": {"timeout_ms": 0}}, "E_INVALID_INPUT", "path"),
            ({"agent_name": "sleepy", "input": "x"}, "E_INVALID_INPUT", "path"),
        ):
            fault = failure(await peer.answer(peer.ask("agent.invoke", **asked), "a wrong one"))
            assert fault.error_code == code
            assert detail in (fault.details or {})
        # By its name, and by a capability alone; one value is the one parameter.
        named = peer.invoke("Several Things", {"n": 1}, capability="that")
        assert success(await peer.answer(named, "by name"))["parameters"] == {"n": 1}
        anybody = peer.ask("agent.invoke", input=0, options={"capability": "sleepy"})
        assert success(await peer.answer(anybody, "by capability")) == "awake"
        for operation in ("dataset.create", "agent.fly"):
            fault = failure(await peer.answer(peer.ask(operation), operation))
            assert fault.error_code == "E_UNKNOWN_OPERATION"


@pytest.mark.requirement("000.large-result")
async def test_a_large_result_comes_in_pieces(system: System) -> None:
    async with system() as peer:
        await peer.until_ready()
        sent = peer.invoke("big", {"n": 2_000_000})
        answer = await peer.answer(sent, "big")
        assert isinstance(answer, Response)
        assert answer.payload["result_node"] == "$result"
        text = "".join(frame.payload.chunk for frame in peer.chunks(sent))
        assert json.loads(text) == "é" * 2_000_000
        assert peer.misplaced == []


async def test_what_runs_is_kept_when_the_time_to_shut_down_is_over(system: System) -> None:
    async with system() as peer:
        await peer.until_ready()
        sent = peer.invoke("sleepy", {"seconds": 60}, stream=True)
        await peer.answer(peer.order("ping"), "ping")
        os.kill(peer._running().pid, signal.SIGTERM)
        peer.order("shutdown", timeout_ms=100)
        fault = failure(await peer.answer(sent, "what was running"))
        # It ran, so it is not said to be as good as never sent.
        assert (fault.error_code, fault.retryable) == ("E_CANCELLED", False)
        assert fault.outcome == "unknown"
        assert await peer.ended(30) == 0
        # What agents print, and the log, are on stderr; stdout has nothing but frames.
        assert all(line.startswith(b'{"type":') for line in peer.raw.splitlines())
        assert any("printed while working" in line for line in peer.errors)


async def test_what_goes_on_later_is_no_refusal_and_is_done_once(system: System) -> None:
    async with system() as peer:
        await peer.until_ready()
        sent = peer.invoke("twice", {"seconds": 1000}, stream=True)
        await peer.first("a chunk", lambda f: f if isinstance(f, Stream) else None, 30)
        peer.order("shutdown", timeout_ms=1)
        fault = failure(await peer.answer(sent, "what goes on later"))
        assert (fault.error_code, fault.retryable) == ("E_PENDING", False)
        assert fault.outcome == "unknown"
        assert fault.details is not None
        assert await peer.ended(30) == 0
    async with system() as peer:
        await peer.until_ready()
        found = peer.ask("agent.result", invoke_id=fault.details["invoke_id"])
        assert success(await peer.answer(found, "its result")) == 2


async def test_nobody_waits_for_a_person_when_the_system_is_to_end(system: System) -> None:
    async with system() as peer:
        await peer.until_ready()
        sent = peer.invoke("ask", {})
        await peer.first("a question", asks, 30)
        begun = time.monotonic()
        peer.order("shutdown", timeout_ms=60_000)
        fault = failure(await peer.answer(sent, "what asks"))
        assert (fault.error_code, fault.outcome) == ("E_CANCELLED", "unknown")
        assert await peer.ended(30) == 0
        assert time.monotonic() - begun < 20


def test_a_system_that_cannot_start_says_why(place: Place) -> None:
    place.write("retinue.yaml", "agents: [nowhere:Agent]\n")
    done = place.retinue("serve", "--stdio")
    assert (done.code, done.out) == (2, "")
    assert "nowhere" in done.err


@pytest.mark.parametrize("way", ["eof", "term"])
def test_a_parent_that_does_not_read_does_not_keep_it_from_ending(
    system: System, place: Place, way: str
) -> None:
    """What it cannot say waits; the system goes on, and ends when it is told to."""
    system()
    command = [sys.executable, str(COMMANDS / "retinue"), "serve", "--stdio"]
    env = {"PATH": os.defpath, "LANG": "C.UTF-8"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=place.directory, env=env
    ) as process:
        ends_unread(process, way)

"""A worker's side of the protocol: invocations, questions, streams, time and its end."""

import asyncio
import fcntl
import json
import os
import resource
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.conftest import Program, Serve

from retinue.cli.check.peer import Peer, Plan
from retinue.wire import Control, Error, Frame, Request, Response
from retinue.wire import envelope as make
from retinue.wire.faults import payload_as
from retinue.wire.payloads import RESULT_NODE, Asking, Fault, Invoke

ECHO = """
    class Echo(Agent):
        def __init__(self):
            super().__init__("echo", "Echo", "Answers.")
        async def execute(self, task):
            return task["parameters"]
        def get_capabilities(self):
            return [AgentCapability("echo")]
    """


def success(answer: Response | Error) -> Any:
    assert isinstance(answer, Response), answer
    assert answer.payload["status"] == "success"
    return answer.payload["result"]


def failure(answer: Response | Error) -> Fault:
    assert isinstance(answer, Error), answer
    return answer.payload


def unread(fd: int) -> int:
    """Return how many bytes are in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def memory(pid: int) -> int:
    """Return how much memory a process has, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def ends_unread(process: "subprocess.Popen[bytes]", way: str) -> None:
    """Have its agent ``big`` say more than its pipe holds, read none of it, and end it."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert b"ready" in process.stdout.readline()
    for _ in range(20):
        task = {"operation": "agent.invoke", "agent_name": "big", "input": {"n": 400_000}}
        process.stdin.write(make.encode_message(make.request(task)))
    process.stdin.flush()
    full = fcntl.fcntl(process.stdout, fcntl.F_GETPIPE_SZ)
    while unread(process.stdout.fileno()) < full:
        os.sched_yield()
    if way == "eof":
        process.stdin.close()
    else:
        process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    process.stdin.close()


async def question(peer: Peer, to: str) -> Asking:
    def test(frame: Frame) -> Asking | None:
        asks = (
            isinstance(frame, Control) and frame.payload.get("operation") == "human_input.request"
        )
        if not asks or frame.correlation_id != to:
            return None
        found: Asking = payload_as(frame.payload, Asking)  # type: ignore[arg-type]
        return found

    return await peer.first("a question", test, 30)


@pytest.mark.requirement("000.ready")
async def test_a_worker_says_who_it_is_before_anything_else(worker: Serve) -> None:
    async with worker(
        """
        @capability(options=Options(concurrency=2, nodes=("a", "b")))
        async def greet(name: str, context: Context) -> str:
            "Greet."
            return f"Hello, {name}"
        serve(greet, Reference("later", "nowhere:Agent"), module_name="greetings")
        """
    ) as peer:
        # A request that is sent before waits.
        early = peer.invoke("greet", {"name": "Ada"})
        ready = await peer.until_ready()
        first = peer.items[0]
        assert isinstance(first, Control)
        assert first.payload["status"] == "ready"
        assert (ready.module_name, ready.agents) == ("greetings", ["greet", "later"])
        card = peer.cards["greet"]
        assert (card.description, card.nodes, card.options) == (
            "Greet.",
            ["a", "b"],
            {"concurrency": 2},
        )
        assert card.capabilities[0].parameters is not None
        assert card.capabilities[0].parameters["required"] == ["name"]
        assert success(await peer.answer(early, "greet")) == "Hello, Ada"


@pytest.mark.requirement("000.input")
@pytest.mark.parametrize(
    "value", [[["x"]], [[{"id": 7}]], {"a": 1}, "text", 0, 1.5, None, False, []]
)
async def test_any_input_reaches_the_agent_equal(worker: Serve, value: Any) -> None:
    async with worker(ECHO + "serve(Echo)") as peer:
        assert success(await peer.answer(peer.invoke("echo", value), "echo")) == value


@pytest.mark.requirement("000.input")
async def test_an_input_that_does_not_fit_is_named(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        def add(a: int, b: int = 1) -> int:
            return a + b

        class Typed(Agent):
            def __init__(self):
                super().__init__("typed", "Typed")
            def execute(self, task):
                return [task["capability"], task["parameters"]]
            def get_capabilities(self):
                return [AgentCapability("one", "", {"n": "integer"}), AgentCapability("two")]
        serve(add, Typed)
        """
    ) as peer:
        for given, path in [
            ({"a": "x"}, "$.parameters.a"),
            ({}, "$.parameters.a"),
            ({"a": 1, "c": 2}, "$.parameters.c"),
            ("x", "$.parameters"),
        ]:
            fault = failure(await peer.answer(peer.invoke("add", given), "add"))
            assert (fault.error_code, fault.error_type) == ("E_INVALID_INPUT", "validation")
            assert (fault.retryable, fault.outcome) == (False, "not_started")
            assert path in fault.message
        assert success(await peer.answer(peer.invoke("add", [2, 3]), "add")) == 5
        wrong = peer.invoke("typed", {"n": "x"}, capability="one")
        fault = failure(await peer.answer(wrong, "typed"))
        assert fault.details == {"path": "$.parameters.n", "capability": "one"}
        fits = peer.invoke("typed", {"n": 1}, capability="one")
        assert success(await peer.answer(fits, "typed")) == ["one", {"n": 1}]
        # Several capabilities: one has to be named.
        fault = failure(await peer.answer(peer.invoke("typed", {}), "typed"))
        assert fault.error_code == "E_INVALID_INPUT"
        assert (fault.details or {})["capabilities"] == ["one", "two"]
        fault = failure(await peer.answer(peer.invoke("typed", {}, capability="three"), "typed"))
        assert "no capability three" in fault.message


@pytest.mark.requirement("000.invoke")
async def test_an_answer_says_how_long_it_took_and_what_it_used(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        async def think(context: Context) -> str:
            context.spend(input_tokens=100, output_tokens=50)
            await asyncio.sleep(0.05)
            return context.execution_id + context.session_id + str(context.attempt)
        serve(think)
        """
    ) as peer:
        metadata = {"invoke_id": "inv-1", "session_id": "s", "attempt": 2, "user_id": "u"}
        asked = peer.ask("agent.invoke", agent_name="think", metadata=metadata)
        answer = await peer.answer(asked, "think")
        assert success(answer) == "inv-1s2"
        found = answer.payload["metadata"]  # type: ignore[index]
        assert (found["invoke_id"], found["tokens_used"]) == ("inv-1", 150)
        assert 50 <= found["duration_ms"] < 30_000


@pytest.mark.requirement("000.control")
@pytest.mark.parametrize("how", ["time.sleep(1.5)", "await asyncio.sleep(1.5)"])
async def test_control_is_answered_while_everything_is_busy(worker: Serve, how: str) -> None:
    """Also by a worker whose agent blocks the very loop that it runs on."""
    async with worker(
        f"""
        @capability()
        async def busy() -> str:
            {how}
            return "done"
        serve(busy, max_in_flight=2)
        """
    ) as peer:
        await peer.until_ready()
        sent = [peer.invoke("busy"), peer.invoke("busy")]
        await peer.answer(peer.order("ping"), "ping", 1.0)
        assert not any(getattr(item, "correlation_id", None) in sent for item in peer.items)
        for message_id in sent:
            assert success(await peer.answer(message_id, "busy")) == "done"


@pytest.mark.requirement("000.errors")
async def test_more_than_may_be_in_flight_are_refused(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        async def wait(context: Context) -> str:
            return await context.ask("go?")
        serve(wait, max_in_flight=2)
        """
    ) as peer:
        await peer.until_ready()
        held = [peer.invoke("wait"), peer.invoke("wait")]
        asked = [await question(peer, message_id) for message_id in held]
        fault = failure(await peer.answer(peer.invoke("wait"), "wait"))
        assert (fault.error_code, fault.retryable) == ("E_QUEUE_FULL", True)
        for one in asked:
            peer.ask("human_input.provide", invoke_id=one.invoke_id, input_id=one.input_id)
        for message_id in held:
            success(await peer.answer(message_id, "wait"))


@pytest.mark.requirement("000.stream", "000.stream-node")
async def test_each_node_streams_apart_and_ends_once(worker: Serve) -> None:
    async with worker(
        """
        @capability(options=Options(nodes=("draft", "final")))
        async def tell(context: Context) -> str:
            context.text("No", node="draft")
            context.text("Ye", node="draft", reset=True)
            context.text("s", node="draft")
            context.text("Once ", node="final")
            await asyncio.sleep(0)
            context.text("more", node="final")
            return "told"
        serve(tell)
        """
    ) as peer:
        asked = peer.invoke("tell", None, stream=True)
        answer = await peer.answer(asked, "tell")
        assert success(answer) == "told"
        frames = [
            (p.node_name, p.chunk, p.accumulated, p.is_reset, p.is_complete)
            for p in (c.payload for c in peer.chunks(asked))
        ]
        assert frames == [
            ("draft", "No", "No", False, False),
            ("draft", "Ye", "Ye", True, False),
            ("draft", "s", "Yes", False, False),
            ("final", "Once ", "Once ", False, False),
            ("final", "more", "Once more", False, False),
            ("draft", "", "Yes", False, True),
            ("final", "", "Once more", False, True),
        ]
        assert peer.items[-1] is answer
        asked = peer.invoke("tell", None, stream=True, stream_node="final", accumulated=False)
        await peer.answer(asked, "tell")
        some = [c.payload for c in peer.chunks(asked)]
        assert [(p.node_name, p.chunk) for p in some] == [
            ("final", "Once "),
            ("final", "more"),
            ("final", ""),
        ]
        assert not any(isinstance(p.accumulated, str) for p in some)
        asked = peer.invoke("tell", None, stream=True, stream_node="chat")
        fault = failure(await peer.answer(asked, "tell"))
        assert fault.error_code == "E_INVALID_INPUT"
        assert (fault.details or {})["nodes"] == ["draft", "final"]


async def test_generators_stream_and_other_events_are_told(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        def count():
            yield "1"
            context = current()
            context.progress(50, "half")
            context.tool_call("calc", {"a": 1})
            yield "2"
        serve(count)
        """
    ) as peer:
        asked = peer.invoke("count", None, stream=True)
        assert success(await peer.answer(asked, "count")) == "12"
        notes = [
            (i.payload["event"], i.payload["data"])
            for i in peer.items
            if isinstance(i, Control) and i.correlation_id == asked
        ]
        assert notes == [
            ("progress", {"percentage": 50, "message": "half"}),
            ("tool_call", {"tool_name": "calc", "arguments": {"a": 1}}),
        ]


@pytest.mark.requirement("000.large-result")
async def test_what_is_larger_than_a_frame_comes_in_pieces(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        async def big(context: Context, n: int) -> dict:
            context.text('"é\\u2028' * n)
            return {"text": '"é漢\\u2028' * n}
        serve(big)
        """
    ) as peer:
        n = 300_000
        asked = peer.invoke("big", {"n": n}, stream=True)
        answer = await peer.answer(asked, "big")
        assert isinstance(answer, Response)
        assert (answer.payload["result"], answer.payload["result_node"]) == (None, RESULT_NODE)
        assert max(map(len, peer.raw.splitlines(keepends=True))) <= make.LINE_BYTES
        said = [c.payload for c in peer.chunks(asked)]
        assert "".join(c.chunk for c in said if c.node_name == "big") == '"é\u2028' * n
        text = "".join(c.chunk for c in said if c.node_name == RESULT_NODE)
        assert json.loads(text) == {"text": '"é漢\u2028' * n}
        assert peer.misplaced == []


@pytest.mark.requirement("000.human-input")
async def test_a_question_waits_for_its_answer(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        async def plan(context: Context) -> list:
            return [await get_human_input("Proceed?"), await context.approve("Sure?")]
        @capability()
        def blocking() -> str:
            return get_human_input("Name?", {"type": "string"}, role="admin")
        @capability()
        async def impatient(context: Context) -> str:
            return await context.ask("Quick?", timeout=0.05)
        serve(plan, blocking, impatient)
        """
    ) as peer:
        asked = peer.invoke("plan", None, timeout_ms=60_000)
        first = await question(peer, asked)
        assert (first.prompt, first.kind, first.role) == ("Proceed?", "input", "operator")
        ids = {"invoke_id": first.invoke_id, "input_id": first.input_id}
        for wrong in ({**ids, "input_id": "x"}, {**ids, "invoke_id": "x"}):
            bad = peer.ask("human_input.provide", **wrong, value=1)
            assert failure(await peer.answer(bad, "provide")).error_code == "E_INVALID_INPUT"
        success(await peer.answer(peer.ask("human_input.provide", **ids, value={"a": 1}), "it"))
        again = peer.ask("human_input.provide", **ids, value=2)
        assert "already" in failure(await peer.answer(again, "again")).message

        def second(frame: Frame) -> Asking | None:
            if not isinstance(frame, Control) or frame.payload.get("kind") != "approval":
                return None
            found: Asking = payload_as(frame.payload, Asking)
            return found

        approval = await peer.first("the second question", second, 30)
        ids["input_id"] = approval.input_id
        success(await peer.answer(peer.ask("human_input.provide", **ids, value=True), "it"))
        assert success(await peer.answer(asked, "plan")) == [{"a": 1}, True]

        asked = peer.invoke("blocking")
        named = await question(peer, asked)
        assert (named.schema, named.role) == ({"type": "string"}, "admin")
        ids = {"invoke_id": named.invoke_id, "input_id": named.input_id}
        error = {"error_code": "E_TIMEOUT", "error_type": "timeout", "message": "nobody there"}
        success(await peer.answer(peer.ask("human_input.provide", **ids, error=error), "it"))
        fault = failure(await peer.answer(asked, "blocking"))
        assert (fault.error_code, fault.message) == ("E_TIMEOUT", "nobody there")

        fault = failure(await peer.answer(peer.invoke("impatient"), "impatient"))
        assert fault.error_code == "E_TIMEOUT"
        assert "nobody answered" in fault.message


async def test_a_question_stops_the_clock(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        async def plan(context: Context) -> str:
            return await context.ask("Proceed?")
        serve(plan)
        """
    ) as peer:
        asked = peer.invoke("plan", None, timeout_ms=300)
        first = await question(peer, asked)
        other = peer.invoke("plan", None, timeout_ms=300)
        await question(peer, other)
        await asyncio.sleep(0.5)  # longer than the invocation may take
        ids = {"invoke_id": first.invoke_id, "input_id": first.input_id}
        peer.ask("human_input.provide", **ids, value="yes")
        assert success(await peer.answer(asked, "plan")) == "yes"


@pytest.mark.requirement("000.errors", "000.timeout")
@pytest.mark.parametrize("how", ["time.sleep(60)", "await asyncio.sleep(60)"])
async def test_time_is_up(worker: Serve, how: str) -> None:
    kind = "async def" if "await" in how else "def"
    async with worker(
        f"""
        @capability()
        {kind} never() -> None:
            {how}
        serve(never)
        """
    ) as peer:
        fault = failure(await peer.answer(peer.invoke("never", None, timeout_ms=150), "never"))
        assert (fault.error_code, fault.error_type, fault.retryable) == (
            "E_TIMEOUT",
            "timeout",
            True,
        )
        assert fault.message == "Agent invocation timed out after 150ms"
        assert fault.details is not None
        assert 150 <= fault.details["elapsed_ms"] < 30_000
        assert fault.details["agent_state"] == "processing"
        # It stays usable.
        await peer.answer(peer.order("ping"), "ping")


async def test_cancelling_ends_a_request_and_its_agent_finds_out(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        async def loop(context: Context) -> None:
            try:
                await context.ask("wait")
            finally:
                print("cleaned up", file=sys.stderr)
        @capability()
        def thread(context: Context) -> None:
            try:
                context.run(context.ask("wait"))
            except BaseException as error:
                print("ended by", type(error).__name__, file=sys.stderr)
                raise
        serve(loop, thread)
        """
    ) as peer:
        for name, said in (("loop", "cleaned up"), ("thread", "ended by CancelledError")):
            asked = peer.invoke(name)
            await question(peer, asked)
            answer = await peer.answer(
                peer.order("cancel", request_id=asked, reason="enough"), "cancel"
            )
            assert isinstance(answer, Response)
            assert answer.payload["status"] == "cancelling"
            fault = failure(await peer.answer(asked, name))
            assert (fault.error_code, fault.message) == ("E_CANCELLED", "enough")
            async with asyncio.timeout(20):
                while said not in peer.errors:
                    await asyncio.sleep(0.01)
        gone = await peer.answer(peer.order("cancel", request_id="never"), "cancel")
        assert isinstance(gone, Response)
        assert gone.payload["status"] == "not_running"


async def test_agents_call_others_through_the_parent(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        async def delegate(context: Context) -> Any:
            return await context.call("sum", {"of": [1, 2]}, agent="math", timeout=5)
        serve(delegate)
        """
    ) as peer:

        def calls(frame: Frame) -> Request | None:
            return frame if isinstance(frame, Request) else None

        asked = peer.ask("agent.invoke", agent_name="delegate", metadata={"session_id": "s"})
        call = await peer.first("the call", calls, 30)
        assert call.correlation_id == asked
        wanted = payload_as(call.payload, Invoke)
        assert (wanted.agent_name, wanted.input) == ("math", {"of": [1, 2]})
        assert (wanted.options.capability, wanted.options.timeout_ms) == ("sum", 5000)
        assert wanted.metadata["session_id"] == "s"
        peer.write(make.encode_message(make.response(call.message_id, {"result": 3})))
        assert success(await peer.answer(asked, "delegate")) == 3

        peer.items.clear()
        asked = peer.invoke("delegate")
        call = await peer.first("the call", calls, 30)
        refusal = Fault(error_code="E_AGENT_NOT_FOUND", error_type="not_found", message="no math")
        peer.write(make.encode_message(make.error(call.message_id, refusal)))
        fault = failure(await peer.answer(asked, "delegate"))
        assert (fault.error_code, fault.message) == ("E_AGENT_NOT_FOUND", "no math")
        assert fault.outcome == "failed"  # the one that called it did run


@pytest.mark.requirement("000.errors")
async def test_failures_say_what_they_were(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        async def boom() -> None:
            raise ValueError("boom\\0" + chr(0xD800))
        @capability()
        def no() -> dict:
            return {"success": False, "error": "not today"}
        @capability()
        def nan() -> float:
            return float("nan")
        @capability()
        def leave() -> None:
            sys.exit(3)
        serve(boom, no, nan, leave)
        """
    ) as peer:
        for name, said in (
            ("boom", "ValueError: boom"),
            ("no", "not today"),
            ("nan", "NaN"),
            ("leave", "SystemExit: 3"),
        ):
            fault = failure(await peer.answer(peer.invoke(name), name))
            assert (fault.error_code, fault.error_type) == ("E_INTERNAL", "internal")
            assert said in fault.message
            assert not fault.retryable
        fault = failure(await peer.answer(peer.invoke("nobody"), "nobody"))
        assert (fault.error_code, fault.error_type) == ("E_AGENT_NOT_FOUND", "not_found")
        assert (fault.details or {})["agents"] == ["boom", "no", "nan", "leave"]


@pytest.mark.requirement("000.correlation")
async def test_a_thousand_at_once_each_get_their_own_answer(worker: Serve) -> None:
    async with worker(
        ECHO
        + """
    @capability()
    async def later(n: int) -> int:
        await asyncio.sleep((n * 7919 % 100) / 1000)
        return n
    serve(Echo, later)
    """
    ) as peer:
        await peer.until_ready()
        sent = [(peer.invoke("later", {"n": n}), n) for n in range(500)]
        sent += [(peer.invoke("echo", n), n) for n in range(500)]
        for message_id, n in sent:
            assert success(await peer.answer(message_id, "one of a thousand")) == n
        assert peer.misplaced == []
        order = [i.correlation_id for i in peer.items if isinstance(i, Response)]
        assert order != [message_id for message_id, _ in sent]


@pytest.mark.requirement("000.bad-frames")
async def test_bad_frames_are_answered_counted_and_survived(worker: Serve) -> None:
    async with worker(ECHO + "serve(Echo, line_bytes=10_000)") as peer:
        await peer.until_ready()
        asked = peer.invoke("echo", 1)
        await peer.answer(asked, "echo")
        for line, code, kind in (
            (b"nope\n", "E_INVALID_INPUT", "not_json"),
            (b'{"a":1,"a":2}\n', "E_INVALID_INPUT", "duplicate_key"),
            (b"x" * 20_000 + b"\n", "E_TOO_LARGE", "oversize"),
        ):
            seen = len(peer.items)
            peer.write(line)
            async with asyncio.timeout(20):
                while len(peer.items) == seen:
                    await asyncio.sleep(0.01)
            bad = peer.items[seen]
            assert isinstance(bad, Error)
            assert bad.correlation_id is None
            assert bad.payload.error_code == code
            assert (bad.payload.details or {})["bad_frame"] == kind
        pong = await peer.answer(peer.order("ping"), "ping")
        assert isinstance(pong, Response)
        assert pong.payload["bad_frames"] == 3
        assert any("duplicate_key" in line for line in peer.errors)


async def test_an_id_that_is_taken_is_refused(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        async def wait(context: Context) -> str:
            return await context.ask("go?")
        serve(wait)
        """
    ) as peer:
        asked = peer.invoke("wait")
        one = await question(peer, asked)
        frame = Request(
            message_id=asked, payload={"operation": "agent.invoke", "agent_name": "wait"}
        )
        peer.write(make.encode_message(frame))
        fault = failure(await peer.answer(asked, "the second request"))
        assert (fault.details or {})["bad_frame"] == "duplicate_id"
        peer.items = [i for i in peer.items if not isinstance(i, Error)]
        peer.ask("human_input.provide", invoke_id=one.invoke_id, input_id=one.input_id, value=1)
        assert success(await peer.answer(asked, "the first request")) == 1


async def test_nothing_but_frames_goes_out_on_stdout(worker: Serve) -> None:
    async with worker(
        """
        print("at import")
        @capability()
        def noisy() -> str:
            print("hello from print")
            sys.stdout.write("no newline"); sys.stdout.flush()
            os.write(1, b"raw\\n")
            subprocess.run(["echo", "from a child"], check=True)
            try:
                return "read: " + input()
            except EOFError:
                return "stdin is empty"
        serve(noisy)
        """
    ) as peer:
        first = peer.plan.command
        assert first
        # What was printed before serve() took stdout over is the program's own affair.
        assert success(await peer.answer(peer.invoke("noisy"), "noisy")) == "stdin is empty"
        assert success(await peer.answer(peer.invoke("noisy"), "noisy")) == "stdin is empty"
        lines = peer.raw.splitlines()
        assert lines[0] == b"at import"
        assert all(line.startswith(b'{"type":') for line in lines[1:])
        async with asyncio.timeout(20):
            while "from a child" not in peer.errors or not any("raw" in e for e in peer.errors):
                await asyncio.sleep(0.01)


@pytest.mark.requirement("000.control")
async def test_sigterm_is_a_shutdown(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        async def short(context: Context) -> str:
            context.log("begun")
            await asyncio.sleep(0.3)
            return "done"
        serve(short)
        """
    ) as peer:
        asked = peer.invoke("short", None, stream=True)
        await peer.first("its log", lambda f: True if f.correlation_id == asked else None, 30)
        os.kill(peer._running().pid, signal.SIGTERM)
        assert success(await peer.answer(asked, "short")) == "done"
        assert await peer.ended(30) == 0


# -- modules -----------------------------------------------------------------------------------


def module(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / f"{name}.py").write_text(text)


def sdk(tmp_path: Path, *arguments: str) -> Peer:
    return Peer(
        Plan(
            ["env", f"PYTHONPATH={tmp_path}", sys.executable, "-m", "retinue.sdk", *arguments],
            start_seconds=30,
            seconds=30,
        )
    )


AGENTS = """
from retinue import Agent, AgentCapability, capability
print("loading")
@capability()
def one() -> int:
    return 1
class Two(Agent):
    def __init__(self):
        super().__init__("two", "Two")
    def execute(self, task):
        return 2
    def get_capabilities(self):
        return [AgentCapability("two")]
"""


@pytest.mark.requirement("000.module")
async def test_a_module_s_agents_are_served(tmp_path: Path) -> None:
    module(tmp_path, "fleet", AGENTS)
    async with sdk(tmp_path, "--module", "fleet") as peer:
        ready = await peer.until_ready()
        assert (ready.module_name, ready.agents) == ("fleet", ["one", "two"])
        assert success(await peer.answer(peer.invoke("two"), "two")) == 2
    async with sdk(tmp_path, "--module=fleet:Two") as peer:
        assert (await peer.until_ready()).agents == ["two"]


@pytest.mark.requirement("000.module", "000.errors")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("broken", "ZeroDivisionError"),
        ("missing", "No module named"),
        ("fleet:Nobody", "Nobody"),
        ("fleet:__name__", "not an Agent"),
        ("empty", "has no agents"),
    ],
)
async def test_a_module_that_cannot_be_loaded_says_so(
    tmp_path: Path, given: str, said: str
) -> None:
    module(tmp_path, "fleet", AGENTS)
    module(tmp_path, "broken", "1 / 0")
    module(tmp_path, "empty", "")
    async with sdk(tmp_path, "--module", given) as peer:
        assert await peer.ended(30) == 1
        assert len(peer.items) == 1
        found = peer.items[0]
        assert isinstance(found, Error)
        fault = found.payload
        assert (fault.error_code, fault.error_type) == ("E_MODULE_LOAD", "initialization")
        assert not fault.retryable
        assert said in fault.message
        assert (fault.details or {})["module"] == given


@pytest.mark.requirement("000.lazy-modules")
async def test_agents_by_reference_are_imported_when_they_are_invoked(tmp_path: Path) -> None:
    lazy = []
    for n in range(10):
        text = "1 / 0" if n == 7 else AGENTS + f"\nopen({str(tmp_path / f'seen{n}')!r}, 'w')"
        module(tmp_path, f"lazy{n}", text)
        lazy += ["--agent", f"a{n}=lazy{n}:Two"]
    async with sdk(tmp_path, *lazy) as peer:
        assert (await peer.until_ready()).agents == [f"a{n}" for n in range(10)]
        assert not [name for name in os.listdir(tmp_path) if name.startswith("seen")]
        sent = {n: peer.invoke(f"a{n}") for n in range(10) if n != 3}
        for n, message_id in sent.items():
            answer = await peer.answer(message_id, f"a{n}")
            if n == 7:
                fault = failure(answer)
                assert (fault.error_code, fault.error_type) == ("E_MODULE_LOAD", "initialization")
                assert "ZeroDivisionError" in (fault.details or {})["cause"]
            else:
                assert success(answer) == 2
        assert not (tmp_path / "seen3").exists()


def test_a_worker_is_ready_soon(tmp_path: Path) -> None:
    """In processor time, and with compiled modules, as an installation has them."""
    environment = {"PATH": os.defpath, "PYTHONPYCACHEPREFIX": str(tmp_path)}

    def seconds(program: str) -> float:
        best = 60.0
        for _ in range(7):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", program], check=True, env=environment)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            best = min(best, spent)
        return best

    assert seconds("import retinue.sdk") <= 1.5 * seconds("import asyncio, msgspec")
    heavy = (
        "import sys, retinue.sdk; sys.exit(bool({'pydantic', 'typer', 'httpx'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", heavy], check=True, env=environment)


ODD_ANSWERS = {
    "pieces that are no JSON": (
        '{"type": "stream", "correlation_id": "ID",'
        f' "payload": {{"node_name": "{RESULT_NODE}", "chunk": "not json"}}}}\n'
        '{"type": "response", "correlation_id": "ID",'
        f' "payload": {{"status": "success", "result_node": "{RESULT_NODE}"}}}}\n',
        "no JSON",
    ),
    "another status": (
        '{"type": "response", "correlation_id": "ID", "payload": {"status": "failed"}}\n',
        "the status 'failed'",
    ),
    "no frame": ('{"type": "response", "correlation_id": "ID", "payload": 5}\n', "no frame"),
}


@pytest.mark.parametrize("kind", ODD_ANSWERS)
async def test_an_odd_answer_fails_its_call_and_nothing_else(worker: Serve, kind: str) -> None:
    text, said = ODD_ANSWERS[kind]
    async with worker(
        """
        @capability()
        async def delegate(context: Context) -> Any:
            return await context.call("sum", {}, agent="math", timeout=30)
        @capability()
        async def echo(n: int) -> int:
            return n
        serve(delegate, echo)
        """
    ) as peer:
        asked = peer.invoke("delegate")
        call = await peer.first("the call", lambda f: f if isinstance(f, Request) else None, 30)
        # In one write with requests of others, which must not go down with it.
        task = {"operation": "agent.invoke", "agent_name": "echo"}
        others = [make.request({**task, "input": {"n": n}}) for n in range(5)]
        lines = text.replace("ID", call.message_id).encode()
        peer.write(lines + b"".join(make.encode_message(other) for other in others))
        fault = failure(await peer.answer(asked, "delegate"))
        assert said in fault.message
        for n, other in enumerate(others):
            assert success(await peer.answer(other.message_id, "echo")) == n


@pytest.mark.parametrize("way", ["eof", "term"])
def test_a_parent_that_does_not_read_does_not_keep_it_from_ending(
    program: Program, way: str
) -> None:
    command = program(
        """
        @capability()
        async def big(n: int) -> str:
            return "x" * n
        serve(big)
        """
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        ends_unread(process, way)


def test_a_parent_that_only_writes_does_not_make_it_grow(program: Program) -> None:
    command = program(
        """
        @capability()
        async def big(n: int) -> str:
            return "x" * n
        serve(big)
        """
    )
    frame = make.request(
        {"operation": "agent.invoke", "agent_name": "big", "input": {"n": 100, "x": "y" * 4000}}
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert b"ready" in process.stdout.readline()
        os.set_blocking(process.stdin.fileno(), False)
        line, written, until = make.encode_message(frame), 0, time.monotonic() + 60
        left = b""
        while select.select([], [process.stdin], [], 2)[1] and time.monotonic() < until:
            left = left or line * 15
            left = left[os.write(process.stdin.fileno(), left[: 64 * 1024]) :]
            written += 1
        assert time.monotonic() < until, "it takes without end what it cannot answer"
        assert memory(process.pid) < 120 << 20
        process.kill()


async def test_what_does_not_fit_is_named_by_its_path(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        async def nap(seconds: float, deep: dict[str, list[int]] | None = None) -> None: ...
        serve(nap)
        """
    ) as peer:
        for given, path in (
            ({"seconds": "x"}, "$.parameters.seconds"),
            ({"seconds": 1, "deep": {"a": [1, "b"]}}, "$.parameters.deep[...][1]"),
            ({}, "$.parameters.seconds"),
        ):
            fault = failure(await peer.answer(peer.invoke("nap", given), "nap"))
            assert (fault.error_code, (fault.details or {})["path"]) == ("E_INVALID_INPUT", path)
        for limit in (0, -1):
            answer = await peer.answer(peer.invoke("nap", {}, timeout_ms=limit), "nap")
            assert failure(answer).details == {"path": "$.payload.options.timeout_ms"}


async def test_two_invocations_under_one_id_are_each_answered(worker: Serve) -> None:
    async with worker(
        """
        @capability()
        async def ask(context: Context, prompt: str) -> Any:
            return [prompt, await context.ask(prompt)]
        serve(ask)
        """
    ) as peer:
        questions = {}
        for prompt in ("one", "two"):
            task = {"agent_name": "ask", "input": {"prompt": prompt}}
            asked = peer.ask("agent.invoke", **task, metadata={"invoke_id": "same"})
            questions[asked] = (prompt, await question(peer, asked))
        for asked, (prompt, found) in questions.items():
            assert found.invoke_id == "same"
            ids = {"invoke_id": "same", "input_id": found.input_id}
            success(await peer.answer(peer.ask("human_input.provide", **ids, value=1), "provide"))
            assert success(await peer.answer(asked, "ask")) == [prompt, 1]

"""The rules that a conversation shows. What each demands stands in ``suite``."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import datetime
from typing import Any

from retinue.cli.check.peer import Broken, NotShown, Peer
from retinue.errors import InvalidInput
from retinue.wire import envelope
from retinue.wire.envelope import Control, Error, Frame, Response
from retinue.wire.faults import payload_as
from retinue.wire.payloads import RESULT_NODE, Asking
from retinue.wire.strict import BadFrame

PING_SECONDS = 1.0
AT_ONCE = 8
LINGER_SECONDS = 0.75
_CODES = {
    "E_TIMEOUT": ("timeout", True),
    "E_AGENT_NOT_FOUND": ("not_found", False),
    "E_INVALID_INPUT": ("validation", False),
    "E_MODULE_LOAD": ("initialization", False),
    "E_STREAM_BROKEN": ("stream", True),
    "E_HUMAN_INPUT_REQUIRED": ("pending", False),
    "E_UNKNOWN_OPERATION": ("validation", False),
    "E_CANCELLED": ("internal", False),
}
"""Codes of the protocol with their error_type and retryable."""


async def ready(peer: Peer) -> None:
    """Check the rule `ready`."""
    found = await peer.until_ready()
    first = peer.items[0]
    if isinstance(first, BadFrame):
        raise Broken(f"the first line is no frame ({first.message}): {first.excerpt}")
    if not isinstance(first, Control):
        raise Broken(f"the first frame is a {type(first).__name__.lower()} frame, not ready")
    if first.payload.get("status") != "ready":
        raise Broken(f"the first frame has the payload {_brief(first.payload)}, not status ready")
    if not peer.cards:
        raise Broken("payload.agents names no agent")
    if not found.module_name:
        raise Broken("payload.module_name is missing")
    if peer.plan.agent is not None and peer.plan.agent not in peer.cards:
        raise Broken(f"payload.agents does not name {peer.plan.agent}: {', '.join(peer.cards)}")


async def envelope_whole(peer: Peer) -> None:
    """Check the rule `envelope`."""
    await peer.until_ready()
    await peer.answer(peer.invoke(peer.main(), peer.given(), stream=True), "agent.invoke")
    await peer.answer(peer.order("ping"), "ping")
    seen: set[str] = set()
    for frame in peer.objects:
        name = f"the frame {_brief(frame)}"
        if not re.match(r"1(\.\d+)*\Z", str(frame.get("protocol_version", ""))):
            raise Broken(f"{name} has no protocol_version 1.0")
        if not isinstance(frame.get("message_id"), str) or not frame["message_id"]:
            raise Broken(f"{name} has no message_id")
        if frame["message_id"] in seen:
            raise Broken(f"two frames have the message_id {frame['message_id']}")
        seen.add(frame["message_id"])
        if "correlation_id" not in frame:
            raise Broken(f"{name} has no correlation_id")
        _check_time(name, frame.get("timestamp"))


def _check_time(name: str, timestamp: Any) -> None:
    if not isinstance(timestamp, str) or not timestamp.endswith("Z"):
        raise Broken(f"{name} has no timestamp in UTC that ends in Z")
    try:
        datetime.fromisoformat(timestamp)
    except ValueError:
        raise Broken(f"{name} has the timestamp {timestamp}, which is none") from None


async def ping(peer: Peer) -> None:
    """Check the rule `ping`."""
    await peer.until_ready()
    _pong(await peer.answer(peer.order("ping"), "ping"))


def _pong(answer: Response | Error) -> None:
    if not isinstance(answer, Response) or answer.payload.get("status") != "pong":
        raise Broken(f"ping was answered by {_shown(answer)}, not by a response with status pong")


async def invoke(peer: Peer) -> None:
    """Check the rule `invoke`."""
    await peer.until_ready()
    name = peer.main()
    answer = await peer.answer(peer.invoke(name, peer.given()), f"agent.invoke of {name}")
    if isinstance(answer, Error):
        raise Broken(
            f"agent {name} failed: {answer.payload.message or answer.payload.error_code}"
            " (give it an input that it takes: --agent NAME --input JSON)"
        )
    payload = answer.payload
    if payload.get("status") != "success" or "result" not in payload:
        raise Broken(f"its payload is {_brief(payload)}: status success and result are needed")
    metadata = payload.get("metadata")
    if not isinstance(metadata, dict):
        raise Broken("payload.metadata is missing")
    if not isinstance(metadata.get("invoke_id"), str):
        raise Broken("payload.metadata.invoke_id is missing")
    if not isinstance(metadata.get("duration_ms"), int | float):
        raise Broken("payload.metadata.duration_ms is missing")


async def invoke_id(peer: Peer) -> None:
    """Check the rule `invoke-id`."""
    await peer.until_ready()
    asked = {"agent_name": peer.main(), "input": peer.given(), "metadata": {"invoke_id": "inv-1"}}
    answer = await peer.answer(peer.ask("agent.invoke", **asked), "agent.invoke")
    if isinstance(answer, Error):
        raise NotShown("the agent failed")
    metadata = answer.payload.get("metadata")
    got = metadata.get("invoke_id") if isinstance(metadata, dict) else None
    if got != "inv-1":
        raise Broken(f"it was given inv-1, and answered {_brief(got)}")


async def echo(peer: Peer) -> None:
    """Check the rule `echo`."""
    await peer.until_ready()
    name = peer.named("echo")
    # Also that one frame is one line, whatever it holds.
    values: list[Any] = [
        [["What is the capital of France?"]],
        [[{"id": 7}]],
        {"a": {"b": [1, -2.5, True, None, ""]}},
        "line one\nline two\ttab \\ back \"quoted\" / é ü 漢 😀 \u2028 end",
        0, 1, True, False, None, "", {}, [],
    ]  # fmt: skip
    for value in values:
        answer = await peer.answer(peer.invoke(name, value), "agent.invoke of echo")
        got = answer.payload.get("result") if isinstance(answer, Response) else answer.payload
        if not same(got, value):
            raise Broken(f"echo was given {_brief(value)} and answered {_brief(got)}")


async def correlation(peer: Peer) -> None:
    """Check the rule `correlation`."""
    await peer.until_ready()
    sent = [peer.invoke(peer.main(), peer.given()) for _ in range(AT_ONCE)]
    for message_id in sent:
        await peer.answer(message_id, f"one of {AT_ONCE} requests that were sent at once")
    await peer.answer(peer.order("ping"), "ping")
    if "echo" not in peer.cards:
        await asyncio.sleep(LINGER_SECONDS)
        return
    numbered = {peer.invoke("echo", [[{"id": n}]]): n for n in range(AT_ONCE)}
    for message_id, n in numbered.items():
        answer = await peer.answer(message_id, "agent.invoke of echo")
        if not isinstance(answer, Response) or answer.payload.get("result") != [[{"id": n}]]:
            raise Broken(f"the request with id {n} got the answer {_shown(answer)}")
    await asyncio.sleep(LINGER_SECONDS)  # for what should not come any more


async def busy(peer: Peer) -> None:
    """Check the rule `busy`."""
    await peer.until_ready()
    slow = "slow" in peer.cards
    given = (lambda: peer.invoke("slow", {"seconds": 2})) if slow else None
    sent = [given() if given else peer.invoke(peer.main(), peer.given()) for _ in range(AT_ONCE)]
    _pong(await peer.answer(peer.order("ping"), "a ping while requests are running", PING_SECONDS))
    if slow:
        early = [i for i in peer.items if getattr(i, "correlation_id", None) in sent]
        if len(early) == len(sent):
            raise NotShown("the agent named slow answered before the ping")
    for message_id in sent:
        await peer.answer(message_id, "agent.invoke")


async def stream(peer: Peer) -> None:
    """Check the rule `stream`."""
    await peer.until_ready()
    name = "tell" if "tell" in peer.cards else peer.main()
    given = None if name == "tell" else peer.given()
    message_id = peer.invoke(name, given, stream=True)
    answer = await peer.answer(message_id, f"agent.invoke of {name}")
    chunks = [c.payload for c in peer.chunks(message_id) if c.payload.node_name != RESULT_NODE]
    if not chunks:
        raise NotShown(f"agent {name} streamed nothing")
    sums: dict[str, str] = {}
    complete: list[str] = []
    for chunk in chunks:
        node = chunk.node_name
        if not node:
            raise Broken("a stream frame has no node_name")
        sums[node] = ("" if chunk.is_reset else sums.get(node, "")) + chunk.chunk
        if isinstance(chunk.accumulated, str) and chunk.accumulated != sums[node]:
            raise Broken(
                f"node {node}: accumulated is {_brief(chunk.accumulated)}, the chunks joined since"
                f" the last is_reset are {_brief(sums[node])}"
            )
        if chunk.is_complete:
            complete.append(node)
    if isinstance(answer, Error):
        raise NotShown(f"agent {name} failed")
    for node in sums:
        if complete.count(node) != 1:
            raise Broken(f"node {node} has {complete.count(node)} frames with is_complete true")
    await _stream_options(peer, name, given)
    await asyncio.sleep(LINGER_SECONDS)  # for what should not come any more


async def _stream_options(peer: Peer, name: str, given: Any) -> None:
    brief = peer.invoke(name, given, stream=True, accumulated=False)
    await peer.answer(brief, f"agent.invoke of {name} without accumulated")
    if any(isinstance(c.payload.accumulated, str) for c in peer.chunks(brief)):
        raise Broken("options.accumulated is false, and a stream frame has accumulated")
    astray = peer.invoke(name, given, stream=True, stream_node="no-such-node")
    _expect(await peer.answer(astray, "the stream_node no-such-node"), "E_INVALID_INPUT")


async def stream_off(peer: Peer) -> None:
    """Check the rule `stream-off`."""
    await peer.until_ready()
    name = "tell" if "tell" in peer.cards else peer.main()
    message_id = peer.invoke(name, None if name == "tell" else peer.given())
    await peer.answer(message_id, f"agent.invoke of {name}")
    if [c for c in peer.chunks(message_id) if c.payload.node_name != RESULT_NODE]:
        raise Broken(f"agent {name} streamed, and nobody asked for it")


async def unknown_agent(peer: Peer) -> None:
    """Check the rule `unknown-agent`."""
    await peer.until_ready()
    answer = await peer.answer(peer.invoke("no-such-agent", {}), "agent.invoke of no-such-agent")
    _expect(answer, "E_AGENT_NOT_FOUND")


async def unknown_operation(peer: Peer) -> None:
    """Check the rule `unknown-operation`."""
    await peer.until_ready()
    answer = await peer.answer(peer.ask("no.such.operation"), "the operation no.such.operation")
    _expect(answer, "E_UNKNOWN_OPERATION")
    answer = await peer.answer(peer.order("no-such-order"), "the control operation no-such-order")
    _expect(answer, "E_UNKNOWN_OPERATION")


async def version(peer: Peer) -> None:
    """Check the rule `version`."""
    await peer.until_ready()
    frame = envelope.request({"operation": "agent.invoke", "agent_name": peer.main()})
    frame.protocol_version = "2.0"
    answer = await peer.answer(peer.send(frame), "a request of protocol_version 2.0")
    _expect(answer, "E_INVALID_INPUT")
    if isinstance(answer, Error) and "1.0" not in answer.payload.message:
        raise Broken(f"the message does not name 1.0: {answer.payload.message}")


async def double_wrap(peer: Peer) -> None:
    """Check the rule `double-wrap`."""
    await peer.until_ready()
    payload = {"operation": "ping"}
    frame = envelope.control({"message_id": "x", "payload": payload})
    peer.begin(frame.message_id or "")
    peer.write(envelope.encode_message(frame))
    _pong(await peer.answer(frame.message_id or "", "a ping whose payload is wrapped twice"))


async def tolerance(peer: Peer) -> None:
    """Check the rule `tolerance`."""
    await peer.until_ready()
    bare = {
        "type": "request",
        "message_id": "req-001",
        "payload": {
            "operation": "agent.invoke",
            "agent_name": peer.main(),
            "input": peer.given(),
            "something": {"new": [1]},
        },
        "later": None,
    }
    peer.begin("req-001")
    peer.write(json.dumps(bare, indent=None).encode() + b"\r\n\n")
    answer = await peer.answer("req-001", "a request with no more than it needs, ending in CRLF")
    if isinstance(answer, Error):
        raise Broken(f"it was refused: {answer.payload.message}")


BAD_LINES = (
    b"this is not JSON\n",
    b"[1, 2, 3]\n",
    b'"text"\n',
    b'{"type": "shout", "message_id": "s", "payload": {}}\n',
    b'{"type": "request", "message_id": "h", "payl\n',
    b'{"type": "response", "correlation_id": "nobody-asked", "payload": {"status": "x"}}\n',
)


async def bad_lines(peer: Peer) -> None:
    """Check the rule `bad-lines`."""
    await peer.until_ready()
    peer.begin("s")  # the one id that can be made out
    for line in BAD_LINES:
        peer.write(line)
        shown = line.decode().strip()
        _pong(await peer.answer(peer.order("ping"), f"a ping after the line {shown}"))
    await peer.answer(peer.invoke(peer.main(), peer.given()), "agent.invoke after bad lines")


async def large_line(peer: Peer) -> None:
    """Check the rule `large-line`."""
    await peer.until_ready()
    for mib in (1, 8):
        name = f"large-{mib}"
        peer.begin(name)  # a worker without a limit answers it
        peer.write(f'{{"type":"control","message_id":"{name}","payload":'.encode())
        peer.write(b'{"operation":"ping","x":"' + b"x" * (mib << 20) + b'"}}\n')
        _pong(await peer.answer(peer.order("ping"), f"a ping after a line of {mib} MiB"))


async def failure(peer: Peer) -> None:
    """Check the rule `failure`."""
    await peer.until_ready()
    answer = await peer.answer(peer.invoke(peer.named("fail"), {}), "agent.invoke of fail")
    if not isinstance(answer, Error):
        raise Broken(f"the agent fails, and its answer is {_shown(answer)}")
    raw = next(f["payload"] for f in peer.objects if f.get("message_id") == answer.message_id)
    for field, kind, word in (
        ("error_type", str, "a string"),
        ("error_code", str, "a string"),
        ("message", str, "a string"),
        ("retryable", bool, "true or false"),
        ("details", dict, "an object"),
    ):
        if not isinstance(raw.get(field), kind):
            raise Broken(f"payload.{field} is {_brief(raw.get(field))}, not {word}")
    _expect(answer, answer.payload.error_code)


async def human_input(peer: Peer) -> None:
    """Check the rule `human-input`."""
    await peer.until_ready()
    message_id = peer.invoke(peer.named("ask"), {})
    question = await _question(peer, message_id)
    if not question.invoke_id or not question.input_id:
        raise Broken("the question has no invoke_id, or no input_id")
    await _answered_once(peer, message_id, question)


async def _question(peer: Peer, message_id: str) -> Asking:
    def test(frame: Frame) -> Asking | None:
        if isinstance(frame, Control) and frame.payload.get("operation") == "human_input.request":
            if frame.correlation_id != message_id:
                raise Broken(f"its correlation_id is {frame.correlation_id}, not the request's")
            try:
                found: Asking = payload_as(frame.payload, Asking)
            except InvalidInput as error:
                raise Broken(f"the human_input.request frame: {error.message}") from None
            return found
        return None

    return await peer.first("the human_input.request frame", test, peer.plan.seconds)


async def _answered_once(peer: Peer, message_id: str, question: Asking) -> None:
    ids = {"invoke_id": question.invoke_id, "input_id": question.input_id}
    wrong = peer.ask("human_input.provide", **{**ids, "input_id": "no-such"}, value=1)
    _expect(await peer.answer(wrong, "human_input.provide for no-such"), "E_INVALID_INPUT")
    first = peer.ask("human_input.provide", **ids, value="yes")
    taken = await peer.answer(first, "human_input.provide")
    if isinstance(taken, Error):
        raise Broken(f"the answer was refused: {taken.payload.message}")
    answer = await peer.answer(message_id, "agent.invoke of ask, which was answered")
    if isinstance(answer, Error):
        raise Broken(f"the agent was answered, and failed: {answer.payload.message}")
    again = peer.ask("human_input.provide", **ids, value="no")
    _expect(await peer.answer(again, "a second answer"), "E_INVALID_INPUT")


async def asked_time(peer: Peer) -> None:
    """Check the rule `asked-time`."""
    await peer.until_ready()
    message_id = peer.invoke(peer.named("ask"), {}, timeout_ms=300)
    question = await _question(peer, message_id)
    await asyncio.sleep(LINGER_SECONDS)
    ids = {"invoke_id": question.invoke_id, "input_id": question.input_id}
    await peer.answer(peer.ask("human_input.provide", **ids, value="yes"), "human_input.provide")
    answer = await peer.answer(message_id, "agent.invoke of ask, which was answered")
    if isinstance(answer, Error):
        raise Broken(f"it ended while a person was asked: {answer.payload.message}")


async def cancel(peer: Peer) -> None:
    """Check the rule `cancel`."""
    await peer.until_ready()
    message_id = peer.invoke(peer.named("slow"), {"seconds": 60})
    answer = await peer.answer(peer.order("cancel", request_id=message_id), "cancel")
    if isinstance(answer, Error):
        if answer.payload.error_code == "E_UNKNOWN_OPERATION":
            raise NotShown("the program does not know cancel, which is optional")
        raise Broken(f"cancel was refused: {answer.payload.message}")
    if answer.payload.get("status") != "cancelling":
        raise Broken(f"cancel was answered by {_shown(answer)}, not by status cancelling")
    ended = await peer.answer(message_id, "the request that was cancelled")
    _expect(ended, "E_CANCELLED")


async def timeout(peer: Peer) -> None:
    """Check the rule `timeout`."""
    await peer.until_ready()
    message_id = peer.invoke(peer.named("slow"), {"seconds": 60}, timeout_ms=200)
    _expect(await peer.answer(message_id, "a request with timeout_ms 200"), "E_TIMEOUT")
    _pong(await peer.answer(peer.order("ping"), "a ping after a request that timed out"))


def _expect(answer: Response | Error, code: str) -> None:
    if not isinstance(answer, Error):
        raise Broken(f"it was answered by {_shown(answer)}, not by an error frame with {code}")
    found = answer.payload
    if found.error_code != code:
        raise Broken(f"the error_code is {found.error_code}, not {code}")
    kind, retryable = _CODES.get(code, (found.error_type, found.retryable))
    if (found.error_type, found.retryable) != (kind, retryable):
        raise Broken(
            f"{code} has error_type {found.error_type} and retryable {_brief(found.retryable)};"
            f" they are {kind} and {_brief(retryable)}"
        )


def _shown(frame: Response | Error) -> str:
    if isinstance(frame, Error):
        return f"the error {frame.payload.error_code}: {frame.payload.message}"
    return f"the response {_brief(frame.payload)}"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:200] + " …"  # noqa: PLR2004 what a line can show


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)

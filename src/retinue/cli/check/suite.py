"""The rules in order, each with a run of the program of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from retinue.cli.check import endings, rules
from retinue.cli.check.peer import Broken, NotShown, Peer, Plan
from retinue.errors import InvalidInput
from retinue.wire.strict import BadFrame

Rule = Callable[[Peer], Awaitable[None]]

RULES: dict[str, tuple[Rule, str]] = {
    "ready": (
        rules.ready,
        "The first frame is a control frame {status: ready, module_name, agents}, unasked.",
    ),
    "envelope": (
        rules.envelope_whole,
        "Every frame has protocol_version, message_id, correlation_id, timestamp, type, payload.",
    ),
    "ping": (
        rules.ping,
        "Control ping is answered by a response with status pong.",
    ),
    "invoke": (
        rules.invoke,
        "agent.invoke is answered by a response {status: success, result, metadata{invoke_id, …}}.",
    ),
    "invoke-id": (
        rules.invoke_id,
        "An invoke_id that the parent gives in metadata comes back in the answer's metadata.",
    ),
    "echo": (
        rules.echo,
        "Any JSON value reaches the agent equal (shown by an agent named echo).",
    ),
    "correlation": (
        rules.correlation,
        "Many requests at once are each answered once, with their own message_id.",
    ),
    "busy": (
        rules.busy,
        "Control ping is answered within 1 s while requests are in progress.",
    ),
    "stream": (
        rules.stream,
        "With options.stream each node ends with one frame is_complete, then comes the answer;"
        " accumulated false and stream_node are kept to.",
    ),
    "stream-off": (
        rules.stream_off,
        "Without options.stream there are no stream frames.",
    ),
    "unknown-agent": (
        rules.unknown_agent,
        "An agent that is not there is E_AGENT_NOT_FOUND, type not_found, not retryable.",
    ),
    "unknown-operation": (
        rules.unknown_operation,
        "An operation that is not there is E_UNKNOWN_OPERATION, as a request and as an order.",
    ),
    "version": (
        rules.version,
        "Another major protocol_version is E_INVALID_INPUT, and the message names the one spoken.",
    ),
    "double-wrap": (
        rules.double_wrap,
        "A payload inside a payload is taken for the payload.",
    ),
    "tolerance": (
        rules.tolerance,
        "Only type, payload and a request's message_id are needed; unknown fields are passed over.",
    ),
    "bad-lines": (
        rules.bad_lines,
        "A line that is no frame does no harm: the next one is answered.",
    ),
    "large-line": (
        rules.large_line,
        "A line far over 1 MiB does no harm: the next one is answered.",
    ),
    "failure": (
        rules.failure,
        "A failing agent (one named fail) is an error frame with all its fields.",
    ),
    "human-input": (
        rules.human_input,
        "A question (of an agent named ask) is answered by human_input.provide, once.",
    ),
    "asked-time": (
        rules.asked_time,
        "While a person is asked (by an agent named ask), the invocation's time stands still.",
    ),
    "cancel": (
        rules.cancel,
        "A request (of an agent named slow) that is cancelled ends in E_CANCELLED.",
    ),
    "timeout": (
        rules.timeout,
        "A request (of an agent named slow) that takes longer than its timeout_ms is E_TIMEOUT.",
    ),
    "shutdown": (
        endings.shutdown,
        "Control shutdown is answered shutting_down, and the program exits with 0.",
    ),
    "drain": (
        endings.drain,
        "After shutdown what runs finishes within timeout_ms, and new requests are refused.",
    ),
    "deadline": (
        endings.deadline,
        "What still runs at the end of shutdown's timeout_ms ends in E_CANCELLED, the exit code"
        " is 0.",
    ),
    "end-of-input": (
        endings.end_of_input,
        "At the end of its input the program exits with 0, by itself.",
    ),
    "half-a-line": (
        endings.half_a_line,
        "Half a line before the end of input does no harm.",
    ),
}
"""By the names that the command prints. Two more are looked at in every run: ``frames-only`` and
``in-place``."""

FRAMES_ONLY = "frames-only"
IN_PLACE = "in-place"
EVERY_RUN = {
    FRAMES_ONLY: "Nothing but frames, one per line, is written to stdout.",
    IN_PLACE: "Every answer is to something that was asked, once, and nothing follows it.",
}


class Finding(msgspec.Struct, frozen=True):
    """What became of one rule; ``why`` says what was wrong, or why it was not shown."""

    rule: str
    outcome: Literal["pass", "fail", "skip"]
    demand: str
    why: str | None = None


async def check(
    plan: Plan, only: list[str] | None = None, tell: Callable[[Finding], None] | None = None
) -> list[Finding]:
    """Check a program, rule by rule, and return what was found; ``tell`` hears it at once.

    Raises:
        SpawnFailed: the program cannot be started.
        InvalidInput: a rule does not exist.
    """
    for name in only or ():
        if name not in RULES:
            raise InvalidInput(f"there is no rule {name}; there are {', '.join(RULES)}")
    found: list[Finding] = []
    faults: dict[str, str] = {}

    def note(finding: Finding) -> None:
        found.append(finding)
        if tell is not None:
            tell(finding)

    for name, (rule, demand) in RULES.items():
        if only and name not in only:
            continue
        note(await _one(plan, name, rule, demand, faults))
        if name == "ready" and found[-1].outcome == "fail":
            break  # every other rule begins with it
    for name, demand in EVERY_RUN.items():
        note(Finding(name, "fail" if name in faults else "pass", demand, faults.get(name)))
    return found


async def _one(plan: Plan, name: str, rule: Rule, demand: str, faults: dict[str, str]) -> Finding:
    async with Peer(plan) as peer:
        try:
            await rule(peer)
            finding = Finding(name, "pass", demand)
        except NotShown as reason:
            finding = Finding(name, "skip", demand, str(reason))
        except Broken as fault:
            finding = Finding(name, "fail", demand, str(fault))
        except InvalidInput as fault:
            finding = Finding(name, "fail", demand, fault.message)
        except Exception as fault:  # what a worker can write has no end
            why = f"what it wrote is not understood: {type(fault).__name__}: {fault}"
            finding = Finding(name, "fail", demand, why)
    if peer.flood is not None:
        faults.setdefault(FRAMES_ONLY, f"it {peer.flood} (seen in {name})")
    for item in peer.items:
        if isinstance(item, BadFrame):
            text = f"{item.message}: {item.excerpt} (seen in {name})"
            faults.setdefault(FRAMES_ONLY, text)
    if peer.misplaced:
        faults.setdefault(IN_PLACE, f"{peer.misplaced[0]} (seen in {name})")
    return finding

"""What frames carry (specification 000 §3.2 to §3.4), and what this protocol adds to that.

Requests and orders are told apart by ``operation``. A field that is not known is passed over, one
that is missing has the value it has here.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

Scalar: TypeAlias = str | int | float | bool | None

# -- stream and error frames -------------------------------------------------------------------


class Chunk(msgspec.Struct, kw_only=True, frozen=True):
    """The payload of a stream frame.

    ``is_reset`` says that what this node said before does not count any more; ``accumulated``, when
    it is there, is all that counts, this chunk included. ``is_complete`` is true exactly once per
    node, in its last frame.
    """

    node_name: str = ""
    chunk: str = ""
    is_complete: bool = False
    is_reset: bool = False
    accumulated: str | msgspec.UnsetType = msgspec.UNSET


class Fault(msgspec.Struct, kw_only=True, frozen=True):
    """The payload of an error frame. ``outcome`` says what is known of the work."""

    error_code: str = "E_INTERNAL"
    error_type: str = "internal"
    message: str = ""
    retryable: bool = False
    details: dict[str, Any] | None = None
    outcome: Literal["not_started", "failed", "unknown"] | msgspec.UnsetType = msgspec.UNSET


RESULT_NODE = "$result"
"""The node whose chunks, joined, are the JSON text of a result too large for one frame."""


class Success(msgspec.Struct, kw_only=True, frozen=True, tag_field="status", tag="success"):
    """The payload of a response to ``agent.invoke``.

    ``metadata`` has ``invoke_id``, ``duration_ms`` and ``tokens_used``. With ``result_node`` the
    result came before, as the chunks of that node; ``result`` is then null.
    """

    result: Any = None
    metadata: dict[str, Any] | None = None
    result_node: str | None = None


# -- requests ----------------------------------------------------------------------------------


class InvokeOptions(msgspec.Struct, kw_only=True, frozen=True):
    """How an agent is invoked.

    ``timeout_ms`` bounds it, ``capability`` names what a multi-capability agent is to do.
    ``stream`` asks for stream frames, ``stream_node`` for those of one node only, ``accumulated``
    false leaves that field out. ``human_input`` is what a question of the agent's means to the
    caller: it can ``wait`` for the answer, or it is an ``error``. ``async`` asks for an invoke_id
    at once; the result comes by ``agent.result``.
    """

    timeout_ms: float | None = None
    stream: bool = False
    stream_node: str | None = None
    accumulated: bool = True
    capability: str | None = None
    human_input: Literal["wait", "error"] = "wait"
    run_async: bool = msgspec.field(default=False, name="async")
    priority: int = 0
    idempotency_key: str | None = None


class Invoke(msgspec.Struct, kw_only=True, frozen=True, tag_field="operation", tag="agent.invoke"):
    """Have an agent do something. ``metadata.session_id`` puts it into a session.

    To a worker ``metadata`` also brings ``invoke_id`` and ``attempt`` (counted from 1). Without an
    ``agent_name`` it is any agent that has ``options.capability``. ``context`` and ``intent`` are
    what specification 003's tasks have besides their parameters.
    """

    agent_name: str = ""
    input: Any = msgspec.UNSET
    metadata: dict[str, Scalar] | None = None
    options: InvokeOptions | None = None
    context: Any = None
    intent: str | None = None


class Result(msgspec.Struct, kw_only=True, frozen=True, tag_field="operation", tag="agent.result"):
    """Wait for the end of an earlier invocation, and answer as it would have been answered."""

    invoke_id: str
    timeout_ms: float | None = None


class NextStep(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="operation", tag="agent.next_step"
):
    """Wait for the end of an earlier invocation, or for a question of its agent."""

    invoke_id: str
    timeout_ms: float | None = None


class Pending(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="operation", tag="human_input.pending"
):
    """List what an invocation (without one: any of the caller's) is asking."""

    invoke_id: str | None = None


class Provide(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="operation", tag="human_input.provide"
):
    """Answer a question; with ``error``, say that no answer will come, and why."""

    invoke_id: str
    input_id: str
    value: Any = None
    error: Fault | None = None


RequestPayload: TypeAlias = Invoke | Result | NextStep | Pending | Provide

# -- control, to a worker ----------------------------------------------------------------------


class Ping(msgspec.Struct, kw_only=True, frozen=True, tag_field="operation", tag="ping"):
    """Are you there? Answered by a response with status ``pong``."""


class Shutdown(msgspec.Struct, kw_only=True, frozen=True, tag_field="operation", tag="shutdown"):
    """Finish what is running within ``timeout_ms``, take nothing new, and exit with 0."""

    reason: str | None = None
    timeout_ms: float | None = None


class Cancel(msgspec.Struct, kw_only=True, frozen=True, tag_field="operation", tag="cancel"):
    """End a request (its message_id): its own answer is then an ``E_CANCELLED``."""

    request_id: str
    reason: str | None = None


Order: TypeAlias = Ping | Shutdown | Cancel

# -- control, from a worker --------------------------------------------------------------------


class Ability(msgspec.Struct, kw_only=True, frozen=True):
    """A capability of an agent; ``parameters`` is a JSON Schema, or the short form."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None


class Card(msgspec.Struct, kw_only=True, frozen=True):
    """What a worker says of one of its agents.

    Without ``capabilities`` there is one, with the agent's name, that takes anything. ``nodes``
    are the names under which it streams (none: one, with the agent's name). ``options`` are those
    of ``retinue.Options``: concurrency, timeout (seconds), delivery, max_attempts and so on.
    """

    name: str
    description: str = ""
    version: str = "1"
    capabilities: list[Ability] = []
    nodes: list[str] = []
    options: dict[str, Any] = {}


class Ready(msgspec.Struct, kw_only=True, frozen=True, tag_field="status", tag="ready"):
    """A worker's first frame: a control frame that nobody asked for.

    ``agents`` are their names. ``catalog`` says more of those that it lists.
    """

    module_name: str = ""
    agents: list[str | Card] = []
    catalog: list[Card] = []

    def cards(self) -> dict[str, Card]:
        """Return a card for every agent, by name."""
        known = {card.name: card for card in self.catalog}
        found: dict[str, Card] = {}
        for agent in self.agents:
            card = agent if isinstance(agent, Card) else known.get(agent) or Card(name=agent)
            found[card.name] = card
        return found


class Asking(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="operation", tag="human_input.request"
):
    """An agent asks a person; ``human_input.provide`` with both ids answers.

    ``schema`` is what the answer must fit, ``kind`` ``input`` or ``approval``, ``role`` the least
    that who answers must be.
    """

    invoke_id: str
    input_id: str
    prompt: str
    schema: dict[str, Any] | None = None
    timeout_ms: float | None = None
    kind: str = "input"
    role: str = "operator"


class Note(msgspec.Struct, kw_only=True, frozen=True, tag_field="operation", tag="agent.event"):
    """Something else that an agent says while it works.

    ``event`` is ``thinking``, ``tool_call``, ``tool_result``, ``progress``, ``usage`` or ``log``.
    """

    event: str
    data: dict[str, Any] = {}


Word: TypeAlias = Asking | Note

"""What an agent's author imports: the ``Agent`` class, the ``capability`` decorator, ``Context``.

Specification 003's shape: subclass ``Agent``, give ``execute`` and ``get_capabilities``. Or put
``@capability()`` on a plain function: its typed parameters become the capability's JSON Schema.
Both may be ``async`` or blocking (those run in a thread), and both may use ``current()`` to stream,
to ask and to call other agents.
"""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, get_type_hints

import msgspec

from retinue.domain.event import EventType
from retinue.errors import AgentFailed, InvalidInput

_MOST_QUOTED = 100

MOST_TIMEOUT = 10 * 366 * 24 * 3600
"""The longest timeout in seconds that an agent may give a call or a question."""


class AgentCapability(msgspec.Struct, frozen=True):
    """A named operation of an agent.

    ``parameters`` is either specification 003's short form, ``{"text": "string"}`` (all required
    unless the type ends in ``?``), or a JSON Schema of an object; None accepts anything.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent is run. Unset ones take the defaults of ``AgentDefinition``.

    ``concurrency`` bounds its executions at one time, ``timeout`` (seconds) is the deadline of a
    task that brings none, ``delivery`` is ``at_most_once``, ``at_least_once`` or ``idempotent``,
    ``max_attempts`` counts all attempts of one execution, ``retry_waits_ms`` the pauses between.
    ``rate_per_minute`` is how often it is called (more tasks wait), ``cache_seconds`` how long a
    result may stand for equal tasks of the same owner.
    ``on_busy`` is what a task that does not say it does when its session is busy: ``parallel``,
    ``reject``, ``enqueue`` or ``interrupt``. ``nodes`` are the names that ``Context.text`` streams
    under; none given, there is one, with the agent's id.
    """

    concurrency: int | None = None
    timeout: float | None = None
    delivery: str | None = None
    max_attempts: int | None = None
    retry_waits_ms: tuple[int, ...] | None = None
    failure_threshold: int | None = None
    reset_timeout_ms: int | None = None
    rate_per_minute: int | None = None
    cache_seconds: float | None = None
    on_busy: str | None = None
    nodes: tuple[str, ...] = ()
    version: str = "1"


class Agent:
    """Base class of agents written in Python (specification 003)."""

    options: Options = Options()

    def __init__(self, agent_id: str, name: str, description: str = "") -> None:
        self.agent_id = agent_id
        self.name = name
        self.description = description

    async def execute(self, task: dict[str, Any]) -> Any:
        """Perform ``task`` (``capability``, ``parameters``, ``context``, …).

        Return ``{"success": True, "data": …}``, or ``{"success": False, "error": "…"}``; any
        other JSON value counts as the data. Raising fails the execution. May be a plain
        (blocking) method: it then runs in a thread.
        """
        raise NotImplementedError(f"{type(self).__name__} has no execute()")

    def get_capabilities(self) -> list[AgentCapability]:
        """Return what this agent can do."""
        raise NotImplementedError(f"{type(self).__name__} has no get_capabilities()")

    async def health(self) -> bool:
        """Say whether this agent can work now; asked at an interval, for a few seconds at most.

        False and raising both mean that it cannot. After three such answers in a row no task is
        routed to it until it can again. May be a plain (blocking) method: it then runs in a thread.
        """
        return True


def data_of(answer: Any) -> Any:
    """Return the data of what an agent answered; specification 003's failure raises.

    Raises:
        AgentFailed: it answered ``{"success": false, "error": …}``.
    """
    if isinstance(answer, dict) and isinstance(answer.get("success"), bool):
        if not answer["success"]:
            error = answer.get("error")
            raise AgentFailed(str(error) if error is not None else None)
        return answer.get("data")
    return answer


class Performer(Protocol):
    """What stands behind a ``Context``: the driver's side of one running execution."""

    agent_id: str
    execution_id: str
    session_id: str
    attempt: int

    def emit(self, kind: EventType, data: dict[str, Any]) -> None:
        """Queue one event."""
        ...

    def call(
        self, capability: str | None, parameters: Any, agent: str | None, timeout: float | None
    ) -> Awaitable[Any]:
        """Have another agent do something and return its data."""
        ...

    def ask(
        self,
        prompt: str,
        schema: dict[str, Any] | None,
        timeout: float | None,
        kind: str,
        role: str,
    ) -> Awaitable[Any]:
        """Ask a person and return the answer."""
        ...

    def run(self, waiting: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop, from a thread, and return its result."""
        ...


class Context:
    """The running execution, as its agent sees it. Get it from ``current()``.

    An ``async`` agent awaits ``call``, ``ask`` and ``approve``; a blocking one, in its thread,
    hands what they return to ``run``. All other methods may be used from both alike.
    """

    def __init__(self, performer: Performer) -> None:
        self._performer = performer

    @property
    def agent_id(self) -> str:
        """The agent's own id."""
        return self._performer.agent_id

    @property
    def execution_id(self) -> str:
        """The execution's id."""
        return self._performer.execution_id

    @property
    def session_id(self) -> str:
        """The session it belongs to."""
        return self._performer.session_id

    @property
    def attempt(self) -> int:
        """Which attempt this is, counted from 1."""
        return self._performer.attempt

    def text(self, content: str, *, node: str | None = None, reset: bool = False) -> None:
        """Stream a piece of the answer.

        ``node`` names the part of the agent that says it, where several speak; ``reset`` says
        that what this node said before does not count any more.

        Raises:
            TypeError: the content is no text.
        """
        if not isinstance(content, str):
            raise TypeError(f"text(content) takes a text, not {_shown(content)}")
        data: dict[str, Any] = {"content": content}
        if node is not None:
            data["node_name"] = node
        if reset:
            data["is_reset"] = True
        self._performer.emit(EventType.CONTENT_CHUNK, data)

    def thinking(self, status: str) -> None:
        """Say what the agent is thinking about."""
        self._performer.emit(EventType.THINKING, {"status": status})

    def tool_call(self, tool_name: str, arguments: Any) -> None:
        """Record that a tool is called."""
        self._performer.emit(EventType.TOOL_CALL, {"tool_name": tool_name, "arguments": arguments})

    def tool_result(self, tool_name: str, result: Any) -> None:
        """Record what a tool returned."""
        self._performer.emit(EventType.TOOL_RESULT, {"tool_name": tool_name, "result": result})

    def progress(self, percentage: float | None = None, message: str | None = None) -> None:
        """Say how far the work is (0 to 100); ``progress(message="…")`` says what it does.

        Raises:
            TypeError: the percentage is no number, or the message no text.
        """
        if not isinstance(percentage, int | float | None):
            raise TypeError(
                f"progress(percentage, message): {_shown(percentage)} is no number;"
                ' without one it is progress(message="…")'
            )
        if not isinstance(message, str | None):
            raise TypeError(f"progress(percentage, message): {_shown(message)} is no text")
        self._performer.emit(EventType.PROGRESS, {"percentage": percentage, "message": message})

    def spend(
        self, *, input_tokens: int = 0, output_tokens: int = 0, cost_usd: float = 0.0
    ) -> None:
        """Record what a call of a model or a service cost; past the task's budget the task ends."""
        spent = {"input_tokens": input_tokens, "output_tokens": output_tokens}
        self._performer.emit(EventType.USAGE, {**spent, "cost_usd": cost_usd})

    def log(self, message: str, level: str = "info") -> None:
        """Write a line into the execution's log."""
        self._performer.emit(EventType.LOG, {"level": level, "message": message})

    async def call(
        self,
        capability: str | None = None,
        parameters: Any = None,
        *,
        agent: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Have another agent do something, in this session; return its data.

        Raises:
            RetinueError: it was refused, failed or timed out.
        """
        return await self._performer.call(capability, parameters, agent, _seconds(timeout))

    async def ask(
        self,
        prompt: str,
        schema: dict[str, Any] | None = None,
        *,
        timeout: float | None = None,
        role: str = "operator",
    ) -> Any:
        """Ask a person and wait for the answer; the execution's deadline stands still meanwhile.

        ``schema`` is the JSON Schema the answer must fit, ``role`` the least that who answers
        must be (``operator`` or ``admin``). When a repeated attempt asks again what was answered
        already, in the same words, it gets that answer at once.

        Raises:
            Timeout: nobody answered within ``timeout`` seconds.
        """
        return await self._performer.ask(prompt, schema, _seconds(timeout), "input", role)

    async def approve(
        self, prompt: str, *, timeout: float | None = None, role: str = "operator"
    ) -> bool:
        """Ask a person for leave to go on; see ``ask``."""
        schema = {"type": "boolean"}
        leave = await self._performer.ask(prompt, schema, _seconds(timeout), "approval", role)
        return leave is True

    def run(self, waiting: Coroutine[Any, Any, Any]) -> Any:
        """In a blocking agent: ``context.run(context.call(…))`` waits and returns the result."""
        return self._performer.run(waiting)


def _shown(value: object) -> str:
    """Return a value as an error quotes it."""
    text = repr(value)
    return text if len(text) <= _MOST_QUOTED else text[:_MOST_QUOTED] + "…"


def _seconds(timeout: Any) -> float | None:
    """Return a timeout that an agent gave, if it is one.

    Raises:
        InvalidInput: it is no number of seconds.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise InvalidInput(f"timeout is a number of seconds, not {type(timeout).__name__}")
    if not 0 <= timeout <= MOST_TIMEOUT:
        raise InvalidInput(f"timeout is a number of seconds between 0 and {MOST_TIMEOUT}")
    return timeout


_current: contextvars.ContextVar[Context] = contextvars.ContextVar("retinue_context")


def current() -> Context:
    """Return the context of the execution that is running here.

    Raises:
        LookupError: none is.
    """
    return _current.get()


def enter(context: Context) -> None:
    """Make ``context`` the current one of this task or thread. For drivers."""
    _current.set(context)


class FunctionAgent(Agent):
    """An agent made of one function: its typed parameters are the capability's schema."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        capability: str,
        agent_id: str,
        description: str,
        options: Options,
    ) -> None:
        super().__init__(agent_id, agent_id, description)
        self.options = options
        self.function = function
        self.capability = capability
        self._types, self._context_name = _signature(function)
        self._schema = _schema(self._types)

    def get_capabilities(self) -> list[AgentCapability]:
        """Return the one capability."""
        return [AgentCapability(self.capability, self.description, self._schema)]

    def arguments(self, parameters: Any, context: Context) -> dict[str, Any]:
        """Return the keyword arguments of a call, converted to the annotated types.

        Raises:
            InvalidInput: they do not fit.
        """
        given = parameters if isinstance(parameters, dict) else {}
        values: dict[str, Any] = {}
        for name, (kind, _) in self._types.items():
            if name in given:
                try:
                    values[name] = msgspec.convert(given[name], kind)
                except msgspec.ValidationError as error:
                    reason, _, within = str(error).partition(" - at `$")
                    path = f"$.parameters.{name}{within.rstrip('`')}"
                    details = {"path": path, "capability": self.capability}
                    raise InvalidInput(f"{path}: {reason}", details=details) from None
        if self._context_name is not None:
            values[self._context_name] = context
        return values


def _signature(function: Callable[..., Any]) -> tuple[dict[str, tuple[Any, Any]], str | None]:
    hints = get_type_hints(function)
    types: dict[str, tuple[Any, Any]] = {}
    context_name: str | None = None
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise InvalidInput(f"{function.__name__}: *{name} cannot become a parameter schema")
        if hints.get(name) is Context:
            context_name = name
        else:
            types[name] = (hints.get(name, Any), parameter.default)
    return types, context_name


def _schema(types: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Return the JSON Schema of typed parameters."""
    schemas, components = msgspec.json.schema_components(
        [kind for kind, _ in types.values()], ref_template="#/$defs/{name}"
    )
    properties: dict[str, Any] = {}
    for (name, (_, default)), schema in zip(types.items(), schemas, strict=True):
        properties[name] = dict(schema)
        if default is not inspect.Parameter.empty:
            properties[name]["default"] = msgspec.to_builtins(default)
    schema = {
        "type": "object",
        "properties": properties,
        "required": [n for n, (_, d) in types.items() if d is inspect.Parameter.empty],
        "additionalProperties": False,
    }
    if components:
        schema["$defs"] = components
    return schema


def capability(
    name: str | None = None,
    *,
    agent_id: str | None = None,
    description: str | None = None,
    options: Options | None = None,
) -> Callable[[Callable[..., Any]], FunctionAgent]:
    """Make an agent with one capability of a plain function.

    The capability is the function's name unless given, the description its docstring's first
    line. A parameter annotated ``Context`` gets the running execution. The function may be
    ``async``, blocking (it runs in a thread), or an (async) generator of text, whose pieces are
    streamed and joined into the result.
    """

    def make(function: Callable[..., Any]) -> FunctionAgent:
        word = name or function.__name__
        lines = (inspect.getdoc(function) or "").splitlines()
        return FunctionAgent(
            function,
            capability=word,
            agent_id=agent_id or word,
            description=description if description is not None else (lines[0] if lines else ""),
            options=options or Options(),
        )

    return make

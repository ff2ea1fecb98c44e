"""The agents that a worker serves: objects, or references that are imported when first invoked."""

from __future__ import annotations

import importlib
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from retinue.agent import Agent, AgentCapability, FunctionAgent
from retinue.errors import InvalidInput, SpawnFailed, said
from retinue.wire.inputs import named
from retinue.wire.payloads import Ability, Card

if TYPE_CHECKING:
    from retinue.engine.schema import Validator


class Reference(msgspec.Struct, frozen=True):
    """An agent that is imported at its first invocation: ``target`` is ``pkg.mod:Class``."""

    name: str
    target: str


class Served:
    """One agent that is served, loaded or not yet."""

    def __init__(self, given: Agent | Reference) -> None:
        self.name = given.name if isinstance(given, Reference) else given.agent_id
        self._reference = given if isinstance(given, Reference) else None
        self._lock = threading.Lock()
        self._validators: dict[str, Validator | None] = {}
        self.agent: Agent | None = None
        self.capabilities: dict[str, AgentCapability] = {}
        if isinstance(given, Agent):
            self._take(given)

    def _take(self, agent: Agent) -> None:
        try:
            abilities = agent.get_capabilities()
        except NotImplementedError:
            abilities = [AgentCapability(self.name, agent.description)]
        self.capabilities = {ability.name: ability for ability in abilities}
        target = agent.function if isinstance(agent, FunctionAgent) else agent.execute
        self.target: Callable[..., Any] = target
        self.generates = inspect.isgeneratorfunction(target)
        self.streams = inspect.isasyncgenfunction(target)
        self.blocks = self.generates or not (
            self.streams or inspect.iscoroutinefunction(inspect.unwrap(target))
        )
        self.agent = agent

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names that it streams under."""
        return (self.agent.options.nodes if self.agent is not None else ()) or (self.name,)

    def load(self) -> None:
        """Import what is not imported yet; blocks, and may be called from several threads.

        Raises:
            SpawnFailed: it cannot be imported, or is no agent.
        """
        with self._lock:
            if self.agent is None:
                assert self._reference is not None
                self._take(loaded(self._reference.target))

    def card(self) -> Card:
        """Return what the ready frame says of it."""
        agent = self.agent
        if agent is None:
            return Card(name=self.name)
        options = agent.options
        given = {name: getattr(options, name) for name in options.__struct_fields__}
        return Card(
            name=self.name,
            description=agent.description,
            version=options.version,
            capabilities=[
                Ability(name=c.name, description=c.description, parameters=c.parameters)
                for c in self.capabilities.values()
            ],
            nodes=list(options.nodes),
            options={
                name: value
                for name, value in given.items()
                if value is not None and name not in {"nodes", "version"}
            },
        )

    def capability(self, wanted: str | None) -> AgentCapability:
        """Return the capability that is meant.

        Raises:
            InvalidInput: there is no such one, or one of several has to be named.
        """
        names = list(self.capabilities)
        if wanted is None:
            if len(names) == 1:
                return self.capabilities[names[0]]
            raise InvalidInput(
                f"agent {self.name} has several capabilities: name one in options.capability",
                details={"path": "$.payload.options.capability", "capabilities": names},
            )
        found = self.capabilities.get(wanted)
        if found is None:
            raise InvalidInput(
                f"agent {self.name} has no capability {wanted}",
                details={"path": "$.payload.options.capability", "capabilities": names},
            )
        return found

    def parameters(self, capability: AgentCapability, given: Any) -> Any:
        """Return the input as the capability's parameters.

        Raises:
            InvalidInput: they do not fit; ``details.path`` names where.
        """
        if given is msgspec.UNSET:
            given = {}
        agent = self.agent
        if isinstance(agent, FunctionAgent):
            given = named(given, capability.parameters)
            _fits(capability, given)
            return given
        if capability.parameters is None:
            return given
        validator, schema = self._validator(capability)
        given = named(given, schema)
        validator.check(given)
        return given

    def _validator(self, capability: AgentCapability) -> tuple[Any, dict[str, Any] | None]:
        known: Any = self._validators.get(capability.name)
        if known is None:
            # Not needed by functions, whose types say the same; and a worker is to be ready soon.
            from retinue.domain.agent import Capability  # noqa: PLC0415
            from retinue.engine.schema import Validator, parameters_schema  # noqa: PLC0415

            schema = parameters_schema(capability.parameters)
            known = (Validator(Capability(name=capability.name, parameters=schema)), schema)
            self._validators[capability.name] = known
        found: tuple[Any, dict[str, Any] | None] = known
        return found


def _fits(capability: AgentCapability, given: Any) -> None:
    """Check the names of a function's arguments; their types are checked as they are converted."""
    schema = capability.parameters or {}
    if not isinstance(given, dict):
        path = "$.parameters"
        fault = f"{path}: it is no object of the parameters of {capability.name}"
    else:
        missing = [name for name in schema.get("required", ()) if name not in given]
        unknown = [name for name in given if name not in schema.get("properties", {})]
        if not missing and not unknown:
            return
        path = f"$.parameters.{(missing or unknown)[0]}"
        fault = f"{path}: it is {'missing' if missing else 'no parameter'}"
    raise InvalidInput(
        f"{fault} (capability {capability.name})",
        details={"path": path, "capability": capability.name},
    )


# -- loading -----------------------------------------------------------------------------------


def loaded(target: str) -> Agent:
    """Return the agent that ``pkg.mod:Class`` names: a class, an object or a function agent.

    Raises:
        SpawnFailed: it cannot be imported, or is no agent.
    """
    module_name, _, name = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
        if isinstance(found, type) and issubclass(found, Agent):
            found = found()  # type: ignore[call-arg]  # its own __init__ has no parameters
    except Exception as error:
        raise _unloadable(target, error) from error
    if not isinstance(found, Agent):
        raise SpawnFailed(
            f"{target} is {type(found).__name__}, not an Agent", details={"module": target}
        )
    return found


def agents_of(target: str) -> list[Agent | Reference]:
    """Return the agents of ``pkg.mod`` (all of them) or ``pkg.mod:Class`` (that one).

    A module says what it serves in ``AGENTS``: a list of agents, classes and references
    (``pkg.mod:Class``), or a mapping from names to these. Without it, that is every agent object
    and every class of agents that the module itself defines.

    Raises:
        SpawnFailed: something cannot be imported, or is no agent.
    """
    if ":" in target:
        return [loaded(target)]
    try:
        module = importlib.import_module(target)
        listed = getattr(module, "AGENTS", None)
        if listed is None:
            listed = [
                found
                for found in vars(module).values()
                if isinstance(found, Agent)
                or (
                    isinstance(found, type)
                    and issubclass(found, Agent)
                    and found.__module__ == module.__name__
                )
            ]
        pairs = listed.items() if isinstance(listed, dict) else [(None, one) for one in listed]
        agents = [_served(name, one) for name, one in pairs]
    except Exception as error:
        raise _unloadable(target, error) from error
    if not agents:
        raise SpawnFailed(f"{target} has no agents", details={"module": target})
    return agents


def _served(name: str | None, given: Any) -> Agent | Reference:
    if isinstance(given, str):
        return Reference(name or given.rpartition(":")[2], given)
    if isinstance(given, type) and issubclass(given, Agent):
        given = given()  # type: ignore[call-arg]  # its own __init__ has no parameters
    if not isinstance(given, Agent | Reference):
        raise InvalidInput(f"{given!r} is not an Agent: subclass retinue.Agent")
    return given


def _unloadable(target: str, error: Exception) -> SpawnFailed:
    if isinstance(error, SpawnFailed):
        return error
    return SpawnFailed(
        f"{target} cannot be loaded: {said(error)}",
        details={"module": target, "cause": said(error)},
    )


def catalog(agents: Iterable[Agent | Reference | str | type[Agent]]) -> dict[str, Served]:
    """Return what is to be served, by name.

    Raises:
        InvalidInput: one is no agent, or two have the same name.
    """
    found: dict[str, Served] = {}
    for given in agents:
        served = Served(_served(None, given))
        if served.name in found:
            raise InvalidInput(f"two agents have the name {served.name}")
        found[served.name] = served
    return found

"""What can be set: the models, their descriptions, their published schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    WithJsonSchema,
)

from retinue.domain.agent import AGENT_ID_PATTERN
from retinue.domain.egress import Policy, read
from retinue.domain.policy import Delivery
from retinue.errors import EgressDenied
from retinue.settings.coding import CODING, CodingReference
from retinue.settings.commands import CommandReference
from retinue.settings.workers import WorkerReference

PREFIX = "RETINUE_"
ALIASES = {
    "ORCHESTRATOR_PORT": "port",
    "TRACE_URL": "trace_url",
    "MEMAGENT_URL": "memagent_url",
    "DATABASE_URL": "database_url",
}
"""Names of specification 003 (and of everybody) for what ``RETINUE_<FIELD>`` sets as well."""


def _http_url(value: str) -> str:
    parts = urlsplit(value)  # a ValueError of its own says what is wrong
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
        raise ValueError("it must be a URL like http://localhost:8787")
    _ = parts.port
    return value.rstrip("/")


def _origin(value: str) -> str:
    parts = urlsplit(_http_url(value))
    if parts.path:
        raise ValueError("it must be an origin like https://example.org, without a path")
    return value.rstrip("/").lower()


def _database_url(value: str) -> str:
    if value == "sqlite://" or (value.startswith("sqlite:///") and value != "sqlite:///"):
        return value
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("it must be sqlite:///path, sqlite:// (in memory) or postgresql://…")
    _ = urlsplit(value).port
    return value


def _reference(value: Any) -> Any:
    return {"agent": value} if isinstance(value, str) else value


def _module_and_name(value: str) -> str:
    module, _, name = value.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        raise ValueError("it must be written as module:Class")
    return value


def _word(value: str) -> str:
    if not value or value != value.strip() or "/" in value:
        raise ValueError("it must be a host name or an address, without scheme and port")
    return value


def _endpoint(value: str) -> str:
    try:
        return read(value).url
    except EgressDenied as error:
        raise ValueError(error.message) from None


def _allowed(value: str) -> str:
    Policy.of([value])  # a ValueError of its own says what is wrong
    return value


HttpUrl = Annotated[str, AfterValidator(_http_url)]
Origin = Annotated[str, AfterValidator(_origin)]
Host = Annotated[str, AfterValidator(_word)]


class AgentReference(BaseModel):
    """An agent to register: ``module:Class`` and the arguments it is made with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: Annotated[str, AfterValidator(_module_and_name)] = Field(
        description="module:Class (or module:object) of an Agent; the module may lie beside the"
        " configuration file"
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments that the class is made with"
    )


class HttpCapability(BaseModel):
    """Something an agent over HTTP can do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=256)
    description: str = ""
    parameters: dict[str, Any] | None = Field(
        default=None, description='names and types ({"text": "string"}), or a JSON Schema'
    )


class HttpReference(BaseModel):
    """An agent that answers over HTTP: ``POST {endpoint}/execute``, ``GET {endpoint}/health``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    driver: Literal["http"]
    agent_id: str = Field(pattern=f"^{AGENT_ID_PATTERN}$")
    name: str = Field(default="", description="the agent's id unless given")
    description: str = ""
    version: str = "1"
    endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        description="where it is; the egress policy is for API callers, not for this file"
    )
    capabilities: tuple[
        Annotated[
            HttpCapability,
            BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
            WithJsonSchema({"anyOf": [{"type": "string"}, HttpCapability.model_json_schema()]}),
        ],
        ...,
    ] = Field(min_length=1, description="their names, or {name, description, parameters}")
    secret: str | None = Field(
        default=None,
        min_length=16,
        repr=False,
        description="what calls are signed with: ${NAME} of the environment; unset: not signed",
    )
    concurrency: int = Field(default=16, ge=1, le=1000, description="tasks at one time")
    timeout: float = Field(
        default=300.0, gt=0, le=86_400, description="seconds for a task without a limit of its own"
    )
    delivery: Delivery = Delivery.AT_MOST_ONCE
    max_attempts: int = Field(default=3, ge=1, le=100)


def _whole_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON Schema without references, so that it can stand inside another."""
    found = model.model_json_schema()
    parts = found.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(child) for child in node]
        if not isinstance(node, dict):
            return node
        rest = {key: whole(child) for key, child in node.items() if key != "$ref"}
        return whole(parts[node["$ref"].rpartition("/")[2]]) | rest if "$ref" in node else rest

    schema: dict[str, Any] = whole(found)
    return schema


def _kind(value: Any) -> str:
    driver = value.get("driver") if isinstance(value, dict) else getattr(value, "driver", None)
    if driver is None:
        return "python"
    if driver in CODING:
        return "coding"
    return driver if driver in {"command", "stdio"} else "http"


Reference = Annotated[
    Annotated[AgentReference, Tag("python")]
    | Annotated[HttpReference, Tag("http")]
    | Annotated[CommandReference, Tag("command")]
    | Annotated[CodingReference, Tag("coding")]
    | Annotated[WorkerReference, Tag("stdio")],
    Discriminator(_kind),
    BeforeValidator(_reference),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                _whole_schema(AgentReference),
                _whole_schema(HttpReference),
                _whole_schema(CommandReference),
                _whole_schema(CodingReference),
                _whole_schema(WorkerReference),
            ]
        },
        mode="validation",
    ),
]


class Settings(BaseModel):
    """Everything that can be set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    _files: tuple[Path, ...] = PrivateAttr(default=())

    host: Host = Field(
        default="127.0.0.1",
        description="the address to listen on; one beyond this machine needs an API key to exist",
    )
    port: int = Field(
        default=8888, ge=0, le=65535, description="the TCP port to listen on; 0 takes any free one"
    )
    data_dir: Path = Field(
        default=Path(".retinue"), description="the directory of the SQLite store; made when missing"
    )
    database_url: Annotated[str, AfterValidator(_database_url)] | None = Field(
        default=None,
        description="where the store is: sqlite:///path, sqlite:// (in memory, gone at the end) or"
        " postgresql://user:password@host:port/name; unset: retinue.db in data_dir",
    )
    lease_seconds: float = Field(
        default=15.0,
        gt=0,
        le=3600,
        description="seconds after which a worker that is not heard from is taken for dead"
        " (PostgreSQL only)",
    )
    examples: bool = Field(default=True, description="whether the example agents are registered")
    survey_root: Path = Field(
        default=Path(), description="the directory below which the example surveyor may read"
    )
    agents: tuple[Reference, ...] = Field(
        default=(),
        description="agents to register: module:Class, {agent, arguments}, {driver: http, …},"
        " {driver: command, …}, {driver: stdio, …} or {driver: claude, codex, gemini, opencode or"
        " acp, …}",
    )
    entry_points: bool = Field(
        default=True,
        description="whether agents of installed packages (entry points retinue.agents) are"
        " registered",
    )
    queue_bound: int = Field(
        default=10_000,
        ge=1,
        description="tasks that may wait per agent or capability; more are refused",
    )
    rate_limit_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="tasks that one caller may submit per minute; more are refused",
    )
    max_concurrent_executions: int | None = Field(
        default=None,
        ge=1,
        description="executions that this process runs at one time, whatever its agents take; more"
        " wait. One that waits for what it has others do does not count. Unset: no such limit",
    )
    max_agents_memory_mb: float | None = Field(
        default=None,
        gt=0,
        description="memory for the agents that this process runs at one time; one counts with its"
        " max_memory_mb, and what does not fit waits. Unset: no such limit",
    )
    priority_step_seconds: float = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="how many seconds of waiting one step of priority is worth",
    )
    max_body_bytes: int = Field(
        default=1 << 20, ge=1024, description="bytes that the body of a request may have"
    )
    max_result_bytes: int = Field(
        default=16 << 20, ge=1024, description="bytes that the result of an agent may have, as JSON"
    )
    max_requests: int = Field(
        default=4096,
        ge=1,
        description="requests that may be in progress at once, those that wait for a reply"
        " included; more are refused (503)",
    )
    max_streams: int = Field(
        default=4096, ge=1, description="event streams that may be open at once"
    )
    max_held_bytes: int = Field(
        default=256 << 20,
        ge=1 << 20,
        description="bytes of requests and answers in progress; beyond them new bodies are refused"
        " (503)",
    )
    health_interval_seconds: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="seconds between two health checks of an agent; three bad ones in a row take"
        " it out of routing, a good one brings it back",
    )
    health_timeout_seconds: float = Field(
        default=5.0, gt=0, le=60, description="seconds that one health check may take"
    )
    egress_allow: tuple[Annotated[str, AfterValidator(_allowed)], ...] = Field(
        default=(),
        description="hosts, addresses and networks besides the public Internet at which API"
        " callers may register agents, like localhost, agents.internal or 10.0.0.0/8",
    )
    signing_key: str | None = Field(
        default=None,
        min_length=32,
        repr=False,
        description="what the secrets of registered agents are derived from; the same for all"
        " processes of one database; unset: kept in signing.key beside the store",
    )
    grace_seconds: float = Field(
        default=20.0,
        ge=0,
        le=3600,
        description="seconds that running work gets to end when we stop",
    )
    retention_days: float | None = Field(
        default=None,
        gt=0,
        le=36_500,
        description="days after its end from which an execution's events and contracts are removed;"
        " unset: never",
    )
    retention_executions: int | None = Field(
        default=None,
        ge=1,
        description="how many executions keep their events and contracts; of older ones that have"
        " ended they are removed; unset: all",
    )
    retention_event_days: float | None = Field(
        default=None,
        gt=0,
        le=36_500,
        description="days after its end from which an execution's events are removed, though its"
        " contracts stay; unset: as long as these",
    )
    cleanup_interval: float = Field(
        default=60.0,
        ge=0.01,
        le=86_400,
        description="seconds between two rounds of removing what is to be removed",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least important log line that is written"
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="json writes one JSON object per log line"
    )
    allowed_hosts: tuple[Host, ...] = Field(
        default=(),
        description="host names besides this machine's own that requests may be addressed to"
        " (the Host header)",
    )
    allowed_origins: tuple[Origin, ...] = Field(
        default=(),
        description="origins whose web pages may call this server, like https://example.org",
    )
    trace_url: HttpUrl = Field(
        default="http://localhost:8787",
        description="the Trace service that contracts are sent to; used only when set",
    )
    memagent_url: HttpUrl = Field(
        default="http://localhost:8799",
        description="the MemAgent service that compresses sessions; used only when set",
    )

    @property
    def files(self) -> tuple[Path, ...]:
        """The files these came from, and those that the next start here would read; absolute."""
        return self._files

    @property
    def trace_enabled(self) -> bool:
        """Whether somebody set ``trace_url``, be it to its default."""
        return "trace_url" in self.model_fields_set

    @property
    def memagent_enabled(self) -> bool:
        """Whether somebody set ``memagent_url``, be it to its default."""
        return "memagent_url" in self.model_fields_set

    def shown(self) -> dict[str, Any]:
        """Return the settings as JSON values; passwords and agents' arguments are masked.

        An integration that is off has no URL. Arguments are masked because ``${NAME}`` may have put
        a secret there.
        """
        values = self.model_dump(mode="json")
        for reference in values["agents"]:
            if reference.get("secret") is not None:
                reference["secret"] = "***"
            if "environment" in reference:
                reference["environment"] = dict.fromkeys(reference["environment"], "***")
            if "arguments" in reference:
                reference["arguments"] = dict.fromkeys(reference["arguments"], "***")
        if values["signing_key"] is not None:
            values["signing_key"] = "***"
        # What is named but not used would read as if it were.
        values["trace_url"] = values["trace_url"] if self.trace_enabled else None
        values["memagent_url"] = values["memagent_url"] if self.memagent_enabled else None
        for name, value in values.items():
            if name.endswith("_url") and value is not None:
                values[name] = without_password(value)
        return values


class Caller(BaseModel):
    """How the command line reaches a server: its URL, if named, and the credential to send."""

    model_config = ConfigDict(frozen=True)

    url: HttpUrl | None = None
    api_key: str | None = Field(default=None, repr=False)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of ``retinue.yaml``; ``x-environment`` names the variables."""
    found = Settings.model_json_schema()
    for name, field in found["properties"].items():
        names = [variable for variable, target in ALIASES.items() if target == name]
        if name != "agents":
            field["x-environment"] = [PREFIX + name.upper(), *names]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **found,
        "title": "retinue.yaml",
    }


def without_password(url: str) -> str:
    """Return ``url`` with its password as ``***``."""
    try:
        parts = urlsplit(url)
        if parts.password is None:
            return url
    except ValueError:
        return "***"
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{place}"))

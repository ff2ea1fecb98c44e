"""OpenAPI: every operation with what it takes, what it gives, and how it can fail.

The schemas are made from the records themselves (``msgspec.json.schema_components``), so the
document cannot drift from what is sent.
"""

from __future__ import annotations

import http
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from retinue.domain.agent import AGENT_ID_PATTERN
from retinue.server.errors import ErrorBody, Fault
from retinue.server.records import SESSION_ID_SCHEMA, ULID_PATTERN
from retinue.server.routing import Operation

REFERENCE = "#/components/schemas/{name}"
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

# What every operation may answer, and what those that take something may answer beside.
_ALWAYS = (400, 403, 421, 431, 500, 503)
_WITH_BODY = (408, 413, 415, 422)
_SAID = ("description", "examples")
_PATH = re.compile(r"{(\w+)}")
_NAME = f"^{AGENT_ID_PATTERN}$"
_PATH_SCHEMAS = {
    "session_id": {"type": "string", "pattern": SESSION_ID_SCHEMA},
    "agent_id": {"type": "string", "description": "The agent's id, or its name if unique."},
    "name": {"type": "string", "description": "The worker's name.", "pattern": _NAME},
}


class Schemas:
    """The JSON Schemas of all records that the operations name."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        kinds: list[Any] = [ErrorBody, Fault]
        for operation in operations:
            named = (operation.body, operation.gives, *operation.also.values())
            kinds.extend(kind for kind in named if kind is not None and kind not in kinds)
        found, self.components = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
        for schema in self.components.values():
            for name, field in schema.get("properties", {}).items():
                schema["properties"][name] = _readable(field)
        for kind in kinds:
            # What a record's fields alone cannot say.
            self.components[kind.__name__] |= getattr(kind, "SCHEMA", {})
        self._by_kind = dict(zip(map(id, kinds), found, strict=True))

    def of(self, kind: Any) -> dict[str, Any]:
        """Return the schema (a reference) of a record."""
        return self._by_kind[id(kind)]


def _readable(field: dict[str, Any]) -> dict[str, Any]:
    """Say of a field that may be null what it is beside that; null as a default says nothing."""
    said = {key: value for key, value in field.items() if key != "default" or value is not None}
    kinds = field.get("anyOf", ())
    if {"type": "null"} not in kinds:
        return said
    inner = []
    for kind in kinds:
        said |= {key: kind[key] for key in _SAID if key in kind}
        inner.append({key: value for key, value in kind.items() if key not in _SAID})
    return said | {"anyOf": inner}


def describe(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    """Return what FastAPI is to say of one operation."""
    said: dict[str, Any] = {"responses": _responses(operation, schemas)}
    parameters = [*_path(operation), *_query(operation), *_headers(operation)]
    if parameters:
        said["parameters"] = parameters
    if operation.body is not None:
        content: dict[str, Any] = {"schema": schemas.of(operation.body)}
        if (example := getattr(operation.body, "EXAMPLE", None)) is not None:
            content["example"] = example
        said["requestBody"] = {"required": True, "content": {"application/json": content}}
    said["security"] = [] if operation.public else [{name: []} for name in SECURITY] + [{}]
    return said


def _responses(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    good = {operation.status: operation.gives, **operation.also}
    for status, kind in good.items():
        responses[str(status)] = {"description": http.HTTPStatus(status).phrase}
        if kind is not None:
            content = {"application/json": {"schema": schemas.of(kind)}}
            responses[str(status)]["content"] = content
    if operation.gives_text is not None:
        content = responses[str(operation.status)].setdefault("content", {})
        content[operation.gives_text] = {"schema": operation.text or {"type": "string"}}
    wrong = schemas.of(Fault if operation.faults else ErrorBody)
    for status in _failures(operation):
        if status not in good:
            responses[str(status)] = {
                "description": http.HTTPStatus(status).phrase,
                "content": {"application/json": {"schema": wrong}},
            }
    return responses


def _failures(operation: Operation) -> Sequence[int]:
    statuses = {*_ALWAYS, *operation.errors}
    if not operation.public:
        statuses.add(401)
    if operation.body is not None:
        statuses.update(_WITH_BODY)
    # Unknown query parameters are refused everywhere.
    statuses.add(422)
    if _PATH.search(operation.path):
        statuses.add(404)
    return sorted(statuses)


def _path(operation: Operation) -> list[dict[str, Any]]:
    ulid = {"type": "string", "pattern": ULID_PATTERN}
    return [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS.get(name, ulid)}
        for name in _PATH.findall(operation.path)
    ]


def _query(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    _, components = msgspec.json.schema_components([operation.query], ref_template=REFERENCE)
    schema = components[operation.query.__name__]
    parameters = []
    for name, given in schema["properties"].items():
        resolved = _inlined(given, components)
        parameters.append(
            {
                "name": name,
                "in": "query",
                "required": name in schema.get("required", ()),
                "schema": resolved,
            }
        )
    return parameters


def _inlined(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """Replace references, and drop the null that stands for an absent parameter."""
    if "$ref" in schema:
        return dict(components[schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        kinds = [_inlined(k, components) for k in schema["anyOf"] if k.get("type") != "null"]
        if len(kinds) == 1:
            return kinds[0]
    return {key: value for key, value in schema.items() if key != "default" or value is not None}


def _headers(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
        for name, (text, schema) in operation.headers.items()
    ]


def words(operation: Operation) -> tuple[str, str]:
    """Return an operation's summary and description: its endpoint's docstring."""
    text = inspect.getdoc(operation.endpoint) or ""
    summary, _, rest = text.partition("\n\n")
    return summary.rstrip("."), rest

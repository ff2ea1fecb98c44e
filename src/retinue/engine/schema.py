"""A capability's parameters: from an author's short form to JSON Schema, and checked by it."""

from __future__ import annotations

from typing import Any

import jsonschema_rs

from retinue.domain.agent import Capability
from retinue.errors import InvalidInput

_TYPES = {
    "string": "string",
    "str": "string",
    "integer": "integer",
    "int": "integer",
    "number": "number",
    "float": "number",
    "boolean": "boolean",
    "bool": "boolean",
    "object": "object",
    "dict": "object",
    "array": "array",
    "list": "array",
    "any": None,
}


def parameters_schema(parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the JSON Schema of ``parameters``.

    Specification 003's short form ``{"param1": "string"}`` names each parameter's type; all are
    required, a ``?`` behind the type makes one optional, and others are refused. A value may be
    a JSON Schema of its own. A whole JSON Schema of an object is taken as it is.

    Raises:
        InvalidInput: a type is not known.
    """
    if parameters is None:
        return None
    if parameters.get("type") == "object" and isinstance(parameters.get("properties", {}), dict):
        return parameters
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, given in parameters.items():
        optional = False
        if isinstance(given, str):
            word = given.rstrip("?")
            optional = word != given
            if word not in _TYPES:
                raise InvalidInput(
                    f"parameter {name}: {given!r} is no type; use one of {', '.join(_TYPES)}"
                )
            kind = _TYPES[word]
            properties[name] = {} if kind is None else {"type": kind}
        elif isinstance(given, dict):
            optional = "default" in given
            properties[name] = given
        else:
            raise InvalidInput(f"parameter {name}: give a type's name or a JSON Schema")
        if not optional:
            required.append(name)
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _no_network(uri: str) -> Any:
    raise ValueError(f"a schema may not refer to {uri}")


class Validator:
    """Checks a task's parameters against one capability."""

    def __init__(self, capability: Capability) -> None:
        self._name = capability.name
        self._check: Any = None
        if capability.parameters is not None:
            try:
                self._check = jsonschema_rs.validator_for(
                    capability.parameters, retriever=_no_network
                )
            except ValueError as error:
                reason = str(error).splitlines()[0]
                raise InvalidInput(
                    f"capability {capability.name}: its parameters are no JSON Schema: {reason}"
                ) from None

    def check(self, parameters: Any) -> None:
        """Check ``parameters``.

        Raises:
            InvalidInput: they do not fit; the message and ``details.path`` name the first fault.
        """
        if self._check is None or self._check.is_valid(parameters):
            return
        for error in self._check.iter_errors(parameters):
            path = "$.parameters" + "".join(
                f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.instance_path
            )
            raise InvalidInput(
                f"{path}: {_brief(error.message)} (capability {self._name})",
                details={"path": path, "capability": self._name},
            )


def check_schema(schema: Any) -> None:
    """Check that ``schema`` is a JSON Schema that answers can be checked against.

    Raises:
        InvalidInput: it is none.
    """
    try:
        jsonschema_rs.validator_for(schema, retriever=_no_network)
    except ValueError as error:
        reason = _brief(str(error).splitlines()[0])
        raise InvalidInput(f"its schema is no JSON Schema: {reason}") from None


def check_answer(schema: Any, value: Any) -> None:
    """Check the answer to a question against the schema it was asked with.

    Raises:
        InvalidInput: it does not fit.
    """
    try:
        jsonschema_rs.validator_for(schema, retriever=_no_network).validate(value)
    except jsonschema_rs.ValidationError as error:
        raise InvalidInput(
            f"$.answer: {_brief(error.message)}", details={"path": "$.answer"}
        ) from None


def _brief(message: str, most: int = 300) -> str:
    # The value itself is quoted by the validator; a huge one does not belong into an answer.
    return message if len(message) <= most else message[:most] + " …"

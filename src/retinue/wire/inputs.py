"""From any JSON input (specification 000) to a capability's named parameters."""

from __future__ import annotations

from typing import Any


def named(given: Any, schema: dict[str, Any] | None) -> Any:
    """Return ``given`` as the parameters that ``schema`` (a JSON Schema of an object) names.

    An object is taken as it is, and so is everything where there is no schema. Anything else is
    the one parameter, where there is one; a list is spread over several.
    """
    if schema is None or isinstance(given, dict):
        return given
    names = list(schema.get("properties") or ())
    if given is None:
        return {}
    if len(names) == 1:
        return {names[0]: given}
    if isinstance(given, list) and len(given) <= len(names):
        return dict(zip(names, given, strict=False))
    return given

"""``key=value`` words become a task's parameters, by the capability's schema."""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from retinue.errors import AgentNotFound, InvalidInput

FORMS = "write key=value, key:=JSON or key=@file"
_KEY = re.compile(r"[\w.-]+:?=")


def parse(words: Iterable[str], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parameters that the words say.

    ``key=value`` is a string, unless the schema wants a number or a truth value; ``key:=JSON`` is
    any JSON; ``key=@file`` is a file's text (``@-``: standard input). Where the schema has a
    ``prompt``, a word that does not begin like that is the prompt.

    Raises:
        InvalidInput: a word cannot be read; the message says what to write.
    """
    properties = (schema or {}).get("properties", {})
    found: dict[str, Any] = {}
    for word in words:
        if "prompt" in properties and not _KEY.match(word):
            if "prompt" in found:
                raise InvalidInput("the prompt is given twice: put it in quotes")
            found["prompt"] = word
            continue
        place = word.find("=")
        is_json = place > 0 and word[place - 1] == ":"
        key, text = word[: place - is_json] if place > 0 else "", word[place + 1 :]
        if not key:
            raise InvalidInput(f"{word!r} is no parameter: {FORMS}")
        if key in found:
            raise InvalidInput(f"{key} is given twice")
        if is_json:
            found[key] = _json(key, text)
        elif text.startswith("@"):
            found[key] = _file(key, text[1:])
        else:
            found[key] = _converted(key, text, properties.get(key))
    return found


def _json(key: str, text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{key}:={text[:60]} is not JSON: {error}") from None


def _file(key: str, name: str) -> str:
    try:
        if name == "-":
            return sys.stdin.buffer.read().decode()
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(f"{key}: the file {name} is not UTF-8 text") from None
    except OSError as error:
        raise InvalidInput(f"{key}: the file {name} cannot be read: {error.strerror}") from None


def _converted(key: str, text: str, schema: Any) -> Any:
    kinds = _kinds(schema)
    if not kinds or "string" in kinds:
        return text
    for kind in ("integer", "number", "boolean", "null"):
        if kind in kinds:
            try:
                return _CONVERSIONS[kind](text)
            except (ValueError, KeyError):
                continue
    what = " or ".join(sorted(kinds))
    how = f"; write {key}:=JSON" if kinds & {"array", "object"} else ""
    raise InvalidInput(f"{key}: {text!r} is not of type {what}{how}")


def _kinds(schema: Any) -> set[str]:
    """Return the types a schema allows; none when that is not plain to see."""
    if not isinstance(schema, dict):
        return set()
    given = schema.get("type")
    if isinstance(given, str):
        return {given}
    if isinstance(given, list):
        return set(given)
    kinds: set[str] = set()
    for choice in schema.get("anyOf") or schema.get("oneOf") or ():
        inner = _kinds(choice)
        if not inner:
            return set()
        kinds |= inner
    return kinds


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return int(text) if text.lstrip("+-").isdigit() else value


_CONVERSIONS: dict[str, Any] = {
    "integer": int,
    "number": _number,
    "boolean": {"true": True, "false": False}.__getitem__,
    "null": {"null": None}.__getitem__,
}


class Able(NamedTuple):
    """An agent that can do what is wanted; ``bound`` says that no other one may."""

    capability: str
    agent_id: str
    schema: dict[str, Any] | None
    bound: bool


def resolve(word: str, wanted: str | None, agents: list[dict[str, Any]]) -> Able:
    """Return what a word stands for.

    A word is a capability first, else an agent's id or name, if that has one capability only.
    ``wanted`` is the agent that was named beside it.

    Raises:
        AgentNotFound: nothing of that name is there.
        InvalidInput: the agent has several capabilities.
    """
    if wanted is not None:
        agents = [_agent(wanted, agents)]
    for agent in agents:
        for capability in agent["capabilities"]:
            if capability["name"] == word:
                bound = wanted is not None
                return Able(word, agent["agent_id"], capability["parameters"], bound)
    try:
        agent = _agent(word, agents)
    except AgentNotFound:
        names = {c["name"] for a in agents for c in a["capabilities"]}
        names |= {a["agent_id"] for a in agents}
        nearest = difflib.get_close_matches(word, names, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        by = f" of agent {wanted}" if wanted else ""
        raise AgentNotFound(f"there is no capability or agent {word}{by}{hint}") from None
    capabilities = agent["capabilities"]
    if len(capabilities) != 1:
        names = {c["name"] for c in capabilities}
        raise InvalidInput(
            f"agent {agent['agent_id']} can do several things, say which: "
            f"{', '.join(sorted(names)) or 'nothing'}"
        )
    only = capabilities[0]
    return Able(only["name"], agent["agent_id"], only["parameters"], bound=True)


def _agent(word: str, agents: list[dict[str, Any]]) -> dict[str, Any]:
    for name in ("agent_id", "name"):
        matches = [agent for agent in agents if agent[name] == word]
        if len(matches) == 1:
            return matches[0]
        if matches:
            ids = ", ".join(sorted(agent["agent_id"] for agent in matches))
            raise InvalidInput(f"several agents have the name {word}: {ids}; give the id")
    raise AgentNotFound(f"there is no agent {word}")

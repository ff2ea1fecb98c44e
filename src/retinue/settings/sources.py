"""Where settings come from: the file, ``.env``, the environment, a command's options.

The environment is read here and nowhere else. Every mistake is a ``SettingsError`` that names the
variable or the key, what is wrong with it, and what it should be.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from retinue.errors import SettingsError
from retinue.settings.coding import CODING, CodingReference
from retinue.settings.commands import CommandReference
from retinue.settings.model import (
    ALIASES,
    PREFIX,
    AgentReference,
    Caller,
    HttpReference,
    Settings,
    without_password,
)
from retinue.settings.workers import WorkerReference

FILE = "retinue.yaml"
ENV = ".env"
CALLER = ("RETINUE_URL", "RETINUE_API_KEY")
"""What the command line reads as a client of a server; see ``Caller``."""
_MOST_SHOWN = 100
_TAG = 2
"""Where in a fault's place the kind of an agent stands: agents, which one, its kind, …"""
_KINDS: dict[object, type[BaseModel]] = {
    "http": HttpReference,
    "command": CommandReference,
    **dict.fromkeys(CODING, CodingReference),
    "stdio": WorkerReference,
}
_FOREIGN = ("RETINUE_TEST_", "RETINUE_CI_", "RETINUE_MARK")
_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*\Z")
_SECRET = re.compile(r"\$\{[^}]+\}")
_REFERENCE = re.compile(r"(\$?)\$\{([^}]*)\}")


def here(config: Path | None = None, **options: Any) -> Settings:
    """Return the settings of this process; ``options`` that are not None win over everything.

    Raises:
        SettingsError: something is not valid.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return load(config, os.environ, Path.cwd(), given)


def looked_at(config: Path | None) -> tuple[Settings, list[str]]:
    """Return the settings of this process to look at, and which variables agents lack.

    Raises:
        SettingsError: something else is not valid.
    """
    absent: list[str] = []
    return load(config, os.environ, Path.cwd(), absent=absent), absent


def load(
    config: Path | None,
    environ: Mapping[str, str],
    cwd: Path,
    options: Mapping[str, Any] | None = None,
    absent: list[str] | None = None,
) -> Settings:
    """Return the settings: options, then environment, then ``.env``, then the file, then defaults.

    ``config`` is the file; None takes ``retinue.yaml`` in ``cwd`` when there is one. Relative
    paths among the values are relative to ``cwd``. With ``absent``, variables that agents name and
    the environment does not have are empty, and said there.

    Raises:
        SettingsError: something is not valid.
    """
    variables = _variables(environ, cwd)
    path = find_config(config, cwd)
    values: dict[str, Any] = {}
    named: dict[str, str] = {}
    if path is not None:
        for name, value in _read_file(path, variables, absent).items():
            values[name] = value
            named[name] = f"{path.name}: {name}"
    for variable, name in _assignments(variables).items():
        values[name] = _split(name, variables[variable])
        named[name] = variable
    for name, value in (options or {}).items():
        values[name] = value
        named[name] = "--" + name.replace("_", "-")
    settings = _at(_validated(values, lambda name: named.get(name, name)), cwd)
    files = (path or cwd / FILE, cwd / FILE, cwd / ENV)
    settings._files = tuple(file.absolute() for file in files)
    return settings


def find_config(config: Path | None, cwd: Path) -> Path | None:
    """Return the configuration file that counts, if any.

    Raises:
        SettingsError: the one that was named is not there.
    """
    path = cwd / (config or FILE)
    if path.is_file():
        return path
    if config is not None:
        raise SettingsError(f"there is no file {config}; --config names the configuration file")
    return None


def caller(url: str | None = None) -> Caller:
    """Return how to reach a server from here; ``url`` wins over ``RETINUE_URL``.

    Raises:
        SettingsError: the URL is none.
    """
    variables = _variables(os.environ, Path.cwd())
    given = url or variables.get("RETINUE_URL") or None
    try:
        return Caller(url=given, api_key=variables.get("RETINUE_API_KEY") or None)
    except ValidationError as error:
        name = "--url" if url else "RETINUE_URL"
        raise SettingsError(f"{name}={given}: {_problem(error.errors()[0])}") from None


def _variables(environ: Mapping[str, str], cwd: Path) -> dict[str, str]:
    """Return the environment, completed by ``.env``."""
    path = cwd / ENV
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f".env cannot be read: {error}") from None
    variables: dict[str, str] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue  # a comment, or something for another program
        name, value = match.groups()
        if len(value) > 1 and value[0] in "'\"" and value.find(value[0], 1) > 0:
            value = value[1 : value.index(value[0], 1)]
        else:
            value = re.split(r"(?:\A|\s)#", value, maxsplit=1)[0].rstrip()
        variables[name] = value
    return variables | dict(environ)


def _assignments(variables: Mapping[str, str]) -> dict[str, str]:
    """Return which variable sets which field; an empty variable sets none.

    Raises:
        SettingsError: a variable begins with ``RETINUE_`` but is none of ours.
    """
    ours = {PREFIX + name.upper(): name for name in Settings.model_fields if name != "agents"}
    found = {variable: name for variable, name in ALIASES.items() if variables.get(variable)}
    for variable, value in variables.items():
        if not variable.startswith(PREFIX) or variable in CALLER or variable.startswith(_FOREIGN):
            continue
        if variable not in ours:
            where = ": agents are set in retinue.yaml" if variable == "RETINUE_AGENTS" else ""
            nearest = where or _nearest(variable, [*ours, *CALLER, *ALIASES])
            raise SettingsError(
                f"there is no setting {variable}{nearest}; `retinue settings schema` lists them"
            )
        if value:
            found[variable] = ours[variable]
    return found


def _split(name: str, value: str) -> Any:
    if name in {"allowed_hosts", "allowed_origins", "egress_allow"}:
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


class _Loader(yaml.SafeLoader):
    """YAML without a second value for a key: the first one would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge":
                key = key_node.value
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key} stands there twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def _read_file(
    path: Path, variables: Mapping[str, str], absent: list[str] | None = None
) -> dict[str, Any]:
    try:
        # A SafeLoader subclass: plain data, no objects.
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(
            f"{path.name} is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise SettingsError(f"{path.name} must hold keys and values, like port: 8888")
    for key in document:
        if key not in Settings.model_fields:
            nearest = _nearest(str(key), Settings.model_fields)
            raise SettingsError(
                f"{path.name}: there is no setting {key}{nearest};"
                " `retinue settings schema` lists them"
            )
    _refuse_literal_secrets(document, path.name)
    return {
        key: _resolved(value, variables, f"{path.name}: {key}", absent if key == "agents" else None)
        for key, value in document.items()
    }


def _refuse_literal_secrets(document: Mapping[str, Any], file: str) -> None:
    """Refuse secrets in the file, which people copy and commit: there it names them only."""
    found = {"signing_key": document.get("signing_key")}
    agents = document.get("agents")
    for place, agent in enumerate(agents if isinstance(agents, list) else ()):
        if isinstance(agent, dict):
            found[f"agents[{place}].secret"] = agent.get("secret")
    for where, secret in found.items():
        if secret is not None and not (
            isinstance(secret, str) and _SECRET.fullmatch(secret) is not None
        ):
            raise SettingsError(
                f"{file}: {where} must not stand there itself: put it into the environment or"
                " .env and write ${NAME}"
            )


def _resolved(
    value: Any, variables: Mapping[str, str], where: str, absent: list[str] | None = None
) -> Any:
    """Return ``value`` with ``${NAME}`` replaced in its strings (``$${NAME}`` is left alone)."""
    if isinstance(value, dict):
        return {k: _resolved(v, variables, f"{where}.{k}", absent) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolved(v, variables, f"{where}[{i}]", absent) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        escaped, name = match.groups()
        if escaped:
            return match.group(0)[1:]
        if name not in variables:
            missing = (
                f"{where}: the environment has no {name}; set it there or in .env"
                f" (the text itself is written $${{{name}}})"
            )
            if absent is None:
                raise SettingsError(missing)
            absent.append(missing)
            return ""
        return variables[name]

    return _REFERENCE.sub(replaced, value)


def _validated(values: Mapping[str, Any], named: Callable[[str], str]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = [_sentence(fault, named) for fault in error.errors()]
    raise SettingsError("; ".join(problems))


def _sentence(fault: Any, named: Callable[[str], str]) -> str:
    name = str(fault["loc"][0])
    places = [place for at, place in enumerate(fault["loc"]) if at not in {0, _TAG}]
    rest = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in places)
    value = fault["input"]
    if fault["type"] == "extra_forbidden":
        key = str(fault["loc"][-1])
        kind = _KINDS.get(fault["loc"][_TAG]) if len(fault["loc"]) > _TAG else None
        nearest = _nearest(key, (kind or AgentReference).model_fields)
        return f"{named(name)}{rest}: there is no key {key}{nearest}"
    if fault["loc"][-1] in {"secret", "signing_key"} or "environment" in fault["loc"]:
        value = "***"
    if isinstance(value, str) and name.endswith("_url"):
        value = without_password(value)
    shown = json.dumps(value, default=str, ensure_ascii=False)
    shown = shown if len(shown) <= _MOST_SHOWN else shown[:_MOST_SHOWN] + "…"
    meaning = Settings.model_fields[name].description
    return f"{named(name)}{rest} is {shown}: {_problem(fault)} ({name}: {meaning})"


def _problem(fault: Any) -> str:
    text = str(fault["msg"]).removeprefix("Value error, ").replace("Input should", "it must")
    text = text.replace("be a valid tuple", "be a list").replace("valid dictionary", "mapping")
    return text[:1].lower() + text[1:]


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {matches[0]}?" if matches else ""


def _at(settings: Settings, cwd: Path) -> Settings:
    """Make the paths absolute; what was set, and what was not, stays so."""
    paths = {
        name: (cwd / getattr(settings, name).expanduser()).absolute()
        for name in ("data_dir", "survey_root")
    }
    values: dict[str, Any] = dict(settings.__dict__) | paths
    values["agents"] = tuple(
        given.at(cwd)
        if isinstance(given, CommandReference | CodingReference | WorkerReference)
        else given
        for given in settings.agents
    )
    address = settings.database_url
    if address is not None and address.startswith("sqlite:///"):
        values["database_url"] = f"sqlite:///{cwd / Path(address.removeprefix('sqlite:///'))}"
    return Settings.model_construct(settings.model_fields_set, **values)

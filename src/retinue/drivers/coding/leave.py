"""What a CLI may do, in its own words: what it is told before it asks anybody anything.

A CLI asks leave for some of its tools only. What ``deny`` names it is told itself, therefore, and
in the simple form, where nobody can be asked, all of it. Whether settings of its working directory
count (``trust_project``) belongs here: they run programs, and give themselves leave. An agent's
``environment`` sets none of this, and adds denials at most.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retinue.drivers.coding.config import CodingConfig, named
from retinue.errors import SpawnFailed

OPENCODE_TOOLS = {
    "bash": ("execute",),
    "edit": ("edit", "write", "patch", "apply_patch"),
    "webfetch": ("fetch",),
    "websearch": ("fetch",),
    "codesearch": ("fetch",),
    "read": ("read",),
    "list": ("read",),
    "glob": ("search",),
    "grep": ("search",),
    "lsp": (),
    "skill": (),
    "task": (),
    "todowrite": (),
}
"""OpenCode's permissions, and what else its tools are called: their kind in ACP, first of all."""
_PLUGINS = {"plugin", "plugins", "policies"}
_ASIDE = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|/\*.*?\*/|,(?=\s*[}\]])', re.DOTALL)
"""Texts, and what JSON with comments has beyond JSON."""
_ASKED = ("bash", "edit", "webfetch", "websearch", "codesearch")
GEMINI_TOOLS = {
    "run_shell_command": "execute",
    "write_file": "edit",
    "replace": "edit",
    "read_file": "read",
    "read_many_files": "read",
    "glob": "search",
    "grep_search": "search",
    "list_directory": "search",
    "google_web_search": "search",
    "web_fetch": "fetch",
}
_KINDS = {"execute", "edit", "read", "search", "fetch", "delete", "move", "think", "other"}


def firm(config: CodingConfig) -> dict[str, str]:
    """Return variables that hold whatever else sets them: leave and trust depend on them."""
    match config.kind:
        case "gemini":
            return {"GEMINI_CLI_TRUST_WORKSPACE": "true" if config.trust_project else "false"}
        case "opencode":
            return _opencode(config)
    return {}


# -- OpenCode --------------------------------------------------------------------------------------


def _opencode(config: CodingConfig) -> dict[str, str]:
    content = json.loads(config.environment.get("OPENCODE_CONFIG_CONTENT", "{}"))
    extra = json.loads(config.environment.get("OPENCODE_PERMISSION", "{}"))
    permission = _with_denials(opencode_permission(config), _denials(content.pop("permission", {})))
    permission = _with_denials(permission, _denials(extra))
    content.pop("tools", None)  # the older way to give leave
    for group in ("agent", "mode"):
        for one in (content.get(group) or {}).values():
            one.pop("tools", None)
            one["permission"] = _denials(one.pop("permission", {}))
    content["permission"] = permission
    if config.model is not None:
        content["model"] = config.model
    found = {
        "OPENCODE_CONFIG_CONTENT": json.dumps(content),
        "OPENCODE_PERMISSION": json.dumps(permission),  # taken up last, after every file
    }
    if not config.trust_project:
        found["OPENCODE_DISABLE_PROJECT_CONFIG"] = "1"
    return found


def refuse_plugins(config: CodingConfig, work_dir: Path, home: Path) -> None:
    """Refuse to start OpenCode where a directory that is not trusted brings it plugins; blocks.

    It runs them whatever it is told: one part of it reads its settings by itself.

    Raises:
        SpawnFailed: there are some; says where.
    """
    if config.kind != "opencode" or config.trust_project:
        return
    for place in (work_dir, *work_dir.parents):
        own = place / ".opencode"
        found = [] if place == home else [*own.glob("plugin/*.[tj]s"), *own.glob("plugins/*.[tj]s")]
        for name in ("opencode.json", "opencode.jsonc"):
            found += [file for file in (place / name, own / name) if _has_plugins(file)]
        if found:
            raise SpawnFailed(
                f"{found[0]} would be run by opencode, whatever it is told: set trust_project: true"
                " for this agent, or give it a work_dir without"
            )
        if (place / ".git").exists():
            return


def _has_plugins(file: Path) -> bool:
    """Whether settings name plugins; what cannot be read as OpenCode may read it counts as such."""
    found: set[str] = set()

    def look(pairs: list[tuple[str, Any]]) -> None:
        found.update(key for key, _ in pairs)

    try:
        text = file.read_text("utf-8-sig")
        for _ in range(2):  # a comma may stand before a comment
            text = _ASIDE.sub(lambda part: part[0] if part[0].startswith('"') else " ", text)
        json.loads(text, object_pairs_hook=look)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return True
    return bool(found & _PLUGINS)


def opencode_permission(config: CodingConfig) -> dict[str, Any]:
    """Return what OpenCode does, asks about, and does not do.

    What is refused by ``approvals`` is asked about where that can be, so that a refusal shows.
    """
    found: dict[str, Any] = {}
    for tool, others in OPENCODE_TOOLS.items():
        if named(config.deny, tool, *others):
            found[tool] = "deny"
        elif tool in _ASKED:
            verdict = config.judge(tool, *others)
            found[tool] = "ask" if verdict == "deny" and config.form == "session" else verdict
    return found | {pattern: "deny" for pattern in config.deny if pattern not in _KINDS}


def _denials(given: Any) -> dict[str, Any]:
    """Return what a permission denies; what it gives is not its to give."""
    if given == "deny":
        return {"*": "deny"}
    found: dict[str, Any] = {}
    for name, verdict in given.items() if isinstance(given, dict) else ():
        some = verdict if isinstance(verdict, dict) else {}
        denied = {pattern: "deny" for pattern, what in some.items() if what == "deny"}
        if verdict == "deny" or denied:
            found[name] = denied or "deny"
    return found


def _with_denials(own: Mapping[str, Any], denied: Mapping[str, Any]) -> dict[str, Any]:
    """Return our permission and the denials: the last one that names a tool counts."""
    found = dict(own)
    for name, what in denied.items():
        before = found.pop(name, None)
        if before == "deny" or what == "deny":
            found[name] = "deny"
            continue
        before = {"*": before} if isinstance(before, str) else before or {}
        found[name] = {**before, **what}
    return found


# -- Codex -----------------------------------------------------------------------------------------


def codex_trust(config: CodingConfig, work_dir: Path) -> str:
    """Return Codex's option that says whether the directory's settings count.

    Its server would trust a directory by itself, as soon as it may write there.
    """
    level = "trusted" if config.trust_project else "untrusted"
    places = {str(place) for one in (work_dir, work_dir.resolve()) for place in (one, *one.parents)}
    table = ", ".join(
        f"{json.dumps(place)} = {{trust_level = {json.dumps(level)}}}" for place in sorted(places)
    )
    return f"projects={{{table}}}"


# -- Gemini ----------------------------------------------------------------------------------------


def gemini_policy(config: CodingConfig, home: Path) -> Path:
    """Return the file that has the rules; agents may share a HOME."""
    name = hashlib.sha256(gemini_rules(config).encode()).hexdigest()[:16]
    return home / ".gemini" / f"retinue-{name}.toml"


def gemini_rules(config: CodingConfig) -> str:
    """Return rules for Gemini's policy engine; nothing, where it is as it would be without."""
    rules = [(999, "deny", config.deny)]
    if config.form == "once":  # without a rule it refuses what it would ask about
        rules.append((998, "allow", config.allow))
        rules += [(1, "allow", ("*",))] if config.approvals == "allow" else []
    return "".join(
        _rule(priority, decision, tools)
        for priority, decision, patterns in rules
        if (tools := _gemini_tools(patterns))
    )


def _gemini_tools(patterns: tuple[str, ...]) -> list[str]:
    found = [tool for tool, kind in GEMINI_TOOLS.items() if named(patterns, tool, kind)]
    return [*found, *(p for p in patterns if p not in _KINDS and p not in found)]


def _rule(priority: int, decision: str, tools: list[str]) -> str:
    lines = ["[[rule]]", f"toolName = {json.dumps(tools)}", f'decision = "{decision}"']
    lines += ["allowRedirection = true"] if decision == "allow" else []
    return "\n".join([*lines, f"priority = {priority}", ""]) + "\n"

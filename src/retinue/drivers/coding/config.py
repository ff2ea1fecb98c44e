"""What the drivers of coding CLIs are told of an agent. It comes from the operator's file only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal

from retinue.interfaces import Job
from retinue.process.quarters import ProcessConfig

Verdict = Literal["ask", "allow", "deny"]


class CodingConfig(ProcessConfig, frozen=True, kw_only=True):
    """A coding CLI and how it is run.

    ``kind`` says which program it is (``claude``, ``codex``, ``gemini``, ``opencode``, or ``acp``
    for any other one that speaks that protocol), ``form`` whether it is spoken with (``session``)
    or run with a prompt on stdin (``once``). ``approvals`` is what becomes of what it asks leave
    for, unless a pattern in ``deny`` or ``allow`` names the tool. ``silence_seconds`` is how long
    it may say nothing while no tool runs and nobody is asked. ``codex_sandbox`` is Codex's own.
    ``trust_project`` lets settings count that lie in its working directory.
    """

    kind: str
    form: Literal["session", "once"] = "session"
    model: str | None = None
    system_prompt: str | None = None
    approvals: Verdict = "ask"
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    question_seconds: float | None = None
    codex_sandbox: str | None = None
    trust_project: bool = False
    max_turns: int | None = None
    max_cost_usd: float | None = None
    silence_seconds: float = 300.0
    stop_seconds: float = 5.0

    def judge(self, *names: str) -> Verdict:
        """Return what becomes of a tool that the CLI asks leave for; it may have several names."""
        if named(self.deny, *names):
            return "deny"
        if named(self.allow, *names):
            return "allow"
        return self.approvals


def named(patterns: Iterable[str], *names: str) -> bool:
    """Say whether a pattern is one of these names of a tool."""
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def prompt_of(job: Job) -> str:
    """Return a task as text: its context, if any, then ``parameters.prompt``, or all of them."""
    given = job.parameters
    asked = given.get("prompt") if isinstance(given, dict) else given
    parts = [job.context, asked if asked is not None else given]
    return "\n\n".join(
        part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
        for part in parts
        if part is not None
    )


def plainly(kind: str, text: str) -> str:
    """Return a prompt so that a CLI takes it as a task, not as a command to the program itself.

    Those begin with a slash. A blank before it is enough for Claude Code; Gemini and OpenCode need
    a word. Codex knows none on this way.
    """
    if kind == "codex" or not text.lstrip().startswith("/"):
        return text
    return f" {text}" if kind == "claude" else f"Task:\n{text}"

"""What the ``command`` driver is told of an agent. It comes from the operator's file only."""

from __future__ import annotations

import json
from typing import Any, Literal

from retinue.errors import InvalidInput
from retinue.interfaces import STALL_SECONDS, Job
from retinue.process.quarters import ProcessConfig

MOST_ARGUMENT = 120 << 10


class CommandConfig(ProcessConfig, frozen=True, kw_only=True):
    """A command line and how a task goes in and comes out.

    ``prompt``: the task's text by stdin, or as the last argument after ``--``; or the whole task
    as one JSON object by stdin (``json``). ``output``: what stdout is; see ``dialect``.
    ``interrupt`` is the signal that asks it to stop, ``stop_seconds`` how long it then has.
    ``stdin_open``: its stdin stays open behind the prompt, for who attaches. ``keep_running``: its
    processes outlive the server; they may write at most ``spool_bytes``. ``line_bytes``: a longer
    line of ``json-lines`` is refused. ``stall_seconds``: silence that is called stalled.
    """

    prompt: Literal["stdin", "argument", "json"] = "stdin"
    output: Literal["text", "json", "json-lines"] = "text"
    interrupt: int = 15
    stop_seconds: float = 5.0
    stdin_open: bool = False
    keep_running: bool = False
    spool_bytes: int = 1 << 30
    line_bytes: int = 1 << 20
    stall_seconds: float = STALL_SECONDS


def arguments(config: CommandConfig, job: Job) -> list[str]:
    """Return the arguments after the program; a task can only ever be the one text after ``--``.

    Raises:
        InvalidInput: the text cannot be an argument.
    """
    argv = list(config.command[1:])
    if config.prompt == "argument":
        text = prompt_of(job)
        if "\0" in text or len(text.encode()) > MOST_ARGUMENT:
            raise InvalidInput(
                f"the prompt cannot be an argument: more than {MOST_ARGUMENT} bytes, or a NUL"
            )
        argv += ["--", text]
    return argv


def stdin_of(config: CommandConfig, job: Job) -> bytes | None:
    """Return what the command reads; None: it has no stdin."""
    if config.prompt == "argument":
        return b"" if config.stdin_open else None
    if config.prompt == "stdin":
        text = prompt_of(job)
        if config.stdin_open and not text.endswith("\n"):
            text += "\n"  # its end is not to be seen, so who reads lines has to be given one
        return text.encode()
    task = {
        "capability": job.execution.capability,
        "parameters": job.parameters,
        "context": job.context,
        "intent": job.intent,
        "session_id": job.execution.session_id,
        "execution_id": job.execution.id,
    }
    return _json(task).encode() + b"\n"


def prompt_of(job: Job) -> str:
    """Return a task as text: its context, if any, then ``parameters.prompt``, or all of them."""
    given = job.parameters
    asked = given.get("prompt") if isinstance(given, dict) else given
    parts = [job.context, asked if asked is not None else given]
    return "\n\n".join(
        part if isinstance(part, str) else _json(part) for part in parts if part is not None
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

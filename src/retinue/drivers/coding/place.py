"""Where an agent's CLI lives: its program, its directories, what it sees of the world.

Each agent has a HOME of its own (the CLI's login, settings and conversations), each turn a TMPDIR
that goes with it. Of our environment the CLI sees a short list only: an inherited ``IS_SANDBOX``
alone makes some refuse to run.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from retinue.drivers.coding.config import CodingConfig
from retinue.errors import CommunicationError, ExecutionError, RetinueError, SpawnFailed
from retinue.process.child import Child, Exit
from retinue.process.executable import directory, find

MOST_LOGS = 100
"""How many turns' logs are kept per agent; the oldest are removed."""
MOST_SAID = 2_000


class Program(NamedTuple):
    """A CLI as it is known: how it is installed, and what it takes for a credential.

    ``login`` is a file below HOME that a login leaves.
    """

    install: str
    credentials: tuple[str, ...]
    login: str
    native: tuple[str, ...] = ()


_MACHINE = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
PROGRAMS = {
    "claude": Program(
        "install it: npm install -g @anthropic-ai/claude-code",
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
        ".claude/.credentials.json",
        (f"../claude-code-linux-{_MACHINE}/claude",),
    ),
    "codex": Program(
        "install it: npm install -g @openai/codex",
        ("OPENAI_API_KEY", "CODEX_API_KEY"),
        ".codex/auth.json",
        (
            f"../codex-linux-{_MACHINE}/vendor/*/bin/codex",
            f"node_modules/@openai/codex-linux-{_MACHINE}/vendor/*/bin/codex",
            "vendor/*/codex/codex",
        ),
    ),
    "gemini": Program(
        "install it: npm install -g @google/gemini-cli",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        ".gemini/oauth_creds.json",
    ),
    "opencode": Program(
        "install it: npm install -g opencode-ai",
        ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "OPENCODE_CONFIG_CONTENT"),
        ".local/share/opencode/auth.json",
        (f"../opencode-linux-{_MACHINE}/bin/opencode",),
    ),
}


class Place:
    """One agent's program and directories."""

    def __init__(
        self, root: Path, agent_id: str, config: CodingConfig, inherited: Mapping[str, str]
    ) -> None:
        # An id may be ".."; with the prefix it is a plain name.
        self.root = root / f"agent-{agent_id}"
        self.home = Path(config.home) if config.home else self.root / "home"
        self.work_dir = Path(config.work_dir) if config.work_dir else self.root / "work"
        self.logs = self.root / "logs"
        self.sessions = self.root / "sessions"
        self.path = ""
        self._config = config
        self._inherited = inherited

    def prepare(self) -> None:
        """Make the directories and find the program.

        Raises:
            SpawnFailed: one of them is not to be had; says what to install.
        """
        own = [self.logs, *([] if self._config.home else [self.home])]
        own += [] if self._config.work_dir else [self.work_dir]
        try:
            for made in own:
                made.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SpawnFailed(f"{error.filename} cannot be made: {error.strerror}") from error
        directory(str(self.home))
        directory(str(self.work_dir))
        self.path = self.find()

    def find(self) -> str:
        """Return the program's file, the native one where a script only starts that.

        Raises:
            SpawnFailed: it is not there; says where it was sought and how to install it.
        """
        search = self.environment(self.root).get("PATH")
        program = PROGRAMS.get(self._config.kind)
        install = program.install if program is not None else None
        found = find(self._config.command[0], search, str(self.work_dir), install)
        return native_of(self._config.kind, found)

    def environment(self, tmp: Path) -> dict[str, str]:
        """Return what a process of this agent sees of the world."""
        own = {"HOME": str(self.home), "TMPDIR": str(tmp)}
        return {**self._inherited, **own, **self._config.environment}

    def masked(self, text: str) -> str:
        """Return ``text`` without the values that the operator gave this agent."""
        for value in self._config.environment.values():
            if len(value) >= 4:  # noqa: PLR2004 a shorter one is no secret, and would mask words
                text = text.replace(value, "***")
        return text

    def begin(self, name: str) -> tuple[Path, Path]:
        """Make a turn's TMPDIR; return it and where its log goes."""
        tmp = self.root / "tmp" / name
        tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(os.listdir(self.logs))[: -(MOST_LOGS - 1)]:
            shutil.rmtree(self.logs / old, ignore_errors=True)
        return tmp, self.logs / name

    def failure(self, child: Child, status: Exit, doing: str) -> RetinueError:
        """Return what to say of a process that ended before its turn did.

        Its exit code proves nothing: a CLI may exit 0 when it is interrupted.
        """
        tail = child.stderr.tail.decode("utf-8", "replace").strip()[-MOST_SAID:]
        said = self.masked(tail)
        details = {
            "exit_code": status.code,
            "signal": status.signal,
            "reason": status.reason,
            "stderr": said,
        }
        text = f"{self._config.command[0]} {status} {doing}"
        text += f": {said.splitlines()[-1]}" if said else ""
        if status.code is None:
            return CommunicationError(text, details=details)
        return ExecutionError(text, details=details, outcome="unknown")


def native_of(kind: str, found: str) -> str:
    """Return the native program behind npm's script: a signal to the script would not reach it."""
    program = PROGRAMS.get(kind)
    script = Path(os.path.realpath(found))
    for patterns in (program.native if program is not None else (),):
        for package in [above for above in script.parents if above.parent.name != "bin"][:3]:
            for pattern in patterns:
                for native in sorted(package.glob(pattern)):
                    if os.access(native, os.X_OK) and native.is_file():
                        return str(native)
    return found

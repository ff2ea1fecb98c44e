"""Where an agent's CLI is, how it is installed, and what its ending means.

Its HOME has the CLI's login, settings and conversations. Of our environment it sees a short list
only: an inherited ``IS_SANDBOX`` alone makes some refuse to run.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import NamedTuple

from retinue.drivers.coding.config import CodingConfig
from retinue.drivers.coding.leave import firm, refuse_plugins
from retinue.errors import CommunicationError, ExecutionError, RetinueError
from retinue.process.child import Child, Exit
from retinue.process.executable import find
from retinue.process.quarters import Ground, Quarters

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


class Place(Quarters):
    """One agent's program and directories."""

    config: CodingConfig

    def __init__(self, ground: Ground, agent_id: str, config: CodingConfig) -> None:
        # An id may be ".."; with the prefix it is a plain name.
        super().__init__(ground, f"agent-{agent_id}", config)

    def find(self) -> str:
        """Return the program's file, the native one where a script only starts that.

        Raises:
            SpawnFailed: it is not there; says where it was sought and how to install it.
        """
        search = self.environment(self.root).get("PATH")
        program = PROGRAMS.get(self.config.kind)
        install = program.install if program is not None else None
        found = find(self.config.command[0], search, str(self.work_dir), install)
        return native_of(self.config.kind, found)

    def environment(self, tmp: Path) -> dict[str, str]:
        """Return what a process sees; what its leave depends on is not the environment's to set."""
        return {**super().environment(tmp), **firm(self.config)}

    def begin(self, name: str) -> tuple[Path, Path]:
        """Make a process's TMPDIR; see ``Quarters``.

        Raises:
            SpawnFailed: it cannot be made, or what lies in the working directory would be run.
        """
        refuse_plugins(self.config, self.work_dir, self.home)
        return super().begin(name)

    def failure(self, child: Child, status: Exit, doing: str) -> RetinueError:
        """Return what to say of a process that ended before its turn did.

        Its exit code proves nothing: a CLI may exit 0 when it is interrupted.
        """
        said = self.last_said(child.stderr.tail, MOST_SAID)
        details = {
            "exit_code": status.code,
            "signal": status.signal,
            "reason": status.reason,
            "stderr": said,
        }
        text = f"{self.config.command[0]} {status} {doing}"
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

"""The real coding CLIs, at the versions that the drivers are tested with: ``make test-cli``.

They come from npm into ``.clis`` of this checkout, one directory per CLI; what is there already is
not fetched again. ``python -m tests.live.programs codex gemini`` or ``… all``. It fails with 69
(``EX_UNAVAILABLE``) where npm is not there or does not reach its registry, which is this machine's
fault, and with 1 for anything else, which is ours: a version that does not exist, say.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

HERE = Path(__file__).parents[2] / ".clis"
SECONDS = 600
_AWAY = re.compile(
    r"npm (?:error|ERR!) code (?:E(?:NOTFOUND|AI_AGAIN|CONN\w+|NETUNREACH|HOSTUNREACH|HOSTDOWN"
    r"|TIMEDOUT|PROTO|PIPE|NEEDAUTH|40[137]|429|5\d\d)|\w*SOCKET_TIMEOUT"
    r"|\w*CERT\w*|\w*SSL\w*|UNABLE_\w+)"
)
"""How npm says that it cannot reach its registry, or that this one does not let it in."""


class Package(NamedTuple):
    """A package at one version, and its program below ``node_modules``."""

    name: str
    version: str
    program: str


PACKAGES = {
    "codex": Package("@openai/codex", "0.169.0", ".bin/codex"),
    "gemini": Package("@google/gemini-cli", "0.61.0", ".bin/gemini"),
    "claude": Package("@anthropic-ai/claude-code", "2.1.329", ".bin/claude"),
    "opencode": Package("opencode-ai", "1.18.33", ".bin/opencode"),
}


def program(kind: str) -> Path:
    """Return where a CLI's program is, or would be."""
    return HERE / kind / "node_modules" / PACKAGES[kind].program


def wanted(words: list[str]) -> list[str]:
    """Return the CLIs that words name; ``all`` is all of them."""
    if "all" in words:
        return list(PACKAGES)
    unknown = [word for word in words if word not in PACKAGES]
    if unknown:
        sys.exit(f"make test-cli: no such CLI: {', '.join(unknown)}; known: {', '.join(PACKAGES)}")
    return words


def fetch(kind: str) -> None:
    """Install one CLI, unless this version is there."""
    package = PACKAGES[kind]
    said = HERE / kind / f"version-{package.version}"
    if said.exists() and program(kind).exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        _fail("npm is not installed; the coding CLIs come from it (Node.js 20)", os.EX_UNAVAILABLE)
    shutil.rmtree(HERE / kind, ignore_errors=True)
    (HERE / kind).mkdir(parents=True)
    what = f"{package.name}@{package.version}"
    # Scripts of packages are not run: the native programs are found without them.
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", ".", what]
    print(f"installing {what}", flush=True)
    try:
        done = subprocess.run(
            command,
            cwd=HERE / kind,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        _fail(f"npm did not install {what} within {SECONDS} s", os.EX_UNAVAILABLE)
    if done.returncode != 0 or not program(kind).exists():
        why = done.stdout + done.stderr
        _fail(f"npm cannot install {what}:\n{why[-2000:]}", status_of(why))
    said.touch()


def status_of(said: str) -> int:
    """Return what npm's failure is: 69, it could not reach its registry, or 1."""
    return os.EX_UNAVAILABLE if _AWAY.search(said) else 1


def _fail(why: str, status: int) -> NoReturn:
    print(f"make test-cli: {why}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    for one in wanted(sys.argv[1:]):
        fetch(one)

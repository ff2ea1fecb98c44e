"""The peers' environment ``.venv-bench``: made on first use, made again when its lock changes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
VENV = CHECKOUT / ".venv-bench"
LOCK = Path(__file__).parent / "peers" / "requirements.txt"
STAMP = VENV / ".lock"


class NoPeers(RuntimeError):
    """The peers' environment could not be made."""


def python() -> Path:
    """Return the interpreter of the peers' environment."""
    return VENV / "bin" / "python"


def prepare() -> None:
    """Make the environment unless it holds just what the lock names.

    Raises:
        NoPeers: it could not be made, with the installer's last words.
    """
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    if python().exists() and STAMP.exists() and STAMP.read_text() == digest:
        return
    sys.stderr.write("bench: making the peers' environment (.venv-bench, about 160 MB) …\n")
    shutil.rmtree(VENV, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(VENV)])
    # It keeps itself out of version control.
    (VENV / ".gitignore").write_text("*\n")
    pip = [str(python()), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([*pip, "install", "--require-hashes", "-r", str(LOCK)])
    STAMP.write_text(digest)


def _run(command: list[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip().splitlines()
        # pip explains itself at length below the line that says what is wrong.
        wrong = [line for line in said if line.startswith("ERROR")] or said[-1:]
        raise NoPeers(wrong[0] if wrong else f"{command[0]} ended with {ended.returncode}")

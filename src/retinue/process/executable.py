"""Find the file that a command names, or say where it was looked for."""

from __future__ import annotations

import os
import shutil

from retinue.errors import SpawnFailed


def find(name: str, path: str | None, cwd: str, install: str | None = None) -> str:
    """Return the file to execute for ``name``, sought in ``path``.

    Raises:
        SpawnFailed: it is not there, or cannot be executed; says what was sought, where, and how
            to install it.
    """
    if not name or "\0" in name:
        raise SpawnFailed(f"{name!r} is no command")
    if os.path.dirname(name):
        file = os.path.join(cwd, name)
        if os.path.isfile(file) and os.access(file, os.X_OK):
            return file
        there = "is not executable" if os.path.exists(file) else "does not exist"
        raise SpawnFailed(_advised(f"cannot start {name}: {file} {there}", install))
    search = os.defpath if path is None else path
    found = shutil.which(name, path=search)
    if found is None:
        raise SpawnFailed(
            _advised(f"cannot start {name}: no such command on the PATH ({search})", install),
            details={"command": name, "path": search},
        )
    return os.path.join(cwd, found)


def directory(cwd: str) -> str:
    """Return ``cwd`` when it is a directory.

    Raises:
        SpawnFailed: it is none.
    """
    if not os.path.isdir(cwd):
        raise SpawnFailed(f"the working directory {cwd} does not exist")
    return cwd


def refused(command: str, error: OSError) -> SpawnFailed:
    """Return what to say when the system refused to start ``command``."""
    return SpawnFailed(
        f"cannot start {command}: {error.strerror or error}", details={"errno": error.errno}
    )


def _advised(text: str, install: str | None) -> str:
    return f"{text}; {install}" if install else text

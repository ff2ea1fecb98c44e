"""What can be said of a coding CLI without running a task: where, which version, a credential."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from retinue.drivers.coding.config import CodingConfig
from retinue.drivers.coding.place import PROGRAMS, Place
from retinue.drivers.coding.versions import doubt, version_in
from retinue.errors import SpawnFailed
from retinue.process.link import KeeperLink
from retinue.process.quarters import Ground

SECONDS = 30.0


class Look(NamedTuple):
    """What was found. ``missing`` says where it was sought, ``credential`` what it has.

    ``wanted`` are the variables that could be one; ``doubt`` says what is wrong with the version.
    """

    kind: str
    path: str | None
    missing: str | None
    version: str | None
    doubt: str | None
    credential: str | None
    wanted: str
    install: str | None


def look(
    config: CodingConfig,
    root: Path,
    agent_id: str,
    inherited: Mapping[str, str],
    given: Mapping[str, str],
) -> Look:
    """Look at one CLI; ``given`` are the variables that a credential may be among. Blocks."""
    program = PROGRAMS.get(config.kind)
    place = Place(Ground(KeeperLink(), root, inherited), agent_id, config)
    if not place.work_dir.is_dir():
        place.work_dir = Path("/")
    names = program.credentials if program is not None else ()
    credential = next((name for name in names if given.get(name)), None)
    if credential is None and program is not None and (place.home / program.login).is_file():
        credential = str(place.home / program.login)
    wanted, install = ", ".join(names), program.install if program is not None else None
    try:
        path = place.find()
    except SpawnFailed as error:
        missing = error.message.removesuffix(f"; {install}")
        return Look(config.kind, None, missing, None, None, credential, wanted, install)
    version = _version(path, {**inherited, **config.environment})
    unknown = doubt(config.kind, version)
    return Look(config.kind, path, None, version, unknown, credential, wanted, install)


def _version(path: str, environment: Mapping[str, str]) -> str | None:
    """Return what ``--version`` says, asked where it can leave nothing behind."""
    with tempfile.TemporaryDirectory() as home:
        own = {"HOME": home, "TMPDIR": home, "CODEX_HOME": home}
        try:
            done = subprocess.run(
                [path, "--version"],
                env={**environment, **own},
                cwd=home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
    said = done.stdout.decode("utf-8", "replace")
    return version_in(said) if done.returncode == os.EX_OK else None

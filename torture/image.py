"""A disk that can lose its power: a file system in a file, mounted through a loop device.

What programs wrote and did not sync lies in the mounted file system's page cache; the file that
backs it holds what the disk was given. A copy of that file, taken while nobody may write, is what
a power cut would have left. ``cut`` makes it the new disk.

Two checks make a cut worth something: the copy is taken again when the kernel wrote to the device
meanwhile (it would be a mixture of two moments), and the old file system is never unmounted before
the copy is complete (that would sync it).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

SIZE = 96 << 20
_TRIES = 50
_COMMAND_SECONDS = 30


class NoImages(Exception):
    """Loop mounts are not possible here; the message says why."""


class Image:
    """A mounted disk: ``path`` is where."""

    def __init__(self, directory: Path, size: int = SIZE) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "disk"
        self._directory = directory
        self._size = size
        self._number = 0
        self._mounted = False

    def __enter__(self) -> Self:
        if reason := missing():
            raise NoImages(reason)
        self.path.mkdir(exist_ok=True)
        with self._file.open("wb") as file:
            file.truncate(self._size)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._file))
        self._mount()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._mounted:
            self._unmount()
        self._file.unlink(missing_ok=True)

    @property
    def _file(self) -> Path:
        return self._directory / f"image{self._number}"

    def _mount(self) -> None:
        _run("mount", "-t", "ext4", "-o", "loop", str(self._file), str(self.path))
        self._mounted = True

    def _unmount(self) -> None:
        _run("umount", str(self.path))
        self._mounted = False

    def copy(self) -> Path:
        """Copy what the disk holds now; every writer must stand still.

        Raises:
            NoImages: the kernel would not stop writing to it.
        """
        target = self._directory / f"image{self._number + 1}"
        for _ in range(_TRIES):
            before = self._writes()
            shutil.copyfile(self._file, target)
            if self._writes() == before:
                return target
        raise NoImages("the device was written to during every copy")

    def switch(self) -> None:
        """Mount the copy in place of the disk; its writers must be gone. Replays its journal."""
        self._unmount()
        self._file.unlink()
        self._number += 1
        self._mount()

    def _writes(self) -> tuple[str, ...]:
        """Return how often the device was written to, and how much is on the way."""
        device = os.stat(self.path).st_dev
        name = f"{os.major(device)}:{os.minor(device)}"
        fields = Path(f"/sys/dev/block/{name}/stat").read_text().split()
        return fields[4], fields[6], fields[8]


def missing() -> str | None:
    """Return why images cannot be mounted here, or None when they can."""
    if os.geteuid() != 0:
        return "mounting a file system image needs root"
    for program in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices (/dev/loop-control)"
    with tempfile.TemporaryDirectory(prefix="retinue-image-") as name:
        directory = Path(name)
        image, place = directory / "image", directory / "disk"
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(4 << 20)
        try:
            _run("mkfs.ext4", "-q", "-F", str(image))
            _run("mount", "-t", "ext4", "-o", "loop", str(image), str(place))
        except NoImages as error:
            return str(error)
        _run("umount", str(place))
    return None


def _run(*command: str) -> None:
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
    )
    if ended.returncode:
        raise NoImages(f"{command[0]} failed: {ended.stderr.strip() or ended.returncode}")

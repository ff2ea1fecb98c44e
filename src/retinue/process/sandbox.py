"""A process in a sandbox of bubblewrap: what it may write, whom it sees, what network it has.

The root is there to be read; what may be written is named. It has a pid namespace of its own, which
ends with it, so nothing it starts can outlive it, and no privilege to gain. ``network``:

============  =======================================================================
``host``      the host's
``loopback``  one of its own, in which 127.0.0.1 reaches its own processes and nothing else
``none``      none at all: not even loopback is up
============  =======================================================================

A service of the host could do what the sandbox may not, so the sockets in ``/run`` are hidden;
abstract ones go with the host's network.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from retinue.errors import SpawnFailed
from retinue.process.child import Streams
from retinue.process.executable import find
from retinue.process.link import Command, KeeperLink
from retinue.process.reading import Bounds

INSTALL = (
    "install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install"
    " bubblewrap; Alpine: apk add bubblewrap), or take `sandbox` out of the agent"
)
TRY_SECONDS = 10.0
_PROC = ("acpi", "bus", "fs", "irq", "mtrr", "pressure", "scsi", "sys", "sysrq-trigger")
"""What of a new /proc speaks of the whole machine: root could write there, without a privilege."""
_KEPT_OF_RUN = ("/run/systemd/resolve", "/run/current-system")
"""The names of DNS servers, and NixOS's programs."""


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent is shut in.

    ``write`` are paths it may write beside its own; ``hide`` are paths it does not see, which are
    empty for it.
    """

    network: Literal["host", "loopback", "none"] = "host"
    write: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()


PLAIN = {True: Sandbox(), False: None}
"""What ``sandbox: true`` and ``sandbox: false`` mean."""


def boxed(command: Command, box: Sandbox, bwrap: str, own: Iterable[str]) -> Command:
    """Return what runs ``command`` in ``box``; ``own`` are the directories it may write."""
    argv = [
        *("bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-cgroup-try"),
        *("--cap-drop", "ALL", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
    ]
    for name in _PROC:
        argv += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    if box.network == "loopback":
        argv.append("--unshare-net")
    argv += _views((*box.write, *own), ("/run", *box.hide))
    argv += ["--chdir", command.cwd, "--", command.path, *command.argv[1:]]
    return msgspec.structs.replace(command, path=bwrap, argv=tuple(argv), box=box.network)


def _views(write: Iterable[str], hide: Iterable[str]) -> list[str]:
    """Return the options for what is written and what is hidden, each path after its parents."""
    # A mount over a symbolic link would be one at its end, where the order is another.
    views = {os.path.realpath(path): "hide" for path in hide if os.path.exists(path)}
    views |= {path: "keep" for path in _KEPT_OF_RUN if os.path.exists(path)}
    views |= {os.path.realpath(path): "write" for path in write}
    argv: list[str] = []
    emptied: list[str] = []
    for path in sorted(views, key=lambda path: path.split("/")):
        if views[path] == "hide" and any(path.startswith(f"{there}/") for there in emptied):
            continue
        if views[path] != "hide":
            argv += ["--bind" if views[path] == "write" else "--ro-bind", path, path]
        elif os.path.isdir(path):
            argv += ["--tmpfs", path]
            emptied.append(path)
        else:
            argv += ["--ro-bind", os.devnull, path]
    for path in emptied:  # only now: mounts in them had to be made
        argv += ["--remount-ro", path]
    return argv


class Bubblewrap:
    """The program that makes sandboxes here; tried once for each kind of network."""

    def __init__(self, link: KeeperLink) -> None:
        self._link = link
        self._works: set[tuple[str, str]] = set()

    async def ready(self, box: Sandbox, environ: Mapping[str, str]) -> str:
        """Return the program.

        Raises:
            SpawnFailed: it is not installed, or this host refuses what it needs; says which.
        """
        try:
            bwrap = find("bwrap", environ.get("PATH"), "/", INSTALL)
        except SpawnFailed as error:
            raise SpawnFailed(f"no sandbox here: {error.message}") from None
        if (bwrap, box.network) not in self._works:
            said = await self._try(bwrap, box.network, environ)
            if said is not None:
                raise SpawnFailed(
                    f"no sandbox with network: {box.network} can be made on this host: {said}."
                    " It needs user namespaces (sysctl user.max_user_namespaces; in a container:"
                    " --security-opt seccomp=unconfined), or take `sandbox` out of the agent"
                )
            self._works.add((bwrap, box.network))
        return bwrap

    async def _try(
        self, bwrap: str, network: Literal["host", "loopback", "none"], environ: Mapping[str, str]
    ) -> str | None:
        """Make one and leave it; return what it said when that does not work."""
        shell = Command(path="/bin/sh", argv=("sh", "-c", ":"), env=environ, cwd="/", stdin=False)
        quiet = Streams(stdout=Bounds(when_full="drop"))
        try:
            child = await self._link.spawn(boxed(shell, Sandbox(network=network), bwrap, ()), quiet)
        except OSError as error:
            return error.strerror or str(error)
        try:
            async with asyncio.timeout(TRY_SECONDS):
                status = await child.wait()
                await child.wait_gone()
        except TimeoutError:
            child.kill()
            return f"bwrap did not end within {TRY_SECONDS:.0f} s"
        if status.code == 0:
            return None
        return child.stderr.tail.decode("utf-8", "replace").strip() or f"bwrap {status}"

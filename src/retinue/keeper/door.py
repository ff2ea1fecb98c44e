"""How the next server finds a keeper whose owner is gone while agents of it are to go on.

The keeper listens at an abstract socket that is named after itself, from before its first agent on:
an agent could take the name otherwise. It lets in one process of its own user that does not descend
from it: no agent can become its owner. Who comes while it has one is told so; who is told nothing
knows that it does not work any more.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

from retinue.keeper.frames import Closed, Wire
from retinue.keeper.tree import stat

EXIT_FILE = "exit.json"
_PEER = struct.Struct("3i")


def address(scope: str, incarnation: str) -> str:
    """Return where a keeper listens."""
    return f"\0retinue-{scope}-{incarnation}"


def listen(name: str) -> socket.socket:
    """Listen; the kernel forgets the name with the socket.

    Raises:
        OSError: somebody has the name.
    """
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        door.bind(name)
        door.listen(8)
    except OSError:
        door.close()
        raise
    door.setblocking(False)
    return door


def peer(sock: socket.socket) -> tuple[int, int]:
    """Return the pid and the user of the process at the other end."""
    pid, user, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, user


def admit(door: socket.socket) -> tuple[socket.socket, int] | None:
    """Let one process in; return its socket and a pidfd of it. None: it may not come in."""
    try:
        came, _ = door.accept()
    except OSError:
        return None
    pid, user = peer(came)
    try:
        if user != os.getuid() or descends(pid, os.getpid()):
            raise PermissionError
        return came, os.pidfd_open(pid)
    except OSError:
        came.close()
        return None


def turn_away(came: socket.socket) -> None:
    """Tell somebody who came that there is an owner already."""
    wire = Wire(came)
    wire.put({"op": "owned"})
    try:
        wire.flush()
    except Closed:
        pass
    wire.close()


def descends(pid: int, ancestor: int) -> bool:
    """Say whether a process is ``ancestor``, or below it; one that is gone counts as such."""
    while pid > 1:
        if pid == ancestor:
            return True
        found = stat(pid)
        if found is None:
            return True
        pid = found.parent
    return pid == 0  # of a pid namespace that we do not see into


def write_exit(directory: str, frame: dict[str, Any]) -> None:
    """Write how an agent ended where the next server finds it, whole or not at all."""
    name = os.path.join(directory, EXIT_FILE)
    try:
        with open(f"{name}.new", "w", encoding="ascii") as file:
            json.dump(frame, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{name}.new", name)
    except OSError:
        pass  # the disk is full, or the directory gone: how it ended is not known then


def read_exit(directory: str) -> dict[str, Any] | None:
    """Return how an agent ended; None: nobody has written it down."""
    try:
        with open(os.path.join(directory, EXIT_FILE), encoding="ascii") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

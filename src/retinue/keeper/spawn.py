"""Start one process: its pipes, its session, its limits. Only a keeper calls this.

The child leads a session of its own, dies with its keeper (PDEATHSIG), and is the subreaper of
what it starts: so all of that stays below it while it lives, and comes to the keeper, at once, when
it has ended. Descriptors 0 to 2 are all it inherits.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from retinue.keeper.cgroup import join

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_LIMITS = {
    "files": resource.RLIMIT_NOFILE,
    "file_bytes": resource.RLIMIT_FSIZE,
    "address_space": resource.RLIMIT_AS,
    "core_bytes": resource.RLIMIT_CORE,
}
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper(name: str) -> None:
    """Have orphans below this process come to it, and call it ``name``."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER is refused")
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def spawn(frame: dict[str, Any]) -> tuple[int, tuple[int, ...]]:
    """Start what ``frame`` says; return its pid and our ends of its pipes (stdin, if any, first).

    ``argv``, ``path`` (the file to execute), ``env``, ``cwd``, ``stdin`` (whether it has one),
    ``kept`` (the directory of its stdin, stdout and stderr, which are files: none is ours then),
    ``limits``, ``group`` (the control group to enter) and ``box`` (the network of its sandbox).

    Raises:
        OSError: it cannot be started; ``strerror`` says why.
    """
    ours: list[int] = []
    theirs: list[int] = []
    try:
        if frame.get("kept"):
            _open_files(frame, theirs)
        else:
            _open_pipes(frame, theirs, ours)
        pid = _start(frame, theirs)
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    return pid, tuple(ours)


def _open_pipes(frame: dict[str, Any], theirs: list[int], ours: list[int]) -> None:
    if frame["stdin"]:
        reads, writes = os.pipe()
        theirs.append(reads)
        ours.append(writes)
    else:
        theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    for _ in range(2):
        reads, writes = os.pipe()
        theirs.append(writes)
        ours.append(reads)


def _open_files(frame: dict[str, Any], theirs: list[int]) -> None:
    """Open the files of one that is kept: whoever comes later reads on where another stopped."""
    name = os.path.join(frame["kept"], "stdin") if frame["stdin"] else os.devnull
    theirs.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
    for stream in ("stdout", "stderr"):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        theirs.append(os.open(os.path.join(frame["kept"], stream), flags, 0o600))


def _start(frame: dict[str, Any], fds: list[int]) -> int:
    try:
        process = subprocess.Popen(
            frame["argv"],
            executable=frame["path"],
            env=frame["env"],
            cwd=frame["cwd"],
            stdin=fds[0],
            stdout=fds[1],
            stderr=fds[2],
            start_new_session=True,
            preexec_fn=_before_exec(frame),  # noqa: PLW1509 one thread
        )
    except subprocess.SubprocessError as error:
        what = "network taken away" if frame.get("box") == "none" else "limits set"
        raise OSError(0, f"it cannot have its {what} on this host: {error}") from None
    # The keeper reaps all its children itself; Popen is not to wait for this one.
    process.returncode = 0
    return process.pid


def _before_exec(frame: dict[str, Any]) -> Callable[[], None]:
    limits: dict[str, int] = frame.get("limits") or {}
    wanted = [(_LIMITS[name], int(value)) for name, value in limits.items() if name in _LIMITS]
    keeper, group = os.getpid(), frame.get("group")

    def prepare() -> None:
        if group is not None:
            join(group)
        if frame.get("box") == "none":
            _leave_network()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:
            os._exit(1)  # the keeper was killed before the line above
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for kind, value in wanted:
            hard = resource.getrlimit(kind)[1]
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (most, most))

    return prepare


def _leave_network() -> None:
    """Enter a new network, in which nothing is up; root needs no user namespace for it.

    Raises:
        OSError: this host does not allow it.
    """
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_CLONE_NEWNET | (_CLONE_NEWUSER if user else 0)):
        raise OSError(ctypes.get_errno(), "unshare")
    if user:
        maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
        for name, text in maps.items():
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)

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
from typing import NoReturn

from retinue.keeper.cgroup import join
from retinue.keeper.frames import Frame

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
_ORDINARY = os.getpriority(os.PRIO_PROCESS, 0)
_FIRST = -20
_ROOM = 4096
"""How many more processes and threads than now there may be, at least."""


def become_subreaper(name: str) -> None:
    """Have orphans below this process come to it, and call it ``name``."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER is refused")
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def come_first() -> None:
    """Have this process get its turn before those that it is to end, where that is allowed.

    A tree that multiplies leaves it none otherwise. Some kernels share the CPU among sessions
    first (autogroup), so the session of this process has to have the priority, too. What it starts
    has its owner's, in a session of its own.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _FIRST)
        with open("/proc/self/autogroup", "w", encoding="ascii") as file:
            file.write(str(_FIRST))
    except OSError:
        pass  # not without privilege, or there is no such thing


class Spawn:
    """A process on its way: forked, and not yet known to be the program that was asked for.

    ``frame`` says what to start: ``argv``, ``path`` (the file to execute), ``env``, ``cwd``,
    ``stdin`` (whether it has one), ``kept`` (the directory of the files that are its stdin, stdout
    and stderr: none of them is ours then), ``limits``, ``groups`` (the control groups to enter) and
    ``box`` (the network of its sandbox). Several may be on their way at once, which is what makes
    many quick; ``finish`` tells what became of one.

    Raises:
        OSError: it cannot be forked.
    """

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self.fds: tuple[int, ...] = ()
        opened: list[int] = []
        try:
            ours, theirs = _streams(frame, opened)
            self._news, news = _pipe(opened)
            keeper = os.getpid()
            self.pid = os.fork()
            if self.pid == 0:
                _become(frame, theirs, news, keeper)
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        for fd in (*theirs, news):
            os.close(fd)
        self.fds = ours

    def finish(self) -> tuple[int, tuple[int, ...]]:
        """Return its pid and our ends of its pipes (stdin, if any, first).

        Raises:
            OSError: it is not what was asked for; ``strerror`` says why. Nothing is left.
        """
        said = b""
        while piece := os.read(self._news, 4096):  # ends when it has become the program
            said += piece
        os.close(self._news)
        if not said:
            return self.pid, self.fds
        for fd in self.fds:
            os.close(fd)
        os.waitpid(self.pid, 0)
        number, stage, why = said.decode("utf-8", "replace").split("\n", 2)
        raise OSError(int(number), why, self._frame["cwd"] if stage == "cwd" else None)


def _pipe(opened: list[int]) -> tuple[int, int]:
    reads, writes = os.pipe()
    opened += (reads, writes)
    return reads, writes


def _streams(frame: Frame, opened: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    kept = frame.get("kept")
    return _pipes(frame["stdin"], opened) if kept is None else ((), _files(frame, kept, opened))


def _files(frame: Frame, directory: str, opened: list[int]) -> tuple[int, ...]:
    """Open the files of one that is kept: whoever comes later reads on where another stopped."""
    name = os.path.join(directory, "stdin") if frame["stdin"] else os.devnull
    opened.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
    for stream in ("stdout", "stderr"):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        opened.append(os.open(os.path.join(directory, stream), flags, 0o600))
    return tuple(opened)


def _pipes(stdin: bool, opened: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return our ends and theirs of stdin, stdout and stderr; all are in ``opened``."""
    if stdin:
        reads, writes = _pipe(opened)
        first: tuple[int, ...] = (writes,)
    else:
        reads, first = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), ()
        opened.append(reads)
    out, err = _pipe(opened), _pipe(opened)
    return (*first, out[0], err[0]), (reads, out[1], err[1])


def _become(frame: Frame, fds: tuple[int, ...], news: int, keeper: int) -> NoReturn:
    """Turn this process, which was just forked, into the program; say why when that fails."""
    stage = "start"
    try:
        os.setsid()
        os.setpriority(os.PRIO_PROCESS, 0, _ORDINARY)
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
            signal.signal(number, signal.SIG_DFL)
        stage = "cwd"
        os.chdir(frame["cwd"])
        stage = "network"
        if frame.get("box") == "none":
            _leave_network()
        stage = "limits"
        _limit(frame)
        stage = "start"
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:
            os._exit(1)  # the keeper was killed before the line above
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        os.execve(frame["path"], frame["argv"], frame["env"])
    except BaseException as error:
        number = getattr(error, "errno", None) or 0
        why = getattr(error, "strerror", None) or str(error)
        if stage in {"network", "limits"}:
            what = "network taken away" if stage == "network" else "limits set"
            why = f"it cannot have its {what} on this host: {why}"
        os.write(news, f"{number}\n{stage}\n{why}".encode("utf-8", "replace"))
    finally:
        os._exit(1)


def _limit(frame: Frame) -> None:
    for group in frame.get("groups", ()):
        join(group)
    for name, value in (frame.get("limits") or {}).items():
        if name in _LIMITS:
            kind = _LIMITS[name]
            hard = resource.getrlimit(kind)[1]
            most = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
            resource.setrlimit(kind, (most, most))
    if "processes" in (frame.get("limits") or {}) and os.getuid():
        try:
            _leave_some()
        except (OSError, ValueError):
            pass  # it helps the machine, not the agent


def _leave_some() -> None:
    """Let it start nothing when its user has three quarters of what the machine bears.

    The kernel counts all threads of a user, whoever started them, so no bound of its own is
    possible: one that others use up would end ordinary work. Root is bound by none.
    """
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    bears = [_number("pid_max"), _number("threads-max"), hard]
    most = min(n for n in bears if n != resource.RLIM_INFINITY) * 3 // 4
    with open("/proc/loadavg", encoding="ascii") as file:
        now = int(file.read().split()[3].partition("/")[2])
    most = max(most, now + _ROOM)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _number(name: str) -> int:
    with open(f"/proc/sys/kernel/{name}", encoding="ascii") as file:
        return int(file.read())


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

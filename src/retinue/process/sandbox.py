"""A process in a sandbox of bubblewrap: what it may write, whom it sees, what network it has.

The root is there to be read; what may be written is named. It has a pid namespace of its own, which
ends with it, so nothing it starts can outlive it, and no privilege to gain. ``network``:

============  =======================================================================
``host``      the host's
``loopback``  one of its own, in which 127.0.0.1 reaches its own processes and nothing else
``none``      none at all: not even loopback is up
============  =======================================================================

A service of the host could do what the sandbox may not, so no socket of one is seen: /run is empty,
/tmp and /var/tmp are memory of its own, and what else is listened at when it starts is hidden, but
for what was bound by a relative name, renamed since, or is seconds old. Abstract sockets go with
the host's network. What Retinue itself runs from cannot be written, and what our next start reads
(``guard``) is not seen and cannot be replaced, wherever it lies: who could write that would have
commands run outside.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
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
_SCRATCH = ("/tmp", "/var/tmp")
_RUN = ("/run", "/var/run")
_KEPT_OF_RUN = ("/run/systemd/resolve", "/run/current-system")
"""The names of DNS servers, and NixOS's programs."""
_NAMES = "/etc/resolv.conf"
_SOCKETS = "/proc/net/unix"
_SOCKET_SECONDS = 10.0
"""One that is younger may be gone before the sandbox is made, which would then fail."""
_EMPTY = str(Path(__file__).parents[1] / "py.typed")
"""A file with nothing in it, which every installation has; a device could not be opened there."""
_MOST_LINKS = 40
_OURS = (sys.prefix, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""What Retinue runs from: an environment, and its own code, which may lie beside it."""
LOGINS = (
    *(".claude/.credentials.json", ".codex/auth.json", ".gemini/oauth_creds.json"),
    ".local/share/opencode/auth.json",
)
"""What coding CLIs leave in a home that they have logged in from."""
CREDENTIALS = (
    *(".ssh", ".gnupg", ".netrc", ".git-credentials", ".config/git/credentials", ".config/gh"),
    *(".config/hub", ".config/glab-cli", ".aws", ".azure", ".config/gcloud", ".oci", ".s3cfg"),
    *(".config/rclone", ".config/doctl", ".kube", ".docker", ".config/containers", ".vault-token"),
    *(".terraform.d", ".terraformrc", ".fly", ".config/heroku", ".npmrc", ".yarnrc.yml"),
    *(".pypirc", ".config/pip", ".cargo/credentials", ".cargo/credentials.toml"),
    *(".gem/credentials", ".m2/settings.xml", ".gradle/gradle.properties", ".pgpass", ".my.cnf"),
    *(".config/op", ".password-store", ".local/share/keyrings", ".cache/huggingface/token"),
    *(".mozilla", ".thunderbird", ".config/google-chrome", ".config/chromium", ".config/vivaldi"),
    *(".config/BraveSoftware", ".config/microsoft-edge", ".config/opera", ".bash_history"),
    *(".zsh_history", ".psql_history", ".mysql_history", ".python_history"),
    *LOGINS,
)
"""Where people's credentials lie, below a home."""


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent is shut in.

    ``write`` are paths it may write beside its own; ``read`` what it sees, and does not write,
    though it lies in what is hidden; ``hide`` what it does not see: that is empty for it. ``guard``
    is hidden whatever else is said, and can be neither made nor moved away.
    """

    network: Literal["host", "loopback", "none"] = "host"
    write: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    guard: tuple[str, ...] = ()

    def within(self, common: Sandbox) -> Sandbox:
        """Return it with what is hidden and guarded from every agent, too."""
        hide, guard = (*common.hide, *self.hide), (*common.guard, *self.guard)
        return msgspec.structs.replace(self, hide=hide, guard=guard)


PLAIN = {True: Sandbox(), False: None}
"""What ``sandbox: true`` and ``sandbox: false`` mean."""


def private(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return what agents do not see of their starter's user: credentials, and agents for them."""
    homes = {environ.get("HOME") or "", _home()} - {"", "/"}
    found = [os.path.join(home, name) for home in sorted(homes) for name in CREDENTIALS]
    named = (environ.get("XDG_RUNTIME_DIR"), environ.get("SSH_AUTH_SOCK"))
    return (*found, *(path for path in named if path and os.path.isabs(path)))


def _home() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""  # a user without a name: of a container, say


def boxed(command: Command, box: Sandbox, bwrap: str, own: Iterable[str]) -> Command:
    """Return what runs ``command`` in ``box``; ``own`` are the directories it may write.

    Raises:
        SpawnFailed: what is guarded could not be kept from it.
    """
    argv = [
        *("bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-cgroup-try"),
        *("--cap-drop", "ALL", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
    ]
    for name in _PROC:
        argv += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    if box.network == "loopback":
        argv.append("--unshare-net")
    argv += _views(box, tuple(own), command.path).options()
    argv += ["--chdir", command.cwd, "--", command.path, *command.argv[1:]]
    return msgspec.structs.replace(command, path=bwrap, argv=tuple(argv), box=box.network)


def _views(box: Sandbox, own: tuple[str, ...], program: str) -> Views:
    """Return what is seen otherwise than the host has it; what comes later wins."""
    views = Views()
    mine = {os.path.join(os.path.realpath(path), login) for path in own for login in LOGINS}
    for path in filter(os.path.isdir, _SCRATCH):
        views.put(path, "scratch")
    for path in (*_RUN, *box.hide):
        if os.path.exists(path) and os.path.realpath(path) not in mine:
            views.put(path, "hide")
    seen = (*_KEPT_OF_RUN, os.path.realpath(_NAMES))
    for path in (*filter(os.path.exists, seen), *_places(program)):
        if views.over(path) in {"hide", "scratch"}:
            views.put(path, "read")
    for path in filter(os.path.exists, box.read):
        views.put(path, "read")
    for path in (*box.write, *own):
        views.put(path, "write")
    for path in _listened_at():
        if views.over(path) is None:
            views.put(path, "hide")
    for path in filter(views.writable, _OURS):
        views.put(path, "read")
    for path in box.guard:
        _guard(views, path)
    return views


class Views:
    """Paths, and how each is seen. ``scratch`` is memory of its own, which it may write."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}

    def put(self, path: str, kind: str) -> None:
        """Have a path seen like this: where it lies, and by that name."""
        # A mount over a symbolic link would be one at its end, where the order is another.
        real = os.path.realpath(path)
        if self.over(path) in {"scratch", "hide"} and kind in {"read", "write"}:
            self._kinds[os.path.abspath(path)] = kind  # there the link is not
        self._kinds[real] = kind

    def over(self, path: str) -> str | None:
        """Return how a path is seen as it stands: what was said of it, or of the nearest above."""
        path = os.path.abspath(path)
        while path != "/":
            if path in self._kinds:
                return self._kinds[path]
            path = os.path.dirname(path)
        return None

    def writable(self, path: str) -> bool:
        """Whether a path may be written as it stands."""
        return self.over(os.path.realpath(path)) == "write"

    def options(self) -> list[str]:
        """Return bubblewrap's options, each path after its parents."""
        argv: list[str] = []
        emptied: list[str] = []
        for path in sorted(self._kinds, key=lambda path: path.split("/")):
            kind = self._kinds[path]
            if kind == "hide" and self.over(os.path.dirname(path)) == "hide":
                continue
            if kind in {"read", "write"}:
                argv += ["--bind" if kind == "write" else "--ro-bind", path, path]
            elif os.path.isdir(path):
                argv += ["--tmpfs", path]
                emptied += [path] if kind == "hide" else []
            else:
                argv += ["--ro-bind", _EMPTY, path]
        for path in emptied:  # only now: mounts in them had to be made
            argv += ["--remount-ro", path]
        return argv


def _places(program: str) -> Iterator[str]:
    """Yield where a program's files are, by its name and by where it lies: not a whole /tmp."""
    for path in (program, os.path.realpath(program)):
        place = os.path.dirname(path)
        if os.path.basename(place) == "bin":
            place = os.path.dirname(place)
        hidden = {os.path.realpath(path) for path in (*_SCRATCH, *_RUN)}
        yield path if os.path.realpath(place) in {*hidden, "/"} else place


def _listened_at() -> Iterator[str]:
    """Yield the sockets in the file system at which somebody on this host is to be found."""
    try:
        with open(_SOCKETS, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, path = line.partition(" /")
        try:
            found = os.stat(f"/{path}") if path else None
            old = found is not None and found.st_ctime < time.time() - _SOCKET_SECONDS
            if found is not None and old and stat.S_ISSOCK(found.st_mode):
                yield os.path.realpath(f"/{path}")
        except OSError:
            continue  # of another mount namespace, or gone


def _guard(views: Views, path: str) -> None:
    """Hide a path, and see that nobody can put another one in its place.

    What leads there through a directory that may be written is made a mount, which cannot be moved.
    What is not there, and could be made there, is made now, with nothing in it.

    Raises:
        SpawnFailed: a symbolic link leads there, which could be replaced.
    """
    step = ""
    for step in _steps(path):
        writable = views.over(os.path.dirname(step)) == "write"
        if writable and os.path.islink(step):
            raise SpawnFailed(
                f"the sandbox may write {os.path.dirname(step)}, where the symbolic link"
                f" {os.path.basename(step)} leads to {path}, which is not for an agent to change:"
                " put the file itself there, or give the agent another directory"
            )
        if writable and os.path.isdir(step) and views.over(step) == "write":
            views.put(step, "write")
    stands_in = os.path.dirname(step)
    if not os.path.exists(step) and views.over(stands_in) == "write" and os.path.isdir(stands_in):
        _make_empty(step)  # nothing can be hidden where there is nothing
    if os.path.exists(step):
        views.put(step, "hide")


def _make_empty(path: str) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError:
        pass  # whoever may not make it here may not in the sandbox either


def _steps(path: str) -> Iterator[str]:
    """Yield each name on the way to a path, with the real path of what it stands in."""
    names, at, links = path.split("/")[::-1], "/", 0
    while names:
        name = names.pop()
        if name in {"", ".", ".."}:
            at = os.path.dirname(at) if name == ".." else at
            continue
        step = os.path.join(at, name)
        yield step
        if os.path.islink(step) and links < _MOST_LINKS:
            target = os.readlink(step)
            at = "/" if target.startswith("/") else at
            names += target.split("/")[::-1]
            links += 1
        else:
            at = step


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

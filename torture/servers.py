"""One process of the server under test: started, killed, stopped, frozen."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 30.0
END_SECONDS = 30.0
_POLL = 0.005


class ServerFailed(Exception):
    """A server did not come up, or did not end; the message ends with its log."""


class Died(ServerFailed):
    """A server ended before it served."""


class Server:
    """A server with its own log in ``directory``; every start of it is a new process."""

    def __init__(
        self,
        name: str,
        directory: Path,
        config: Path,
        environment: dict[str, str],
        *,
        store: str | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        """Prepare a server; its command begins with ``prefix``, which must become the server."""
        self.name = name
        self.url = ""
        self.crash: tuple[str, ...] = ()
        """What its next start is told of a crash point: arguments of ``torture.serve``."""
        self.ready_seconds: list[float] = []
        self._directory = directory
        self._config = config
        self._environment = environment
        self._store = store
        self._prefix = prefix
        self._starts = 0
        self._started = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def lives(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def memory(self) -> int:
        """How many bytes of its memory are its own and resident."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(x.split()[1]) for x in status.splitlines() if x[:6] == "VmRSS:") * 1024

    @property
    def status(self) -> int | None:
        """The exit status of its process, once it has ended."""
        return self._process.poll() if self._process is not None else None

    @property
    def log(self) -> str:
        """All that its processes have said."""
        path = self._directory / f"{self.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def _ready(self) -> Path:
        return self._directory / f"{self.name}.{self._starts}.url"

    def spawn(self) -> None:
        """Start a process, in a group of its own; do not wait until it serves."""
        self._starts += 1
        self._started = time.monotonic()
        command = [
            *self._prefix,
            sys.executable,
            "-m",
            "torture.serve",
            "--config",
            str(self._config),
        ]
        command += ["--ready", str(self._ready), "--parent", str(os.getpid())]
        if self._store is not None:
            command += ["--store", self._store]
        command += self.crash
        with (self._directory / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._directory,
                env={"PATH": os.defpath, "PYTHONPATH": str(ROOT), **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def ready(self) -> str:
        """Wait until it serves and return its address.

        Raises:
            Died: it ended before.
            ServerFailed: it takes too long.
        """
        assert self._process is not None
        while not self._ready.exists():
            if not self.lives:
                raise Died(f"{self.name} ended with {self._process.returncode}:\n{self.log}")
            if time.monotonic() - self._started > READY_SECONDS:
                raise ServerFailed(f"{self.name} serves not in {READY_SECONDS} s:\n{self.log}")
            await asyncio.sleep(_POLL)
        self.ready_seconds.append(time.monotonic() - self._started)
        self.url = self._ready.read_text()
        return self.url

    async def ended(self, seconds: float = END_SECONDS) -> int:
        """Wait until the process has ended and return its exit status.

        Raises:
            ServerFailed: it goes on.
        """
        assert self._process is not None
        until = time.monotonic() + seconds
        while self.lives:
            if time.monotonic() > until:
                raise ServerFailed(f"{self.name} still runs after {seconds} s:\n{self.log}")
            await asyncio.sleep(_POLL)
        return int(self._process.returncode)

    def kill(self) -> None:
        """End the process and its group by SIGKILL, wherever it is; it is gone on return."""
        if self._process is None or not self.lives:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> None:
        """Ask it to stop."""
        assert self._process is not None
        self._process.terminate()

    def freeze(self) -> None:
        """Stop its threads where they stand, unasked (SIGSTOP)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

"""The command line as its users have it: real processes, in directories of their own."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

from retinue.cli.app import app

COMMANDS = Path(sys.executable).parent
SECONDS = 60.0
_AT = re.compile(r"(?:serving|Retinue \S+) at (http://[^\s\"]+)")
_LAST = ("  curl ", "  retinue agent")
"""How the last line of a banner begins."""


class Done:
    """A command that has ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"Done({self.code}, {self.out!r}, {self.err!r})"

    @property
    def json(self) -> Any:
        """What it printed, decoded."""
        return json.loads(self.out)


class Place:
    """A directory to run commands in, with an environment that holds nothing of ours."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            "PATH": f"{COMMANDS}{os.pathsep}{os.defpath}",
            "HOME": str(directory),
            "LANG": "C.UTF-8",
        }

    def write(self, name: str, text: str) -> Path:
        """Write a file."""
        path = self.directory / name
        path.write_text(text)
        return path

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start ``retinue`` with these words."""
        return subprocess.Popen(
            [str(COMMANDS / "retinue"), *words],
            cwd=self.directory,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def retinue(self, *words: str, given: str | None = None, **environment: str) -> Done:
        """Run ``retinue`` with these words to its end."""
        done = subprocess.run(
            [str(COMMANDS / "retinue"), *words],
            cwd=self.directory,
            env=self.environment | environment,
            input=given if given is not None else "",
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def call(self, *words: str, **environment: str) -> Done:
        """Run ``retinue`` with these words in this process: for what needs none of its own."""
        out, err = io.StringIO(), io.StringIO()
        root, known, path = logging.getLogger(), dict(os.environ), sys.path[:]
        handlers, level = root.handlers[:], root.level
        os.environ.clear()
        os.environ.update(self.environment | environment)
        code = 0
        try:
            with chdir(self.directory), redirect_stdout(out), redirect_stderr(err):
                app(args=list(words))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            os.environ.clear()
            os.environ.update(known)
            sys.path[:] = path
            logging.captureWarnings(False)
            root.handlers[:], root.level = handlers, level
        return Done(code, out.getvalue(), err.getvalue())

    def serve(self, *words: str, **environment: str) -> Server:
        """Start a server on a port that the system chooses."""
        return Server(self, words, environment)


class Server:
    """``retinue serve`` in the background; in a ``with`` it is ready, and stopped at the end."""

    def __init__(self, place: Place, words: tuple[str, ...], environment: dict[str, str]) -> None:
        self.place = place
        self.banner = ""
        self.url = ""
        self.code: int | None = None
        self._words = words
        self._environment = environment
        self._log = place.directory / "serve.log"

    def __enter__(self) -> Self:
        chosen = {"ORCHESTRATOR_PORT": "0"} | self._environment
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [str(COMMANDS / "retinue"), "serve", *self._words],
                cwd=self.place.directory,
                env=self.place.environment | chosen,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self._await_ready(as_json=chosen.get("RETINUE_LOG_FORMAT") == "json")
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def _await_ready(self, *, as_json: bool) -> None:
        assert self.process.stdout is not None
        if as_json:
            deadline = time.monotonic() + SECONDS
            while _AT.search(self.log) is None:
                assert time.monotonic() < deadline, self.log
                assert self.process.poll() is None, self.log
                time.sleep(0.02)
        else:
            for line in self.process.stdout:
                self.banner += line
                if line.startswith(_LAST):
                    break
        match = _AT.search(self.log if as_json else self.banner)
        assert match is not None, f"it never was ready: {self.banner}{self.log}"
        self.url = match[1]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self._log.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it; return its exit status."""
        if self.code is None:
            self.process.send_signal(number)
            rest, _ = self.process.communicate(timeout=SECONDS)
            self.banner += rest
            self.code = self.process.returncode
        return self.code

    def post(self, path: str, body: Any) -> Any:
        """POST and return the decoded answer."""
        answer = httpx.post(self.url + path, json=body, timeout=SECONDS, trust_env=False)
        return answer.json()


def in_steps(place: Place, *words: str, until: str) -> subprocess.Popen[str]:
    """Start a command and return once its stdout shows ``until``."""
    process = place.start(*words)
    assert process.stdout is not None
    seen = ""
    while until not in seen:
        piece = process.stdout.read(1)
        assert piece, f"{seen!r} {process.communicate()}"
        seen += piece
    return process


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty directory."""
    directory = tmp_path / "here"
    directory.mkdir()
    return Place(directory)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the example fleet, for tests that only ask."""
    here = Place(tmp_path_factory.mktemp("served"))
    here.write("notes.md", "# Notes\n\nTODO: write them\n")
    with here.serve() as server:
        yield server
    assert server.code == 0

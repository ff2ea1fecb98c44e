"""A coding CLI that does as its prompt says: Claude Code, Codex, Gemini, OpenCode, any ACP agent.

It speaks the real ones' protocols on stdin and stdout, well and badly, without model and network.
``install`` puts it into a directory under their names::

    programs = install(tmp_path, "claude", "codex")
    Settings(agents=[{"driver": "claude", "command": [programs["claude"]]}])

The steps are those of ``script`` (``say``, ``think``, ``slow``, ``hang``, ``usage``) and these::

    [[tool NAME {json}]]   a tool runs without leave        [[ask NAME {json}]]  it asks leave first
                           ("seconds" in the json: so long)
    [[seen]]               say the arguments, environment, directory and how many turns came before
    [[retry N]]            N retry events                   [[fail TEXT]]        end as failed
    [[noise TEXT]]         a line that is no JSON           [[big BYTES]]        one very long line
    [[spill BYTES]]        write to stderr                  [[exit CODE]]        exit in the middle
    [[vanish]]             end with no last word, exit 0    [[deaf]]             heed no way to stop
    [[linger]]             live on after the result         [[spawn]]            leave a process
    [[cost USD]]           what it cost                     [[twice]]            end the turn twice
    [[cut]]                the model's stream is cut and begun again: what this reply said is void
    [[whole TEXT]]         say it in a message that is not streamed (claude)
    [[write PATH]]         say whether it can write there   [[connect PORT]]     … 127.0.0.1 answers

Its sessions are kept below HOME, so that a later process knows them; ``--version`` says the
version that the drivers were tested with, or ``FAKE_VERSION``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from retinue.testing.script import Step, parse

VERSIONS = {
    "claude": "2.1.329 (Claude Code)",
    "codex": "codex-cli 0.169.0",
    "gemini": "0.61.0",
    "opencode": "1.18.33",
    "acp": "1.0.0",
}


def install(directory: Path, *names: str) -> dict[str, str]:
    """Put the agent into ``directory`` under these names; return the programs by name."""
    directory.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in names or tuple(VERSIONS):
        program = directory / name
        start = f"{sys.executable} -m retinue.testing.coding_agent {name}"
        program.write_text(f'#!/bin/sh\nexec {start} "$@"\n')
        program.chmod(0o755)
        found[name] = str(program)
    return found


class Stopped(Exception):
    """The turn was called off."""


class Out:
    """Standard output, one JSON object per line, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def line(self, value: Any) -> None:
        """Write one line."""
        text = value if isinstance(value, str) else json.dumps(value)
        with self._lock:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


class Memory:
    """Which sessions there are, and their prompts: a file each below HOME."""

    def __init__(self, name: str) -> None:
        self._directory = Path(os.environ.get("HOME", "/tmp")) / f".fake-{name}"

    def _file(self, session: str) -> Path:
        return self._directory / f"{session}.json"

    def knows(self, session: str) -> bool:
        """Say whether there is such a session."""
        return self._file(session).exists()

    def prompts(self, session: str) -> list[str]:
        """Return what it was told."""
        with contextlib.suppress(OSError):
            found: list[str] = json.loads(self._file(session).read_text())
            return found
        return []

    def add(self, session: str, prompts: Iterable[str] = ()) -> None:
        """Remember what a session was told."""
        self._directory.mkdir(parents=True, exist_ok=True)
        part = self._file(session).with_suffix(f".{threading.get_ident()}")
        part.write_text(json.dumps([*self.prompts(session), *prompts]))
        part.replace(self._file(session))

    def used(self, session: str, tokens: Iterable[int]) -> list[int]:
        """Remember what a turn used; return what the session has used until now."""
        file = self._file(session).with_suffix(".used")
        with contextlib.suppress(OSError):
            tokens = map(sum, zip(tokens, json.loads(file.read_text()), strict=True))
        total = list(tokens)
        file.write_text(json.dumps(total))
        return total


class Voice:
    """How one dialect says what a script does. Each method writes what the real CLI would."""

    out: Out
    deaf = False

    def __init__(self) -> None:
        self.left: list[subprocess.Popen[bytes]] = []

    def text(self, text: str) -> None:
        """Say a piece of text."""

    def thought(self, text: str) -> None:
        """Say a piece of thought."""

    def tool(self, key: str, name: str, given: dict[str, Any]) -> None:
        """Say that a tool is called."""

    def result(self, key: str, name: str, said: str, failed: bool) -> None:
        """Say what it answered."""

    def ask(self, key: str, name: str, given: dict[str, Any]) -> bool:
        """Ask leave, and wait for it."""
        return True

    def retry(self, number: int) -> None:
        """Say that the model is asked again."""

    def cut(self) -> None:
        """Give up the message whose stream was cut, and begin another one."""

    def fall_back(self, text: str) -> None:
        """Say a message that was not streamed."""

    def reply(self, tokens_in: int, tokens_out: int) -> None:
        """Say that a reply of the model has ended, and what it used."""


class Turn:
    """One turn of a script."""

    def __init__(self, voice: Voice, session: str, memory: Memory) -> None:
        self.voice = voice
        self.session = session
        self.memory = memory
        self.stop = threading.Event()
        self.cost = 0.0
        self.tokens = [0, 0]
        self.said: list[str] = []
        self.linger = self.twice = False
        self.turns = 0

    def pause(self, seconds: float) -> None:
        """Wait; called off, it ends here."""
        if self.stop.wait(seconds) and not self.voice.deaf:
            raise Stopped
        if self.voice.deaf:
            time.sleep(seconds)

    def run(self, prompt: str) -> str | None:
        """Do what the prompt says; return what failed, None when all went well."""
        before = self.memory.prompts(self.session)
        self.memory.add(self.session, [prompt])
        failure = None
        usage = (10, 5)
        for at, step in enumerate(parse(prompt)):
            if self.stop.is_set() and not self.voice.deaf:
                raise Stopped
            if step.verb == "usage":
                usage = (int(step.number(0)), int(step.number(1)))
            elif step.verb == "fail":
                failure = step.rest or "it failed"
            elif step.verb in {"tool", "ask"}:
                self._tool(f"call_{self.session[:4]}_{len(before)}_{at}", step)
                self._reply(usage)
                self.said.clear()
            elif step.verb == "seen":
                self._say(json.dumps(_seen(len(before))))
            else:
                self._do(step)
        self._reply(usage)
        return failure

    def _reply(self, usage: tuple[int, int]) -> None:
        self.turns += 1
        self.tokens[0] += usage[0]
        self.tokens[1] += usage[1]
        self.voice.reply(*usage)

    def _say(self, text: str) -> None:
        self.said.append(text)
        self.voice.text(text)

    def _tool(self, key: str, step: Step) -> None:
        name, given = step.call()
        self.voice.tool(key, name, given)
        if step.verb == "ask" and not self.voice.ask(key, name, given):
            self.voice.result(key, name, "refused", True)
            return
        if "seconds" in given:
            self.pause(given["seconds"])
        if self.stop.is_set() and not self.voice.deaf:
            raise Stopped
        self.voice.result(key, name, f"{name} ran", False)

    def _do(self, step: Step) -> None:
        match step.verb:
            case "say":
                self._say(step.rest)
            case "think":
                self.voice.thought(step.rest)
            case "slow":
                for number in range(int(step.number(0))):
                    self._say(f"{number} ")
                    if step.number(1, 0.1):
                        self.pause(step.number(1, 0.1))
            case "hang":
                self.pause(step.number(0, 60.0))
            case "retry":
                for number in range(int(step.number(0, 1))):
                    self.voice.retry(number + 1)
            case "cost":
                self.cost += step.number()
            case "write" | "connect":
                self._say(f"{step.verb}: {_tried(step)} ")
            case "cut" | "whole":
                self._again(step)
            case _:
                self._misbehave(step)

    def _again(self, step: Step) -> None:
        """Have the stream of this reply fail: it begins anew, or comes as a whole."""
        self.said.clear()
        if step.verb == "cut":
            self.voice.cut()
        else:
            self.said.append(step.rest)
            self.voice.fall_back(step.rest)

    def _misbehave(self, step: Step) -> None:
        match step.verb:
            case "noise":
                self.voice.out.line(step.rest)
            case "big":
                self.voice.out.line(json.dumps({"type": "big", "x": "x" * int(step.number())}))
            case "spill":
                sys.stderr.write("e" * int(step.number()) + "\n")
                sys.stderr.flush()
            case "linger":
                self.linger = True
            case "twice":
                self.twice = True
            case "exit":
                sys.stderr.write("as scripted\n")
                sys.stderr.flush()
                os._exit(int(step.number()))
            case "vanish":
                os._exit(0)
            case "deaf":
                self.voice.deaf = True
            case "spawn":
                code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"
                argv = [sys.executable, "-I", "-c", code]
                self.voice.left.append(subprocess.Popen(argv, start_new_session=True))


def _tried(step: Step) -> str:
    """Return what came of something that a sandbox may forbid."""
    try:
        if step.verb == "write":
            Path(step.rest).touch()
        else:
            socket.create_connection(("127.0.0.1", int(step.number())), 5).close()
    except OSError as error:
        return type(error).__name__
    return "yes"


def _seen(turns: int) -> dict[str, Any]:
    return {
        "argv": sys.argv[2:],
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
        "turns_before": turns,
    }


def lines() -> Iterable[Any]:
    """Yield the messages that come; a line that is no JSON is None."""
    for line in sys.stdin:
        try:
            yield json.loads(line)
        except ValueError:
            yield None


def heed(deaf: Callable[[], bool], stop: Callable[[], None]) -> None:
    """Heed SIGINT and SIGTERM, unless the script says to be deaf."""

    def heard(number: int, frame: Any) -> None:
        if not deaf():
            stop()
            os._exit(0 if number == signal.SIGINT else 143)

    signal.signal(signal.SIGINT, heard)
    signal.signal(signal.SIGTERM, heard)


def version_of(name: str) -> str:
    """Return the number in what a CLI says of its version."""
    said = os.environ.get("FAKE_VERSION", VERSIONS.get(name, "1.0.0"))
    return next(word for word in said.split() if word[0].isdigit())


def word_after(words: list[str], option: str) -> str | None:
    """Return the word after an option, or after what stands between it and ``-``."""
    if option not in words:
        return None
    rest = [w for w in words[words.index(option) + 1 :] if not w.startswith("-")]
    return rest[0] if rest else None


def new_session() -> str:
    """Return a name for a session."""
    return str(uuid.uuid4())


def main() -> None:
    """Be the CLI that the first argument names."""
    from retinue.testing import coding_dialects  # noqa: PLC0415 it imports this module

    name, *words = sys.argv[1:]
    if "--version" in words:
        print(os.environ.get("FAKE_VERSION", VERSIONS.get(name, "1.0.0")))
        return
    coding_dialects.serve(name, words)


if __name__ == "__main__":
    from retinue.testing.coding_agent import main as run  # one module, not two

    run()

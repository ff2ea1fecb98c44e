"""An agent that does what it is told, and misbehaves in every way that real ones do.

``python -m retinue.testing.agent STEP...`` performs its steps in order and exits 0 after the last;
``argv(*steps)`` is the same with nothing of ours to import, so that it starts at once. For example
``deaf leave daemon say=ready sleep`` ignores SIGTERM, leaves two processes behind, says that it is
ready, and stays. Sizes may end in k, m or g; a step whose value may be left out shows it.

=====================  ==========================================================================
``say=TEXT``           a line on stdout; ``error=TEXT`` on stderr, ``half=TEXT`` without its end
``bytes=HEX``          these bytes on stdout, whatever they are
``pid``                its process id, as a line
``answer``             read a line, write it back; ``read`` only reads
``serve``              every line of stdin is written back; one that begins with ``!`` is a step
``line=SIZE``          one line of that size
``flood=SIZE``         lines of 100 bytes to stdout; ``flood-errors=SIZE`` to stderr
``close=stdout``       close ``stdin``, ``stdout`` or ``stderr``, and live on
``deaf``               ignore SIGTERM, SIGINT and SIGHUP
``stop``               stop itself (SIGSTOP)
``leave``              a grandchild in a session of its own that holds stdout
``daemon``             an orphan in a session of its own, with no stdout and an empty environment
``unmark``             go on with an environment that says nothing of who started it
``forks=COUNT``        processes that fork as fast as they can until there are so many
``memory=SIZE``        take memory; ``files=COUNT`` open files; ``cpu=SECONDS`` use a CPU
``sleep=SECONDS``      wait; without a value for ever
``exit=CODE``          end; ``signal=NAME`` ends itself by a signal
``tag=WORD``           nothing: it can be found by its command line, and all that it starts
=====================  ==========================================================================

So ``read exit=1`` ends between a request and its reply, and ``line=100m say=next`` breaks a limit.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

_SIZES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_FILES = {"stdin": 0, "stdout": 1, "stderr": 2}
_LINE = b"x" * 99 + b"\n"
_PIECE = _LINE * 640
MOST_FORKS = 4096

_STAY = ("say=ready", "sleep")
HOSTILE: dict[str, tuple[tuple[str, ...], int]] = {
    "deaf": (("deaf", *_STAY), 1),
    "grandchild that holds stdout": (("leave", *_STAY), 3),
    "daemon": (("daemon", *_STAY), 2),
    "changed mark": (("unmark", "leave", "daemon", *_STAY), 4),
    "closed output": (("say=ready", "close=stdout", "close=stderr", "close=stdin", "sleep"), 1),
    "stopped": (("leave", "say=ready", "stop", "sleep"), 3),
    "flood": (("say=ready", "leave", "flood=1g", "sleep"), 3),
    "forks": (("say=ready", "forks=100", "sleep"), 80),
    "everything": (
        ("unmark", "deaf", "leave", "daemon", "say=ready", "forks=50", "flood=1g"),
        40,
    ),
}
"""Trees that are hard to end: steps that say ``ready``, and how many processes that makes."""


def argv(*steps: str) -> tuple[str, ...]:
    """Return the command line that performs ``steps``."""
    return (sys.executable, "-I", "-S", __file__, *steps)


def tagged(tag: str) -> list[int]:
    """Return the living processes whose command line says ``tag=TAG``, whoever started them."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue  # it has ended
        if f"tag={tag}".encode() in words:  # a zombie has none
            found.append(int(pid))
    return found


def size(text: str) -> int:
    """Return the number that ``text`` says: 100, 4k, 100m, 1g."""
    unit = _SIZES.get(text[-1:].lower())
    return int(text[:-1]) * unit if unit is not None else int(text)


class Script:
    """The steps of one process, and what is left of them."""

    def __init__(self, steps: list[str]) -> None:
        self.steps = steps
        self._tags = [step for step in steps if step.startswith("tag=")]
        self._held: list[object] = []
        self._input = b""

    def run(self) -> None:
        """Perform the steps."""
        while self.steps:
            self.step(self.steps.pop(0))

    def step(self, step: str) -> None:
        """Perform one."""
        word, _, value = step.partition("=")
        name = word.replace("-", "_")
        perform: Callable[[str], None] | None = getattr(self, f"_do_{name}", None)
        if perform is None:
            sys.exit(f"there is no step {word!r}; see the documentation of {__name__}")
        perform(value)

    # -- what it says and hears ----------------------------------------------------------------

    def _do_say(self, text: str) -> None:
        _write(1, os.fsencode(text) + b"\n")

    def _do_half(self, text: str) -> None:
        _write(1, os.fsencode(text))

    def _do_error(self, text: str) -> None:
        _write(2, os.fsencode(text) + b"\n")

    def _do_bytes(self, text: str) -> None:
        _write(1, bytes.fromhex(text))

    def _do_pid(self, _: str) -> None:
        self._do_say(str(os.getpid()))

    def _do_read(self, _: str) -> None:
        self._line()

    def _do_answer(self, _: str) -> None:
        _write(1, self._line())

    def _do_serve(self, _: str) -> None:
        while line := self._line():
            if line.startswith(b"!"):
                self.step(os.fsdecode(line[1:].rstrip(b"\r\n")))
            else:
                _write(1, line)

    def _line(self) -> bytes:
        while b"\n" not in self._input:
            piece = os.read(0, 1 << 16)
            if not piece:
                line, self._input = self._input, b""
                return line
            self._input += piece
        line, _, self._input = self._input.partition(b"\n")
        return line + b"\n"

    def _do_line(self, value: str) -> None:
        left = size(value)
        while left > 0:
            _write(1, b"x" * min(left, 1 << 20))
            left -= 1 << 20
        _write(1, b"\n")

    def _do_flood(self, value: str, fd: int = 1) -> None:
        left = size(value)
        while left > 0:
            _write(fd, _PIECE[: -(-min(left, len(_PIECE)) // 100) * 100])
            left -= len(_PIECE)

    def _do_flood_errors(self, value: str) -> None:
        self._do_flood(value, 2)

    def _do_close(self, name: str) -> None:
        os.close(_FILES[name])

    # -- what it is and leaves -----------------------------------------------------------------

    def _do_tag(self, _: str) -> None:
        pass

    def _do_deaf(self, _: str) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _do_stop(self, _: str) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def _do_leave(self, _: str) -> None:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                _for_ever()
            _for_ever()

    def _do_daemon(self, _: str) -> None:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in _FILES.values():
                os.dup2(null, fd)
            _become({}, [*self._tags, "sleep"])
        os._exit(0)

    def _do_unmark(self, _: str) -> None:
        steps, self.steps = self.steps, []
        _become({"PATH": os.defpath}, [*self._tags, *steps])

    def _do_forks(self, value: str) -> None:
        """Fork in every process there is, until the tokens are used up: a bomb with a bound."""
        count = min(int(value), MOST_FORKS)
        reads, writes = os.pipe()
        os.write(writes, b"x" * count)
        os.close(writes)
        if os.fork() == 0:
            while os.read(reads, 1):
                os.fork()
            _for_ever()

    # -- what it uses --------------------------------------------------------------------------

    def _do_memory(self, value: str) -> None:
        self._held.append(bytearray(size(value)))

    def _do_files(self, value: str) -> None:
        try:
            self._held += [os.open(os.devnull, os.O_RDONLY) for _ in range(int(value))]
        except OSError as error:
            self._do_error(str(error))

    def _do_cpu(self, value: str) -> None:
        until = time.process_time() + float(value or "inf")
        while time.process_time() < until:
            pass

    def _do_sleep(self, value: str) -> None:
        if value:
            time.sleep(float(value))
        else:
            _for_ever()

    def _do_exit(self, value: str) -> None:
        os._exit(int(value or 0))

    def _do_signal(self, name: str) -> None:
        os.kill(os.getpid(), signal.Signals[f"SIG{name}"])


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _become(environment: dict[str, str], steps: list[str]) -> None:
    os.execve(sys.executable, argv(*steps), environment)


def _for_ever() -> None:
    while True:
        time.sleep(1000)


def main() -> None:
    """Perform the steps of the command line."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        Script(sys.argv[1:]).run()
    except BrokenPipeError:
        os._exit(1)  # nobody listens any more


if __name__ == "__main__":
    main()

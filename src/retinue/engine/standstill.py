"""A watch over the event loop: it says who holds it up.

All requests, streams and ``async`` agents share one loop. Code that blocks it stops them all, and
nothing that runs on the loop can tell. So a thread asks the loop twice a second for an answer; when
there is none for ``MOST_SECONDS`` a warning names the agent and the line, and when the loop goes on
another says how long it stood. Time in which this process did not run at all (it was stopped, the
machine was busy) does not count. It costs two wake-ups a second.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import sysconfig
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

import retinue

log = logging.getLogger(__name__)

MOST_SECONDS = 1.0
LOOK_SECONDS = 0.5
QUIET_SECONDS = 60.0
"""How long nothing is said of one who was named already."""
_MOST_NAMED = 1000
_NOT_THEIRS = (sysconfig.get_paths()["stdlib"], str(Path(retinue.__file__).parent))
_LIBRARIES = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
_EXAMPLES = str(Path(retinue.__file__).parent / "examples")
_WAITING = frozenset({"selectors.py", "runners.py"})
"""Where a loop without anything to do is: asyncio's, uvloop."""
_NAMED = re.compile(r"agent (?P<agent>\S+), (?:execution (?P<execution>\S+)|health check)\Z")


class Standstill:
    """Watches the loop that it is started on."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ident = 0
        self._answered = True
        self._named: dict[str, float] = {}

    def start(self) -> None:
        """Begin to watch; call it on the loop."""
        self._loop = asyncio.get_running_loop()
        self._ident = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="retinue-standstill", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=MOST_SECONDS)
            self._thread = None

    def _answer(self) -> None:
        self._answered = True

    def _run(self) -> None:
        asked = looked = time.monotonic()
        worked = time.process_time()
        named = False
        while not self._over.wait(LOOK_SECONDS):
            now, cpu = time.monotonic(), time.process_time()
            # What this thread came late by was no standstill, unless somebody worked meanwhile:
            # compiled code may keep all other threads from running.
            late = max(now - looked - LOOK_SECONDS, 0.0)
            held = min(late, cpu - worked)
            asked += late - held
            looked, worked = now, cpu
            if self._answered and (named or held <= MOST_SECONDS):
                if named:
                    log.warning("the event loop goes on; it stood still for %.1f s", now - asked)
                asked, named = now, False
                if not self._ask():
                    return
            elif not named and max(now - asked, held) > MOST_SECONDS:
                named = self._name(now, max(now - asked, held))

    def _ask(self) -> bool:
        assert self._loop is not None
        self._answered = False
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:
            return False  # it is closed
        return True

    def _name(self, now: float, seconds: float) -> bool:
        """Say who holds the loop up; return whether that was said."""
        assert self._loop is not None
        frame = sys._current_frames().get(self._ident)
        task = asyncio.current_task(self._loop)
        if frame is None:
            return False
        if task is None and Path(frame.f_code.co_filename).name in _WAITING:
            return False
        found = _NAMED.match(task.get_name()) if task is not None else None
        where = place(frame)
        known = found["agent"] if found is not None else where
        if now - self._named.get(known, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        if len(self._named) >= _MOST_NAMED:
            self._named.clear()
        self._named[known] = now
        log.warning(
            "%s holds up everything in this process, for %.1f s so far: %s. What blocks belongs"
            " into a plain method, which runs in a thread of its own, or into asyncio.to_thread",
            f"agent {known}" if found is not None else "something",
            seconds,
            where,
            extra=found and {"agent_id": found["agent"], "execution_id": found["execution"]},
        )
        return True


def place(frame: FrameType) -> str:
    """Return where a thread is: the line of somebody's own code, and where that has led it."""
    stack = traceback.extract_stack(frame)
    last = stack[-1]
    theirs = [step for step in stack if _is_theirs(step.filename)]
    own = next((s for s in reversed(theirs) if not _LIBRARIES.search(s.filename)), None)
    first = own or (theirs[0] if theirs else last)
    said = f"{first.filename}:{first.lineno} in {first.name}"
    if first.line:
        said += f" ({first.line[:100]})"
    return said if first is last else f"{said}, at {last.filename}:{last.lineno} in {last.name}"


def _is_theirs(file: str) -> bool:
    if file.startswith(_EXAMPLES) or _LIBRARIES.search(file):
        return True
    return not file.startswith((*_NOT_THEIRS, "<frozen"))

"""What agents could do to the next start: those that work where it reads what it is to do.

An agent that is not in a sandbox can do whatever our user can, wherever it works. One that works
beside the settings does so without even trying: they are in the way of its edits. A sandbox keeps
the settings and the store from it, but not the modules that are imported from beside the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from retinue.runtime.stores import store_file
from retinue.settings import (
    AgentReference,
    CodingReference,
    CommandReference,
    SandboxReference,
    Settings,
    WorkerReference,
)


class Exposed(NamedTuple):
    """An agent that works where it should not: what to say, and what to do about it."""

    agent: str
    text: str
    advice: str


def exposed(settings: Settings) -> Iterator[Exposed]:
    """Yield the agents that may change what the next start believes."""
    file = store_file(settings)
    wanted = (*settings.files, settings.data_dir, *((file,) if file is not None else ()))
    ours = {path.name: path.resolve() for path in wanted if path.exists()}
    modules = {
        path.parent.resolve()
        for path in settings.files[:1]
        if any(isinstance(given, AgentReference) for given in settings.agents)
    }
    for given in settings.agents:
        if not isinstance(given, CommandReference | CodingReference | WorkerReference):
            continue
        name = given.name if isinstance(given, WorkerReference) else given.agent_id
        box = getattr(given, "sandbox", False)
        more = box.write if isinstance(box, SandboxReference) else ()
        places = [path.resolve() for path in (given.work_dir, *more) if path is not None]
        if box is True or isinstance(box, SandboxReference):
            found = sorted(str(at) for at in modules if _within(at, places))
            if found:
                what = f"{name} may write {found[0]}, from where agents of this server are imported"
                yield Exposed(name, what, "give it a work_dir of its own: it could change them")
            continue
        names = sorted(name for name, path in ours.items() if _within(path, places))
        if names:
            what = f"{name} is in no sandbox and works where {', '.join(names)} can be changed"
            yield Exposed(name, what, "give it `sandbox: true`, or a work_dir of its own")


def _within(path: Path, places: list[Path]) -> bool:
    return any(path.is_relative_to(place) for place in places)

"""How many agent processes this machine can bear at once: by open files, processes and memory.

Checked at the start, so that what does not fit is refused with the number that would, rather than
failing when it is busiest. Pure, but for ``Host.here``.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import msgspec

FILES_EACH = 4
"""A pipe's end for each of stdin, stdout and stderr, and one for a while as it comes over."""
FILES_KEPT = 128
"""For the store, connections and everything else."""
PROCESSES_EACH = 3
"""A CLI and two tools of it: fewer have never been enough for coding agents."""
MEMORY_EACH = 8 << 20
"""The least that a process counts for that has no limit of its own."""
_UNLIMITED = 1 << 40


class Host(msgspec.Struct, frozen=True):
    """What a machine has left for agents."""

    files: int
    processes: int
    memory: int

    @classmethod
    def here(cls) -> Host:
        """Return what this process may have, as far as the system says."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        users = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        limits = [users if users != resource.RLIM_INFINITY and os.getuid() else _UNLIMITED]
        limits += [_number(f"/proc/sys/kernel/{name}") for name in ("pid_max", "threads-max")]
        limits.append(_number("/sys/fs/cgroup/pids.max"))
        return cls(
            files if files != resource.RLIM_INFINITY else _UNLIMITED,
            min(limits),
            min(_available(), _number("/sys/fs/cgroup/memory.max")),
        )


def _number(path: str) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return _UNLIMITED


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return _UNLIMITED


def percent(cpu: float, up: float) -> float:
    """Return CPU seconds in percent of one CPU: of a moment not more than all CPUs can give."""
    most = 100.0 * (os.cpu_count() or 1) if up < 1 else float("inf")
    return round(min(cpu / up * 100, most), 1) if up > 0 else 0.0


def fits(host: Host, memory_each: int = MEMORY_EACH) -> tuple[int, str]:
    """Return how many agents fit, and what bounds them: open files, processes or memory."""
    bounds = {
        "open files": (host.files - FILES_KEPT) // FILES_EACH,
        "processes": host.processes // PROCESSES_EACH,
        "memory": host.memory // max(memory_each, 1),
    }
    what = min(bounds, key=lambda name: bounds[name])
    return max(bounds[what], 0), what


def refusal(wanted: int, host: Host, memory_each: int = MEMORY_EACH) -> str | None:
    """Return why ``wanted`` agents at one time do not fit, and how many would; None: they do."""
    most, what = fits(host, memory_each)
    if wanted <= most:
        return None
    enough = f"{what} is enough" if what == "memory" else f"{what} are enough"
    return f"{wanted} agents at one time do not fit this machine: its {enough} for {most}"

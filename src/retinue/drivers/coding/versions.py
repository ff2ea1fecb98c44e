"""Which versions of the CLIs the drivers were tested against. Another one is said, not guessed."""

from __future__ import annotations

import re

TESTED = {
    "claude": ("2.1.",),
    "codex": ("0.169.",),
    "gemini": ("0.61.",),
    "opencode": ("1.18.",),
}
_VERSION = re.compile(r"\d+(?:\.\d+)+[\w.+-]*")


def version_in(text: str | None) -> str | None:
    """Return the first version that a text names."""
    found = _VERSION.search(text or "")
    return found.group() if found else None


def doubt(kind: str, version: str | None) -> str | None:
    """Say what is not known of a version; None: it is a tested one."""
    tested = TESTED.get(kind)
    if tested is None:
        return None
    known = ", ".join(f"{start}x" for start in tested)
    if version is None:
        return f"{kind} does not say its version; tested are {known}"
    if version.startswith(tested):
        return None
    return f"{kind} {version} is not a version that was tested ({known}): it may speak otherwise"

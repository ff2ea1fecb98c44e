"""Which session of a CLI's own goes with which of ours, kept beside the CLI's HOME.

The CLI keeps its conversations in that HOME; a name of one is worth nothing without it. So both
stand in the same directory, survive a restart together, and go together; an erasure of our session
removes the name. One file per session, replaced as a whole. Turns of one session follow one
another: two processes that go on with the same conversation would write over each other.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import msgspec

from retinue.domain.ids import now_us, ulid
from retinue.errors import ExecutionError
from retinue.process.quarters import session_file
from retinue.wire.jsonrpc import RpcError

_NOT_FOUND = (-32002, 404)
_UNKNOWN = re.compile(
    r"not found|no (?:rollout|previous session|conversation|such|session)"
    r"|does not exist|(?:unknown|invalid) (?:session|thread)",
    re.IGNORECASE,
)


class Native(msgspec.Struct, frozen=True, kw_only=True):
    """A CLI's own session; the costs are what it said of the whole of it, last time."""

    owner: str
    session_id: str
    native_session: str
    version: str | None = None
    cost_usd: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    updated_at: int = 0


class Natives:
    """The native sessions of one agent."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._turns: dict[str, asyncio.Lock] = {}

    def turn(self, owner: str, session_id: str) -> asyncio.Lock:
        """Return the lock that a turn of this session holds."""
        if len(self._turns) > 1000:  # noqa: PLR2004 those that nobody holds
            self._turns = {key: lock for key, lock in self._turns.items() if lock.locked()}
        return self._turns.setdefault(session_file(owner, session_id), asyncio.Lock())

    def find(self, owner: str, session_id: str) -> Native | None:
        """Return what is kept of a session; blocks."""
        try:
            found = msgspec.json.decode(self._file(owner, session_id).read_bytes(), type=Native)
        except (OSError, msgspec.DecodeError):
            return None
        return found if (found.owner, found.session_id) == (owner, session_id) else None

    def keep(self, native: Native, *, known: bool = False) -> None:
        """Keep a session, durably; ``known``: unless it was forgotten meanwhile. Blocks."""
        file = self._file(native.owner, native.session_id)
        if known and not file.exists():
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = file.with_suffix(f".{ulid()}")
        with part.open("wb") as out:
            out.write(msgspec.json.encode(msgspec.structs.replace(native, updated_at=now_us())))
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)

    def forget(self, owner: str, session_id: str) -> None:
        """Keep nothing of a session; blocks."""
        self._file(owner, session_id).unlink(missing_ok=True)

    def _file(self, owner: str, session_id: str) -> Path:
        return self._directory / session_file(owner, session_id)


def is_unknown(error: RpcError) -> bool:
    """Say whether a CLI refused to go on with a session because it does not know it.

    Any other refusal says nothing about the conversation, which stays what the session is.
    """
    more = error.data if isinstance(error.data, dict) else {"details": error.data}
    if error.code in _NOT_FOUND or more.get("service") == "session":  # OpenCode says no more
        return True
    return bool(_UNKNOWN.search(f"{error.message} {more.get('details') or ''}"))


def kept(kind: str, native: str, error: RpcError) -> ExecutionError:
    """Return what to say of a session that could not be gone on with this time."""
    return ExecutionError(
        f"{kind} could not go on with its session {native}, which is kept: {error}",
        details={"code": error.code, "native_session": native},
        outcome="not_started",
    )

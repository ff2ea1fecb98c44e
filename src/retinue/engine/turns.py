"""Brings those on whose turn in their session has come.

The store decides whose turn it is; this asks it whenever an execution of a session that somebody
waits for has ended here, and once a second for what ended elsewhere or before a restart. It also
sees to it that an ``interrupt`` cancels those before it: asked for as often as needed, because the
one that waits says so in the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from retinue.domain.execution import Execution, State
from retinue.domain.ids import now_us
from retinue.domain.intent import Release
from retinue.domain.policy import BusyPolicy
from retinue.domain.result import Released
from retinue.errors import NotFound, RetinueError, StoreUnavailable
from retinue.interfaces import ExecutionFilter, Page, Store

log = logging.getLogger(__name__)
_PAGE = 200
_FIRST = ("", "")
Cancelling = Callable[[str, str | None, str], Awaitable[Any]]


async def has_history(store: Store, execution: Execution) -> bool:
    """Say whether an earlier task of this agent's in this session was completed."""
    where = ExecutionFilter(
        owner=execution.owner,
        session_id=execution.session_id,
        agent_id=execution.agent_id,
        state=State.COMPLETED,
    )
    try:
        return bool((await store.executions(where, Page(1))).items)
    except StoreUnavailable:
        return False  # it is only for a warning


class Turns:
    """The sessions that somebody waits for, as far as this process knows."""

    def __init__(
        self,
        store: Store,
        *,
        on_ready: Callable[[Execution], None],
        cancel: Cancelling,
        aside: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._store = store
        self._on_ready = on_ready
        self._cancel = cancel
        self._aside = aside
        self._waited_for: set[tuple[str, str]] = set()
        self._releasing: set[tuple[str, str]] = set()
        self._interrupting: set[str] = set()
        self._place = _FIRST
        self.closed = False

    def waits(self, execution: Execution) -> None:
        """Take in that an execution waits for its session."""
        key = (execution.owner, execution.session_id)
        self._waited_for.add(key)
        if execution.on_busy is BusyPolicy.INTERRUPT:
            self._interrupt(execution)
        self._release(key)  # what it waits for may have ended meanwhile

    def ended(self, owner: str, session_id: str) -> None:
        """Take in that an execution has ended."""
        if (owner, session_id) in self._waited_for:
            self._release((owner, session_id))

    async def look(self) -> None:
        """Ask for a part of the sessions that somebody waits for; the next look goes on there."""
        known = set(self._waited_for)
        begun = self._place
        found = await self._store.turns(begun, _PAGE)
        self._place = found[-1] if len(found) == _PAGE else _FIRST
        if begun == _FIRST and len(found) < _PAGE:
            self._waited_for -= known.difference(found)
        for key in found:
            self._waited_for.add(key)
            self._release(key)
        for execution in await self._store.interrupting(_PAGE):
            self._interrupt(execution)

    def _release(self, key: tuple[str, str]) -> None:
        if key not in self._releasing and not self.closed:
            self._releasing.add(key)
            self._aside(self._let_go(key))

    async def _let_go(self, key: tuple[str, str]) -> None:
        # From here on whoever ends asks again: what the store decides may be older than that.
        self._releasing.discard(key)
        try:
            result = await self._store.write(Release(*key, now_us()))
        except RetinueError as error:
            log.warning("nobody goes on in a session, the store is away: %s", error.message)
            return
        if isinstance(result, Released) and result.execution is not None:
            self._on_ready(result.execution)

    def _interrupt(self, execution: Execution) -> None:
        if execution.id not in self._interrupting and not self.closed:
            self._interrupting.add(execution.id)
            self._aside(self._clear(execution))

    async def _clear(self, execution: Execution) -> None:
        """Cancel all that is before ``execution`` in its session."""
        by = interrupter(execution)
        try:
            ahead = await self._store.ahead(execution)
            await asyncio.gather(*(self._stop(i, execution.owner, by) for i in ahead))
        except RetinueError as error:
            log.warning("nothing is interrupted, the store is away: %s", error.message)
        finally:
            self._interrupting.discard(execution.id)

    async def _stop(self, execution_id: str, owner: str, by: str) -> None:
        try:
            await self._cancel(execution_id, owner, by)
        except NotFound:
            log.warning("nothing to interrupt: %s", execution_id)


def interrupter(execution: Execution) -> str:
    """Return who has all that is before ``execution`` in its session cancelled."""
    return f"{execution.created_by}, with execution {execution.id}"

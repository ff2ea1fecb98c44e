"""Lets into the queue what waited for its time: scheduled tasks, and retries between two attempts.

The store knows what is due; this is a timer for the earliest of it, and a look once a second for
what other processes scheduled. So a delay costs no memory here and survives a restart. Being late
or asking twice does no harm: the store decides once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from retinue.domain.execution import Execution, Hold, State
from retinue.domain.ids import now_us
from retinue.domain.intent import Promote
from retinue.domain.result import Promoted
from retinue.engine.journal import Journal
from retinue.engine.outcome import failed, response
from retinue.errors import RetinueError, SessionBusy
from retinue.interfaces import Store

log = logging.getLogger(__name__)
_PAGE = 500
_LEAST_SECONDS = 0.001


class Delays:
    """What waits for its time."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        *,
        on_ready: Callable[[Execution], None],
        on_turn: Callable[[Execution], None],
        grown: set[tuple[str, str]],
    ) -> None:
        self._store = store
        self._journal = journal
        self._on_ready = on_ready
        self._on_turn = on_turn
        self._grown = grown
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def at(self, run_at: int) -> None:
        """Something is due at ``run_at`` (microseconds UTC)."""
        if self._closed or (self._timer is not None and self._at <= run_at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = run_at
        delay = max((run_at - now_us()) / 1_000_000, _LEAST_SECONDS)
        self._timer = asyncio.get_running_loop().call_later(delay, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._rung())

    async def _rung(self) -> None:
        try:
            await self.look()
        except RetinueError as error:
            log.warning("what is due waits, the store is away: %s", error.message)
        finally:
            self._task = None

    async def close(self) -> None:
        """Promote nothing more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def look(self) -> None:
        """Promote all that is due, and wait for what is next."""
        while not self._closed:
            due = await self._store.due(now_us(), _PAGE)
            promoted = await asyncio.gather(*(self._promote(execution) for execution in due))
            if len(due) < _PAGE or not any(promoted):
                break
        following = await self._store.next_due()
        if following is not None:
            self.at(following)

    async def _promote(self, execution: Execution) -> bool:
        busy = SessionBusy(
            f"session {execution.session_id} was busy when this task was due",
            details={"session_id": execution.session_id},
        )
        end = failed(busy)
        result = await self._store.write(
            Promote(execution.id, now_us(), (end.event,), response(execution, end), busy.code)
        )
        if not isinstance(result, Promoted):
            return False
        if result.state is State.FAILED:
            self._grown.add((execution.owner, execution.session_id))
            self._journal.heard(await self._store.watch([execution.id]))
        elif result.hold is Hold.SESSION:
            self._on_turn(execution)
        else:
            self._on_ready(execution)
        return True

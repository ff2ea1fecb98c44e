"""Erasure: what an exchange said goes for good; that it took place stays in the chain.

Bodies, the content of events, questions and answers go; hashes stay, so that all chains still
verify, and a row of the audit says who erased what, and when. It is done when ``erase`` returns;
after a crash in between the next process goes on with it. What agents' processes left on this
machine goes after that: whoever was not told that it is done asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import msgspec

from retinue.domain.execution import Execution
from retinue.domain.ids import now_us
from retinue.domain.intent import Erase
from retinue.domain.principal import Principal
from retinue.domain.result import Erased
from retinue.engine.retention import Retention
from retinue.errors import Conflict
from retinue.interfaces import Leavings, Store

_PAGE = 100


class Erasure(msgspec.Struct, frozen=True):
    """How many contracts were erased; ``open``: left alone, their executions have not ended."""

    contracts: int
    open: int


async def erase_execution(
    store: Store,
    retention: Retention,
    execution: Execution,
    by: Principal,
    leavings: Leavings | None = None,
) -> Erasure:
    """Erase what an execution was given, did and answered.

    Raises:
        Conflict: it has not ended.
    """
    places = (execution.request_n, execution.response_n or execution.request_n)
    done = await store.write(
        Erase(
            execution.owner,
            execution.session_id,
            places,
            by.name,
            by.owner,
            "execution.erase",
            execution.id,
            now_us(),
        )
    )
    assert isinstance(done, Erased)
    if done.open:
        raise Conflict(
            f"execution {execution.id} is {execution.state.value}: erase it when it has ended"
        )
    await retention.sweep()
    await _forget(leavings, {execution.id}, execution.owner, execution.session_id)
    return Erasure(done.contracts, 0)


async def erase_session(
    store: Store,
    retention: Retention,
    owner: str,
    session_id: str,
    by: Principal,
    leavings: Leavings | None = None,
) -> Erasure:
    """Erase every exchange of a session that has ended; those that come later are not erased."""
    total = waiting = after = 0
    session = await store.session(owner, session_id)
    last = session.n if session is not None else 0
    for point in await store.checkpoints((owner, session_id), (owner, session_id)):
        after = point.n
    while after < last:
        places = tuple(range(after + 1, min(after + _PAGE, last) + 1))
        done = await store.write(
            Erase(
                owner,
                session_id,
                places,
                by.name,
                by.owner,
                "session.erase",
                session_id,
                now_us(),
            )
        )
        assert isinstance(done, Erased)
        total += done.contracts
        waiting += done.open
        after = places[-1]
    await retention.sweep()
    left = await asyncio.to_thread(leavings.executions) if leavings is not None else ()
    ended = set()
    for execution_id in left:
        execution = await store.execution(execution_id, owner)
        if execution is not None and execution.session_id == session_id and execution.terminal:
            ended.add(execution_id)
    await _forget(leavings, ended, owner, session_id)
    return Erasure(total, waiting)


async def _forget(
    leavings: Leavings | None, executions: Collection[str], owner: str, session_id: str
) -> None:
    if leavings is not None:
        await asyncio.to_thread(leavings.forget, executions, owner, session_id)

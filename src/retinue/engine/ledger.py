"""Verification: recompute every chain of the ledger and name the first row that does not fit.

In this order: the audit chain, and what it vouches for (anchored heads, keys, registered agents);
each session's contracts with the executions they seal and their events, questions and answers;
every execution, for its REQUEST; the tallies, by a recount. Who rewrites all of it, the audit chain
too, is found out by an anchor that was noted elsewhere (``Anchor``).
"""

from __future__ import annotations

import asyncio
from collections import Counter

from retinue.archive import Standing
from retinue.domain.execution import TERMINAL, Execution, counts
from retinue.domain.execution import State as ExecutionState
from retinue.domain.retention import REMOVED
from retinue.engine.chains import Chains
from retinue.engine.replay import Marks, Replay
from retinue.engine.verdict import UNREADABLE, Broken, Fault, Progress, Verdict, session_name
from retinue.engine.witness import Anchor, Witness
from retinue.interfaces import AgentTally, Store

__all__ = ["Anchor", "Fault", "Verdict", "Verification"]

_PAGE = 1000
_TRIES = 3


class Verification:
    """One pass over the ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._progress = Progress()
        self._marks = Marks(store)
        self._replay = Replay(store, Progress())

    async def run(self, owner: str | None = None, anchor: Anchor | None = None) -> Verdict:
        """Verify everything, or only one owner's sessions; ``anchor`` must be in the audit."""
        progress = self._progress
        witness = Witness(self._store, progress, owner)
        fault: Fault | None = None
        try:
            await witness.run(anchor)
            if owner is None:
                await witness.keys()
                await witness.agents()
            await Chains(self._store, progress, owner).run()
            if witness.doubt is None:
                await self._executions(owner)
        except Broken as broken:
            fault = broken.fault
        except UNREADABLE as error:
            chain, n, row_id = progress.at
            fault = Fault(
                chain, n, f"the row cannot be read: {type(error).__name__}: {error}", row_id
            )
        return progress.verdict(_first(fault, witness.doubt))

    async def _executions(self, owner: str | None) -> None:
        """Walk over the executions: none without REQUEST, no event without execution, tallies."""
        before = await self._store.tallies()
        recount: Counter[tuple[str, bool]] = Counter()
        last = ""
        while True:
            self._progress.at = ("executions", 0, last or None)
            rows = await self._store.standing_after(last, owner, _PAGE)
            end = rows[-1].id if len(rows) == _PAGE else None
            if owner is None:
                await self._strays(last, end)
            open_ones = []
            for row in rows:
                _placed(row)
                if row.state not in TERMINAL:
                    open_ones.append(row.id)
                if counts(row.agent_id, row.state, row.outcome):
                    done = row.state is ExecutionState.COMPLETED
                    recount[row.agent_id or "", done] += 1
            await self._open(open_ones)
            await self._removed([row for row in rows if row.contract is None])
            if end is None:
                break
            last = end
            await asyncio.sleep(0)
        if owner is None:
            _compare(before, recount, await self._store.tallies())
            question = await self._store.stray_question()
            if question is not None:
                raise Broken("questions", 0, "the question's execution is missing", question)

    async def _strays(self, after: str, end: str | None) -> None:
        stray = await self._store.stray_event(after, end)
        if stray is not None:
            execution_id, seq = stray
            raise Broken(f"events of {execution_id}", seq, "their execution is missing")

    async def _removed(self, rows: list[Standing]) -> None:
        """Check that of executions whose contracts were removed the audit says so, too."""
        marks = await self._marks.of([row.id for row in rows])
        for row in rows:
            if (row.id, REMOVED) not in marks:
                said = f"the audit does not say who removed the events of {row.id}"
                name = session_name(row.owner, row.session_id)
                raise Broken(name, row.request_n, said, row.id)

    async def _open(self, ids: list[str]) -> None:
        """Replay executions that have not ended; those that go on meanwhile are read again."""
        for _ in range(_TRIES):
            if not ids:
                return
            executions = await self._store.executions_of(ids)
            faults = await self._replay.faults(executions, {})
            again = {e.id: e for e in await self._store.executions_of(sorted(faults))}
            for execution in executions:
                fault = faults.get(execution.id)
                if fault is not None and _stands(execution, again.get(execution.id)):
                    raise Broken(fault.chain, fault.n, fault.reason, fault.id)
            ids = sorted(faults)


def _first(fault: Fault | None, doubt: Fault | None) -> Fault | None:
    """Return what to name: rows before the place an anchor names, else what that says."""
    if fault is None or doubt is None:
        return fault or doubt
    return doubt if fault.chain == doubt.chain and fault.n >= doubt.n - 1 else fault


def _stands(before: Execution, after: Execution | None) -> bool:
    return after is not None and (before.last_seq, before.digest) == (after.last_seq, after.digest)


def _placed(row: Standing) -> None:
    """Check that an execution has its REQUEST, or that retention has removed that.

    Raises:
        Broken: it has not.
    """
    if row.contract == row.request_id or (row.contract is None and row.request_n <= (row.cut or 0)):
        return
    name = session_name(row.owner, row.session_id)
    raise Broken(name, row.request_n, f"the REQUEST of execution {row.id} is missing", row.id)


def _compare(
    before: dict[str, AgentTally],
    recount: Counter[tuple[str, bool]],
    after: dict[str, AgentTally],
) -> None:
    """Compare the tallies with a recount; what ended meanwhile may be in it or not.

    Raises:
        Broken: one does not fit.
    """
    agents = sorted({*before, *after, *(agent for agent, _ in recount)})
    for agent in agents:
        least, most = before.get(agent, AgentTally()), after.get(agent, AgentTally())
        for done, what in ((True, "completed"), (False, "failed")):
            n = recount[agent, done]
            if not getattr(least, what) <= n <= getattr(most, what):
                said = f"it counts {getattr(most, what)} {what}, there are {n}"
                raise Broken(f"tally of {agent}", 0, said)

"""What earlier servers left running: found again and gone on with, or said to be gone.

An agent never works unowned. What a dead worker supervised on this node has died with it, unless it
was to be kept: that is found, its row and its attempt become ours in one commit, and its output is
read on behind the last event that was journaled. What is found and wanted by nobody is ended.

A worker may be dead to the store and its processes alive: it was stopped, or cut off. So what is
gone on with by nobody is ended before it is said to be gone, and only then does its execution end
by its delivery policy (``scheduler``). What cannot be ended is said to go on.

One that was to be kept and has ended by itself may have said more than its server took in: as long
as its attempt has not ended, its output is read on like that of one that lives.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import cast

from retinue.domain.execution import Execution, State
from retinue.domain.ids import now_us
from retinue.domain.instance import InstanceRecord, InstanceState
from retinue.domain.intent import AdoptInstance, Fence
from retinue.domain.result import Adopted
from retinue.engine.attempt import Resumed
from retinue.engine.attempts import Attempts
from retinue.engine.instances import Instances
from retinue.engine.registry import Registry
from retinue.errors import RetinueError
from retinue.interfaces import Driver, InstanceFilter, KeepingDriver, Page, Process, Store
from retinue.process.remains import end
from retinue.process.traces import abandon

log = logging.getLogger(__name__)
AWAY_SECONDS = 60
"""How long another node's server may be away before what is kept there is given up."""
_PAGE = 500


class Reunion:
    """Looks for what dead workers supervised. ``reattached`` and ``gone`` are instances."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        attempts: Attempts,
        instances: Instances,
        drivers: dict[str, Driver],
    ) -> None:
        self._store = store
        self._registry = registry
        self._attempts = attempts
        self._instances = instances
        self._drivers = drivers
        self.reattached: list[InstanceRecord] = []
        self.gone: list[InstanceRecord] = []
        self._unwanted: set[str] = set()

    async def run(self) -> None:
        """Deal with all that dead workers supervised."""
        found = False
        while left := await self._store.ownerless(self._instances.node, _PAGE):
            found = True
            over = await asyncio.gather(*map(self._is_over, left))
            await self._bury([record for record, yes in zip(left, over, strict=True) if yes])
            if len(left) < _PAGE or any(record.state is InstanceState.LOST for record in left):
                break
        if found:
            for driver in self._keeping():
                driver.end_unwanted()

    async def awaited(self, execution: Execution) -> bool:
        """Say whether somebody may still go on with an execution whose worker is dead.

        Another node, or this one: its worker may have died since ``run`` looked. What one has left
        that ended while its server was still reading is taken up here.
        """
        where = InstanceFilter(execution_id=execution.id)
        for record in (await self._store.instances(where, Page())).items:
            # One that could not be ended holds its execution back as long as one that may be found.
            here = record.node == self._instances.node
            lost = here and record.state is InstanceState.LOST
            if (record.kept or lost) and await self._may_go_on(record, execution):
                return True
        return False

    async def _may_go_on(self, record: InstanceRecord, execution: Execution) -> bool:
        if not record.ended:
            away = now_us() - record.state_at if record.state is InstanceState.LOST else 0
            return away < AWAY_SECONDS * 1_000_000
        if (record.worker, record.attempt) != (execution.worker, execution.attempt):
            return False  # of an earlier attempt
        if record.node != self._instances.node:
            return now_us() - record.state_at < AWAY_SECONDS * 1_000_000
        if not await self._reattach(record):
            return False
        self.reattached.append(record)
        return True

    def _keeping(self) -> list[KeepingDriver]:
        return [cast(KeepingDriver, d) for d in self._drivers.values() if d.features.keeps]

    async def _is_over(self, record: InstanceRecord) -> bool:
        """Go on with an instance; True: nobody can."""
        here = record.node == self._instances.node
        if here and record.kept and await self._reattach(record):
            self.reattached.append(record)
            return False
        return True

    async def _bury(self, records: list[InstanceRecord]) -> None:
        """Record that instances have ended, and see that it is so of those on this node."""
        # Another server of this node may have gone on with one while we looked for it.
        records = [record for record in records if await self._is_nobodys(record)]
        here = [record for record in records if record.node == self._instances.node]
        found = await end({r.instance_id: r.found() for r in here}) if here else {}
        for record in records:
            remains, before = found.get(record.instance_id), record.state
            if remains is not None and record.instance_id in self._unwanted:
                self._unwanted.discard(record.instance_id)
                remains = remains._replace(ended=0)  # that it was still there is our doing
            await self._instances.bury(record, remains)
            if remains is None:
                continue
            work = f", execution {record.execution_id}" if record.execution_id else ""
            what = f"instance {record.instance_id} of agent {record.agent_id}{work}"
            if not remains.left:
                log_of = record.found().get("log")
                if log_of is not None:
                    await asyncio.to_thread(abandon, Path(log_of), read=not record.kept)
                self.gone.append(record)
                how = "ended for want of its server" if remains.ended else "gone with its server"
                log.warning("%s: %s", how, what)
            elif before is not InstanceState.LOST:
                log.error("not ours to end, and its server is not heard of: %s: %s", what, remains)

    async def _is_nobodys(self, record: InstanceRecord) -> bool:
        now = await self._store.instance(record.instance_id, None)
        return now is not None and now.worker == record.worker

    async def _reattach(self, record: InstanceRecord) -> bool:
        driver = self._drivers.get(record.driver)
        if driver is None or not driver.features.keeps:
            return False
        execution = await self._running(record)
        cursor = execution.cursor if execution is not None else None
        entry = self._registry.by_id(record.agent_id)
        mine = entry is not None and entry.definition.driver == record.driver
        definition = entry.definition if entry is not None and mine else None
        process = await cast(KeepingDriver, driver).recover(definition, record, cursor)
        if process is None:
            return False
        try:
            if execution is None or definition is None:
                process.kill()  # nobody waits for what it does any more
                self._unwanted.add(record.instance_id)
                return False
            return await self._go_on(record, execution, process)
        except RetinueError:
            process.kill()
            raise

    async def _running(self, record: InstanceRecord) -> Execution | None:
        """Return the execution that an instance works on, if that is still its own."""
        if record.execution_id is None:
            return None
        execution = await self._store.execution(record.execution_id, None)
        if execution is None or execution.state is not State.RUNNING:
            return None
        same = execution.worker == record.worker and execution.attempt == record.attempt
        return execution if same else None

    async def _go_on(self, record: InstanceRecord, execution: Execution, process: Process) -> bool:
        fence = Fence(execution.id, execution.attempt, record.worker)
        adopted = await self._store.write(
            AdoptInstance(record, fence, self._store.worker, now_us())
        )
        entry = self._registry.by_id(record.agent_id)
        if not isinstance(adopted, Adopted) or adopted.execution is None or entry is None:
            process.kill()
            return False
        body, _ = await self._store.bodies(adopted.execution)
        live = self._instances.take_over(adopted.instance, process)
        self._registry.slots.take(entry)
        call = entry.admit(time.monotonic())
        resumed = Resumed(live, process)
        self._attempts.start(adopted.execution, body or b"{}", entry, call, resumed)
        log.warning(
            "re-attached: instance %s of agent %s, %s, execution %s, after %s",
            record.instance_id,
            record.agent_id,
            f"process {process.pid}" if process.pid else "which has ended meanwhile",
            execution.id,
            execution.cursor or "its beginning",
        )
        return True

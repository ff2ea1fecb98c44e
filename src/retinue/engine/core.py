"""The engine's parts, put together: what the orchestrator talks to."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from msgspec.structs import replace

from retinue.domain.agent import AgentDefinition, StoredAgent, check_agent_id
from retinue.domain.audit import AuditDraft
from retinue.domain.budget import tightest
from retinue.domain.execution import Execution, Hold, Task
from retinue.domain.ids import now_us
from retinue.domain.intent import Answer, Cancel, Prioritize
from retinue.domain.policy import RatePolicy
from retinue.domain.principal import Authority
from retinue.domain.result import Cancelling, Conflict, Rejected
from retinue.domain.strictjson import dumps, loads
from retinue.engine.attempt import Attempt
from retinue.engine.attempts import Attempts
from retinue.engine.delays import Delays
from retinue.engine.entry import Entry
from retinue.engine.heartbeat import Heartbeat
from retinue.engine.instances import Instances
from retinue.engine.intake import Accepted, Intake
from retinue.engine.journal import Journal
from retinue.engine.outbox import Grown, Outbox
from retinue.engine.outcome import Reply, failed, response, result_of
from retinue.engine.pools import Pools
from retinue.engine.queue import Queue
from retinue.engine.registry import Registry
from retinue.engine.retention import Policy, Retention
from retinue.engine.reunion import Reunion
from retinue.engine.roster import Roster
from retinue.engine.rounds import Rounds
from retinue.engine.scheduler import Recovered, Scheduler
from retinue.engine.schema import check_answer
from retinue.engine.standstill import Standstill
from retinue.engine.turns import Turns, has_history
from retinue.engine.watch import Watch
from retinue.errors import (
    Cancelled,
    Fenced,
    NotFound,
    NotSupported,
    RetinueError,
    Stopped,
    Timeout,
)
from retinue.errors import Conflict as ConflictError
from retinue.interfaces import (
    Driver,
    DriverContext,
    Features,
    Keeping,
    Leavings,
    Memory,
    Sink,
    Store,
)

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.25
"""How often a drain looks who waits for what will not come."""


class Engine:
    """Performs tasks: intake, queue, attempts, journal and scheduler over one store."""

    def __init__(
        self,
        store: Store,
        drivers: dict[str, Driver],
        *,
        journal: Journal | None = None,
        queue_bound: int = 10_000,
        caller_rate: RatePolicy | None = None,
        max_result_bytes: int = 16 << 20,
        sinks: Sequence[Sink] = (),
        memory: Memory | None = None,
        health_seconds: tuple[float, float] = (10.0, 5.0),
        signing_key: Callable[[], bytes] | None = None,
        policy: Policy | None = None,
        cleanup_interval: float = 60.0,
        max_running: int | None = None,
        max_memory: int | None = None,
        step_us: int = 60_000_000,
        own_only: bool = False,
        leavings: Leavings | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            store: opened before ``start``.
            drivers: by the name that definitions call them.
            queue_bound: tasks that may wait per agent or capability.
            caller_rate: how often one caller may submit.
            max_result_bytes: bytes of one result.
            health_seconds: between two health checks of an agent, and for one of them.
            signing_key: what agents' secrets are derived from; a fresh one unless given.
            sinks: what contracts are delivered to.
            memory: what compresses sessions; else it is done here.
            policy: what is kept, and for how long.
            cleanup_interval: seconds between two rounds of retention.
            max_running: executions at one time in this process; None: as agents allow.
            step_us: how long a task has to wait to make up for one step of priority.
            own_only: perform what is submitted here, not what else waits in the store.
            leavings: what agents' processes leave beside the store.
        """
        self.store = store
        self.step_us = step_us
        store.sinks = tuple(sink.name for sink in sinks)
        self.outbox = Outbox(store, sinks)
        self.memory = memory
        self.leavings = leavings
        self.memory_watch = Watch(memory) if memory is not None else None
        self.retention = Retention(store, policy or Policy(), cleanup_interval)
        self.registry = Registry(max_running, max_memory)
        self.journal = journal or Journal(store)
        self.queue = Queue(store, self.registry, own_only=own_only)
        grown: set[tuple[str, str]] = Grown(self.outbox) if sinks else set()
        self._grown = grown
        self.turns = Turns(store, on_ready=self._ready, cancel=self.cancel, aside=self._aside)
        self.delays = Delays(
            store, self.journal, on_ready=self._ready, on_turn=self._in_turn, grown=grown
        )
        self.attempts = Attempts(
            store,
            self.journal,
            self.registry,
            max_result_bytes=max_result_bytes,
            on_free=self.queue.freed,
            on_later=self._later,
            on_ended=self.turns.ended,
            keeps=lambda entry: self.features(entry).keeps,
            grown=grown,
        )
        self.queue.attempts = self.attempts
        self.intake = Intake(
            store,
            self.journal,
            self.registry,
            self.attempts,
            queue_bound=queue_bound,
            caller_rate=caller_rate,
            step_us=step_us,
            on_waiting=self._waiting,
            grown=grown,
        )
        interval, timeout = health_seconds
        self.standstill = Standstill()
        self.heartbeat = Heartbeat(
            store,
            self.registry,
            interval=interval,
            timeout=timeout,
            features=self.features,
            on_back=self.queue.freed,
        )
        self.roster = Roster(
            store,
            self.registry,
            add=self.add_agent,
            drop=self._drop,
            check=self._check,
            signing_key=signing_key or _fresh_key(),
        )
        self.pools = Pools(store, self.registry, on_free=self.queue.freed, drop=self._drop)
        self.scheduler = Scheduler(
            store,
            self.journal,
            self.queue,
            self.attempts,
            self.delays,
            self.turns,
            grown,
            follow=self.roster.follow,
            retention=self.retention,
        )
        self.instances = Instances(store, self.attempts.write)
        self.rounds = Rounds(self.instances, self.attempts.running)
        self.reunion = Reunion(store, self.registry, self.attempts, self.instances, drivers)
        self.scheduler.reunion = self.reunion
        self.recovered = Recovered()
        self._drivers = drivers
        known = functools.partial(has_history, store)
        self._context = DriverContext(
            self._submit, max_result_bytes, self.instances, has_history=known
        )
        self._ticking: asyncio.Task[None] | None = None
        self._asides: set[asyncio.Task[Any]] = set()

    def _waiting(self, execution: Execution) -> None:
        """Take in that an execution was accepted that could not start at once."""
        self.queue.accepted(execution)
        if execution.hold is Hold.TIME:
            self.delays.at(execution.run_at)
        elif execution.hold is Hold.SESSION:
            self._in_turn(execution)
        else:
            self._ready(execution)

    def _in_turn(self, execution: Execution) -> None:
        self.turns.waits(execution)
        if execution.deadline_at is not None:
            self.scheduler.at(execution.deadline_at)

    def _ready(self, execution: Execution) -> None:
        self.queue.queued(execution.queue_key)
        if execution.deadline_at is not None:
            self.scheduler.at(execution.deadline_at)

    def _later(self, execution: Execution, run_at: int) -> None:
        self.queue.accepted(execution)
        if run_at > now_us():
            self.delays.at(run_at)
        else:
            self.queue.queued(execution.queue_key)

    # -- starting and stopping -----------------------------------------------------------------

    async def start(self) -> None:
        """Take over what earlier processes left, and begin to work on the queue."""
        await self.roster.follow()
        await self.scheduler.resume()
        self.recovered = await self.scheduler.recover()
        await self.pools.start()
        self.outbox.start()
        if self.memory_watch is not None:
            self.memory_watch.start()
        self._ticking = asyncio.create_task(self.scheduler.run())
        self.heartbeat.start()
        self.standstill.start()
        self.rounds.start()

    async def drain(self, grace: float) -> bool:
        """Take no new work and let what runs end, for at most ``grace`` seconds.

        What is kept goes on without us.

        Returns whether everything ended by itself. What did not is stopped: it is queued again
        where its delivery policy allows, else it ends failed with its outcome unknown. What is
        queued stays queued.
        """
        self.intake.closed = True
        self.queue.closed = True
        self.turns.closed = True
        self._let_go()
        loop = asyncio.get_running_loop()
        until = loop.time() + grace
        while self.attempts.running and (left := until - loop.time()) > 0:
            for attempt in list(self.attempts.running.values()):
                if attempt.parked or attempt.asking:
                    # It waits for a child that is queued, and the queue is closed; or for a person.
                    attempt.end(Stopped())
            waiting = {a.wait() for a in self.attempts.running.values()}
            await asyncio.wait(waiting, timeout=min(left, LOOK_SECONDS))
        clean = not self.attempts.running
        for attempt in list(self.attempts.running.values()):
            attempt.end(Stopped())
        tasks = {a.task for a in self.attempts.running.values() if a.task is not None}
        tasks |= self.attempts.superseded
        if tasks:
            await asyncio.wait(tasks, timeout=10)
        return clean

    def _let_go(self) -> None:
        """Let what is kept go on without this server: the next one finds it."""
        for attempt in list(self.attempts.running.values()):
            instance = attempt.entry.instance
            if instance is None or not self.features(attempt.entry).keeps:
                continue
            if cast(Keeping, instance).let_go(attempt.execution.id):
                self.attempts.broken.add(attempt.execution.id)  # leased, and not to be given back
                attempt.end(Fenced("the agent goes on without this server"))

    async def stop(self) -> None:
        """Stop the loops and the instances; call ``drain`` first."""
        self.standstill.stop()
        await self.rounds.stop()
        await self.heartbeat.stop()
        await self.delays.close()
        if self._asides:
            await asyncio.wait(self._asides, timeout=5)
        self.journal.close()
        self.scheduler.stop()
        if self._ticking is not None:
            await self._ticking
        try:
            await self.scheduler.anchor()
        except RetinueError as error:
            log.warning("no last anchor: %s", error.message)
        await self.pools.stop(1.0)
        for entry in self.registry:
            await entry.stop(1.0)
        await self.close()

    async def close(self) -> None:
        """Deliver to the sinks what can be at once; close the connections to other services."""
        await self.outbox.stop()
        if self.memory_watch is not None:
            await self.memory_watch.stop()

    def lost(self, why: str = "this process could not renew its lease in time") -> None:
        """Stop everything that runs: this worker's lease is over, or cannot be renewed."""
        running = list(self.attempts.running.values())
        log.warning("%s: what runs here is stopped (%d executions)", why, len(running))
        for attempt in running:
            attempt.end(Fenced(f"{why}; this was stopped before anybody else may take it over"))
        self.outbox.lost()

    # -- agents --------------------------------------------------------------------------------

    def add_agent(self, definition: AgentDefinition, stored: StoredAgent | None = None) -> Entry:
        """Make an agent's capabilities routable at once; it is started by its first task.

        ``stored`` is its registration, where the store holds one.

        Raises:
            Conflict: its id is taken.
            InvalidInput: its id or a capability's schema is not valid.
            NotSupported: this process has no such driver.
        """
        check_agent_id(definition.agent_id)
        driver = self._driver(definition)
        if driver.features.pooled:
            entry = self.pools.add_agent(definition, driver, self._context, stored)
        else:
            entry = self.registry.add(
                definition, lambda: driver.start(definition, self._context), stored
            )
        if self._ticking is not None:
            self.scheduler.soon()
        self.heartbeat.soon(entry)
        return entry

    def add_worker(self, definition: AgentDefinition) -> None:
        """Have a program that says itself which agents it performs, once it runs.

        Raises:
            Conflict: there is one of that name.
            InvalidInput: that is no name.
            NotSupported: this process has no such driver.
        """
        self.pools.add(definition, self._driver(definition), self._context)

    def _driver(self, definition: AgentDefinition) -> Driver:
        driver = self._drivers.get(definition.driver)
        if driver is None:
            raise NotSupported(f"agent {definition.agent_id}: no driver {definition.driver} here")
        return driver

    async def remove_agent(self, agent_id: str) -> None:
        """Take an agent out of routing and stop it once its running work has ended."""
        await self._ended_with(self.registry.remove(agent_id))

    def _drop(self, entry: Entry) -> None:
        """Take an agent out of routing; what it runs ends in its own time."""
        self.registry.remove(entry.agent_id)
        self._aside(self._ended_with(entry))

    async def _ended_with(self, entry: Entry) -> None:
        """Stop a removed agent once its running work has ended."""
        running = {a.wait() for a in self.attempts.running.values() if a.entry is entry}
        if running:
            await asyncio.wait(running)
        await entry.stop(1.0)

    async def _check(self, definition: AgentDefinition) -> None:
        """Have the driver check a definition that an API caller brought."""
        driver = self._drivers.get(definition.driver)
        if driver is None or not driver.features.registers:
            raise NotSupported(f"agents of the kind {definition.driver} cannot be registered here")
        await driver.check(definition)

    def features(self, entry: Entry) -> Features:
        """Return what the agent's driver can do."""
        return self._drivers[entry.definition.driver].features

    # -- work ----------------------------------------------------------------------------------

    async def submit(self, task: Task, authority: Authority) -> Accepted:
        """Accept a task; see ``Intake.submit``."""
        return await self.intake.submit(task, authority)

    async def perform(
        self, task: Task, authority: Authority, *, until_asked: bool = False
    ) -> Reply:
        """Accept a task and return its reply; see ``Intake.perform``."""
        return await self.intake.perform(task, authority, until_asked=until_asked)

    async def _submit(self, task: Task, authority: Authority) -> Any:
        """Perform a task for an agent: the parent gives up its slot while it waits."""
        parent = self.attempts.running.get(authority.parent_id or "")
        if parent is None:
            return result_of(await self.intake.perform(task, authority))
        self._lend(parent)
        parent.effects = True
        if parent.budget is not None:
            # Its own limit, too: it holds wherever the child runs.
            left = parent.budget.left()
            task = replace(task, budget=tightest(left, task.budget) if task.budget else left)
        try:
            accepted = await self.intake.submit(task, authority)
            parent.parked = accepted.attempt is None
            if parent.parked and self.intake.closed:
                raise Stopped()
            return result_of(await self._awaited(parent, accepted, authority.owner))
        finally:
            parent.parked = False
            await self._take_back(parent)

    async def _awaited(self, parent: Attempt, child: Accepted, owner: str) -> Reply:
        """Return the reply of what ``parent`` has another agent do."""
        parent.awaited.add(child.execution_id)
        try:
            return await self.intake.answer(child)
        except asyncio.CancelledError:
            if isinstance(parent.stop, Cancelled | Timeout):
                # Nobody wants any more what it had others do, either.
                by = str(parent.stop.details.get("by", "its parent, which ran out of time"))
                self._aside(self.cancel(child.execution_id, owner, by))
            raise
        finally:
            self.attempts.questions.forget_call(parent, child.execution_id)

    def _aside(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do something that nobody waits for."""
        task = asyncio.create_task(work)
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    def _lend(self, parent: Attempt) -> None:
        """Give a parent's slot up with the first of the calls it waits for."""
        parent.calls += 1
        if parent.calls == 1 and not parent.lent and not parent.released:
            parent.lent = True
            self._give_up(parent)

    def _give_up(self, parent: Attempt) -> None:
        """Let others have what an execution that waits for them, or has ended, occupies."""
        if parent.entry.pool is not None:
            parent.entry.pool.lend(parent.execution.id)
        self.registry.slots.give(parent.entry)
        self.queue.freed(parent.entry)

    async def _take_back(self, parent: Attempt) -> None:
        """Take the slot again with the last of them, if the parent still runs."""
        parent.calls -= 1
        parent.coming_back = parent.coming_back or asyncio.Lock()
        async with parent.coming_back:  # several of its calls may end while the first one waits
            if parent.calls or not parent.lent or self._ended(parent):
                return
            try:
                # The slot first, as who begins does: nobody holds a place and waits for a slot.
                await self.registry.slots.regain(parent.entry)
                if parent.entry.pool is not None:
                    await parent.entry.pool.regain(parent.execution.id)
            finally:
                ended = self._ended(parent)
                parent.lent = bool(parent.calls) and not ended  # it called again meanwhile
                if ended or parent.lent:
                    self._give_up(parent)

    @staticmethod
    def _ended(parent: Attempt) -> bool:
        return parent.released

    async def cancel(self, execution_id: str, owner: str | None, by: str) -> Execution:
        """Cancel an execution; one that runs is stopped, wherever it runs.

        Returns the execution as it is now. An execution that has ended stays as it is.

        Raises:
            NotFound: there is none.
        """
        execution = await self._known(execution_id, owner)
        if not execution.terminal:
            known = execution.known_in_queue
            end = failed(Cancelled("cancelled by " + by, details={"by": by}, outcome=known))
            result = await self.store.write(
                Cancel(execution_id, owner, by, response(execution, end), now_us())
            )
            if isinstance(result, Cancelling):
                attempt = self.attempts.running.get(execution_id)
                if attempt is not None:
                    ended = attempt.wait()
                    self.attempts.cancel(execution_id, by)
                    await asyncio.wait({ended}, timeout=5)
                else:
                    self._grown.add((execution.owner, execution.session_id))
                self.turns.ended(execution.owner, execution.session_id)
            self.journal.heard(await self.store.watch([execution_id]))
        return await self._known(execution_id, owner)

    async def prioritize(
        self, execution_id: str, owner: str | None, priority: int, audit: AuditDraft
    ) -> Execution:
        """Give an execution that waits another place in the queue; return it as it is now.

        Raises:
            NotFound: there is none.
            Conflict: it does not wait any more.
        """
        result = await self.store.write(
            Prioritize(execution_id, owner, priority, self.step_us, audit, now_us())
        )
        if isinstance(result, Conflict):
            raise ConflictError(
                f"execution {execution_id} is {result.details['state']}: it does not wait any more",
                details=result.details,
            )
        return await self._known(execution_id, owner)

    async def answer(self, question_id: str, owner: str | None, by: str, value: Any) -> None:
        """Answer an open question; its execution goes on.

        Raises:
            NotFound: there is no such question.
            InvalidInput: the answer does not fit the question's schema.
            Conflict: it was answered, has expired, or its execution is gone.
        """
        asked = await self.store.question(question_id, owner)
        if asked is not None and asked.schema is not None:
            check_answer(loads(asked.schema), value)
        result = await self.store.write(Answer(question_id, owner, by, dumps(value), now_us()))
        if isinstance(result, Rejected):
            raise NotFound(f"no question {question_id}")
        if isinstance(result, Conflict):
            raise ConflictError(
                f"question {question_id} is {result.details.get('state', 'closed')} already"
            )
        question = await self.store.question(question_id, owner)
        if question is not None:
            await self.attempts.questions.answered(question.execution_id, question_id, value)

    async def _known(self, execution_id: str, owner: str | None) -> Execution:
        execution = await self.store.execution(execution_id, owner)
        if execution is None:
            raise NotFound(f"no execution {execution_id}")
        return execution


def _fresh_key() -> Callable[[], bytes]:
    key = secrets.token_bytes(32)
    return lambda: key

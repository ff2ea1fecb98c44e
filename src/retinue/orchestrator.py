"""The use cases: the only thing entrances call. Authorisation happens here.

Every method that acts for a caller takes a ``Principal``; what it reads and writes is scoped to
that principal's owner, and another owner's id is simply not found. Called from Python, without
one, the caller is the local admin.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from retinue.agent import Agent
from retinue.domain.agent import AgentDefinition, HttpConfig, Registration, StoredAgent
from retinue.domain.audit import AuditDraft, AuditRow
from retinue.domain.budget import Limit
from retinue.domain.event import Event, Piece
from retinue.domain.execution import Execution, State, Task
from retinue.domain.ids import iso, microseconds, now_us
from retinue.domain.intent import Audit
from retinue.domain.outbox import Parked
from retinue.domain.policy import BusyPolicy
from retinue.domain.principal import LOCAL, Authority, Principal, Role
from retinue.domain.question import Question
from retinue.domain.retention import REMOVED
from retinue.domain.session import Session, check_session_id
from retinue.domain.strictjson import dumps, loads
from retinue.engine.complete import complete
from retinue.engine.compress import compress
from retinue.engine.core import Engine
from retinue.engine.definition import definition_of, word_of
from retinue.engine.erasure import Erasure, erase_execution, erase_session
from retinue.engine.intake import Accepted
from retinue.engine.journal import truncated
from retinue.engine.keys import Keys
from retinue.engine.ledger import Anchor, Verdict, Verification
from retinue.engine.outcome import Reply, reply_of
from retinue.engine.pieces import Results, in_pieces
from retinue.engine.registry import Entry, describe
from retinue.engine.retention import Policy, Pruned
from retinue.errors import Conflict, Forbidden, Gone, InvalidInput, NotFound, RetinueError
from retinue.interfaces import (
    Backlog,
    ContractFilter,
    ContractView,
    ExecutionFilter,
    Listing,
    Page,
    QueueDepth,
)

__all__ = [
    "LOCAL_ADMIN",
    "Accepted",
    "AgentView",
    "Anchor",
    "Erasure",
    "Orchestrator",
    "Reply",
    "Verdict",
    "definition_of",
    "reply_view",
]

T = TypeVar("T")
_TASK = frozenset("capability parameters context intent agent_id priority run_at on_busy".split())
LOCAL_ADMIN = Principal("local", LOCAL, Role.ADMIN)


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as it is listed (specification 003).

    `reason` says why it is offline; `last_heartbeat` is when a health check last went well.
    `endpoint` is where an agent over HTTP is, `registered_by` who registered it through the API
    (null: it is part of the server's code or configuration).
    """

    agent_id: str
    name: str
    description: str
    status: str
    capabilities: list[dict[str, Any]]
    version: str
    driver: str
    registered_at: str
    tasks_completed: int
    tasks_failed: int
    running: int
    concurrency: int
    breaker: dict[str, Any]
    last_heartbeat: str | None
    reason: str | None
    endpoint: str | None
    registered_by: str | None


class Integration(msgspec.Struct, frozen=True):
    """How a service around us does. A sink has failed deliveries, and a backlog."""

    healthy: bool
    failures: int = 0
    backlog: Backlog | None = None


class Orchestrator:
    """What a started system can be asked to do."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self.keys = Keys(engine.store)
        self._results = Results(engine.store)
        self._registered: dict[str, int] = {}
        self.started_at = now_us()

    # -- tasks ---------------------------------------------------------------------------------

    async def orchestrate(
        self,
        session_id: str,
        task: dict[str, Any],
        *,
        principal: Principal = LOCAL_ADMIN,
    ) -> dict[str, Any]:
        """Have ``task`` (``capability``, ``parameters``, …) done and return the reply.

        Specification 003's Python form; the reply is that of ``POST /v1/orchestrate``. ``run_at``
        is a ``datetime`` with its time zone.

        Raises:
            RetinueError: it was not accepted.
        """
        unknown = sorted(set(task) - _TASK)
        if unknown:
            raise InvalidInput(f"a task has no {', '.join(unknown)}")
        run_at = task.get("run_at")
        wanted = Task(
            session_id=session_id,
            capability=task.get("capability"),
            agent_id=task.get("agent_id"),
            parameters=task.get("parameters", {}),
            context=task.get("context"),
            intent=task.get("intent"),
            priority=task.get("priority", 0),
            run_at=microseconds(run_at) if run_at is not None else None,
            on_busy=word_of(BusyPolicy, "on_busy", task.get("on_busy")),
        )
        return reply_view(await self.perform(wanted, principal))

    async def perform(
        self, task: Task, principal: Principal = LOCAL_ADMIN, *, until_asked: bool = False
    ) -> Reply:
        """Submit ``task`` and return its reply once it has ended.

        With ``until_asked`` a question that only a person can answer is a reply, too: an
        ``E_HUMAN_INPUT_REQUIRED`` that names it, while the execution goes on waiting.

        Raises:
            RetinueError: it was not accepted; see ``Intake.submit``.
        """
        authority = await self._authority(principal)
        return await self._engine.perform(task, authority, until_asked=until_asked)

    async def submit(self, task: Task, principal: Principal = LOCAL_ADMIN) -> Accepted:
        """Submit ``task`` and return as soon as it is accepted, which is when it is durable.

        Raises:
            RetinueError: it was not accepted; see ``Intake.submit``.
        """
        authority = await self._authority(principal)
        return await self._engine.submit(task, authority)

    async def reply(self, accepted: Accepted, *, until_asked: bool = False) -> Reply:
        """Return the reply of an accepted task once it has ended, or (asked for) asks a person.

        Raises:
            ShuttingDown: this process stops first; the execution is kept.
        """
        if until_asked:
            return await self._engine.intake.reply_or_question(accepted.execution_id)
        return await self._engine.intake.answer(accepted)

    async def _authority(self, principal: Principal) -> Authority:
        if not principal.role.covers(Role.OPERATOR):
            await self._forbid(principal, "execution.submit", "")
        return Authority(principal.owner, principal.name)

    # -- executions ----------------------------------------------------------------------------

    async def execution(self, execution_id: str, principal: Principal = LOCAL_ADMIN) -> Execution:
        """Return one execution.

        Raises:
            NotFound: there is none of this owner.
        """
        execution = await self._store.execution(execution_id, principal.owner)
        if execution is None:
            raise NotFound(f"no execution {execution_id}")
        return execution

    async def executions(
        self, where: ExecutionFilter, page: Page, principal: Principal = LOCAL_ADMIN
    ) -> Listing[Execution]:
        """List executions, newest first."""
        scoped = msgspec.structs.replace(where, owner=principal.owner)
        return await self._store.executions(scoped, page)

    async def task_of(self, execution: Execution) -> tuple[Any, Reply | None]:
        """Return an execution's input, and its reply if it has ended; None for what is gone."""
        asked, answered = await self._store.bodies(execution)
        try:
            reply = reply_of(execution, answered) if execution.terminal else None
        except Gone:
            reply = None
        return (loads(asked) if asked is not None else None), reply

    async def gone(self, execution: Execution) -> frozenset[str]:
        """Return what of an execution is gone: ``erased``, ``removed``, both or neither."""
        marks = await self._store.marks_of([execution.id])
        return frozenset(mark.kind for mark in marks)

    async def erase(self, execution_id: str, principal: Principal = LOCAL_ADMIN) -> Erasure:
        """Erase what an execution was given, did and answered; its contracts stay, bodiless.

        Raises:
            NotFound: there is none of this owner.
            Forbidden: the caller is no admin.
            Conflict: it has not ended.
        """
        await self.require(principal, Role.ADMIN, "execution.erase", execution_id)
        execution = await self.execution(execution_id, principal)
        return await erase_execution(self._store, self._engine.retention, execution, principal)

    async def erase_session(self, session_id: str, principal: Principal = LOCAL_ADMIN) -> Erasure:
        """Erase every exchange of a session that has ended.

        Raises:
            NotFound: there is none of this owner.
            Forbidden: the caller is no admin.
        """
        await self.require(principal, Role.ADMIN, "session.erase", session_id)
        await self.session(session_id, principal)
        return await erase_session(
            self._store, self._engine.retention, principal.owner, session_id, principal
        )

    async def cancel(self, execution_id: str, principal: Principal = LOCAL_ADMIN) -> Execution:
        """Cancel an execution and return it as it is now.

        Raises:
            NotFound: there is none of this owner.
            Forbidden: the caller is only a viewer.
        """
        if not principal.role.covers(Role.OPERATOR):
            await self._forbid(principal, "execution.cancel", execution_id)
        execution = await self._engine.cancel(execution_id, principal.owner, principal.name)
        await self._audit(principal, "execution.cancel", execution_id)
        return execution

    async def prioritize(
        self, execution_id: str, priority: int, principal: Principal = LOCAL_ADMIN
    ) -> Execution:
        """Give an execution that waits another priority and return it as it is now.

        Raises:
            NotFound: there is none of this owner.
            Conflict: it does not wait any more.
            Forbidden: the caller is only a viewer.
        """
        if not principal.role.covers(Role.OPERATOR):
            await self._forbid(principal, "execution.prioritize", execution_id)
        detail = dumps({"priority": priority})
        audit = _audited(principal, "execution.prioritize", execution_id, detail=detail)
        return await self._engine.prioritize(execution_id, principal.owner, priority, audit)

    async def retry(
        self,
        execution_id: str,
        principal: Principal = LOCAL_ADMIN,
        idempotency_key: str | None = None,
    ) -> Accepted:
        """Submit again what ended without success: a new execution, which names the old one.

        Same session, agent, input, priority, budget and time allowed; it is due now.

        Raises:
            NotFound: there is none of this owner.
            Conflict: it has not ended, it succeeded, or its input was erased.
            RetinueError: it was not accepted; see ``Intake.submit``.
        """
        if not principal.role.covers(Role.OPERATOR):
            await self._forbid(principal, "execution.retry", execution_id)
        execution = await self.execution(execution_id, principal)
        if not execution.terminal or execution.state is State.COMPLETED:
            raise Conflict(
                f"execution {execution_id} is {execution.state}: only what ended without success"
                " is done again",
                details={"state": execution.state.value},
            )
        asked, _ = await self._store.bodies(execution)
        if asked is None:
            raise Conflict(f"the input of execution {execution_id} was erased")
        sent = loads(asked)
        bound = execution.queue_key.startswith("agent:")
        task = Task(
            session_id=execution.session_id,
            capability=execution.capability,
            agent_id=execution.queue_key.removeprefix("agent:") if bound else None,
            parameters=sent.get("parameters"),
            context=sent.get("context"),
            intent=sent.get("intent"),
            deadline_us=execution.allowed_us,
            priority=execution.priority,
            idempotency_key=idempotency_key,
            on_busy=execution.on_busy,
            retry_of=execution.id,
            budget=msgspec.convert(sent["budget"], Limit) if "budget" in sent else None,
        )
        accepted = await self.submit(task, principal)
        await self._audit(principal, "execution.retry", execution_id)
        return accepted

    async def queue(self) -> list[QueueDepth]:
        """Return how much waits under each queue key, of all owners."""
        return await self._store.depths()

    async def follow(
        self,
        execution_id: str,
        *,
        after: int = 0,
        heartbeat: float | None = None,
        principal: Principal = LOCAL_ADMIN,
    ) -> AsyncGenerator[list[Event], None]:
        """Yield an execution's events after number ``after`` until the terminal one.

        In place of events that retention has removed comes one ``truncated``, which is the last.
        What is there at one moment comes as one list; with ``heartbeat`` (seconds) an empty list
        says that nothing happened. The ``completed`` event carries the whole result.

        Raises:
            NotFound: there is none of this owner.
        """
        await self.execution(execution_id, principal)
        journal = self._engine.journal
        async with aclosing(
            journal.follow(execution_id, after=after, heartbeat=heartbeat)
        ) as batches:
            async for events in batches:
                if events:
                    events[-1] = await complete(self._store, events[-1])
                yield events

    async def stream(
        self,
        execution_id: str,
        *,
        after: int = 0,
        heartbeat: float | None = None,
        principal: Principal = LOCAL_ADMIN,
    ) -> AsyncGenerator[list[Piece], None]:
        """Yield what ``follow`` does as every streaming door sends it, in bounded pieces.

        Raises:
            NotFound: there is none of this owner.
        """
        await self.execution(execution_id, principal)
        batches = self._engine.journal.follow(execution_id, after=after, heartbeat=heartbeat)
        async with aclosing(in_pieces(self._results, batches)) as pieces:
            async for some in pieces:
                yield some

    async def events(
        self, execution_id: str, after: int, limit: int, principal: Principal = LOCAL_ADMIN
    ) -> list[Event]:
        """Return the events after number ``after`` that are there now.

        Raises:
            NotFound: there is none of this owner.
        """
        execution = await self.execution(execution_id, principal)
        found = list(await self._store.events(execution_id, after=after, limit=limit))
        gap = found[0].seq != after + 1 if found else after < execution.last_seq
        if gap and REMOVED in await self.gone(execution):
            found = [truncated(execution_id, after, execution.last_seq)]
        if found:
            found[-1] = await complete(self._store, found[-1])
        return found

    # -- questions -----------------------------------------------------------------------------

    async def questions(self, page: Page, principal: Principal = LOCAL_ADMIN) -> Listing[Question]:
        """List the open questions, oldest first."""
        return await self._store.questions(principal.owner, page)

    async def answer(
        self, question_id: str, value: Any, principal: Principal = LOCAL_ADMIN
    ) -> None:
        """Answer an open question; the execution that asked goes on.

        Raises:
            NotFound: there is none of this owner.
            Forbidden: it is for a higher role to answer.
            Conflict: it is not open any more.
        """
        question = await self._store.question(question_id, principal.owner)
        needed = question.role if question is not None else Role.OPERATOR
        if not principal.role.covers(needed):
            await self._forbid(principal, "question.answer", question_id)
        await self._engine.answer(question_id, principal.owner, principal.name, value)

    # -- the record ----------------------------------------------------------------------------

    async def contracts(
        self, where: ContractFilter, page: Page, principal: Principal = LOCAL_ADMIN
    ) -> Listing[ContractView]:
        """List contracts in chain order."""
        if where.session_id is not None:
            check_session_id(where.session_id)
        scoped = msgspec.structs.replace(where, owner=principal.owner)
        return await self._store.contracts(scoped, page)

    async def sessions(self, page: Page, principal: Principal = LOCAL_ADMIN) -> Listing[Session]:
        """List sessions by id."""
        return await self._store.sessions(principal.owner, page)

    async def session(self, session_id: str, principal: Principal = LOCAL_ADMIN) -> Session:
        """Return one session.

        Raises:
            NotFound: there is none of this owner.
        """
        check_session_id(session_id)
        session = await self._store.session(principal.owner, session_id)
        if session is None:
            raise NotFound(f"no session {session_id}")
        return session

    async def compress_session(
        self, session_id: str, intent: str | None = None, principal: Principal = LOCAL_ADMIN
    ) -> dict[str, Any]:
        """Return a memory block of a session, made from its contracts.

        MemAgent makes it when it is set and answers; else it is made here, and says so. Answers
        as ``POST /v1/compress`` does: ``compressed`` false, with the reason, when there is nothing
        to compress.
        """
        check_session_id(session_id)
        answer = {"status": "ok", "session_id": session_id, "compressed": True, "error": None}
        memory = self._engine.memory
        try:
            block = await compress(self._store, principal.owner, session_id, intent, memory)
        except RetinueError as error:
            return {
                **answer,
                "status": "error",
                "compressed": False,
                "memory_block": None,
                "error": error.message,
            }
        return {**answer, "memory_block": block}

    async def verify(
        self, principal: Principal = LOCAL_ADMIN, anchor: Anchor | None = None
    ) -> Verdict:
        """Verify the ledger: everything for an admin, else the caller's own sessions.

        ``anchor`` is one that ``anchor`` returned before: it must still be in the audit chain.
        """
        owner = None if principal.role is Role.ADMIN else principal.owner
        return await Verification(self._store).run(owner, anchor)

    async def anchor(self, principal: Principal = LOCAL_ADMIN) -> Anchor:
        """Anchor every session's head in the audit chain and return that chain's head.

        Kept where nobody who can write the store can change it, it shows later whether all was
        rewritten.

        Raises:
            Forbidden: the caller is no admin.
        """
        await self.require(principal, Role.ADMIN, "ledger.anchor")
        await self._engine.scheduler.resume()
        await self._engine.scheduler.anchor()
        n, head = await self._store.audit_head()
        return Anchor(n, bytes(head))

    async def prune(
        self, *, dry_run: bool = False, principal: Principal = LOCAL_ADMIN
    ) -> tuple[Policy, Pruned]:
        """Remove now what retention is to remove; ``dry_run`` only says what that would be.

        Raises:
            Forbidden: the caller is no admin.
        """
        await self.require(principal, Role.ADMIN, "ledger.prune")
        retention = self._engine.retention
        pruned = await (retention.trial() if dry_run else retention.round(whole=True))
        return retention.policy, pruned

    async def audit(self, page: Page, principal: Principal = LOCAL_ADMIN) -> Listing[AuditRow]:
        """List the audit chain.

        Raises:
            Forbidden: the caller is no admin.
        """
        await self.require(principal, Role.ADMIN, "audit.read")
        return await self._store.audit(page)

    # -- agents --------------------------------------------------------------------------------

    def register_agent(self, agent: Agent) -> None:
        """Register a Python agent; its capabilities are routable at once.

        Raises:
            Conflict: its id is taken.
            InvalidInput: its id, options or a capability's parameters are not valid.
        """
        self.register_definition(definition_of(agent))

    def register_definition(self, definition: AgentDefinition) -> None:
        """Register an agent of any driver, as the configuration names it.

        Raises:
            Conflict: its id is taken.
            InvalidInput: its id or a capability's parameters are not valid.
        """
        self._engine.add_agent(definition)
        self._registered[definition.agent_id] = now_us()

    async def register_remote(
        self, wanted: Registration, principal: Principal = LOCAL_ADMIN
    ) -> tuple[StoredAgent, str]:
        """Register an agent that answers over HTTP, for good; also return its secret, this once.

        Raises:
            Forbidden: the caller is only a viewer, or would take tasks from another owner's agent.
            Conflict: its id is taken.
            InvalidInput: something is not valid; EgressDenied: its endpoint may not be called.
        """
        return await self._as_operator(
            principal,
            "agent.register",
            wanted.agent_id,
            lambda: self._engine.roster.register(wanted, by=principal),
        )

    async def remove_remote(self, agent_id: str, principal: Principal = LOCAL_ADMIN) -> None:
        """End the registration of such an agent; what it runs goes on.

        Raises:
            Forbidden: the caller is only a viewer, or it is another owner's.
            AgentNotFound: there is none.
            Conflict: it was not registered so.
        """
        await self._as_operator(
            principal,
            "agent.remove",
            agent_id,
            lambda: self._engine.roster.remove(agent_id, by=principal),
        )

    async def _as_operator(
        self, principal: Principal, action: str, target: str, work: Callable[[], Awaitable[T]]
    ) -> T:
        if not principal.role.covers(Role.OPERATOR):
            await self._forbid(principal, action, target)
        try:
            return await work()
        except Forbidden:
            await self._audit(principal, action, target, outcome="forbidden")
            raise

    async def remove_agent(self, agent_id: str) -> None:
        """Take an agent out of routing; what it runs ends first.

        Raises:
            AgentNotFound: there is none.
        """
        await self._engine.remove_agent(agent_id)

    async def agents(self) -> list[AgentView]:
        """List the agents."""
        tallies = await self._store.tallies()
        return [self._view(entry, tallies.get(entry.agent_id)) for entry in self._engine.registry]

    async def agent(self, word: str) -> AgentView:
        """Return the agent with that id or name.

        Raises:
            AgentNotFound: there is none, or the name is ambiguous.
        """
        entry = self._engine.registry.find(word)
        return self._view(entry, (await self._store.tallies()).get(entry.agent_id))

    def _view(self, entry: Entry, tally: Any) -> AgentView:
        definition, stored = entry.definition, entry.stored
        registered = stored.created_at if stored is not None else None
        last_good, config = entry.pulse.last_good, definition.config
        return AgentView(
            agent_id=entry.agent_id,
            name=definition.name,
            description=definition.description,
            status=entry.status,
            capabilities=[
                {"name": c.name, "description": c.description, "parameters": c.parameters}
                for c in definition.capabilities
            ],
            version=definition.version,
            driver=definition.driver,
            registered_at=iso(registered or self._registered.get(entry.agent_id, self.started_at)),
            tasks_completed=tally.completed if tally is not None else 0,
            tasks_failed=tally.failed if tally is not None else 0,
            running=entry.running,
            concurrency=definition.concurrency,
            breaker=describe(entry),
            last_heartbeat=iso(last_good) if last_good is not None else None,
            reason=entry.unhealthy,
            endpoint=config.endpoint if isinstance(config, HttpConfig) else None,
            registered_by=stored.created_by if stored is not None else None,
        )

    # -- the system ----------------------------------------------------------------------------

    async def health(self) -> None:
        """Return when the store answers.

        Raises:
            StoreUnavailable: it does not.
        """
        await self._store.ping()

    @property
    def worker(self) -> str:
        """This process's identity in the store, new at every start."""
        return self._store.worker

    @property
    def draining(self) -> bool:
        """Whether new tasks are refused because the process is about to stop."""
        return self._engine.intake.closed

    async def drain(self, grace: float) -> bool:
        """Take no new tasks and let what runs end, for at most ``grace`` seconds.

        Returns whether everything ended by itself.
        """
        return await self._engine.drain(grace)

    def close_streams(self) -> None:
        """End every ``follow``; its reader comes back with its cursor after the restart."""
        self._engine.journal.close()

    async def status(self, principal: Principal = LOCAL_ADMIN) -> dict[str, Any]:
        """Return the counts of specification 003's ``/v1/status``."""
        agents = await self.agents()
        by_status: dict[str, int] = {}
        for agent in agents:
            by_status[agent.status] = by_status.get(agent.status, 0) + 1
        counts = await self._store.counts(principal.owner)
        return {
            "agents": {
                "total": len(agents),
                "by_status": by_status,
                "registered": [agent.agent_id for agent in agents],
            },
            "contracts": {
                "total_sessions": counts.sessions,
                "total_contracts": counts.contracts,
                "by_status": counts.by_status,
            },
        }

    async def integrations(self) -> dict[str, Integration]:
        """Return how the services around us do: those that are set, by name."""
        watch, outbox = self._engine.memory_watch, self._engine.outbox
        found: dict[str, Integration] = {}

        async def memory() -> None:
            if watch is not None:
                found[watch.peer.name] = Integration((await watch.known()).healthy)

        async def sink(name: str) -> None:
            report = await outbox.report(name)
            found[name] = Integration(report.healthy, report.failures, report.backlog)

        await asyncio.gather(memory(), *map(sink, outbox.feeds))
        return found

    async def parked(self, page: Page, principal: Principal = LOCAL_ADMIN) -> Listing[Parked]:
        """List the contracts that a sink would not take."""
        return await self._store.parked(None, principal.owner, page)

    async def retry_parked(self, principal: Principal = LOCAL_ADMIN) -> tuple[int, int]:
        """Deliver once more what is parked; return how many were taken, and how many were not.

        Raises:
            PeerUnavailable: a sink is away.
            Forbidden: the caller is only a viewer.
        """
        await self.require(principal, Role.OPERATOR, "outbox.retry")
        taken = refused = 0
        for feed in self._engine.outbox.feeds.values():
            more, less = await feed.retry(principal.owner)
            taken, refused = taken + more, refused + less
        await self._audit(principal, "outbox.retry", "")
        return taken, refused

    async def require(
        self, principal: Principal, role: Role, action: str, target: str = ""
    ) -> None:
        """Check that the caller's role covers ``role``.

        Raises:
            Forbidden: it does not; that is audited.
        """
        if not principal.role.covers(role):
            await self._forbid(principal, action, target)

    async def _forbid(self, principal: Principal, action: str, target: str) -> None:
        await self._audit(principal, action, target, outcome="forbidden")
        raise Forbidden(
            f"{action} needs a higher role than {principal.role.value}",
            details={"role": principal.role.value},
        )

    async def _audit(
        self, principal: Principal, action: str, target: str, outcome: str = "ok"
    ) -> None:
        draft = _audited(principal, action, target, outcome)
        await self._store.write(Audit(draft, now_us()))


def _audited(
    principal: Principal, action: str, target: str, outcome: str = "ok", detail: bytes = b"{}"
) -> AuditDraft:
    return AuditDraft(
        owner=principal.owner,
        actor=principal.name,
        action=action,
        target=target,
        outcome=outcome,
        detail=detail,
    )


def reply_view(reply: Reply) -> dict[str, Any]:
    """Return the reply of ``POST /v1/orchestrate`` (specification 003)."""
    view: dict[str, Any] = {
        "success": reply.success,
        "data": loads(reply.data) if reply.data is not None else None,
        "contract_id": reply.contract_id,
        "agent_id": reply.agent_id,
        "execution_id": reply.execution_id,
        "timestamp": iso(now_us()),
    }
    if reply.error is not None:
        view["error"] = reply.error.get("message")
        view["error_info"] = reply.error
    return view

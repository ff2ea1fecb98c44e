"""Tasks: asked for, waited for, followed, cancelled, asked about, retried."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from retinue.domain.budget import Limit
from retinue.domain.event import Event, Piece
from retinue.domain.execution import Execution, State, Task
from retinue.domain.ids import iso, microseconds, now_us
from retinue.domain.policy import BusyPolicy
from retinue.domain.principal import Authority, Principal, Role
from retinue.domain.question import Question
from retinue.domain.retention import REMOVED
from retinue.domain.strictjson import dumps, loads
from retinue.engine.complete import complete
from retinue.engine.core import Engine
from retinue.engine.definition import word_of
from retinue.engine.erasure import Erasure, erase_execution
from retinue.engine.intake import Accepted
from retinue.engine.journal import truncated
from retinue.engine.outcome import Reply, reply_of
from retinue.engine.pieces import Results, in_pieces
from retinue.errors import Conflict, Gone, InvalidInput, NotFound
from retinue.interfaces import (
    ExecutionFilter,
    Listing,
    Page,
    QueueDepth,
)
from retinue.orchestrator.base import LOCAL_ADMIN, Desk, audited

_TASK = frozenset("capability parameters context intent agent_id priority run_at on_busy".split())


class Tasks(Desk):
    """Having tasks done."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._results = Results(engine.store)

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
            Pending: this process stops first, or the store is away; the execution is kept.
        """
        if until_asked:
            return await self._engine.intake.reply_or_question(accepted.execution_id)
        return await self._engine.intake.answer(accepted)

    async def _authority(self, principal: Principal) -> Authority:
        if not principal.role.covers(Role.OPERATOR):
            await self._forbid(principal, "execution.submit", "")
        return Authority(principal.owner, principal.name)

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
        engine = self._engine
        return await erase_execution(
            self._store, engine.retention, execution, principal, engine.leavings
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
        audit = audited(principal, "execution.prioritize", execution_id, detail=detail)
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

    async def line(self, execution: Execution) -> tuple[int, str | None]:
        """Return how many stand before a queued execution in its line, and what keeps the first.

        None: nothing does, here and now; another process may see it otherwise.
        """
        return await self._store.place(execution), self._engine.registry.why(execution.queue_key)

    async def queue(self) -> list[QueueDepth]:
        """Return how much waits under each queue key, of all owners."""
        return await self._store.depths()

    def asks(self, execution_id: str) -> bool:
        """Say whether an execution that runs here waits for a person, itself or through others."""
        attempt = self._engine.attempts.running.get(execution_id)
        return attempt is not None and bool(attempt.asking)

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

    async def questions(self, page: Page, principal: Principal = LOCAL_ADMIN) -> Listing[Question]:
        """List the open questions, oldest first."""
        return await self._store.questions(principal.owner, page)

    async def question(self, question_id: str, principal: Principal = LOCAL_ADMIN) -> Question:
        """Return a question, open or not.

        Raises:
            NotFound: there is none of this owner.
        """
        question = await self._store.question(question_id, principal.owner)
        if question is None:
            raise NotFound(f"no question {question_id}")
        return question

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

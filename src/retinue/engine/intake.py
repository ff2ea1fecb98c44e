"""The only way in: a task becomes a stored execution, or is refused.

Whoever asks (a door, an agent that calls another) comes through ``submit``. It routes, checks the
parameters, and writes the execution with its REQUEST in one commit; from then on the task is
accepted and will end. When the chosen agent has a free slot that same commit leases it to this
process (the fast path); otherwise it waits in the queue.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import msgspec

from retinue.domain.contract import GENESIS, ContractStatus, ContractType, Draft
from retinue.domain.event import EventType
from retinue.domain.execution import Execution, State, Task
from retinue.domain.ids import now_us, ulid
from retinue.domain.intent import Idempotency, Refuse, Submit
from retinue.domain.policy import (
    MOST_DELAY_US,
    MOST_PRIORITY,
    BusyPolicy,
    RatePolicy,
    rank_of,
)
from retinue.domain.principal import Authority
from retinue.domain.question import Question, QuestionState
from retinue.domain.result import Conflict as Conflicted
from retinue.domain.result import Rejected, Result, Submitted
from retinue.domain.session import check_session_id
from retinue.domain.strictjson import dumps, loads
from retinue.engine.attempt import Attempt
from retinue.engine.attempts import Attempts
from retinue.engine.entry import Entry
from retinue.engine.guard import Callers
from retinue.engine.journal import Journal
from retinue.engine.outcome import Reply, pending, reply_of
from retinue.engine.registry import Registry, Route
from retinue.errors import (
    AgentNotFound,
    Conflict,
    InvalidInput,
    Pending,
    QueueFull,
    RateLimited,
    RetinueError,
    SessionBusy,
    ShuttingDown,
    StoreUnavailable,
    WorkerLost,
)
from retinue.interfaces import Store

IDEMPOTENCY_US = 24 * 3600 * 1_000_000
MOST_DEPTH = 16


class Accepted(msgspec.Struct, frozen=True):
    """An accepted task.

    ``attempt`` is set when it runs here already; ``joined`` says that an idempotency key led to an
    execution accepted earlier. ``state`` is how it stood when it was accepted, or found.
    """

    execution_id: str
    contract_id: str
    state: State
    attempt: Attempt | None = None
    joined: bool = False


class Intake:
    """Accepts tasks."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        registry: Registry,
        attempts: Attempts,
        *,
        queue_bound: int,
        step_us: int,
        on_waiting: Callable[[Execution], None],
        grown: set[tuple[str, str]],
        caller_rate: RatePolicy | None = None,
    ) -> None:
        self._store = store
        self._journal = journal
        self._registry = registry
        self._attempts = attempts
        self._bound = queue_bound
        self._step_us = step_us
        self._on_waiting = on_waiting
        self._grown = grown
        self._callers = Callers(caller_rate)
        self.closed = False

    async def perform(
        self, task: Task, authority: Authority, *, until_asked: bool = False
    ) -> Reply:
        """Submit ``task`` and return its reply once it has ended, or (asked for) asks a person.

        Raises:
            RetinueError: it was not accepted (see ``submit``).
        """
        accepted = await self.submit(task, authority)
        if until_asked:
            return await self.reply_or_question(accepted.execution_id)
        return await self.answer(accepted)

    async def answer(self, accepted: Accepted) -> Reply:
        """Return the reply of an accepted task once it has ended."""
        if accepted.attempt is not None:
            answer = await accepted.attempt.wait()
            if answer is not None:
                return answer
        return await self.reply(accepted.execution_id)

    async def reply(self, execution_id: str) -> Reply:
        """Return the reply of an accepted execution once it has ended, wherever it runs.

        Raises:
            Pending: this process stops first, or the store is away; the execution is kept.
        """
        with _accepted(execution_id):
            await self._journal.wait(execution_id)
            execution = await self._store.execution(execution_id, None)
            if execution is None or not execution.terminal:
                raise ShuttingDown
            _, body = await self._store.bodies(execution)
            return reply_of(execution, body)

    async def reply_or_question(self, execution_id: str) -> Reply:
        """Return the reply of an accepted execution, or the first question it waits with.

        Raises:
            Pending: this process stops first, or the store is away; the execution is kept.
        """
        with _accepted(execution_id):
            question = await self._asked(execution_id)
            if question is not None:
                execution = await self._store.execution(execution_id, None)
                assert execution is not None
                return pending(execution, question)
        return await self.reply(execution_id)

    async def _asked(self, execution_id: str) -> Question | None:
        """Return the first question an execution waits with; None when it ended before.

        It may be asked by what it has others do, as far as that runs in this process.
        """
        with self._attempts.questions.listen(execution_id) as heard:
            own = asyncio.create_task(self._own_question(execution_id))
            below = asyncio.create_task(self._open_one(heard))
            try:
                await asyncio.wait({own, below}, return_when=asyncio.FIRST_COMPLETED)
                return (own if own.done() else below).result()
            finally:
                own.cancel()
                below.cancel()
                await asyncio.wait({own, below})

    async def _open_one(self, heard: asyncio.Queue[str]) -> Question:
        while True:
            question = await self._store.question(await heard.get(), None)
            if question is not None and question.state is QuestionState.OPEN:
                return question

    async def _own_question(self, execution_id: str) -> Question | None:
        async with aclosing(self._journal.follow(execution_id)) as batches:
            async for events in batches:
                for event in events:
                    if event.type is not EventType.INPUT_REQUIRED:
                        continue
                    question = await self._store.question(loads(event.data)["question_id"], None)
                    if question is not None and question.state is QuestionState.OPEN:
                        return question
        return None

    async def submit(self, task: Task, authority: Authority) -> Accepted:
        """Accept ``task``: on return it is durable.

        Raises:
            AgentNotFound: nobody can do it; recorded as a failed exchange in its session.
            AgentUnavailable, CircuitOpen: somebody could, but not now.
            InvalidInput: session id or parameters are not valid.
            Conflict: the idempotency key stands for another request.
            QueueFull: too much waits for that agent already.
            RateLimited: the caller submits more than it may.
            SessionBusy: its session is, and it is not to wait.
            ShuttingDown, StoreUnavailable: nothing was accepted.
        """
        check_session_id(task.session_id)
        body = _body(task)
        if task.idempotency_key is not None:
            # Before all else: what was accepted is answered for, whatever became of the agent, the
            # caller's pace or this process since.
            earlier = await self._earlier(task, authority, body)
            if earlier is not None:
                return earlier
        if self.closed and authority.parent_id not in self._attempts.running:
            # What runs may still have its children: it could not end without them.
            raise ShuttingDown
        if authority.parent_id is None:
            self._pace(authority)
        if authority.depth > MOST_DEPTH:
            raise InvalidInput(f"agents called agents more than {MOST_DEPTH} levels deep")
        _check_place(task)
        try:
            route = self._registry.route(task.capability, task.agent_id)
        except AgentNotFound as error:
            raise await self._refused(task, authority, body, error) from None
        capability = _capability(task, route)
        route.template.validators[capability].check(task.parameters)
        execution, request = self._record(task, authority, route, capability, body)
        return await self._store_it(task, route, execution, request)

    def _pace(self, authority: Authority) -> None:
        """Refuse a caller from outside that submits more than it may."""
        wait = self._callers.admit(authority.owner, authority.created_by, time.monotonic())
        if wait:
            raise RateLimited(
                f"too many tasks in a short time; try again in {wait:.1f} s",
                details={"retry_after_ms": int(wait * 1000) + 1},
            )

    async def _store_it(
        self, task: Task, route: Route, execution: Execution, request: Draft
    ) -> Accepted:
        entry = route.entry if execution.run_at <= execution.created_at else None
        call = 0
        if entry is not None:
            self._registry.slots.take(entry)
            call = entry.admit(time.monotonic())
        # Where others wait already it joins them, and the first of them gets the slot it brings.
        bound, brought = self._may_wait(route), int(entry is not None)
        self._registry.leasing[route.key] += brought
        try:
            result = await self._write(
                Submit(
                    execution,
                    request,
                    worker=self._store.worker if entry is not None else None,
                    bound=bound,
                    bind=not route.bound,
                    idempotency=_idempotency(task, request.body, execution.created_at),
                )
            )
        except BaseException:
            # Not known whether it was written, and leased to us: the scheduler finds out.
            self._attempts.doubt()
            self._put_back(entry, call)
            raise
        finally:
            self._registry.leasing[route.key] -= brought
        if isinstance(result, Submitted) and not result.joined:
            self._grown.add((execution.owner, execution.session_id))
        if isinstance(result, Submitted) and result.leased and entry is not None:
            attempt = self._attempts.start(execution, request.body, entry, call)
            return Accepted(execution.id, execution.request_id, execution.state, attempt)
        self._put_back(entry, call)
        if isinstance(result, Submitted):
            return await self._waiting(result, execution)
        raise _refusal(result, task)

    def _may_wait(self, route: Route) -> int:
        """Return how many may wait: what is being leased at this moment waits no longer."""
        own = route.template.definition.queue
        return (self._bound if own is None else own) + self._registry.leasing[route.key]

    async def _waiting(self, result: Submitted, execution: Execution) -> Accepted:
        if not result.joined:
            self._on_waiting(execution)
            return Accepted(execution.id, execution.request_id, execution.state)
        return await self._joined(result.execution_id, execution.owner)

    async def _earlier(self, task: Task, authority: Authority, body: bytes) -> Accepted | None:
        """Return the execution that the task's idempotency key stands for already.

        Raises:
            Conflict: the key stands for another request.
        """
        assert task.idempotency_key is not None
        held = await self._store.idempotent(authority.owner, task.idempotency_key, now_us())
        if held is None:
            return None
        fingerprint, execution_id = held
        if fingerprint != _fingerprint(task, body):
            raise _refusal(Conflicted("idempotency", {"execution_id": execution_id}), task)
        return await self._joined(execution_id, authority.owner)

    async def _joined(self, execution_id: str, owner: str) -> Accepted:
        earlier = await self._store.execution(execution_id, owner)
        if earlier is None:
            raise StoreUnavailable("the execution this key stands for is not to be found")
        running = self._attempts.running.get(earlier.id)
        return Accepted(earlier.id, earlier.request_id, earlier.state, running, joined=True)

    async def _write(self, intent: Submit | Refuse) -> Result:
        try:
            return await self._store.write(intent)
        except WorkerLost:
            # No execution is lost here: what an epoch wrote after its end was never applied.
            raise StoreUnavailable(
                "this process was taken for dead; nothing was acknowledged. Try again."
            ) from None

    def _put_back(self, entry: Entry | None, call: int) -> None:
        if entry is not None:
            entry.unused(call)
            self._registry.slots.give(entry)

    def _record(
        self, task: Task, authority: Authority, route: Route, capability: str, body: bytes
    ) -> tuple[Execution, Draft]:
        definition = route.template.definition
        at = now_us()
        due_at = max(task.run_at or at, at)
        execution_id = ulid()
        request_id = ulid()
        agent_id = definition.agent_id if route.bound or route.entry is not None else None
        allowed = task.deadline_us if task.deadline_us is not None else definition.timeout_us
        execution = Execution(
            id=execution_id,
            owner=authority.owner,
            created_by=authority.created_by,
            session_id=task.session_id,
            from_agent=authority.from_agent,
            agent_id=agent_id,
            capability=capability,
            queue_key=route.key,
            state=State.QUEUED,
            priority=task.priority,
            attempt=0,
            worker=None,
            delivery=definition.delivery,
            max_attempts=definition.retry.max_attempts,
            last_seq=0,
            digest=GENESIS,
            deadline_at=due_at + allowed,
            run_at=due_at,
            cancel_requested_at=None,
            created_at=at,
            started_at=None,
            finished_at=None,
            outcome=None,
            error_code=None,
            cursor=None,
            request_id=request_id,
            request_n=0,
            response_id=None,
            response_n=None,
            parent_id=authority.parent_id,
            depth=authority.depth,
            due_at=due_at,
            rank=rank_of(due_at, task.priority, self._step_us),
            on_busy=self._on_busy(task, authority, route),
            retry_of=task.retry_of,
        )
        request = _request(request_id, task, authority, agent_id, capability, execution_id, body)
        return execution, request

    @staticmethod
    def _on_busy(task: Task, authority: Authority, route: Route) -> BusyPolicy:
        if authority.parent_id is not None:
            return BusyPolicy.PARALLEL  # a part of its parent's turn
        return task.on_busy or route.template.definition.on_busy

    async def _refused(
        self, task: Task, authority: Authority, body: bytes, error: RetinueError
    ) -> RetinueError:
        """Record that nobody can do it; return the error with the record's id."""
        if task.capability is None:
            return error
        request = _request(ulid(), task, authority, None, task.capability, None, body)
        answer = Draft(
            id=ulid(),
            type=ContractType.RESPONSE,
            from_agent="orchestrator",
            to_agent=authority.from_agent,
            capability=None,
            status=ContractStatus.FAILED,
            execution_id=None,
            body=dumps(error.as_dict()),
        )
        self._grown.add((authority.owner, task.session_id))
        await self._write(Refuse(authority.owner, task.session_id, request, answer, now_us()))
        error.details["contract_id"] = request.id
        return error


def _check_place(task: Task) -> None:
    """Check that a task's priority and time can be kept."""
    if abs(task.priority) > MOST_PRIORITY:
        raise InvalidInput(
            f"the priority must lie between -{MOST_PRIORITY} and {MOST_PRIORITY}",
            details={"path": "$.priority"},
        )
    if task.run_at is not None and task.run_at > now_us() + MOST_DELAY_US:
        raise InvalidInput("run_at lies more than ten years ahead", details={"path": "$.run_at"})


def _capability(task: Task, route: Route) -> str:
    """Return the capability meant; an agent with only one need not be told which."""
    if task.capability is not None:
        return task.capability
    names = sorted(route.template.capabilities)
    if len(names) == 1:
        return names[0]
    raise InvalidInput(
        f"agent {route.template.agent_id} has several capabilities: {', '.join(names)}; name one",
        details={"path": "$.capability", "capabilities": names},
    )


def _body(task: Task) -> bytes:
    sent: dict[str, Any] = {"parameters": task.parameters}
    if task.context is not None:
        sent["context"] = task.context
    if task.intent is not None:
        sent["intent"] = task.intent
    if task.budget is not None:
        sent["budget"] = task.budget
    return dumps(sent)


def _request(
    request_id: str,
    task: Task,
    authority: Authority,
    agent_id: str | None,
    capability: str,
    execution_id: str | None,
    body: bytes,
) -> Draft:
    return Draft(
        id=request_id,
        type=ContractType.REQUEST,
        from_agent=authority.from_agent,
        to_agent=agent_id,
        capability=capability,
        status=None,
        execution_id=execution_id,
        body=body,
    )


def _idempotency(task: Task, body: bytes, at: int) -> Idempotency | None:
    if task.idempotency_key is None:
        return None
    return Idempotency(task.idempotency_key, _fingerprint(task, body), at + IDEMPOTENCY_US)


def _fingerprint(task: Task, body: bytes) -> bytes:
    said = [task.session_id, task.capability, task.agent_id, task.priority, task.deadline_us]
    more = [task.run_at, task.on_busy, task.retry_of]
    if any(value is not None for value in more):
        said += more
    return hashlib.sha256(dumps(said) + body).digest()


@contextmanager
def _accepted(execution_id: str) -> Iterator[None]:
    """Have a fault say that the task was accepted: who sends it again has it done again."""
    try:
        yield
    except (ShuttingDown, StoreUnavailable) as error:
        why = "the server is shutting down"
        if isinstance(error, StoreUnavailable):
            why = "the store does not answer"
        raise Pending(
            f"{why}; the task is accepted and kept: ask for its execution instead of sending it"
            " again",
            details={"execution_id": execution_id},
        ) from error


def _refusal(result: object, task: Task) -> RetinueError:
    if isinstance(result, Rejected) and result.reason == "queue_full":
        return QueueFull(
            f"{result.details['bound']} tasks wait for this agent already; try again later",
            details={"retry_after_ms": 1000, **result.details},
        )
    if isinstance(result, Rejected) and result.reason == "session_busy":
        return SessionBusy(details={"retry_after_ms": 1000, **result.details})
    if isinstance(result, Conflicted):
        return Conflict(
            f"the idempotency key {task.idempotency_key!r} was used for another request",
            details=result.details,
        )
    return StoreUnavailable(f"the store refused the task: {result}")

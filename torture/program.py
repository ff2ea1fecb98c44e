"""Runs a program of steps on a real store, and says what it answered in the model's words.

All that a step does not say (ids, times, bodies) follows from its number and the program's, so two
stores that run one program must end with the same bytes: digests and hashes included. Only a
worker's epoch has an id of the store's own; it is known here by its number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from retinue.domain import intent, result
from retinue.domain.contract import ContractStatus, ContractType, Draft
from retinue.domain.event import EventData, EventType
from retinue.domain.execution import EDGES, Execution, State
from retinue.domain.ids import now_us
from retinue.domain.intent import Fence, Idempotency, Want
from retinue.domain.policy import rank_of
from retinue.domain.result import Result
from retinue.engine.ledger import Verification
from retinue.interfaces import ExecutionFilter, Page, Store
from retinue.testing.store_samples import execution as sample
from retinue.testing.store_samples import finish, request, response, verify_chain, verify_events
from torture import model
from torture.model import HOUR, KEYS, SESSIONS, STEP, Said, Step

EVERYTHING = 1_000_000


@dataclass
class Ids:
    """Ids of one program, by number; all sort as they were made."""

    program: int

    def make(self, kind: int, number: int) -> str:
        """Return the id of the ``number``-th thing of a kind."""
        return f"0{self.program:09d}{kind:06d}{number:010d}"

    def execution(self, number: int) -> str:
        """Return an execution's id."""
        return self.make(1, number)

    def question(self, number: int) -> str:
        """Return a question's id."""
        return self.make(2, number)

    @staticmethod
    def number(made: str) -> int:
        """Return the number that an id stands for."""
        return int(made[-10:])


@dataclass
class Performer:
    """One store that runs a program."""

    store: Store
    reopen: Callable[[], Awaitable[Store]]
    ids: Ids
    epochs: list[str] = field(default_factory=list)
    known: dict[str, Execution] = field(default_factory=dict)
    """Executions as last read: what a step's fence is made from."""
    _made: int = 0

    def __post_init__(self) -> None:
        self.epochs.append(self.store.worker)

    @property
    def owner(self) -> str:
        """Whose program this is."""
        return f"o{self.ids.program}"

    def key(self, key: str) -> str:
        """Return a queue key of this program's own."""
        return f"{self.owner}:{key}"

    async def together(
        self, steps: Sequence[Step], now: int, numbers: dict[int, int]
    ) -> list[Said]:
        """Write ``steps`` in one turn of the loop; return the answers."""
        intents = [self._intent(step, now, numbers.get(i, 0)) for i, step in enumerate(steps)]
        results = await asyncio.gather(*map(self.store.write, intents))
        said = [self._said(result) for result in results]
        await self.look()
        return said

    async def look(self) -> dict[int, Execution]:
        """Read the executions; check that each has only made moves of the state machine."""
        where = ExecutionFilter(owner=self.owner)
        listing = await self.store.executions(where, Page(limit=EVERYTHING))
        found: dict[int, Execution] = {}
        for execution in listing.items:
            before = self.known.get(execution.id)
            self.known[execution.id] = execution
            found[Ids.number(execution.id)] = execution
            if before is not None:
                assert execution.last_seq >= before.last_seq
                assert execution.attempt >= before.attempt
                assert _reachable(before.state, execution.state), (before, execution)
        return found

    async def take_over(self) -> list[int]:
        """End this epoch and begin another; return the executions left running."""
        self.store = await self.reopen()
        self.epochs.append(self.store.worker)
        orphans = await self.store.orphans(EVERYTHING)
        return sorted(Ids.number(e.id) for e in orphans if e.owner == self.owner)

    async def backlog(self) -> list[str]:
        """Return the keys with work that is ready."""
        found = await self.store.backlog()
        return [key for key in KEYS if self.key(key) in found]

    # -- steps become intents ----------------------------------------------------------------

    def _intent(self, step: Step, now: int, number: int) -> Any:
        if isinstance(step, model.Fenced):
            return self._of_attempt(step, now, number)
        match step:
            case model.Submit():
                return self._submit(step, now, number)
            case model.Lease(wants=wants, late=late):
                wanted = tuple(Want(self.key(k), self._agent("y"), n) for k, n in wants)
                return intent.Lease(self.store.worker, wanted, now + (2 * HOUR if late else 0))
            case model.Refuse(session=session):
                return self._refuse(session, now)
        return self._of_anybody(step, now)

    def _of_attempt(self, step: model.Fenced, now: int, number: int) -> Any:
        fence = self._fence(step)
        match step:
            case model.Append(count=count):
                events = tuple(EventData(EventType.CONTENT_CHUNK, {"n": n}) for n in range(count))
                return intent.Append(fence, events, now)
            case model.Requeue(later=later):
                return intent.Requeue(fence, now + (HOUR if later else 0), now)
            case model.Ask():
                question_id = self.ids.question(number)
                shown = {"question_id": question_id, "prompt": "Go on?", "schema": None}
                event = EventData(EventType.INPUT_REQUIRED, shown)
                return intent.Ask(fence, question_id, event, "Go on?", None, None, now)
        assert isinstance(step, model.Finish)
        made = finish(self._attempted(step), State(step.state))
        draft = msgspec.structs.replace(made.response, id=self._next())
        return msgspec.structs.replace(made, fence=fence, response=draft, at=now)

    def _of_anybody(self, step: Step, now: int) -> Any:
        match step:
            case model.Cancel(which=which, stranger=stranger):
                draft = self._response(which, State.CANCELLED)
                owner = "stranger" if stranger else self.owner
                return intent.Cancel(self.ids.execution(which), owner, "ann", draft, now)
            case model.Answer(which=which, stranger=stranger):
                owner = "stranger" if stranger else self.owner
                return intent.Answer(self.ids.question(which), owner, "ann", b"true", now)
            case model.Close(which=which):
                return intent.CloseQuestion(self.ids.question(which), "expired", now)
        assert isinstance(step, model.Expire)
        state = State.TIMED_OUT
        draft = self._response(step.which, state)
        ends = (EventData(EventType.FAILED, {}),)
        return intent.Expire(self.ids.execution(step.which), state, ends, draft, now, "E_TIMEOUT")

    def _submit(self, step: model.Submit, now: int, number: int) -> intent.Submit:
        agent = self._agent("x")
        execution = sample(
            owner=self.owner,
            session_id=step.session,
            key=self.key(step.key),
            priority=step.priority,
            agent_id=agent,
            deadline_at=now + HOUR if step.deadline else None,
        )
        execution.id = self.ids.execution(number)
        execution.request_id = self._next()
        execution.created_at = now
        execution.due_at = execution.run_at = now + (HOUR if step.later else 0)
        execution.rank = rank_of(execution.run_at, step.priority, STEP)
        key = None
        if step.idempotency is not None:
            until = now_us() + (-HOUR if step.expired else HOUR)
            key = Idempotency(step.idempotency, step.mark.encode(), until)
        worker = self.store.worker if step.free else None
        draft = request(execution, b'{"parameters":{}}')
        return intent.Submit(execution, draft, worker, step.bound, step.bind, key)

    def _refuse(self, session: str, now: int) -> intent.Refuse:
        asked = Draft(
            id=self._next(),
            type=ContractType.REQUEST,
            from_agent="orchestrator",
            to_agent=None,
            capability="nobody",
            status=None,
            execution_id=None,
            body=b"{}",
        )
        answered = msgspec.structs.replace(
            asked, id=self._next(), type=ContractType.RESPONSE, status=ContractStatus.FAILED
        )
        return intent.Refuse(self.owner, session, asked, answered, now)

    def _attempted(self, step: model.Fenced) -> Execution:
        """Return the execution as its runner believes it to be."""
        execution = self.known.get(self.ids.execution(step.which))
        if execution is None:
            execution = sample(owner=self.owner)
            execution.id = self.ids.execution(step.which)
        if execution.worker is None:
            execution = msgspec.structs.replace(execution, worker=self.store.worker)
        return execution

    def _fence(self, step: model.Fenced) -> Fence:
        held = self._attempted(step)
        assert held.worker is not None
        attempt = held.attempt + (model.NOTHING if step.wrong == "attempt" else 0)
        return Fence(held.id, attempt, "nobody" if step.wrong == "worker" else held.worker)

    def _response(self, which: int, state: State) -> Draft:
        execution = self._attempted(model.Fenced(which=which))
        return msgspec.structs.replace(response(execution, state), id=self._next())

    def _agent(self, name: str) -> str:
        return f"{self.owner}-{name}"

    def _next(self) -> str:
        self._made += 1
        return self.ids.make(3, self._made)

    # -- results become answers ----------------------------------------------------------------

    def _said(self, said: Result) -> Said:
        match said:
            case result.Submitted(execution_id=made, leased=leased, joined=joined):
                return ("submitted", Ids.number(made), leased, joined)
            case result.Appended(first_seq=first):
                return ("appended", first)
            case result.Cancelling(state=state, worker=worker):
                return ("cancelling", state.value, self._epoch(worker))
            case result.Leased(work=work):
                assert all(item.body == b'{"parameters":{}}' for item in work)
                return ("leased", tuple(Ids.number(item.execution.id) for item in work))
            case result.Conflict(reason=reason):
                return ("conflict", reason)
            case result.Rejected(reason=reason):
                return ("rejected", reason)
        return ("ok",)

    def _epoch(self, worker: str | None) -> int | None:
        return None if worker is None else self.epochs.index(worker) + 1

    # -- the whole of it -----------------------------------------------------------------------

    async def records(self, asked: int) -> dict[str, Any]:
        """Return all that this program left, every byte of it, with epochs by number.

        ``asked`` is how many questions may be there.
        """
        questions: dict[int, Any] = {}
        for number in range(asked):
            question = await self.store.question(self.ids.question(number), None)
            if question is not None:
                questions[number] = msgspec.to_builtins(question)
        executions = {}
        events = {}
        for number, execution in sorted((await self.look()).items()):
            plain = msgspec.to_builtins(execution)
            executions[number] = {**plain, "worker": self._epoch(execution.worker)}
            told = await verify_events(self.store, execution)
            events[number] = [msgspec.to_builtins(event) for event in told]
        chains = {}
        for session in SESSIONS:
            if await self.store.session(self.owner, session) is not None:
                rows = await verify_chain(self.store, self.owner, session)
                chains[session] = [msgspec.to_builtins(row) for row in rows]
        tallies = {
            name: (tally.completed, tally.failed)
            for agent, tally in (await self.store.tallies()).items()
            for name in model.AGENTS
            if agent == self._agent(name)
        }
        verdict = await Verification(self.store).run(self.owner)
        assert verdict.ok, verdict.fault
        return {
            "executions": executions,
            "events": events,
            "chains": chains,
            "questions": questions,
            "tallies": tallies,
        }


def _reachable(start: State, end: State) -> bool:
    """Whether the state machine has a way from ``start`` to ``end``, of any length."""
    seen, left = {start}, [start]
    while left:
        for state in EDGES[left.pop()] - seen:
            seen.add(state)
            left.append(state)
    return end in seen

"""The state machine that runs one program of steps on two stores and on the model.

``run`` takes stores that are open: each program has an owner, keys and agents of its own, so that
thousands of them share a database. After every step the answers are compared, at the end all that
the stores hold, byte by byte, and what of it the model knows.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from retinue.domain.ids import now_us
from retinue.interfaces import Store
from torture import model
from torture.model import HOUR, Model, Step
from torture.program import Ids, Performer

MOST_TOGETHER = 6
_programs = itertools.count((os.getpid() % 100_000) * 10_000)


@dataclass(frozen=True)
class Size:
    """How many programs, of how many steps; to find the shortest that fails takes minutes."""

    examples: int
    steps: int
    shrink: bool = True


@dataclass
class Stage:
    """An open store, and how to end its epoch and begin another one."""

    store: Store
    again: Callable[[Store], Awaitable[Store]]

    async def reopen(self) -> Store:
        """Begin a new epoch."""
        self.store = await self.again(self.store)
        return self.store


# -- what may be done --------------------------------------------------------------------------

_which = st.integers(0, 15)
_wrong = st.sampled_from([None, None, None, None, "attempt", "worker"])
_flag = st.booleans()
_rarely = st.sampled_from([False, False, False, True])

SUBMITS = st.builds(
    model.Submit,
    key=st.sampled_from(model.KEYS),
    session=st.sampled_from(model.SESSIONS),
    free=_flag,
    bind=_flag,
    later=_rarely,
    deadline=_rarely,
    priority=st.integers(-1, 1),
    bound=st.sampled_from([1000, 1000, 1000, 2, 1, 0]),
    idempotency=st.sampled_from([None, None, None, "k", "l"]),
    mark=st.sampled_from(["same", "same", "other"]),
    expired=_rarely,
)
LEASES = st.builds(
    model.Lease,
    wants=st.dictionaries(st.sampled_from(model.KEYS), st.integers(1, 3), min_size=1).map(
        lambda wants: tuple(sorted(wants.items()))
    ),
    late=_rarely,
)
ATTEMPTS = st.one_of(
    st.builds(model.Append, which=_which, wrong=_wrong, count=st.integers(1, 3)),
    st.builds(model.Finish, which=_which, wrong=_wrong, state=st.sampled_from(model.ENDS)),
    st.builds(model.Requeue, which=_which, wrong=_wrong, later=_rarely),
    st.builds(model.Ask, which=_which, wrong=_wrong),
)
ENDS = st.one_of(
    st.builds(model.Cancel, which=_which, stranger=_rarely),
    st.builds(model.Expire, which=_which),
)
QUESTIONS = st.one_of(
    st.builds(model.Answer, which=_which, stranger=_rarely), st.builds(model.Close, which=_which)
)
REFUSALS = st.builds(model.Refuse, session=st.sampled_from(model.SESSIONS))
ANY = st.one_of(SUBMITS, LEASES, ATTEMPTS, ENDS, QUESTIONS, REFUSALS)


class StoreMachine(RuleBasedStateMachine):
    """One program. Derive from it to give it a loop and stages (see ``run``)."""

    runner: asyncio.Runner
    stages: Sequence[Stage]

    @initialize()
    def begin(self) -> None:
        """Begin with nothing."""
        self.ids = Ids(next(_programs))
        self.model = Model()
        self.clock = now_us()
        self.performers = [Performer(stage.store, stage.reopen, self.ids) for stage in self.stages]

    def _do(self, *given: Step) -> None:
        self.clock += 1
        steps = [self.model.pointed(step) for step in given]
        numbers = self.model.number(steps)
        expected = self.model.together(steps, self.clock)
        for performer in self.performers:
            answered = self.runner.run(performer.together(steps, self.clock, numbers))
            assert answered == expected, (type(performer.store).__name__, steps)

    @rule(step=SUBMITS)
    def submit(self, step: Step) -> None:
        self._do(step)

    @rule(step=LEASES)
    def lease(self, step: Step) -> None:
        self._do(step)

    @precondition(lambda self: self.model.executions)
    @rule(step=ATTEMPTS)
    def attempt(self, step: Step) -> None:
        self._do(step)

    @precondition(lambda self: self.model.executions)
    @rule(step=ENDS)
    def end(self, step: Step) -> None:
        self._do(step)

    @precondition(lambda self: self.model.questions)
    @rule(step=QUESTIONS)
    def answer(self, step: Step) -> None:
        self._do(step)

    @rule(step=REFUSALS)
    def refuse(self, step: Step) -> None:
        self._do(step)

    @rule(steps=st.lists(ANY, min_size=2, max_size=MOST_TOGETHER))
    def together(self, steps: list[Step]) -> None:
        self._do(*steps)

    @precondition(lambda self: self.model.executions)
    @rule(fates=st.lists(st.sampled_from(["requeue", "fail"]), min_size=1, max_size=12))
    def take_over(self, fates: list[str]) -> None:
        """End the epoch of both; what ran is queued again or ended, as its taker decides."""
        orphans = self.model.take_over()
        for performer in self.performers:
            assert self.runner.run(performer.take_over()) == orphans
        for place, number in enumerate(orphans):
            execution = self.model.executions[number]
            assert execution is not None
            if fates[place % len(fates)] == "requeue" and not execution.cancelling:
                self._do(model.Requeue(which=number))
            else:
                self._do(model.Finish(which=number, state="failed"))

    @rule()
    def look(self) -> None:
        """Compare what waits."""
        for now in (self.clock, self.clock + 2 * HOUR):
            for performer in self.performers:
                assert self.runner.run(performer.backlog(now)) == self.model.backlog(now)

    def teardown(self) -> None:
        """Compare all that is there."""
        if not hasattr(self, "performers"):
            return
        asked = len(self.model.questions)
        first, *others = [self.runner.run(p.records(asked)) for p in self.performers]
        for other in others:
            for part, found in first.items():
                assert other[part] == found, part
        check(self.model, first)
        # Nothing that runs is left for the takeovers of later programs.
        for execution in self.model.stored():
            if execution.state in model.ACTIVE:
                self._do(model.Finish(which=execution.number, state="failed"))


def check(known: Model, found: dict[str, Any]) -> None:
    """Compare what a store holds with what the model knows."""
    seen = {}
    for number, row in found["executions"].items():
        agent = row["agent_id"]
        seen[number] = (
            number,
            row["queue_key"].rpartition(":")[2],
            row["session_id"],
            agent and agent[-1],
            row["priority"],
            row["run_at"],
            row["deadline_at"],
            row["state"],
            row["attempt"],
            row["worker"],
            row["cancel_requested_at"] is not None,
            row["error_code"],
            row["outcome"],
            tuple(event["type"] for event in found["events"][number]),
        )
    assert seen == {e.number: e.seen() for e in known.stored()}
    chains = {
        session: [
            (
                row["type"],
                row["status"],
                Ids.number(row["execution_id"]) if row["execution_id"] else None,
                row["to_agent"] and row["to_agent"][-1] if row["type"] == "REQUEST" else None,
            )
            for row in rows
        ]
        for session, rows in found["chains"].items()
    }
    assert chains == {session: rows for session, rows in known.chains.items() if rows}
    questions = {n: (q["state"], q["answer"] is not None) for n, q in found["questions"].items()}
    assert questions == {
        number: (question.state, question.answered)
        for number, question in enumerate(known.questions)
        if question is not None
    }
    tallies = {agent[-1]: list(counts) for agent, counts in found["tallies"].items()}
    assert tallies == known.tallies


def run(
    runner: asyncio.Runner, stages: Sequence[Stage], size: Size, seed: int | None = None
) -> None:
    """Run as many programs as ``size`` says; with ``seed`` always the same ones.

    Raises:
        AssertionError: a store differs from the model, or from the other store; the program that
            shows it is printed.
    """
    kind = type("Machine", (StoreMachine,), {"runner": runner, "stages": stages})
    run_state_machine_as_test(
        kind if seed is None else seeded(seed)(kind),
        settings=settings(
            max_examples=size.examples,
            stateful_step_count=size.steps,
            phases=[Phase.generate, *([Phase.shrink] if size.shrink else [])],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )


def run_on(stores: Sequence[Store], size: Size, seed: int) -> None:
    """Open ``stores``, run programs on them, and close them; in a thread without a loop."""

    async def again(store: Store) -> Store:
        await store.close()
        await store.open()
        return store

    with asyncio.Runner() as runner:
        opened: list[Store] = []
        try:
            for store in stores:
                runner.run(store.open())
                opened.append(store)
            run(runner, [Stage(store, again) for store in stores], size, seed)
        finally:
            for store in opened:
                runner.run(store.close())

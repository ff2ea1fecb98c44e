"""What the ledger shall do, as plain Python: no transactions, no statements, no hashes.

A *step* is data: it names executions and questions by number, in the order in which they were made,
so that one program of steps runs on any store. ``Model.together`` says what a batch of steps
answers, and what is there afterwards. It is written from the rules of the design, not from the
batch program; where the two differ, one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

T = TypeVar("T")
NOTHING = 999_999
"""The number of what is never made."""
HOUR = 3600 * 1_000_000
STEP = 60 * 1_000_000
"""What a step of priority is worth of waiting."""
WAITING = frozenset({"queued", "scheduled"})
ACTIVE = ("running", "input_required")
ENDS = ("completed", "failed", "timed_out", "cancelled")
EVENTS = {
    "completed": "completed",
    "failed": "failed",
    "timed_out": "failed",
    "cancelled": "cancelled",
}
KEYS = ("a", "b")
AGENTS = ("x", "y")
SESSIONS = ("s", "t")

# -- steps -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Submit:
    """``free``: the caller holds a slot. ``bind``: its agent was chosen only because of that."""

    key: str = "a"
    session: str = "s"
    free: bool = False
    bind: bool = False
    later: bool = False
    deadline: bool = False
    priority: int = 0
    bound: int = 1000
    idempotency: str | None = None
    mark: str = "same"
    expired: bool = False


@dataclass(frozen=True, kw_only=True)
class Lease:
    """``wants`` maps keys to counts; ``late`` asks in two hours, when all is due."""

    wants: tuple[tuple[str, int], ...]
    late: bool = False


@dataclass(frozen=True, kw_only=True)
class Fenced:
    """A step on an attempt: ``wrong`` says what its fence has wrong, if anything."""

    which: int = 0
    wrong: str | None = None


@dataclass(frozen=True, kw_only=True)
class Append(Fenced):
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Finish(Fenced):
    state: str = "completed"


@dataclass(frozen=True, kw_only=True)
class Requeue(Fenced):
    later: bool = False


@dataclass(frozen=True, kw_only=True)
class Ask(Fenced):
    pass


@dataclass(frozen=True, kw_only=True)
class Cancel:
    which: int = 0
    stranger: bool = False


@dataclass(frozen=True, kw_only=True)
class Expire:
    which: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    which: int = 0
    stranger: bool = False


@dataclass(frozen=True, kw_only=True)
class Close:
    which: int = 0


@dataclass(frozen=True, kw_only=True)
class Refuse:
    session: str = "s"


Step = Submit | Lease | Append | Finish | Requeue | Ask | Cancel | Expire | Answer | Close | Refuse
Said = tuple[Any, ...]
"""An answer, as all stores and the model spell it."""


# -- what is there -----------------------------------------------------------------------------


@dataclass(kw_only=True)
class Execution:
    number: int
    key: str
    session: str
    agent: str | None
    priority: int
    run_at: int
    deadline_at: int | None
    state: str = "queued"
    attempt: int = 0
    worker: int | None = None
    cancelling: bool = False
    held: bool = False
    """Whether it waits for its hour: nobody lets it into the queue here."""
    rank: int = 0
    error: str | None = None
    outcome: str | None = None
    events: list[str] = field(default_factory=list)

    def seen(self) -> Said:
        """Return what is compared with a store."""
        return (
            self.number, self.key, self.session, self.agent, self.priority, self.run_at,
            self.deadline_at, self.state, self.attempt, self.worker, self.cancelling, self.error,
            self.outcome, tuple(self.events),
        )  # fmt: skip


@dataclass(kw_only=True)
class Question:
    execution: int
    attempt: int
    state: str = "open"
    answered: bool = False


class Model:
    """The ledger of one owner. ``now`` is the time of the step that is under way."""

    def __init__(self) -> None:
        self.executions: list[Execution | None] = []
        """By number; None: refused, and so never stored."""
        self.questions: list[Question | None] = []
        self.chains: dict[str, list[Said]] = {}
        """Contracts by session: type, status, execution, agent."""
        self.keys: dict[str, tuple[str, int, bool]] = {}
        """Idempotency keys: mark, execution, and whether it has expired."""
        self.tallies: dict[str, list[int]] = {}
        self.epoch = 1
        self.now = 0

    def together(self, steps: Sequence[Step], now: int) -> list[Said]:
        """Do ``steps`` at once; an execution has one step in a commit, its others come after."""
        self.now = now
        answers: dict[int, Said] = {}
        numbers = self.number(steps)
        fences = {i: self.fence(s) for i, s in enumerate(steps) if isinstance(s, Fenced)}
        for step in steps:
            if isinstance(step, Submit):
                self.executions.append(None)
            elif isinstance(step, Ask):
                self.questions.append(None)
        left = list(enumerate(steps))
        while left:
            wave, held, touched = [], [], set()
            for place, step in left:
                subject = _subject(step)
                if subject is not None and subject in touched:
                    held.append((place, step))
                    continue
                touched.add(subject)
                wave.append((place, step))
            _Commit(self, numbers, fences).run(wave, answers)
            left = held
        return [answers[place] for place in range(len(steps))]

    def number(self, steps: Sequence[Step]) -> dict[int, int]:
        """Return which numbers what the steps make will have, whether or not it comes about."""
        executions, questions = len(self.executions), len(self.questions)
        numbers: dict[int, int] = {}
        for place, step in enumerate(steps):
            if isinstance(step, Submit):
                numbers[place] = executions
                executions += 1
            elif isinstance(step, Ask):
                numbers[place] = questions
                questions += 1
        return numbers

    def fence(self, step: Fenced) -> tuple[int, int]:
        """Return the attempt and the epoch that the step's writer believes in, as of now."""
        execution = _at(self.executions, step.which)
        attempt = execution.attempt if execution is not None else 0
        worker = execution.worker if execution is not None else None
        return (
            attempt + (NOTHING if step.wrong == "attempt" else 0),
            -1 if step.wrong == "worker" else worker or self.epoch,
        )

    def pointed(self, step: Step) -> Step:
        """Point a step at something, mostly at one that it can do something with."""
        if isinstance(step, Submit | Lease | Refuse):
            return step
        if isinstance(step, Answer | Close):
            made = len(self.questions)
            lively = [
                n for n, q in enumerate(self.questions) if q is not None and q.state == "open"
            ]
        else:
            made = len(self.executions)
            known = self.stored()
            if isinstance(step, Fenced):
                lively = [e.number for e in known if e.state in ACTIVE]
            else:
                lively = [e.number for e in known if e.state not in ENDS]
        if lively and step.which % 4:
            return replace(step, which=lively[step.which % len(lively)])
        # Nobody can name what is only made in the same commit.
        return replace(step, which=step.which % made if made else NOTHING)

    def stored(self) -> list[Execution]:
        """Return the executions that are there."""
        return [e for e in self.executions if e is not None]

    def take_over(self) -> list[int]:
        """Begin a new epoch; return the executions that the old one ran."""
        self.epoch += 1
        return [e.number for e in self.stored() if e.state in ACTIVE]

    def backlog(self) -> list[str]:
        """Return the keys with work that is ready."""
        ready = {e.key for e in self.stored() if e.state == "queued" and not e.held}
        return [key for key in KEYS if key in ready]


def _at(made: Sequence[T | None], which: int) -> T | None:
    return made[which] if which < len(made) else None


def _subject(step: Step) -> tuple[str, int] | None:
    if isinstance(step, Fenced | Cancel | Expire):
        return ("execution", step.which)
    if isinstance(step, Answer | Close):
        return ("question", step.which)
    return None


class _Commit:
    """One commit: what is read is read as it was before, except for what is locked."""

    def __init__(
        self, model: Model, numbers: dict[int, int], fences: dict[int, tuple[int, int]]
    ) -> None:
        self.model = model
        self.numbers = numbers
        self.fences = fences
        self.asked = list(model.questions)
        self.queued = [e for e in model.stored() if e.state in WAITING]
        self.changed: set[int] = set()

    def run(self, wave: list[tuple[int, Step]], answers: dict[int, Said]) -> None:
        submits = [(place, step) for place, step in wave if isinstance(step, Submit)]
        for place, step in wave:
            if isinstance(step, Ask):
                answers[place] = self.ask(step, place)
            elif not isinstance(step, Submit | Lease):
                answers[place] = self.decide(step, place)
        self.submit(submits, answers)
        for place, step in wave:
            if isinstance(step, Lease):
                answers[place] = self.lease(step)

    def decide(self, step: Any, place: int) -> Said:
        if isinstance(step, Refuse):
            chain = self.model.chains.setdefault(step.session, [])
            chain += [("REQUEST", None, None, None), ("RESPONSE", "failed", None, None)]
            return ("ok",)
        if isinstance(step, Answer | Close):
            return self.resume(step)
        execution = _at(self.model.executions, step.which)
        if isinstance(step, Fenced):
            held = self.fenced(execution, self.fences[place])
            if not isinstance(held, Execution):
                return held
            return self.attempt(held, step)
        if isinstance(step, Cancel):
            return self.cancel(execution, stranger=step.stranger)
        if execution is None or execution.state not in WAITING:
            return ("conflict", "fenced")
        self.end(execution, "timed_out", "E_TIMEOUT", "not_started")
        return ("ok",)

    # -- attempts --

    def fenced(self, execution: Execution | None, fence: tuple[int, int]) -> Execution | Said:
        if execution is None:
            return ("conflict", "not_found")
        if execution.state in ENDS:
            return ("conflict", "terminal")
        if execution.state not in ACTIVE or (execution.attempt, execution.worker) != fence:
            return ("conflict", "fenced")
        return execution

    def attempt(self, execution: Execution, step: Fenced) -> Said:
        first = len(execution.events) + 1
        if isinstance(step, Append):
            execution.events += ["content_chunk"] * step.count
        elif isinstance(step, Finish):
            failed = step.state != "completed"
            self.end(execution, step.state, *(("E_INTERNAL", "failed") if failed else (None, None)))
        elif isinstance(step, Requeue):
            if execution.cancelling:
                return ("conflict", "cancelled")
            self.lose(execution)
            execution.state, execution.worker = "queued", None
            execution.run_at = self.model.now + (HOUR if step.later else 0)
            execution.held = step.later
            self.changed.add(execution.number)
            return ("ok",)
        self.changed.add(execution.number)
        return ("appended", first)

    def cancel(self, execution: Execution | None, *, stranger: bool) -> Said:
        if execution is None or stranger:
            return ("rejected", "not_found")
        worker = execution.worker
        if execution.state in ACTIVE:
            execution.cancelling = True
            self.changed.add(execution.number)
        elif execution.state in WAITING:
            execution.cancelling = True
            self.end(execution, "cancelled", "E_CANCELLED", "not_started")
        return ("cancelling", execution.state, worker)

    def end(self, execution: Execution, state: str, error: str | None, outcome: str | None) -> None:
        ran = execution.state in ACTIVE
        self.lose(execution)
        execution.state, execution.worker = state, None
        execution.error, execution.outcome = error, outcome
        execution.events.append(EVENTS[state])
        self.changed.add(execution.number)
        chain = self.model.chains[execution.session]
        chain.append(("RESPONSE", EVENTS[state], execution.number, None))
        if execution.agent is not None and state != "cancelled" and (ran or state == "failed"):
            tally = self.model.tallies.setdefault(execution.agent, [0, 0])
            tally[0 if state == "completed" else 1] += 1

    # -- questions --

    def ask(self, step: Ask, place: int) -> Said:
        execution = self.fenced(_at(self.model.executions, step.which), self.fences[place])
        if not isinstance(execution, Execution):
            return execution
        if execution.state != "running":
            return ("conflict", "asked")
        execution.state = "input_required"
        execution.events.append("input_required")
        self.changed.add(execution.number)
        asked = Question(execution=execution.number, attempt=execution.attempt)
        self.model.questions[self.numbers[place]] = asked
        return ("appended", len(execution.events))

    def resume(self, step: Answer | Close) -> Said:
        question = _at(self.asked, step.which)
        if question is None or (isinstance(step, Answer) and step.stranger):
            return ("rejected", "not_found")
        if question.state != "open":
            return ("conflict", "answered")
        execution = self.model.executions[question.execution]
        assert execution is not None
        execution.state = "running"
        self.changed.add(execution.number)
        question.state = "answered" if isinstance(step, Answer) else "expired"
        question.answered = isinstance(step, Answer)
        return ("ok",)

    def lose(self, execution: Execution) -> None:
        for question in self.model.questions:
            if question is not None and question.execution == execution.number:
                question.state = "lost" if question.state == "open" else question.state

    # -- the queue --

    def submit(self, submits: list[tuple[int, Submit]], answers: dict[int, Said]) -> None:
        keys = self.model.keys
        depth = {k: sum(e.key == k for e in self.queued) for k in KEYS}
        due = {k: any(e.key == k and not e.held for e in self.queued) for k in KEYS}
        claimed: set[str] = set()
        full: dict[int, int] = {}
        joined: list[tuple[int, int]] = []
        for place, step in submits:
            number = self.numbers[place]
            if step.idempotency is not None:
                held = keys.get(step.idempotency)
                # Within one commit even a key that has expired already stands for its first.
                if held is None or (held[2] and step.idempotency not in claimed):
                    keys[step.idempotency] = (step.mark, number, step.expired)
                    claimed.add(step.idempotency)
                else:
                    mark, holder, _ = held
                    answers[place] = (
                        ("submitted", holder, False, True)
                        if mark == step.mark
                        else ("conflict", "idempotency")
                    )
                    joined.append((place, holder))
                    continue
            leased = step.free and not step.later and not due[step.key]
            # One that brings a free slot makes the queue no longer: the first of it gets that.
            longer = not step.free or step.later
            if not leased and longer and depth[step.key] >= step.bound:
                answers[place] = ("rejected", "queue_full")
                full[number] = step.bound
                continue
            if not leased:
                depth[step.key] += 1
                due[step.key] = due[step.key] or not step.later
            self.accept(step, number, leased=leased)
            answers[place] = ("submitted", number, leased, False)
        for place, holder in joined:
            if holder in full:
                answers[place] = ("rejected", "queue_full")
        for name in [name for name, (_, holder, _) in keys.items() if holder in full]:
            del keys[name]

    def accept(self, step: Submit, number: int, *, leased: bool) -> None:
        agent = None if step.bind and not leased else "x"
        self.model.executions[number] = Execution(
            number=number,
            key=step.key,
            session=step.session,
            agent=agent,
            priority=step.priority,
            run_at=self.model.now + (HOUR if step.later else 0),
            deadline_at=self.model.now + HOUR if step.deadline else None,
            state="running" if leased else "scheduled" if step.later else "queued",
            held=step.later,
            rank=self.model.now + (HOUR if step.later else 0) - step.priority * STEP,
            attempt=1 if leased else 0,
            worker=self.model.epoch if leased else None,
        )
        chain = self.model.chains.setdefault(step.session, [])
        chain.append(("REQUEST", None, number, agent))

    def lease(self, step: Lease) -> Said:
        taken: list[int] = []
        for key, count in sorted(step.wants):
            free = [
                e
                for e in self.queued
                if e.key == key and not e.held and e.number not in self.changed
            ]
            free.sort(key=lambda e: (e.rank, e.number))
            for execution in free[:count]:
                execution.state = "running"
                execution.attempt += 1
                execution.worker = self.model.epoch
                execution.agent = "y"
                if execution.attempt > 1:
                    execution.events.append("attempt_started")
                self.changed.add(execution.number)
                taken.append(execution.number)
        return ("leased", tuple(taken))
